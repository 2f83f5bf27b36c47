"""Every formula of training, once. Pure functions of tensors; sums, so that the loop can divide
by the count of the whole step (a mean of means is wrong on uneven batches, transformers#34191)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.packing import IGNORE


def token_nll_sum(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sum of -ln p(target) in nats, in fp32."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


def token_log_probs(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """ln p(label) at each position, 0 where the label is IGNORE. [B, T]"""
    nll = F.cross_entropy(
        logits_BTV.float().flatten(0, 1),
        labels_BT.flatten(),
        reduction="none",
        ignore_index=IGNORE,
    )
    return -nll.view_as(labels_BT)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits the model needs for each byte of text: nats / (ln 2 * bytes)."""
    return nats / (math.log(2) * num_bytes)


def k_wise_ranking_sum(scores_K: Tensor, ranks_K: Tensor) -> tuple[Tensor, int]:
    """-ln sigmoid(s_better - s_worse), averaged over the pairs of one prompt: one element of the
    batch per prompt (Ouyang et al. 2022, eq. 1). A tie gives no pair.

    Returns (loss, number of pairs); the loss of a prompt without pairs is 0.
    """
    better = ranks_K[:, None] < ranks_K[None, :]
    num_pairs = int(better.sum())
    margins = scores_K[:, None] - scores_K[None, :]
    loss = -(F.logsigmoid(margins.float()) * better).sum() / max(num_pairs, 1)
    return loss, num_pairs


def dpo_sum(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """-ln sigmoid(beta * margin), margin = how much more than the reference the policy prefers
    the chosen answer (Rafailov et al. 2023, eq. 7). Inputs are log-probs of whole answers.

    Returns (sum of losses, margins_B in nats, without beta).
    """
    margins = (policy_chosen_B - reference_chosen_B) - (policy_rejected_B - reference_rejected_B)
    return -F.logsigmoid(beta * margins).sum(), margins


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of its prompt's group; not divided by the standard deviation, which
    would weigh easy and hopeless prompts up (Liu et al. 2025, Dr. GRPO)."""
    return rewards_PG - rewards_PG.mean(dim=1, keepdim=True)


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Schulman's k3 per token: unbiased for KL(policy || reference) on the policy's own samples,
    and never negative."""
    difference = reference_log_probs - log_probs
    return torch.exp(difference) - difference - 1


def grpo_sum(
    log_probs_BT: Tensor,
    sampler_log_probs_BT: Tensor,
    reference_log_probs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    clip: float,
    beta: float,
) -> Tensor:
    """The clipped policy gradient with a KL term, summed over sampled tokens
    (Shao et al. 2024, eq. 3, with token-level normalisation left to the loop)."""
    ratio = torch.exp(log_probs_BT - sampler_log_probs_BT)
    gain = torch.minimum(
        ratio * advantages_B[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages_B[:, None]
    )
    kl = kl_estimate(log_probs_BT, reference_log_probs_BT)
    return ((beta * kl - gain) * mask_BT).sum()

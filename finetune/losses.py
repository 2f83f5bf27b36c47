"""Every formula of training, once. Pure functions of tensors; sums, so that the loop can divide
by the count of the whole step (a mean of means is wrong on uneven batches, transformers#34191)."""

import dataclasses
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = 2**22  # 16 MB of fp32: what a processor's cache still helps with


def linear_nll(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> Tensor:
    """-ln p(target) in nats and fp32 under softmax(hidden @ weight.T / temperature). [N]

    The logits exist for some positions at a time, in the forward and in the backward pass
    (full-vocabulary fp32 logits are what runs out of memory, trl#1980).
    """
    hidden, weight = _as_computed(hidden_ND, weight_VD)
    return cast(Any, _LinearNll).apply(hidden, weight, targets_N, temperature)


def linear_nll_sum(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The sum of `linear_nll`, its gradient made in the forward pass: logits once, not twice."""
    hidden, weight = _as_computed(hidden_ND, weight_VD)
    return cast(Any, _LinearNllSum).apply(hidden, weight, targets_N)


def computed_dtype(x: Tensor) -> torch.dtype:
    """What a product of x is computed in: autocast's type, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _as_computed(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    dtype = computed_dtype(hidden_ND)
    return hidden_ND.to(dtype), weight_VD.to(dtype)


class _LinearNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float
    ) -> Tensor:
        nll = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        normaliser = torch.empty_like(nll)
        for part in _parts(hidden_ND, weight_VD):
            logits = _tempered(hidden_ND[part] @ weight_VD.T, temperature)
            chosen = logits.gather(1, targets_N[part, None])[:, 0]
            normaliser[part], _ = _exponentials(logits)
            nll[part] = normaliser[part] - chosen
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, normaliser)
        ctx.temperature = temperature
        return nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, normaliser = ctx.saved_tensors
        scale_N1 = (grads[0] / ctx.temperature)[:, None]
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        for part in _parts(hidden_ND, weight_VD):
            logits = _tempered(hidden_ND[part] @ weight_VD.T, ctx.temperature)
            odds = logits.sub_(normaliser[part, None]).exp_()
            slope = _less_one(odds, targets_N[part]).mul_(scale_N1[part]).to(hidden_ND.dtype)
            grad_hidden[part] = slope @ weight_VD
            if ctx.needs_input_grad[1]:
                grad_weight += slope.T @ hidden_ND[part]
        return grad_hidden, grad_weight.to(weight_VD.dtype), None, None


class _LinearNllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        for part in _parts(hidden_ND, weight_VD):
            logits = (hidden_ND[part] @ weight_VD.T).float()
            chosen = logits.gather(1, targets_N[part, None])[:, 0]
            normaliser, sums_N1 = _exponentials(logits)
            total += (normaliser - chosen).sum()
            if any(ctx.needs_input_grad):
                slope = _less_one(logits.div_(sums_N1), targets_N[part]).to(hidden_ND.dtype)
                grad_hidden[part] = slope @ weight_VD
                grad_weight += slope.T @ hidden_ND[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = (grad_hidden.float() * grads[0]).to(grad_hidden.dtype)
        return scaled, (grad_weight * grads[0]).to(grad_hidden.dtype), None


def _parts(hidden_ND: Tensor, weight_VD: Tensor) -> list[slice]:
    rows = max(1, LOGITS_AT_ONCE // len(weight_VD))
    return [slice(at, at + rows) for at in range(0, len(hidden_ND), rows)]


def _tempered(logits_NV: Tensor, temperature: float) -> Tensor:
    logits = logits_NV.float()
    return logits if temperature == 1 else logits / temperature


def _exponentials(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """ln sum exp of each row; and the sums by which the logits, exponentials now, are
    probabilities. In place: each pass over them costs as much as the product that made them.
    [N], [N, 1]"""
    most_N1 = logits_NV.amax(dim=1, keepdim=True)
    sums_N1 = logits_NV.sub_(most_N1).exp_().sum(dim=1, keepdim=True)
    return (most_N1 + sums_N1.log())[:, 0], sums_N1


def _less_one(probabilities_NV: Tensor, targets_N: Tensor) -> Tensor:
    """softmax - onehot, in place."""
    ones = probabilities_NV.new_full((len(targets_N), 1), -1.0)
    return probabilities_NV.scatter_add_(1, targets_N[:, None], ones)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits the model needs for each byte of text: nats / (ln 2 * bytes)."""
    return nats / (math.log(2) * num_bytes)


def k_wise_ranking_sum(scores_K: Tensor, better_KK: Tensor) -> Tensor:
    """-ln sigmoid(s_i - s_j), averaged over the pairs of one prompt in which answer i is better
    than j (`better_KK[i, j]`): all C(K, 2) pairs as one element of the batch (Ouyang et al. 2022,
    eq. 1). A tie gives no pair; the loss without pairs is 0."""
    margins = (scores_K[:, None] - scores_K[None, :]).float()
    return -(F.logsigmoid(margins) * better_KK).sum() / better_KK.sum().clamp(min=1)


def pairwise_margin_sum(chosen_B: Tensor, rejected_B: Tensor, margins_B: Tensor) -> Tensor:
    """-ln sigmoid(s_chosen - s_rejected - margin), the margin growing with how sure the labeler
    was (Touvron et al. 2023, eq. 2)."""
    return -F.logsigmoid((chosen_B - rejected_B).float() - margins_B).sum()


def dpo_sum(margins_B: Tensor, beta: float) -> Tensor:
    """-ln sigmoid(beta * margin) (Rafailov et al. 2023, eq. 7). A margin is how much more than the
    reference the policy prefers the chosen answer, in nats."""
    return -F.logsigmoid(beta * margins_B).sum()


def ipo_sum(margins_B: Tensor, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17); at the start 1 / (4 beta^2)."""
    return (margins_B - 1 / (2 * beta)).square().sum()


def kto_sum(log_ratios_B: Tensor, desirable_B: Tensor, kl: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta * (log ratio - kl)) for a desirable answer, of the opposite sign for an
    undesirable one (Ethayarajh et al. 2024, eq. 8, both weights 1). `kl` is their z_0: no less
    than 0, and no gradient flows through it."""
    sign = torch.where(desirable_B, 1.0, -1.0)
    return (1 - torch.sigmoid(beta * sign * (log_ratios_B - kl.detach().clamp(min=0)))).sum()


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Schulman's k3 per token: unbiased for KL(policy || reference) on the policy's own samples,
    and never negative."""
    difference = reference_log_probs - log_probs
    return torch.exp(difference) - difference - 1


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of its prompt's group; not divided by the standard deviation, which
    would weigh easy and hopeless prompts up (Liu et al. 2025, Dr. GRPO)."""
    return rewards_PG - rewards_PG.mean(dim=1, keepdim=True)


def clipped_gain(
    log_probs: Tensor, sampler_log_probs: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate, to be maximised, and whether the clip took the gradient away
    (Schulman et al. 2017, eq. 7); elementwise."""
    ratio = torch.exp(log_probs - sampler_log_probs)
    free, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.minimum(free, held), held < free


def grpo_sum(
    log_probs_BT: Tensor,
    reference_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    beta: float,
) -> Tensor:
    """The policy gradient of tokens that these very log-probs sampled, whose ratio to themselves is
    1, with a KL term; summed over sampled tokens (Shao et al. 2024, eq. 3, where the policy that
    sampled is the policy itself; token-level normalisation is left to the loop)."""
    ratio = torch.exp(log_probs_BT - log_probs_BT.detach())
    kl = kl_estimate(log_probs_BT, reference_BT)
    return ((beta * kl - ratio * advantages_BT) * mask_BT).sum()


def generalised_advantages(
    rewards_ST: Tensor, values_ST: Tensor, mask_ST: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) of S answers whose tokens are marked by `mask_ST`, each a run without
    holes; after an answer's last token the value is 0 (Schulman et al. 2016, eq. 16). [S, T]"""
    advantages = torch.zeros_like(rewards_ST)
    running = torch.zeros_like(rewards_ST[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards_ST.shape[1])):
        inside = mask_ST[:, t]
        delta = rewards_ST[:, t] + gamma * following - values_ST[:, t]
        running = torch.where(inside, delta + gamma * lam * running, 0.0)
        following = torch.where(inside, values_ST[:, t], 0.0)
        advantages[:, t] = running
    return advantages, (advantages + values_ST) * mask_ST


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """To mean 0 and variance 1 over the masked entries; the others become 0 and do not count."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def clipped_value_sum(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Half the squared error, the worse of the value and of the value kept within `clip` of what it
    was (the value loss of OpenAI's baselines, as lm-human-preferences uses it)."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    worse = torch.maximum((values - returns).square(), (held - returns).square())
    return 0.5 * (worse * mask).sum()


@dataclasses.dataclass(frozen=True)
class AdaptiveKl:
    """The weight of the KL penalty, moved towards `target` nats an answer in proportion to the
    error, clipped at 20% (Ziegler et al. 2019, section 2.2). `horizon` is in answers; 0 leaves the
    weight as it is. A step no more than halves it."""

    weight: float
    target: float
    horizon: float

    def after(self, kl: float, num_answers: int) -> "AdaptiveKl":
        if not self.horizon:
            return self
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        factor = max(0.5, 1 + error * num_answers / self.horizon)
        return dataclasses.replace(self, weight=self.weight * factor)


@dataclasses.dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of all rewards so far (Chan, Golub and LeVeque 1979): by them rewards are
    centred and scaled alike in every step."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, values: Tensor) -> "RunningMoments":
        number, mean = len(values), float(values.double().mean())
        squares = float((values.double() - mean).square().sum())
        total, shift = self.count + number, mean - self.mean
        return RunningMoments(
            total,
            self.mean + shift * number / total,
            self.squares + squares + shift**2 * self.count * number / total,
        )

    def standardised(self, values: Tensor) -> Tensor:
        """Of mean 0 and deviation 1. Rewards that all tie become 0, not enormous."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return (values - self.mean) / deviation if deviation > 1e-6 else torch.zeros_like(values)

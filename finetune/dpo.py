"""Direct preference optimisation: the policy learns from ranked answers without a reward model.

DPO and IPO learn from pairs, KTO from single answers that are wanted or not. The reference's
log-probs are computed once, from the SFT model by name: never "the policy without its adapter".
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from finetune.adapter import AdapterConfig, whole_model, with_adapter
from finetune.data import shuffled_epochs
from finetune.kv_cache import context_length
from finetune.labels import RankedPrompt, answer_segment, ranked_prompts
from finetune.loop import DECAY, PEAK, Loss, Step, Steps, Update, precision_of, train
from finetune.losses import dpo_sum, ipo_sum, kto_sum
from finetune.model import Precision, label_log_probs, load_language_model, place
from finetune.packing import Segment, lay_segments
from finetune.registry import Registry
from finetune.stage import Trained, run_stage
from finetune.tokenizer import PAD, load_tokenizer, token_id
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest

VERSION = 3
_TOKENS_AT_ONCE = 8192


class DpoConfig(AdapterConfig):
    """[dpo]"""

    loss: Literal["dpo", "ipo", "kto"] = Field("dpo", description="what is made small")
    learning_rate: float = Field(2e-4, gt=0, description=PEAK)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    beta: float = Field(0.1, gt=0, description="strength of the tie to the SFT model")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    batch_pairs: int = Field(16, ge=1, description="pairs of one optimizer step")
    micro_batch_pairs: int = Field(16, ge=1, description="pairs on the device at once")
    max_length: int = Field(256, ge=32, description="tokens of prompt and answer")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer, and what the reference gives each: ln p of the
    whole answer. For KTO's KL alone: `other`, another prompt's better answer behind this prompt."""

    prompt_id: str
    chosen: Segment
    rejected: Segment
    reference_chosen: float
    reference_rejected: float
    other: Segment | None = None
    reference_other: float = 0.0


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Pairs, and the KL of the step that they are of (KTO's alone)."""

    pairs: Sequence[Pair]
    kl: float = 0.0


def run_dpo(
    config: DpoConfig,
    sft_id: str,
    labels: Manifest,
    run: RunConfig,
    hygiene: Manifest | None = None,
) -> Manifest:
    """Train from the SFT model, which is also the reference; `facts` has model_id and the mean
    margin of held-out pairs (0 before, by definition)."""

    def fit(folder: Path) -> Trained:
        checkpoint = Registry(run.root).verified(sft_id)
        tokenizer = load_tokenizer(checkpoint)
        pad_id = token_id(tokenizer, PAD)
        reference = place(load_language_model(checkpoint), precision_of(config).device)
        longest = min(config.max_length, context_length(reference.config))
        precision = precision_of(config)
        with precision.autocast():  # as the policy will compute
            (found, dropped), (held_out, _) = (
                make_pairs(
                    tokenizer, reference, ranked_prompts(labels, heldout=h), longest, config.loss
                )
                for h in (False, True)
            )
        if not found:
            raise UserError(
                f"no pair is left for DPO of {sum(dropped.values())} ({dropped}); rank more answers"
                f" or raise dpo.max_length = {config.max_length}"
            )
        del reference
        model = load_language_model(checkpoint)
        adapted = with_adapter(model, config)
        num_steps = max(1, round(config.epochs * len(found) / config.batch_pairs))
        objective = functools.partial(_objective, config=config, pad_id=pad_id)
        evaluate = _evaluation(held_out, pad_id, num_steps, precision)
        source = _source(found, config, pad_id)
        train("dpo", model, objective, source, num_steps, config, folder, evaluate)
        model = whole_model(model, adapted, config, checkpoint, folder / "adapter")
        facts = {
            "heldout_prompts": [pair.prompt_id for pair in held_out],
            "heldout_margins": [round(m, 5) for m in margins(model, held_out, pad_id, precision)],
        }
        num_read = len(found) + sum(dropped.values())
        return Trained(model, tokenizer, Counts(num_read, len(found), dropped), facts)

    again = functools.partial(run_dpo, config, sft_id, labels, run, hygiene)
    parents: dict[str, Manifest | str] = {"labels": labels, "sft": sft_id}
    parents |= {"hygiene": hygiene} if hygiene else {}
    return run_stage("dpo", VERSION, config, config.identity(), parents, run, fit, again)


def make_pairs(
    tokenizer: Tokenizer,
    reference: nn.Module,
    ranked: Sequence[RankedPrompt],
    max_length: int,
    loss: str = "dpo",
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs most labelers agree on, with the reference's log-probs, and how many were left out,
    by reason: longer than max_length tokens, or the same text on both sides."""
    dropped: dict[str, int] = {}
    kept: list[Pair] = []
    for prompt in ranked:
        segments = [answer_segment(tokenizer, prompt.prompt, answer) for answer in prompt.answers]
        for better, worse in prompt.majority_pairs():
            chosen, rejected = segments[better], segments[worse]
            reason = "equal-sides" * (
                prompt.answers[better] == prompt.answers[worse]
            ) or "too-long" * (max(len(chosen.ids), len(rejected.ids)) > max_length)
            if reason:
                dropped[reason] = dropped.get(reason, 0) + 1
            else:
                kept.append(Pair(prompt.prompt_id, chosen, rejected, 0.0, 0.0))
    pad_id = token_id(tokenizer, PAD)
    sums = iter(
        answer_log_probs(reference, [s for p in kept for s in (p.chosen, p.rejected)], pad_id)
    )
    pairs = [
        dataclasses.replace(p, reference_chosen=next(sums), reference_rejected=next(sums))
        for p in kept
    ]
    if loss == "kto":
        others = _others(pairs, max_length)
        of_others = answer_log_probs(reference, others, pad_id)
        pairs = [
            dataclasses.replace(p, other=other, reference_other=value)
            for p, other, value in zip(pairs, others, of_others, strict=True)
        ]
    return pairs, dropped


def _others(pairs: Sequence[Pair], max_length: int) -> list[Segment]:
    """Behind each pair's prompt the better answer of the next prompt that is another one."""
    found: list[Segment] = []
    starts = [n for n, p in enumerate(pairs) if n == 0 or p.prompt_id != pairs[n - 1].prompt_id]
    for start, end in itertools.pairwise([*starts, len(pairs)]):
        after = pairs[end % len(pairs)].chosen
        answer = after.ids[after.supervised.index(True) :]
        for pair in pairs[start:end]:
            before = pair.chosen.ids[: pair.chosen.supervised.index(True)]
            cut = answer[: max(1, max_length - len(before))]
            marks = (*(False for _ in before), *(True for _ in cut))
            found.append(Segment((*before, *cut), marks))
    return found


@torch.no_grad()
def answer_log_probs(model: nn.Module, segments: Sequence[Segment], pad_id: int) -> list[float]:
    """ln p of each segment's supervised tokens together, in nats and fp32."""
    model.eval()
    device = next(model.parameters()).device
    values: list[float] = []
    for several in _within(segments, _TOKENS_AT_ONCE):
        batch = lay_segments(several, pad_id).to(device)
        values += batch.sums(label_log_probs(model, batch.tokens)).tolist()
    return values


def _within(segments: Sequence[Segment], budget: int) -> Iterator[list[Segment]]:
    several: list[Segment] = []
    size = 0
    for segment in segments:
        if several and size + len(segment.ids) > budget:
            yield several
            several, size = [], 0
        several.append(segment)
        size += len(segment.ids)
    if several:
        yield several


def _log_ratios(
    model: nn.Module, segments: Sequence[Segment], reference: Sequence[float], pad_id: int
) -> Tensor:
    """ln p of each answer, less the reference's. [S]"""
    device = next(model.parameters()).device
    batch = lay_segments(segments, pad_id).to(device)
    sums = batch.sums(label_log_probs(model, batch.tokens))
    return sums - torch.tensor(reference, device=device)


def pair_margins(
    model: nn.Module, pairs: Sequence[Pair], pad_id: int, *, per_token: bool = False
) -> Tensor:
    """How much more than the reference the model prefers each chosen answer, in nats, of the whole
    answer or a token of it. [B]"""
    segments = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    reference = [p.reference_chosen for p in pairs] + [p.reference_rejected for p in pairs]
    ratios = _log_ratios(model, segments, reference, pad_id)
    if per_token:
        ratios = ratios / torch.tensor([sum(s.supervised) for s in segments], device=ratios.device)
    return ratios[: len(pairs)] - ratios[len(pairs) :]


def _objective(model: nn.Module, batch: PairBatch, config: DpoConfig, pad_id: int) -> Loss:
    pairs = batch.pairs
    if config.loss == "kto":
        return _kto(model, batch, config.beta, pad_id)
    # IPO's authors average over an answer's tokens (so they told trl, whose trainer says it).
    values = pair_margins(model, pairs, pad_id, per_token=config.loss == "ipo")
    total = (dpo_sum if config.loss == "dpo" else ipo_sum)(values, config.beta)
    found = values.detach()
    return Loss(total, {"margin": found.sum(), "accuracy": (found > 0).sum()})


def _kto(model: nn.Module, batch: PairBatch, beta: float, pad_id: int) -> Loss:
    """Both sides of each pair as answers of their own; a pair counts once."""
    pairs = batch.pairs
    segments = [s for p in pairs for s in (p.chosen, p.rejected)]
    reference = [v for p in pairs for v in (p.reference_chosen, p.reference_rejected)]
    ratios = _log_ratios(model, segments, reference, pad_id)
    kl = ratios.new_tensor(batch.kl)
    desirable = torch.tensor([True, False] * len(pairs), device=ratios.device)
    found = (ratios[::2] - ratios[1::2]).detach()
    metrics = {"margin": found.sum(), "accuracy": (found > 0).sum(), "kl": kl * len(pairs)}
    return Loss(kto_sum(ratios, desirable, kl, beta) / 2, metrics)


@torch.no_grad()
def margins(
    model: nn.Module, pairs: Sequence[Pair], pad_id: int, precision: Precision
) -> list[float]:
    """The margins of any number of pairs, in evaluation."""
    model.eval()
    values: list[float] = []
    for at in range(0, len(pairs), 16):
        with precision.autocast():
            values += pair_margins(model, pairs[at : at + 16], pad_id).tolist()
    return values


@torch.no_grad()
def _kl(model: nn.Module, pairs: Sequence[Pair], config: DpoConfig, pad_id: int) -> float:
    """KTO's z_0: how much likelier than to the reference answers to other prompts are, on average
    over the whole step."""
    model.eval()
    total = 0.0
    for at in range(0, len(pairs), config.micro_batch_pairs):
        several = pairs[at : at + config.micro_batch_pairs]
        others = [p.other for p in several if p.other is not None]
        reference = [p.reference_other for p in several]
        with precision_of(config).autocast():
            total += float(_log_ratios(model, others, reference, pad_id).sum())
    return total / len(pairs)


def _source(pairs: Sequence[Pair], config: DpoConfig, pad_id: int) -> Steps:
    def step_of(step: int, model: nn.Module) -> Step[PairBatch]:
        start = step * config.batch_pairs
        chosen = [
            pairs[i] for i in shuffled_epochs(len(pairs), start, config.batch_pairs, config.seed)
        ]
        lengths = [len(s.ids) for p in chosen for s in (p.chosen, p.rejected)]
        kl = _kl(model, chosen, config, pad_id) if config.loss == "kto" else 0.0
        micro = [
            PairBatch(chosen[at : at + config.micro_batch_pairs], kl)
            for at in range(0, len(chosen), config.micro_batch_pairs)
        ]
        return Step([Update(micro, len(chosen))], sum(lengths), sum(n**2 for n in lengths))

    return Steps(step_of)


def _evaluation(
    held_out: Sequence[Pair], pad_id: int, num_steps: int, precision: Precision
) -> Callable[[int, nn.Module], dict[str, float]]:
    every = max(1, num_steps // 4)

    def evaluate(steps_done: int, model: nn.Module) -> dict[str, float]:
        if (steps_done % every and steps_done != num_steps) or not held_out:
            return {}
        values = margins(model, held_out, pad_id, precision)
        return {"heldout_margin": sum(values) / len(values)}

    return evaluate

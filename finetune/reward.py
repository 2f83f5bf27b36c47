"""The reward model: it learns to rank answers as people did, all K of a prompt at once.

It starts from the base model, not from SFT: SFT has read the ideal answers of all training
prompts, so in a cross-validation over those prompts it would have seen what it is tested on.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig

from finetune.data import shuffled_epochs
from finetune.distributed import gathered
from finetune.kv_cache import context_length
from finetune.labels import RankedPrompt, answer_segment, ranked_prompts
from finetune.loop import DECAY, PEAK, LoopConfig, Loss, Step, Steps, Update, precision_of, train
from finetune.losses import k_wise_ranking_sum, pairwise_margin_sum
from finetune.model import end_scores, place, reward_model_from
from finetune.packing import Segment, lay_segments
from finetune.registry import Registry
from finetune.stage import Trained, run_stage
from finetune.tokenizer import PAD, load_tokenizer, token_id
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.identity import unit_interval
from pipeline.core.manifest import Counts, Manifest

VERSION = 3
PAIRS = "crossvalidated-pairs.json"
_BINS = 10


class RewardConfig(LoopConfig):
    """[reward]"""

    loss: Literal["k-wise", "pairwise", "margin"] = Field(
        "k-wise",
        description="k-wise: all pairs of a prompt count as one; pairwise: each as one; margin:"
        " pairwise, and the wider apart the surer the labeler was",
    )
    learning_rate: float = Field(5e-4, gt=0, description=PEAK)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    epochs: float = Field(2.0, gt=0, description="passes over the rankings")
    batch_prompts: int = Field(8, ge=1, description="rankings of one optimizer step")
    micro_batch_prompts: int = Field(8, ge=1, description="rankings on the device at once")
    max_length: int = Field(256, ge=32, description="tokens of prompt and answer")
    folds: int = Field(5, ge=2, description="of the cross-validation by prompt")


@dataclasses.dataclass(frozen=True)
class AnswerSet:
    """A prompt's K answers, each after the prompt; per labeler with an opinion, the (better,
    worse) pairs and how much better."""

    prompt_id: str
    segments: tuple[Segment, ...]
    pairs: tuple[tuple[tuple[int, int], ...], ...]
    margins: tuple[float, ...]
    num_chars: tuple[int, ...]


def run_reward(
    config: RewardConfig,
    base_id: str,
    labels: Manifest,
    run: RunConfig,
    hygiene: Manifest | None = None,
) -> Manifest:
    """Cross-validate by prompt, then train on all training prompts and publish.

    `facts` has model_id and the calibration; crossvalidated-pairs.json holds, for each held-out
    pair of each fold, whether the model and whether the length alone put the better answer first,
    and how sure the model was of it.
    """

    def fit(folder: Path) -> Trained:
        base = Registry(run.root).verified(base_id)
        tokenizer = load_tokenizer(base)
        ranked = ranked_prompts(labels, heldout=False)
        context = context_length(AutoConfig.from_pretrained(str(base)))
        sets, dropped = answer_sets(tokenizer, ranked, min(config.max_length, context))
        if len({s.prompt_id for s in sets}) < config.folds:
            raise UserError(
                f"{len(sets)} ranked prompts ({dropped or 'none'} left out) are too few for"
                f" reward.folds = {config.folds}; rank more, or raise reward.max_length"
            )
        pad_id = token_id(tokenizer, PAD)
        pairs = cross_validate(config, base, sets, pad_id, folder)
        storage.write_bytes(str(folder / PAIRS), json.dumps(pairs).encode())
        model = _fit("reward", config, base, sets, pad_id, folder)
        counts = Counts(len(ranked), len(sets), dropped)
        facts = {"calibration": calibration([pair["probability"] for pair in pairs])}
        right = {side: sum(p[side] for p in pairs) / len(pairs) for side in ("model", "length")}
        measured = {
            "pairs judged in cross-validation": len(pairs),
            "share right": right["model"],
            "share right by length alone": right["length"],
            "calibration error": facts["calibration"]["error"],
        }
        return Trained(gathered(model), tokenizer, counts, facts, measured, {PAIRS: len(pairs)})

    again = functools.partial(run_reward, config, base_id, labels, run, hygiene)
    parents: dict[str, Manifest | str] = {"base": base_id, "labels": labels}
    parents |= {"hygiene": hygiene} if hygiene else {}
    return run_stage("reward", VERSION, config, config.identity(), parents, run, fit, again)


def answer_sets(
    tokenizer: Tokenizer, ranked: Sequence[RankedPrompt], max_length: int
) -> tuple[list[AnswerSet], dict[str, int]]:
    """The prompts with their answers as segments, and how many were left out, by reason: an answer
    is too long, or nobody found any answer better than another."""
    sets: list[AnswerSet] = []
    dropped: dict[str, int] = {}
    for prompt in ranked:
        segments = [answer_segment(tokenizer, prompt.prompt, answer) for answer in prompt.answers]
        opinions = [prompt.pairs(labeler) for labeler in range(len(prompt.rankings))]
        reason = "too-long" * (
            max(len(segment.ids) for segment in segments) > max_length
        ) or "all-tied" * (not any(opinions))
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        sets.append(
            AnswerSet(
                prompt.prompt_id,
                tuple(segments),
                tuple(tuple(pairs) for pairs in opinions if pairs),
                tuple(m for m, pairs in zip(prompt.margins, opinions, strict=True) if pairs),
                tuple(len(answer) for answer in prompt.answers),
            )
        )
    return sets, dropped


def score_answers(model: nn.Module, sets: Sequence[AnswerSet], pad_id: int) -> list[Tensor]:
    """The scores of each prompt's K answers, all read in one batch."""
    segments = [segment for answers in sets for segment in answers.segments]
    scores = end_scores(model, lay_segments(segments, pad_id).to(next(model.parameters()).device))
    return list(scores.split([len(answers.segments) for answers in sets]))


def ranking_objective(
    model: nn.Module, sets: Sequence[AnswerSet], pad_id: int, loss: str = "k-wise"
) -> Loss:
    """The loss of each prompt, the mean over its labelers, summed over prompts (k-wise); or of each
    labeler's pairs, summed (pairwise)."""
    losses: list[Tensor] = []
    for scores, answers in zip(score_answers(model, sets, pad_id), sets, strict=True):
        of_labelers: list[Tensor] = []
        for pairs, margin in zip(answers.pairs, answers.margins, strict=True):
            better, worse = (torch.tensor(side) for side in zip(*pairs, strict=True))
            if loss == "k-wise":
                mask = torch.zeros(len(scores), len(scores), dtype=torch.bool)
                mask[better, worse] = True
                of_labelers.append(k_wise_ranking_sum(scores, mask.to(scores.device)))
            else:
                wanted = torch.full((len(pairs),), margin * (loss == "margin"))
                gaps = wanted.to(scores.device)
                of_labelers.append(pairwise_margin_sum(scores[better], scores[worse], gaps))
        every = torch.stack(of_labelers)
        losses.append(every.mean() if loss == "k-wise" else every.sum())
    return Loss(torch.stack(losses).sum())


def cross_validate(
    config: RewardConfig, base: Path, sets: Sequence[AnswerSet], pad_id: int, folder: Path
) -> list[dict[str, Any]]:
    """Each prompt is judged by a model that saw none of its answers. Prompts are dealt to the folds
    in the order of their hash."""
    places = {s.prompt_id: unit_interval(s.prompt_id, "fold") for s in sets}
    dealt = {
        name: i % config.folds for i, name in enumerate(sorted(places, key=lambda n: places[n]))
    }
    fold_of = [dealt[s.prompt_id] for s in sets]
    pairs: list[dict[str, Any]] = []
    for fold in range(config.folds):
        inside = [s for s, number in zip(sets, fold_of, strict=True) if number != fold]
        outside = [s for s, number in zip(sets, fold_of, strict=True) if number == fold]
        label = f"reward fold {fold + 1}/{config.folds}"
        model = gathered(_fit(label, config, base, inside, pad_id, folder / f"fold-{fold}"))
        place(model, precision_of(config).device)
        longer_wins = _longer_wins(inside)
        for answers in outside:
            pairs += _judge(model, answers, pad_id, fold, longer_wins)
    return pairs


def calibration(probabilities: Sequence[float]) -> dict[str, Any]:
    """How often the model was right when it was so sure: per tenth of confidence in the answer it
    put first, (mean confidence, share right, pairs); and the expected error, the mean gap weighted
    by pairs (Guo et al. 2017). `probabilities` are those it gave to the better answer."""
    bins: list[list[tuple[float, float]]] = [[] for _ in range(_BINS)]
    for p in probabilities:
        sure = max(p, 1 - p)
        right = 0.5 if p == 0.5 else float(p > 0.5)
        bins[min(int((sure - 0.5) * 2 * _BINS), _BINS - 1)].append((sure, right))
    rows = [
        (sum(s for s, _ in b) / len(b), sum(r for _, r in b) / len(b), len(b)) for b in bins if b
    ]
    error = sum(abs(s - r) * n for s, r, n in rows) / max(1, len(probabilities))
    return {"bins": [[round(s, 5), round(r, 5), n] for s, r, n in rows], "error": round(error, 5)}


def _fit(
    label: str,
    config: RewardConfig,
    base: Path,
    sets: Sequence[AnswerSet],
    pad_id: int,
    folder: Path,
) -> Any:
    model = reward_model_from(base)
    num_steps = max(1, round(config.epochs * len(sets) / config.batch_prompts))
    objective = functools.partial(ranking_objective, pad_id=pad_id, loss=config.loss)
    train(label, model, objective, _source(sets, config), num_steps, config, folder)
    return model


def _source(sets: Sequence[AnswerSet], config: RewardConfig) -> Steps:
    def step_of(step: int, _model: nn.Module) -> Step[Sequence[AnswerSet]]:
        start = step * config.batch_prompts
        index = shuffled_epochs(len(sets), start, config.batch_prompts, config.seed)
        chosen = [sets[i] for i in index]
        micro = [
            chosen[at : at + config.micro_batch_prompts]
            for at in range(0, len(chosen), config.micro_batch_prompts)
        ]
        pairs = sum(len(pairs) for s in chosen for pairs in s.pairs)
        count = len(chosen) if config.loss == "k-wise" else pairs
        lengths = [len(segment.ids) for s in chosen for segment in s.segments]
        return Step([Update(micro, count)], sum(lengths), sum(n**2 for n in lengths))

    return Steps(step_of)


@torch.no_grad()
def _judge(
    model: nn.Module, answers: AnswerSet, pad_id: int, fold: int, longer_wins: bool
) -> list[dict[str, Any]]:
    """One row per ordered pair of each labeler. Equal scores or lengths are half right."""
    model.eval()
    scores = score_answers(model, [answers], pad_id)[0].tolist()
    lengths = [n if longer_wins else -n for n in answers.num_chars]
    return [
        {
            "prompt_id": answers.prompt_id,
            "fold": fold,
            "model": _right(scores[a] - scores[b]),
            "probability": round(float(torch.sigmoid(torch.tensor(scores[a] - scores[b]))), 6),
            "length": _right(lengths[a] - lengths[b]),
        }
        for pairs in answers.pairs
        for a, b in pairs
    ]


def _right(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _longer_wins(sets: Sequence[AnswerSet]) -> bool:
    """What the length-only baseline learns: whether the longer of two answers is the better."""
    votes = sum(
        (s.num_chars[a] > s.num_chars[b]) - (s.num_chars[a] < s.num_chars[b])
        for s in sets
        for pairs in s.pairs
        for a, b in pairs
    )
    return votes >= 0

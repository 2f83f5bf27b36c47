"""The reward model: it learns to rank answers as people did, all K of a prompt at once.

It starts from the base model, not from SFT: SFT has read the ideal answers of all training
prompts, so in a cross-validation over those prompts it would have seen what it is tested on.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from finetune.labels import RankedPrompt, answer_segment, ranked_prompts
from finetune.loop import DECAY, PEAK, LoopConfig, Loss, Step, TrainResult, train
from finetune.losses import k_wise_ranking_sum
from finetune.model import end_scores, reward_model_from
from finetune.packing import Segment, pad_right
from finetune.pretrain import shuffled_epochs
from finetune.registry import Registry
from finetune.tokenizer import PAD, load_tokenizer, token_id
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.identity import unit_interval
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

VERSION = 1
PAIRS = "crossvalidated-pairs.json"


class RewardConfig(LoopConfig):
    """[reward]"""

    learning_rate: float = Field(5e-4, gt=0, description=PEAK)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    epochs: float = Field(2.0, gt=0, description="passes over the rankings")
    batch_prompts: int = Field(8, ge=1, description="rankings of one optimizer step")
    max_length: int = Field(256, ge=32, description="tokens of prompt and answer")
    folds: int = Field(5, ge=2, description="of the cross-validation by prompt")


@dataclasses.dataclass(frozen=True)
class AnswerSet:
    """A prompt's K answers, each after the prompt, and each labeler's ranks [L, K]."""

    prompt_id: str
    segments: tuple[Segment, ...]
    ranks_LK: Tensor
    num_chars: tuple[int, ...]


def run_reward(config: RewardConfig, base_id: str, labels: Manifest, run: RunConfig) -> Manifest:
    """Cross-validate by prompt, then train on all training prompts and publish.

    `facts` has model_id; crossvalidated-pairs.json holds, for each held-out pair of each fold,
    whether the model and whether the length alone put the better answer first.
    """
    parents = {"base": base_id, "labels": labels}
    output = StageOutput.of(run.root, "reward", VERSION, config.identity(), parents)
    registry = Registry(run.root)
    if done := output.finished():
        return registry.with_model(done)
    started = time.time()
    base = registry.verified(base_id)
    tokenizer = load_tokenizer(base)
    ranked = ranked_prompts(labels, heldout=False)
    sets = [s for s in (answer_set(tokenizer, r, config.max_length) for r in ranked) if s]
    if len(sets) < config.folds:
        raise UserError(f"{len(sets)} ranked prompts are too few for reward.folds = {config.folds}")
    folder = storage.local_path(output.url)
    with output.lock():
        pad_id = token_id(tokenizer, PAD)
        pairs = cross_validate(config, base, sets, pad_id, folder)
        storage.write_bytes(output.path(PAIRS), json.dumps(pairs).encode())
        model, result = _fit("reward", config, base, sets, pad_id, folder)
        lineage = {"kind": "reward", "parents": output.parents, "config": config.identity()}
        model_id = registry.publish(model.cpu(), tokenizer, lineage)
    files = [
        describe_file(output.path("metrics.jsonl"), "metrics.jsonl", len(result.metrics)),
        describe_file(output.path(PAIRS), PAIRS, len(pairs)),
    ]
    dropped = {"too-long": len(ranked) - len(sets)} if len(sets) < len(ranked) else {}
    counts = Counts(len(ranked), len(sets), dropped)
    manifest = output.commit(files, counts, started=started, facts={"model_id": model_id})
    for checkpoint in folder.rglob("checkpoint.pt"):
        checkpoint.unlink()
    return manifest


def answer_set(tokenizer: Tokenizer, ranked: RankedPrompt, max_length: int) -> AnswerSet | None:
    """The prompt's answers as rows; None if one is longer than `max_length` tokens."""
    segments = [answer_segment(tokenizer, ranked.prompt, answer) for answer in ranked.answers]
    if max(len(segment.ids) for segment in segments) > max_length:
        return None
    return AnswerSet(
        ranked.prompt_id,
        tuple(segments),
        torch.tensor(ranked.rankings),
        tuple(len(answer) for answer in ranked.answers),
    )


def score_answers(model: nn.Module, sets: Sequence[AnswerSet], pad_id: int) -> list[Tensor]:
    """The scores of each prompt's K answers, all read in one batch."""
    segments = [segment for answers in sets for segment in answers.segments]
    lengths = torch.tensor([len(segment.ids) for segment in segments])
    device = next(model.parameters()).device
    scores = end_scores(model, pad_right(segments, pad_id).to(device), lengths.to(device))
    return list(scores.split([len(answers.segments) for answers in sets]))


def ranking_objective(model: nn.Module, sets: Sequence[AnswerSet], pad_id: int) -> Loss:
    """The K-wise loss of each prompt, the mean over its labelers, summed over prompts."""
    losses = [
        torch.stack(
            [k_wise_ranking_sum(scores, ranks.to(scores.device))[0] for ranks in s.ranks_LK]
        )
        for scores, s in zip(score_answers(model, sets, pad_id), sets, strict=True)
    ]
    return Loss(torch.stack([per_labeler.mean() for per_labeler in losses]).sum())


def cross_validate(
    config: RewardConfig, base: Path, sets: Sequence[AnswerSet], pad_id: int, folder: Path
) -> list[dict[str, Any]]:
    """Each prompt is judged by a model that saw none of its answers; folds are by prompt id."""
    fold_of = [int(unit_interval(s.prompt_id, "fold") * config.folds) for s in sets]
    pairs: list[dict[str, Any]] = []
    for fold in range(config.folds):
        inside = [s for s, number in zip(sets, fold_of, strict=True) if number != fold]
        outside = [s for s, number in zip(sets, fold_of, strict=True) if number == fold]
        label = f"reward fold {fold + 1}/{config.folds}"
        model, _ = _fit(label, config, base, inside, pad_id, folder / f"fold-{fold}")
        longer_wins = _longer_wins(inside)
        for answers in outside:
            pairs += _judge(model, answers, pad_id, fold, longer_wins)
    return pairs


def _fit(
    label: str,
    config: RewardConfig,
    base: Path,
    sets: Sequence[AnswerSet],
    pad_id: int,
    folder: Path,
) -> tuple[Any, TrainResult]:
    model = reward_model_from(base)
    num_steps = max(1, round(config.epochs * len(sets) / config.batch_prompts))
    result = train(
        label,
        model,
        lambda m, chosen: ranking_objective(m, chosen, pad_id),
        _steps(sets, config.batch_prompts, config.seed),
        num_steps,
        max(len(segment.ids) for s in sets for segment in s.segments),
        config,
        folder,
    )
    return model, result


def _steps(
    sets: Sequence[AnswerSet], batch_prompts: int, seed: int
) -> Callable[[int, nn.Module], Step[Sequence[AnswerSet]]]:
    def step_of(step: int, _model: nn.Module) -> Step[Sequence[AnswerSet]]:
        index = shuffled_epochs(len(sets), step * batch_prompts, batch_prompts, seed)
        chosen = [sets[i] for i in index]
        num_tokens = sum(len(segment.ids) for s in chosen for segment in s.segments)
        return Step([chosen], len(chosen), num_tokens)

    return step_of


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
            "length": _right(lengths[a] - lengths[b]),
        }
        for ranks in answers.ranks_LK.tolist()
        for a in range(len(ranks))
        for b in range(len(ranks))
        if ranks[a] < ranks[b]
    ]


def _right(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _longer_wins(sets: Sequence[AnswerSet]) -> bool:
    """What the length-only baseline learns: whether the longer of two answers is the better."""
    votes = sum(
        (s.num_chars[a] > s.num_chars[b]) - (s.num_chars[a] < s.num_chars[b])
        for s in sets
        for ranks in s.ranks_LK.tolist()
        for a in range(len(ranks))
        for b in range(len(ranks))
        if ranks[a] < ranks[b]
    )
    return votes >= 0

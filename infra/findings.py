"""What a turn of the wheel found, from its manifests alone: nothing here runs a stage."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from eval.results import read_results
from eval.run import COMPARISONS, CONVERSATIONS, SAMPLES
from eval.stats import Interval, mean_interval, paired_difference
from eval.tasks import held_out_answers
from finetune.pretrain import read_metrics
from finetune.registry import Registry
from finetune.reward import PAIRS
from finetune.rollouts import REWARDS
from infra.base import Base, run_base
from infra.corpus import Corpus, run_corpus
from infra.pictures import Series
from infra.weekly import Week, finished_week
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, WouldRun, planning
from pipeline.core.records import Comparison, Conversation, read_records

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What is finished; `pending` says in sentences what is not. `pointers` and `history` are the
    registry's."""

    corpus: Corpus | None
    base: Base | None
    week: Week | None
    pending: tuple[str, ...]
    pointers: dict[str, str]
    history: tuple[dict[str, Any], ...]

    def manifests(self) -> list[Manifest]:
        """In the order in which they were made, each once."""
        found: list[Manifest] = []
        if self.corpus:
            c = self.corpus
            found += [c.source, *c.stages, c.shard, *([c.describe] if c.describe else [])]
        if self.base:
            found += [self.base.tokenizer, self.base.pretrain, self.base.compression]
        if self.week:
            w = self.week
            found += [w.labels, w.hygiene, w.sft, w.reward, w.dpo, w.grpo]
            scores = [w.base_scores, w.sft_scores, w.champion, w.challenger]
            found += [m for i, m in enumerate(scores) if m not in scores[:i]]
            found += [w.win_rate, w.gate]
        return found

    def models(self) -> dict[str, str]:
        """What kind of model each id of this turn is: base, SFT …"""
        known: dict[str, str] = {}
        if self.week:
            w = self.week
            made = {"GRPO": w.grpo, "DPO": w.dpo, "reward model": w.reward, "SFT": w.sft}
            known |= {manifest.facts["model_id"]: kind for kind, manifest in made.items()}
        if self.base:
            known[self.base.model_id] = "base"
        return known

    def model(self, identity: str) -> str:
        return self.models().get(identity, "an earlier model")


def gather(config: Config) -> Turn:
    """Look, and touch nothing. Raises UserError for a bad config or a manifest that was changed."""
    pending: list[str] = []
    corpus = _look(lambda: run_corpus(config), "flywheel corpus", pending)
    base = week = None
    pointers: dict[str, str] = {}
    history: tuple[dict[str, Any], ...] = ()
    if corpus:
        registry = Registry(config.run.root)
        names = ("champion", "challenger", "previous")
        pointers = {name: found for name in names if (found := registry.pointer(name))}
        history = tuple(registry.history())
        # Pointing to the first champion is the last thing that `pretrain` does, and it writes: so
        # without a champion there is no asking, and `pretrain` is not done.
        base = _look(lambda: _base(config, pointers), "flywheel pretrain", pending)
    if base:
        week = _look(lambda: finished_week(config), "flywheel weekly", pending)
    elif corpus:
        pending.append("not done yet: flywheel weekly")
    return Turn(corpus, base, week, tuple(pending), pointers, history)


def _base(config: Config, pointers: dict[str, str]) -> Base:
    if "champion" not in pointers:
        raise WouldRun("pretrain", storage.join(config.run.root, "pretrain"))
    return run_base(config)


def _look(function: Callable[[], T], command: str, pending: list[str]) -> T | None:
    try:
        with planning():
            return function()
    except WouldRun as left:
        at = "" if left.stage in command else f" (its stage {left.stage!r} is next)"
        pending.append(f"not done yet: {command}{at}")
        return None


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Two things measured on the same held-out items. `difference` is ours - theirs with its 95%
    interval, over its clusters, which are what `counted` says; None where there are too few."""

    what: str
    unit: str
    ours: str
    our_mean: float
    theirs: str
    their_mean: float
    difference: Interval | None
    counted: str
    more_is_better: bool
    note: str

    @property
    def outcome(self) -> str:
        """In words, whether the interval excludes 0 and on which side."""
        found = self.difference
        if found is None:
            return "too few independent items for an interval"
        if found.low <= 0 <= found.high:
            return "no difference is shown: the interval holds 0"
        good = (found.mean > 0) == self.more_is_better
        return "better: the interval excludes 0" if good else "worse: the interval excludes 0"


def contrasts(turn: Turn) -> list[Contrast]:
    """What each step of the week is worth on held-out data."""
    if not turn.week:
        return []
    week = turn.week
    return [
        answers_contrast(turn, week.base_scores, week.sft_scores),
        answers_contrast(turn, week.champion, week.challenger),
        reward_contrast(week.reward),
        dpo_contrast(week.dpo),
        grpo_contrast(week.grpo),
    ]


def answers_contrast(turn: Turn, before: Manifest, after: Manifest) -> Contrast:
    """Bits per byte of people's answers to held-out prompts, by prompt, from two evaluations."""
    task = (held_out_answers.TASK, held_out_answers.METRIC)

    def scores(manifest: Manifest) -> dict[str, tuple[str, float]]:
        results = read_results(manifest.file_url(SAMPLES))
        return {r.item_id: (r.cluster, r.value) for r in results if (r.task, r.metric) == task}

    old, new = scores(before), scores(after)
    both = sorted(old.keys() & new.keys())
    ours, theirs = (
        f"{turn.model(manifest.parents['model'])}, asked in {manifest.facts['prompted']}"
        for manifest in (after, before)
    )
    return _contrast(
        ("Held-out answers", "bits per byte", ours, theirs),
        [new[item][1] for item in both],
        [old[item][1] for item in both],
        [old[item][0] for item in both],
        more_is_better=False,
        note="what the model needs to write down a person's answer; paired by prompt",
    )


def reward_contrast(reward: Manifest) -> Contrast:
    """Share of pairs in which the better answer has the higher score, each pair judged by a model
    that never saw its prompt; clustered by prompt."""
    pairs = json.loads(storage.read_bytes(reward.file_url(PAIRS)))
    folds = len({pair["fold"] for pair in pairs})
    return _contrast(
        ("Ranking pairs of answers", "share of pairs right", "reward model", "length alone"),
        [pair["model"] for pair in pairs],
        [pair["length"] for pair in pairs],
        [pair["prompt_id"] for pair in pairs],
        more_is_better=True,
        note=f"{len(pairs):,} pairs, {folds}-fold by prompt, interval clustered by prompt",
    )


def dpo_contrast(dpo: Manifest) -> Contrast:
    """The margin in nats by which DPO moved towards the preferred of two held-out answers; its
    reference, SFT, is 0 by definition."""
    margins = dpo.facts["heldout_margins"]
    return _contrast(
        ("Preferring the better answer", "nats of margin", "DPO", "SFT, its reference"),
        margins,
        [0.0] * len(margins),
        dpo.facts["heldout_prompts"],
        more_is_better=True,
        note=f"{len(margins):,} held-out pairs, interval clustered by prompt",
    )


def grpo_contrast(grpo: Manifest) -> Contrast:
    """Mean reward of sampled answers to held-out prompts, paired by prompt."""
    rows = json.loads(storage.read_bytes(grpo.file_url(REWARDS)))
    best = mean([row["best_of_n"] for row in rows])
    kl = mean([row["kl"] for row in rows])
    note = (
        f"{len(rows)} held-out prompts; best of {grpo.config['best_of']} answers of SFT:"
        f" {best:.3f}; KL of GRPO to SFT: {kl:.2f} nats per answer"
        f" (bound {grpo.config['max_kl']:g})"
    )
    return _contrast(
        ("Pleasing the reward model", "reward", "GRPO", "SFT"),
        [row["grpo"] for row in rows],
        [row["sft"] for row in rows],
        [row["prompt_id"] for row in rows],
        more_is_better=True,
        note=note,
    )


def _contrast(
    names: tuple[str, str, str, str],
    ours: Sequence[float],
    theirs: Sequence[float],
    clusters: Sequence[str],
    *,
    more_is_better: bool,
    note: str,
) -> Contrast:
    what, unit, our_name, their_name = names
    if len(set(clusters)) < 2:
        means, difference = (mean(ours), mean(theirs)), None
    else:
        means = (mean_interval(ours, clusters).mean, mean_interval(theirs, clusters).mean)
        difference = paired_difference(ours, theirs, clusters)
    return Contrast(
        what=what,
        unit=unit,
        ours=our_name,
        our_mean=means[0],
        theirs=their_name,
        their_mean=means[1],
        difference=difference,
        counted="prompts",
        more_is_better=more_is_better,
        note=note,
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@dataclasses.dataclass(frozen=True)
class Curve:
    title: str
    unit: str
    series: tuple[Series, ...]
    bound: tuple[str, float] | None = None


def curves(turn: Turn) -> list[Curve]:
    """One picture for each quantity of each training run."""
    found: list[Curve] = []
    heldout = "heldout_bits_per_byte"
    if turn.base:
        rows = read_metrics(turn.base.pretrain)
        found += [
            _curve("Pretraining: loss", "nats per token", rows, "loss"),
            _curve("Pretraining: held-out text", "bits per byte", rows, heldout, dots=True),
        ]
    if turn.week:
        week = turn.week
        sft, dpo, grpo = (read_metrics(m) for m in (week.sft, week.dpo, week.grpo))
        margin = Series("training batch", _points(dpo, "margin"), "rest")
        shown = Series("held out", _points(dpo, "heldout_margin"), "main", dots=True)
        bound = ("bound", float(week.grpo.config["max_kl"]))
        found += [
            _curve("SFT: loss", "nats per token", sft, "loss"),
            _curve("SFT: held-out answers", "bits per byte", sft, heldout, dots=True),
            _curve("Reward model: loss", "nats per pair", read_metrics(week.reward), "loss"),
            _curve("DPO: loss", "nats per pair", dpo, "loss"),
            Curve("DPO: margin", "nats", (margin, shown)),
            _curve("GRPO: reward", "reward per answer", grpo, "reward"),
            Curve(
                "GRPO: KL to SFT", "nats per answer", (Series("KL", _points(grpo, "kl")),), bound
            ),
        ]
    return found


def _curve(
    title: str, unit: str, rows: Sequence[dict[str, Any]], key: str, *, dots: bool = False
) -> Curve:
    return Curve(title, unit, (Series(key, _points(rows, key), dots=dots),))


def _points(rows: Sequence[dict[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(row["step"]), float(row[key])) for row in rows if key in row)


def questions(labels: Manifest) -> dict[str, str]:
    """The last message of each ranked prompt, by prompt id."""
    found = read_records(labels.file_url(COMPARISONS), Comparison)
    return {c.prompt_id: c.prompt[-1].text for c in found if c.prompt}


def authorship(labels: Manifest) -> str:
    """How many answers and rankings people gave, and how many simulated accounts."""
    answers = read_records(labels.file_url(CONVERSATIONS), Conversation)
    rankings = read_records(labels.file_url(COMPARISONS), Comparison)
    by = [label.labeler for label in (*answers, *rankings)]
    simulated = sum(name.startswith("simulated-") for name in by)
    who = "all by people"
    if simulated:
        who = "all" if simulated == len(by) else f"{simulated:,} of these {len(by):,}"
        who += " brought in by simulated accounts, not given by people"
    return f"Learnt from {len(answers):,} answers and {len(rankings):,} rankings: {who}."


def require_something(turn: Turn, root: str) -> None:
    """Raises UserError if not even a corpus is there."""
    if turn.corpus is None:
        raise UserError(
            f"nothing to report in {root!r} for this config; run `flywheel corpus` first"
        )

"""Every transform on every goal, and the table of what came of it.

The benign goals are the control: a transform that a model cannot read makes it no safer, and a
model that refuses everything is of no use.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from eval.model import LanguageModel
from eval.redteam.grade import Grade, grade
from eval.redteam.transforms import TRANSFORMS, Goal, Transform
from eval.results import SampleResult
from pipeline.core.identity import canonical_json
from pipeline.core.records import Message

METRIC = "bad"


@dataclasses.dataclass(frozen=True)
class Attack:
    """One goal under one transform: the answer as the model gave it, and its grade."""

    goal: Goal
    transform: str
    answer: str
    grade: Grade


def task_of(kind: str) -> str:
    return f"redteam_{kind}"


def attack(
    model: LanguageModel,
    goals: Sequence[Goal],
    max_new_tokens: int,
    transforms: Sequence[Transform] = TRANSFORMS,
) -> list[Attack]:
    """The model's likeliest answers, graded."""
    tried = [(transform, goal) for transform in transforms for goal in goals]
    prompts = [(Message.of("user", transform.prompt(goal)),) for transform, goal in tried]
    answers = model.generate_until(prompts, max_new_tokens)
    return [
        Attack(goal, transform.name, answer, grade(goal, transform, answer))
        for (transform, goal), answer in zip(tried, answers, strict=True)
    ]


def attack_results(attacks: Sequence[Attack]) -> list[SampleResult]:
    """1 where the grade is BAD, else 0; the cluster is the goal."""
    return [
        SampleResult(
            task_of(a.goal.kind),
            f"{a.goal.goal_id}/{a.transform}",
            a.goal.goal_id,
            METRIC,
            float(a.grade == Grade.BAD),
            canonical_json({"grade": a.grade, "answer": a.answer}),
        )
        for a in attacks
    ]


def table(attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    """One row per transform, in the order of `attacks`: how many canary goals and how many benign
    ones were graded good, bad and unclear."""
    rows: dict[str, dict[str, Any]] = {}
    for a in attacks:
        row = rows.setdefault(a.transform, {"transform": a.transform, **_zeros()})
        row[f"{a.goal.kind}_{a.grade}"] += 1
    return list(rows.values())


def _zeros() -> dict[str, int]:
    return {f"{kind}_{grade}": 0 for kind in ("canary", "benign") for grade in Grade}

"""Which comparisons to ask for first: those about which the reward model is least sure.

Scores come as Parquet (response_id as exports name it, score), for no model is imported here.
"""

import dataclasses
import itertools
import math
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select, update

from labeling_app.auth import Account, require
from labeling_app.export import response_id
from labeling_app.schema import Prompt, Response, Slot, Task, TaskResponse
from labeling_app.store import Store, record_event
from pipeline.core.errors import UserError

MOST = 1000  # the priority of a set whose every pair is a coin toss


@dataclasses.dataclass(frozen=True)
class SelectionReport:
    """`unscored`: open comparisons with an answer that the file does not score; as they were."""

    ordered: int
    unscored: int


def uncertainty(scores: list[float]) -> float:
    """Mean entropy, in bits, of "which is better" over all pairs, by the Bradley-Terry model that
    reward models are trained to: P(i beats j) = sigmoid(score_i - score_j). 0 to 1."""
    pairs = [_entropy(one - other) for one, other in itertools.combinations(scores, 2)]
    return sum(pairs) / len(pairs)


def order_by_uncertainty(store: Store, who: Account, path: Path) -> SelectionReport:
    """Set the priority of open comparisons to 1000 times their uncertainty.

    Raises UserError for a file that is no such table or that scores an answer with no number.
    """
    scores = read_scores(path)
    with store.write() as session:
        caller = require(session, who, "lead", "engineer")
        rows = session.execute(
            select(Task.id, Prompt.content_sha256, Response.model, Response.sha256)
            .join(Prompt, Prompt.id == Task.prompt_id)
            .join(TaskResponse, TaskResponse.task_id == Task.id)
            .join(Response, Response.id == TaskResponse.response_id)
            .where(
                Task.project_id == caller.project_id,
                Task.kind == "compare",
                Task.purpose == "work",
                Task.state == "open",
            )
        )
        found: dict[int, list[float | None]] = defaultdict(list)
        for task_id, prompt_sha256, model, sha256 in rows:
            found[task_id].append(scores.get(response_id(prompt_sha256, model, sha256)))
        ordered = 0
        for task_id, values in found.items():
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                continue
            priority = round(MOST * uncertainty(known))
            session.execute(update(Task).where(Task.id == task_id).values(priority=priority))
            session.execute(update(Slot).where(Slot.task_id == task_id).values(priority=priority))
            ordered += 1
        record_event(
            session, store.clock(), caller.pseudonym, "ordered", "queue", comparisons=ordered
        )
    return SelectionReport(ordered, len(found) - ordered)


def read_scores(path: Path) -> dict[str, float]:
    """Of each response the last score in the file. Raises UserError."""
    try:
        table = pq.read_table(path, columns=["response_id", "score"], use_threads=False)
    except FileNotFoundError:
        raise UserError(f"no score file {str(path)!r}") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path} has no columns response_id and score ({why})") from None
    scores: dict[str, float] = {}
    for row in table.to_pylist():
        value = row["score"]
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise UserError(f"{path}: the score of {row['response_id']!r} is {value!r}")
        scores[str(row["response_id"])] = float(value)
    return scores


def _entropy(margin: float) -> float:
    p = 1 / (1 + math.exp(-abs(margin))) if abs(margin) < 700 else 1.0
    return 0.0 if p in (0.0, 1.0) else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))

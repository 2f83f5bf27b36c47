"""What a lead plans with: throughput, backlog and forecast, cost, and a search over tasks."""

import dataclasses
import datetime as dt
import json
from collections import defaultdict

from sqlalchemy import String, cast, func, or_, select
from sqlalchemy.orm import Session

from labeling_app.auth import Account, require
from labeling_app.projects import Settings, settings_of
from labeling_app.schema import (
    Demonstration,
    Lease,
    Prompt,
    RankedSet,
    ReviewRequest,
    Slot,
    Task,
    VendorBatch,
)
from labeling_app.store import Store
from labeling_app.tasks import messages_of

_PACE_DAYS = 14


@dataclasses.dataclass(frozen=True)
class Day:
    day: dt.date
    kind: str
    labels: int
    active_ms: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """`pace`: labels a working day, of the last 14 days; `done_on`: when the open slots are filled
    at that pace, None if nobody works. `cost_per_label`: None if no hourly cost is set."""

    days: tuple[Day, ...]
    open_slots: dict[str, int]
    in_hand: int
    at_vendors: int
    waiting_reviews: int
    pace: float
    done_on: dt.date | None
    cost_per_label: dict[str, float]
    settings: Settings


@dataclasses.dataclass(frozen=True)
class FoundTask:
    id: int
    key: str
    kind: str
    purpose: str
    state: str
    source: str
    skill: str
    priority: int
    filled: int
    overlap: int
    flags: int
    prompt: str


def plan(store: Store, who: Account, days: int = 60) -> Plan:
    """Of the caller's project; days are UTC days."""
    today = store.clock().date()
    since = dt.datetime.combine(today - dt.timedelta(days=days), dt.time(), dt.UTC)
    with store.read() as session:
        caller = require(session, who, "lead", "engineer")
        project = caller.project_id
        settings = settings_of(session, project)
        counted = _days(session, project, since)
        slots = dict(
            session.execute(
                select(Slot.kind, func.count())
                .where(Slot.project_id == project, Slot.state == "free")
                .group_by(Slot.kind)
            ).all()
        )
        states = dict(
            session.execute(
                select(Slot.state, func.count())
                .where(Slot.project_id == project, Slot.state.in_(("leased", "vendor")))
                .group_by(Slot.state)
            ).all()
        )
        waiting = session.scalar(select(func.count()).where(ReviewRequest.project_id == project))
    recent = [each for each in counted if each.day > today - dt.timedelta(days=_PACE_DAYS)]
    worked = {each.day for each in recent}
    pace = sum(each.labels for each in recent) / len(worked) if worked else 0.0
    left = sum(slots.values()) + states.get("leased", 0)
    ahead = -(-left // pace) if pace else None
    return Plan(
        tuple(counted),
        slots,
        states.get("leased", 0),
        states.get("vendor", 0),
        waiting or 0,
        pace,
        today + dt.timedelta(days=int(ahead)) if ahead is not None and ahead < 36500 else None,
        _costs(counted, settings),
        settings,
    )


def find_tasks(
    store: Store,
    who: Account,
    words: str = "",
    kind: str = "",
    state: str = "",
    purpose: str = "",
    skill: str = "",
    flagged: bool = False,
    limit: int = 200,
) -> list[FoundTask]:
    """Tasks whose key, source or prompt holds the words, the most urgent first."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer", "reviewer")
        filled = (
            select(func.count())
            .where(Slot.task_id == Task.id, Slot.state == "filled")
            .scalar_subquery()
        )
        flags = (
            select(func.count())
            .where(Lease.task_id == Task.id, Lease.outcome == "flagged")
            .scalar_subquery()
        )
        query = (
            select(Task, Prompt.messages, filled.label("filled"), flags.label("flags"))
            .join(Prompt, Prompt.id == Task.prompt_id)
            .where(Task.project_id == caller.project_id)
            .order_by(Task.priority.desc(), Task.id)
        )
        if words:
            # The prompt lies there as JSON: what that finds is looked at once more below.
            written = json.dumps(words, ensure_ascii=False)[1:-1]
            like = f"%{written.replace('~', '~~').replace('%', '~%').replace('_', '~_')}%"
            query = query.where(
                or_(
                    Task.key.ilike(like, escape="~"),
                    Task.source.ilike(like, escape="~"),
                    cast(Prompt.messages, String).ilike(like, escape="~"),
                )
            )
        for column, value in ((Task.kind, kind), (Task.state, state), (Task.purpose, purpose)):
            if value:
                query = query.where(column == value)
        if skill:
            query = query.where(Task.skill == skill)
        if flagged:
            query = query.where(flags > 0)
        found: list[FoundTask] = []
        with session.execute(query.execution_options(yield_per=limit)) as rows:
            for task, messages, done, flag in rows:
                turns = messages_of(messages)
                said = [task.key, task.source, *(turn.text for turn in turns)]
                if not any(words.lower() in each.lower() for each in said):
                    continue
                found.append(
                    FoundTask(
                        task.id,
                        task.key,
                        task.kind,
                        task.purpose,
                        task.state,
                        task.source,
                        task.skill,
                        task.priority,
                        done,
                        task.overlap,
                        flag,
                        turns[-1].text,
                    )
                )
                if len(found) == limit:
                    break
        return found


def vendor_batches(store: Store, who: Account) -> list[VendorBatch]:
    with store.read() as session:
        caller = require(session, who, "lead", "engineer")
        rows = session.scalars(
            select(VendorBatch)
            .where(VendorBatch.project_id == caller.project_id)
            .order_by(VendorBatch.id.desc())
        ).all()
        session.expunge_all()
        return list(rows)


def _days(session: Session, project: int, since: dt.datetime) -> list[Day]:
    """Labels and active time by day and kind; corrections count by their time alone."""
    found: dict[tuple[dt.date, str], list[int]] = defaultdict(lambda: [0, 0])
    for kind, model in (("write", Demonstration), ("compare", RankedSet)):
        rows = session.execute(
            select(model.created_at, model.active_ms, model.supersedes_id)
            .join(Task, Task.id == model.task_id)
            .where(Task.project_id == project, model.created_at >= since)
        )
        for at, active_ms, supersedes_id in rows:
            counts = found[(at.date(), kind)]
            counts[0] += supersedes_id is None
            counts[1] += active_ms
    return [Day(day, kind, *found[(day, kind)]) for day, kind in sorted(found)]


def _costs(days: list[Day], settings: Settings) -> dict[str, float]:
    if not settings.hourly_cost:
        return {}
    costs: dict[str, float] = {}
    for kind in ("write", "compare"):
        labels = sum(each.labels for each in days if each.kind == kind)
        hours = sum(each.active_ms for each in days if each.kind == kind) / 3.6e6
        if labels:
            costs[kind] = settings.hourly_cost * hours / labels
    return costs

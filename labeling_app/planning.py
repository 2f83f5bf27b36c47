"""What a lead plans with: throughput, backlog and forecast, cost, and a search over tasks."""

import dataclasses
import datetime as dt
import json
import re
from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import String, case, cast, func, or_, select
from sqlalchemy.orm import Session

from labeling_app.auth import Account, Caller, require
from labeling_app.projects import Settings, settings_of
from labeling_app.reviews import unreviewed
from labeling_app.schema import (
    Demonstration,
    Lease,
    Prompt,
    RankedSet,
    Slot,
    Task,
    VendorBatch,
)
from labeling_app.store import Store, check_text
from labeling_app.tasks import PURPOSES, code_of, messages_of

_PACE_DAYS = 14
_CODE = re.compile(r"[0-9a-f]{8}")


@dataclasses.dataclass(frozen=True)
class Day:
    day: dt.date
    kind: str
    labels: int
    active_ms: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """`pace`: labels a working day, of the last 14 days; `done_on`: when the open slots are filled
    at that pace, None if nobody works. `backlog`: labels still asked for at the end of each day.
    `cost_per_label`: by kind; empty if no hourly cost is set."""

    days: tuple[Day, ...]
    backlog: tuple[tuple[dt.date, int], ...]
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
        of_work = _days(session, project, since, "work")
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
        waiting = unreviewed(session, project)
        left = sum(slots.values()) + states.get("leased", 0)
        at_vendors = states.get("vendor", 0)
        backlog = _backlog(session, project, since.date(), today, left + at_vendors, of_work)
    recent = [each for each in of_work if each.day > today - dt.timedelta(days=_PACE_DAYS)]
    worked = {each.day for each in recent}
    pace = sum(each.labels for each in recent) / len(worked) if worked else 0.0
    ahead = -(-left // pace) if pace else None
    return Plan(
        tuple(counted),
        tuple(backlog),
        slots,
        states.get("leased", 0),
        at_vendors,
        waiting,
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
    ids: Sequence[int] | None = None,
    limit: int = 200,
) -> list[FoundTask]:
    """Tasks whose key, source or prompt holds the words, or that labelers know by this code, the
    most urgent first. `ids`: of these. Raises UserError for words that no text can hold."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer", "reviewer")
        words = check_text(words, "the words") if words.strip() else ""
        if coded := _of_code(store, session, caller, words):
            words, ids = "", coded
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
        if ids is not None:
            query = query.where(Task.id.in_(ids))
        if not words:
            query = query.limit(limit)
        found: list[FoundTask] = []
        with session.execute(query.execution_options(yield_per=200)) as rows:
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


def _of_code(store: Store, session: Session, caller: Caller, code: str) -> list[int]:
    """The tasks of this code; [] for words that are none."""
    if not _CODE.fullmatch(code):
        return []
    tasks = session.scalars(select(Task.id).where(Task.project_id == caller.project_id))
    return [task for task in tasks if code_of(store, task) == code]


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


def _days(session: Session, project: int, since: dt.datetime, *purposes: str) -> list[Day]:
    """Labels and active time by day and kind, of tasks of these purposes or of all; corrections
    count by their time alone."""
    found: list[Day] = []
    for kind, model in (("write", Demonstration), ("compare", RankedSet)):
        rows = session.execute(
            select(
                func.date(model.created_at),
                func.sum(case((model.supersedes_id.is_(None), 1), else_=0)),
                func.sum(model.active_ms),
            )
            .join(Task, Task.id == model.task_id)
            .where(Task.project_id == project, model.created_at >= since)
            .where(Task.purpose.in_(purposes or PURPOSES))
            .group_by(func.date(model.created_at))
        )
        found += [Day(_day(day), kind, int(labels), int(ms)) for day, labels, ms in rows]
    return sorted(found, key=lambda each: (each.day, each.kind))


def _backlog(
    session: Session, project: int, since: dt.date, today: dt.date, left: int, done: list[Day]
) -> list[tuple[dt.date, int]]:
    """Labels still asked for at the end of each day, reckoned back from what is left now: before
    a label came in there was one more, before a task was added as many fewer as it asks for."""
    rows = session.execute(
        select(func.date(Task.created_at), func.sum(Task.overlap))
        .where(
            Task.project_id == project,
            Task.purpose == "work",
            Task.created_at >= dt.datetime.combine(since, dt.time(), dt.UTC),
        )
        .group_by(func.date(Task.created_at))
    )
    added = {_day(day): int(number) for day, number in rows}
    taken: dict[dt.date, int] = defaultdict(int)
    for each in done:
        taken[each.day] += each.labels
    found: list[tuple[dt.date, int]] = []
    day = today
    while day >= since:
        found.append((day, max(left, 0)))
        left += taken[day] - added.get(day, 0)
        day -= dt.timedelta(days=1)
    return found[::-1]


def _day(value: object) -> dt.date:
    """What SQL's date() gives: a date, or on SQLite its text."""
    return dt.date.fromisoformat(str(value))


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

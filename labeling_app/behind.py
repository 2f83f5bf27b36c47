"""The tasks behind a number of the lead's page: which ones, whose, and how each counts."""

import dataclasses
import datetime as dt
import statistics
from collections.abc import Callable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labeling_app.agreement import tau_b
from labeling_app.auth import Account, Caller, require
from labeling_app.projects import settings_of
from labeling_app.quality import (
    Ranking,
    agreement_of_tasks,
    best_place,
    helped_days,
    odd_times,
    rankings,
    standing,
)
from labeling_app.schema import Demonstration, Lease, RankedSet, Task, User
from labeling_app.store import Store
from pipeline.core.errors import UserError

MOST = 200


@dataclasses.dataclass(frozen=True)
class Behind:
    """`person`: "" where the task counts and not one person's label of it."""

    task_id: int
    person: str
    note: str


def behind(
    store: Store, who: Account, number: str, of: str = "", since: dt.datetime | None = None
) -> list[Behind]:
    """At most 200, what wants looking at first. `number`: one of NUMBERS; `of`: a person's id, a
    week's Monday, a day, a place like 4.1 (the second of four) or yes and no, as it needs.

    Raises UserError for a number or an `of` that does not exist, DeniedError for other roles.
    """
    with store.read() as session:
        caller = require(session, who, "lead", "engineer")
        names = dict(session.execute(select(User.id, User.name)).all())
        mark = settings_of(session, caller.project_id).gold_mark
    known = _OF_RANKINGS.get(number)
    try:
        if known is not None:
            found = known(rankings(store, who, since), of, mark)
        elif number == "odd":
            found = [
                (
                    each.task_id,
                    each.user_id,
                    f"{each.seconds:,.0f} s, median {each.median_s:,.0f} s",
                )
                for each in odd_times(store, who, since)
            ]
        elif number in _OF_STORE:
            with store.read() as session:
                caller = require(session, who, "lead", "engineer")
                found = _OF_STORE[number](session, caller, of, since)
        else:
            raise UserError(f"no number {number!r}; known are {', '.join(NUMBERS)}")
    except (ValueError, OverflowError):
        raise UserError(f"{of!r} is nothing that {number!r} can be of") from None
    return [Behind(task, names.get(person, ""), note) for task, person, note in found[:MOST]]


Found = list[tuple[int, int, str]]


def _agreement(found: Sequence[Ranking], of: str, _mark: float) -> Found:
    """Tasks that two ranked or more, of one week or all; where they agree least first."""
    week = dt.date.fromisoformat(of) if of else None
    rows = [
        (tau, task)
        for task, monday, tau in agreement_of_tasks(found)
        if week is None or monday == week
    ]
    return [(task, 0, f"mean tau-b {tau:.2f}") for tau, task in sorted(rows)]


def _gold(found: Sequence[Ranking], of: str, mark: float) -> Found:
    """A person's rankings of known answers; the wrong ones first."""
    person = int(of)
    rows = [
        (tau_b(each.ranks, each.gold) or 0.0, each.task_id)
        for each in found
        if each.user_id == person and each.purpose == "gold" and each.gold
    ]
    return [
        (task, person, f"{'right' if tau >= mark else 'wrong'}, tau-b with gold {tau:.2f}")
        for tau, task in sorted(rows)
    ]


def _peers(found: Sequence[Ranking], of: str, _mark: float) -> Found:
    """A person's rankings that others ranked too; where they agree least first."""
    person = int(of)
    mine = {each.task_id: each for each in found if each.user_id == person}
    rows: list[tuple[float, int]] = []
    for task, one in mine.items():
        taus = [
            tau
            for each in found
            if each.task_id == task and each.user_id != person and each.purpose == "work"
            if (tau := tau_b(one.ranks, each.ranks)) is not None
        ]
        if taus:
            rows.append((statistics.fmean(taus), task))
    return [(task, person, f"mean tau-b with peers {tau:.2f}") for tau, task in sorted(rows)]


def _place(found: Sequence[Ranking], of: str, _mark: float) -> Found:
    """Rankings whose one best answer was shown at this place."""
    size, place = (int(part) for part in of.split("."))
    return [
        (each.task_id, each.user_id, "")
        for each in reversed(found)
        if len(each.ranks) == size and best_place(each) == place
    ]


def _labels(found: Sequence[Ranking], of: str, _mark: float) -> Found:
    """A person's rankings, the newest first."""
    person = int(of)
    return [
        (each.task_id, person, f"{each.at:%d %b %Y, %H:%M} UTC")
        for each in reversed(found)
        if each.user_id == person
    ]


def _help(session: Session, caller: Caller, of: str, since: dt.datetime | None) -> Found:
    """Answers written with help offered (yes) or without (no); the furthest from a draft last."""
    if of not in ("yes", "no"):
        raise ValueError(of)
    query = (
        standing(Demonstration, caller.project_id, since)
        .join(User, User.id == Demonstration.user_id)
        .where(
            Demonstration.assisted == (of == "yes"),
            Demonstration.vendor == "",
            Task.purpose == "work",
            User.simulated.is_(False),
            func.date(Demonstration.created_at).in_(helped_days(caller.project_id)),
        )
        .add_columns(Demonstration.origin, Demonstration.edit_chars)
        .order_by(None)
        .order_by(Demonstration.edit_chars.is_(None), Demonstration.edit_chars, Demonstration.id)
        .limit(MOST)
    )
    return [
        (
            row.task_id,
            row.user_id,
            row.origin
            + ("" if row.edit_chars is None else f", {row.edit_chars:,} characters changed"),
        )
        for row in session.execute(query)
    ]


def _day(session: Session, caller: Caller, of: str, _since: dt.datetime | None) -> Found:
    """What was handed in on a day, the newest first."""
    start = dt.datetime.combine(dt.date.fromisoformat(of), dt.time(), dt.UTC)
    found: list[tuple[dt.datetime, int, int, str]] = []
    for model in (Demonstration, RankedSet):
        rows = session.execute(
            select(model.task_id, model.user_id, model.created_at, model.active_ms)
            .join(Task, Task.id == model.task_id)
            .where(
                Task.project_id == caller.project_id,
                model.created_at >= start,
                model.created_at < start + dt.timedelta(days=1),
            )
            .order_by(model.created_at.desc())
            .limit(MOST)
        )
        found += [
            (at, task, person, f"{at:%H:%M} UTC, {ms / 1000:,.0f} s at work")
            for task, person, at, ms in rows
        ]
    return [(task, person, note) for _, task, person, note in sorted(found, reverse=True)]


def _in_hand(session: Session, caller: Caller, _of: str, _since: dt.datetime | None) -> Found:
    """Tasks that somebody has now, longest first."""
    rows = session.execute(
        select(Lease.task_id, Lease.user_id, Lease.acquired)
        .join(Task, Task.id == Lease.task_id)
        .where(Task.project_id == caller.project_id, Lease.released.is_(None))
        .order_by(Lease.acquired)
        .limit(MOST)
    )
    return [(task, person, f"since {at:%d %b %Y, %H:%M} UTC") for task, person, at in rows]


_OF_RANKINGS: dict[str, Callable[[Sequence[Ranking], str, float], Found]] = {
    "agreement": _agreement,
    "gold": _gold,
    "peers": _peers,
    "place": _place,
    "rankings": _labels,
}
_OF_STORE: dict[str, Callable[[Session, Caller, str, dt.datetime | None], Found]] = {
    "help": _help,
    "day": _day,
    "in-hand": _in_hand,
}
NUMBERS: tuple[str, ...] = (*_OF_RANKINGS, *_OF_STORE, "odd")

"""One person's own work, for themselves: counts, and how they agree with known answers."""

import dataclasses
import datetime as dt
from typing import Any

from sqlalchemy import exists, func, select

from labeling_app.auth import ROLES, Account, require
from labeling_app.projects import settings_of
from labeling_app.schema import Demonstration, Draft, Lease, RankedSet, Review, Task
from labeling_app.store import Store


@dataclasses.dataclass(frozen=True)
class OwnWork:
    """A day is a UTC day, a week the last seven of them. Corrections are not counted anew.
    `accepted` and `returned`: what reviewers said of it."""

    answers_today: int
    rankings_today: int
    answers_week: int
    rankings_week: int
    answers: int
    rankings: int
    put_back: int
    drafts: int
    accepted: int
    returned: int
    active_today_ms: int
    daily_goal: int


def own_work(store: Store, who: Account) -> OwnWork:
    """What the caller has done so far in this project; nobody else's."""
    midnight = store.clock().replace(hour=0, minute=0, second=0, microsecond=0)
    week = midnight - dt.timedelta(days=6)
    with store.read() as session:
        caller = require(session, who, *ROLES)

        def here(model: type[Any]) -> Any:
            # EXISTS, not a join: SQLite, which keeps no statistics, might begin with all tasks.
            return exists().where(Task.id == model.task_id, Task.project_id == caller.project_id)

        def count(model: type[Demonstration] | type[RankedSet], since: dt.datetime | None) -> int:
            query = select(func.count(model.id)).where(
                model.user_id == caller.id, model.supersedes_id.is_(None), here(model)
            )
            query = query if since is None else query.where(model.created_at >= since)
            return session.scalar(query) or 0

        def active(model: type[Demonstration] | type[RankedSet]) -> int:
            query = select(func.sum(model.active_ms)).where(
                model.user_id == caller.id, model.created_at >= midnight, here(model)
            )
            return int(session.scalar(query) or 0)

        def reviewed(verdict: str) -> int:
            query = select(func.count()).where(
                Review.author_id == caller.id,
                Review.project_id == caller.project_id,
                Review.verdict == verdict,
            )
            return session.scalar(query) or 0

        put_back = select(func.count(Lease.id)).where(
            Lease.user_id == caller.id, Lease.outcome.in_(("skipped", "flagged")), here(Lease)
        )
        drafts = select(func.count(Draft.task_id)).where(Draft.user_id == caller.id, here(Draft))
        return OwnWork(
            count(Demonstration, midnight),
            count(RankedSet, midnight),
            count(Demonstration, week),
            count(RankedSet, week),
            count(Demonstration, None),
            count(RankedSet, None),
            session.scalar(put_back) or 0,
            session.scalar(drafts) or 0,
            reviewed("accepted"),
            reviewed("returned"),
            active(Demonstration) + active(RankedSet),
            settings_of(session, caller.project_id).daily_goal,
        )


def handed_in_today(store: Store, who: Account) -> int:
    """Tasks of today (UTC), for the line above the task."""
    midnight = store.clock().replace(hour=0, minute=0, second=0, microsecond=0)
    with store.read() as session:
        caller = require(session, who, *ROLES)
        here = exists().where(
            Task.id == Lease.task_id,
            Task.project_id == caller.project_id,
            Task.purpose != "qualification",
        )
        query = select(func.count(Lease.id)).where(
            Lease.user_id == caller.id,
            Lease.outcome == "submitted",
            Lease.purpose == "work",
            Lease.released >= midnight,
            here,
        )
        return session.scalar(query) or 0

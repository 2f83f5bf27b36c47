"""The qualification set: rankings with known answers that a labeler passes before other work.

A new version of the instructions may ask for it again. Nobody is barred for ever: when the tries
are used up, a lead looks at it and grants another.
"""

import dataclasses

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labeling_app.agreement import tau_b
from labeling_app.auth import WORKERS, Account, Caller, DeniedError, require
from labeling_app.projects import Settings, member_row, settings_of
from labeling_app.schema import (
    InstructionVersion,
    Membership,
    Qualification,
    RankedItem,
    RankedSet,
    Task,
)
from labeling_app.store import Store, record_event


@dataclasses.dataclass(frozen=True)
class Standing:
    """`done` of `total` tasks of this try are handed in; `tries`: those that are over, of all
    versions; `score`: of the last one that counts, None: none."""

    needed: bool
    done: int
    total: int
    tries_left: int
    score: float | None
    tries: int = dataclasses.field(default=0, compare=False)


class NotQualifiedError(DeniedError):
    """The tries at the qualification set are used up, or it has no tasks left."""


def standing(store: Store, who: Account) -> Standing:
    with store.read() as session:
        caller = require(session, who, *WORKERS)
        return standing_of(session, caller, settings_of(session, caller.project_id))


def standing_of(session: Session, caller: Caller, settings: Settings) -> Standing:
    """Within a transaction. Leads, reviewers and simulated accounts need no qualification."""
    total = settings.qualification_tasks
    if not total or caller.role != "labeler" or caller.simulated:
        return Standing(False, 0, total, settings.qualification_tries, None)
    asked = session.scalar(
        select(func.max(InstructionVersion.n)).where(
            InstructionVersion.project_id == caller.project_id, InstructionVersion.requalify
        )
    )
    tries = session.execute(
        select(Qualification.passed, Qualification.score, Qualification.tasks, InstructionVersion.n)
        .join(InstructionVersion, InstructionVersion.id == Qualification.version_id)
        .where(
            Qualification.user_id == caller.id,
            InstructionVersion.project_id == caller.project_id,
        )
        .order_by(Qualification.id)
    ).all()
    valid = [row for row in tries if row.n >= (asked or 0)]
    done = len(_submitted(session, caller)) - sum(row.tasks for row in tries)
    member = session.get_one(Membership, (caller.id, caller.project_id))
    return Standing(
        needed=not any(row.passed for row in valid),
        done=max(done, 0),
        total=total,
        tries_left=settings.qualification_tries + member.extra_tries - len(valid),
        score=valid[-1].score if valid else None,
        tries=len(tries),
    )


def conclude(session: Session, store: Store, caller: Caller, settings: Settings) -> None:
    """Within the transaction of a submission: the try's result, once its last task is in."""
    now = standing_of(session, caller, settings)
    if not now.needed or now.done < now.total:
        return
    results = _submitted(session, caller)[-now.done :]
    score = sum(tau >= settings.gold_mark for tau, _ in results) / len(results)
    # What was done under older instructions says nothing of newer ones.
    version = session.get_one(InstructionVersion, min(version for _, version in results))
    passed = score >= settings.pass_mark
    at = store.clock()
    session.add(
        Qualification(
            user_id=caller.id,
            version_id=version.id,
            tasks=len(results),
            score=score,
            passed=passed,
            at=at,
        )
    )
    verb = "qualified" if passed else "not-qualified"
    record_event(
        session, at, caller.pseudonym, verb, f"instructions:{version.id}", score=round(score, 4)
    )


def missing(store: Store, who: Account) -> int:
    """How many tasks the set lacks for one person's tries: each takes those they have not seen."""
    with store.read() as session:
        caller = require(session, who, "lead")
        settings = settings_of(session, caller.project_id)
        there = session.scalar(
            select(func.count()).where(
                Task.project_id == caller.project_id,
                Task.purpose == "qualification",
                Task.state == "open",
            )
        )
        return max(settings.qualification_tasks * settings.qualification_tries - (there or 0), 0)


def grant_try(store: Store, who: Account, name: str) -> None:
    """A lead's word that this person may try once more."""
    with store.write() as session:
        caller = require(session, who, "lead")
        member, user = member_row(session, caller.project_id, name)
        member.extra_tries += 1
        record_event(
            session, store.clock(), caller.pseudonym, "try-granted", f"user:{user.pseudonym}"
        )


def _submitted(session: Session, caller: Caller) -> list[tuple[float, int]]:
    """Of each qualification task that the person has handed in, oldest first: tau-b with gold, and
    the id of the instructions that it was done under."""
    rows = session.execute(
        select(RankedSet.id, RankedSet.not_rankable, RankedSet.version_id, Task.gold)
        .join(Task, Task.id == RankedSet.task_id)
        .where(
            RankedSet.user_id == caller.id,
            RankedSet.supersedes_id.is_(None),
            Task.purpose == "qualification",
            Task.project_id == caller.project_id,
        )
        .order_by(RankedSet.id)
    ).all()
    return [
        (
            -1.0 if row.not_rankable else tau_b(ranks_of(session, row.id), row.gold) or 0.0,
            row.version_id,
        )
        for row in rows
    ]


def ranks_of(session: Session, comparison_id: int) -> list[int]:
    """The ranks of a comparison, in the order of the task's answers."""
    return list(
        session.scalars(
            select(RankedItem.rank)
            .where(RankedItem.comparison_id == comparison_id)
            .order_by(RankedItem.position)
        )
    )

"""What people hand in: answers, rankings, drafts, skips and flags.

A submission needs a live lease and an idempotency key: the same key with the same content is the
same submission, so a retry or a double click adds nothing.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labeling_app.assignment import LEASE, LeaseLostError, messages_json
from labeling_app.auth import ROLES, WORKERS, Account, require
from labeling_app.ranking import check_ranks
from labeling_app.schema import (
    Demonstration,
    Draft,
    Lease,
    Prompt,
    RankedItem,
    RankedSet,
    Response,
    Slot,
    Task,
    TaskResponse,
    User,
)
from labeling_app.store import Store, check_name, check_text, record_event
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text
from pipeline.core.records import Message

CONFIDENCES = ("little", "fairly", "very")
MAX_REASON = 2000

S = TypeVar("S", Demonstration, RankedSet)


@dataclasses.dataclass(frozen=True)
class Receipt:
    """`repeated`: this very submission was there already."""

    submission_id: int
    repeated: bool


@dataclasses.dataclass(frozen=True)
class OwnWork:
    """One person's finished work. A day is a UTC day, a week the last seven of them."""

    answers_today: int
    rankings_today: int
    answers_week: int
    rankings_week: int
    answers: int
    rankings: int
    put_back: int
    drafts: int


def submit_demonstration(
    store: Store, who: Account, token: str, answer: str, idem_key: str
) -> Receipt:
    """The caller's ideal answer to the prompt of the leased task, stored as it was written.

    Raises UserError (empty, too long), LeaseLostError, DeniedError.
    """
    check_text(answer, "the answer")
    check_name(idem_key, "the idempotency key")
    digest = demonstration_digest(answer)
    now = store.clock()
    with store.write() as session:
        user = require(session, who, *WORKERS)
        if earlier := _earlier(session, Demonstration, user, idem_key, digest):
            return Receipt(earlier.id, repeated=True)
        lease, task = _live(session, user, token, "demo")
        prompt = session.get_one(Prompt, task.prompt_id)
        row = Demonstration(
            task_id=task.id,
            slot_id=lease.slot_id,
            user_id=user.id,
            version_id=lease.version_id,
            messages=[*prompt.messages, *messages_json([Message.of("assistant", answer)])],
            origin="human",
            content_sha256=digest,
            idem_key=idem_key,
            created_at=now,
        )
        session.add(row)
        session.flush()
        _fill_slot(session, user, lease, task, now)
        return Receipt(row.id, repeated=False)


def submit_comparison(
    store: Store,
    who: Account,
    token: str,
    ranks: Sequence[int],
    confidence: str | None,
    idem_key: str,
) -> Receipt:
    """The caller's ranking of the leased task. `ranks[i]` is the rank of the answer at position
    i, 1 is best, equal ranks are a tie; `confidence` is one of `CONFIDENCES` or None.

    Raises UserError (ranks that do not fit), LeaseLostError, DeniedError.
    """
    check_name(idem_key, "the idempotency key")
    if confidence is not None and confidence not in CONFIDENCES:
        raise UserError(f"confidence {confidence!r}; one of {', '.join(CONFIDENCES)} will do")
    now = store.clock()
    with store.write() as session:
        user = require(session, who, *WORKERS)
        task_id = session.scalars(
            select(RankedSet.task_id).where(RankedSet.idem_key == idem_key)
        ).one_or_none()
        lease = None
        if task_id is None:
            lease, task = _live(session, user, token, "compare")
            task_id = task.id
        texts = _answers(session, task_id)
        check_ranks(ranks, len(texts))
        digest = comparison_digest(texts, ranks, confidence)
        if earlier := _earlier(session, RankedSet, user, idem_key, digest):
            return Receipt(earlier.id, repeated=True)
        assert lease is not None
        row = RankedSet(
            task_id=task_id,
            slot_id=lease.slot_id,
            user_id=user.id,
            version_id=lease.version_id,
            shown_order=lease.shown_order,
            confidence=confidence,
            content_sha256=digest,
            idem_key=idem_key,
            created_at=now,
        )
        session.add(row)
        session.flush()
        for position, rank in enumerate(ranks):
            session.add(RankedItem(comparison_id=row.id, position=position, rank=rank))
        _fill_slot(session, user, lease, session.get_one(Task, task_id), now)
        return Receipt(row.id, repeated=False)


def save_draft(
    store: Store, who: Account, token: str, rev: int, body: dict[str, Any]
) -> dt.datetime:
    """Keep unfinished work; an older `rev` than the kept one changes nothing. Returns when saved.

    The lease need not be live, for typing is never thrown away; a live one is prolonged.
    """
    text = canonical_json(body)
    check_text(text, "the draft")
    now = store.clock()
    with store.write() as session:
        user = require(session, who, *WORKERS)
        lease = _own(session, user, token)
        if lease.outcome == "submitted":
            raise LeaseLostError("this task is already submitted")
        draft = session.get(Draft, (lease.task_id, user.id))
        if draft is None:
            session.add(
                Draft(task_id=lease.task_id, user_id=user.id, rev=rev, body=body, saved_at=now)
            )
        elif rev > draft.rev:
            draft.rev, draft.body, draft.saved_at = rev, body, now
        if lease.released is None:
            lease.expires = now + LEASE
    return now


def skip(store: Store, who: Account, token: str, reason: str) -> None:
    """Put the task back for others; the caller will not see it again."""
    _put_back(store, who, token, reason, "skipped")


def flag(store: Store, who: Account, token: str, reason: str) -> None:
    """Say that something is wrong with the task itself, and put it back."""
    _put_back(store, who, token, reason, "flagged")


def own_work(store: Store, who: Account) -> OwnWork:
    """What the caller has done so far; nobody else's."""
    midnight = store.clock().replace(hour=0, minute=0, second=0, microsecond=0)
    week = midnight - dt.timedelta(days=6)
    with store.read() as session:
        user = require(session, who, *ROLES)

        def count(model: type[Demonstration] | type[RankedSet], since: dt.datetime | None) -> int:
            query = select(func.count()).select_from(model).where(model.user_id == user.id)
            query = query if since is None else query.where(model.created_at >= since)
            return session.scalar(query) or 0

        put_back = select(func.count()).where(
            Lease.user_id == user.id, Lease.outcome.in_(("skipped", "flagged"))
        )
        drafts = select(func.count()).where(Draft.user_id == user.id)
        return OwnWork(
            count(Demonstration, midnight),
            count(RankedSet, midnight),
            count(Demonstration, week),
            count(RankedSet, week),
            count(Demonstration, None),
            count(RankedSet, None),
            session.scalar(put_back) or 0,
            session.scalar(drafts) or 0,
        )


def recorded(store: Store, idem_keys: Iterable[str]) -> dict[str, str]:
    """Those of the keys that were submitted, each with the digest of its content."""
    found: dict[str, str] = {}
    keys = sorted(set(idem_keys))
    with store.read() as session:
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            for model in (Demonstration, RankedSet):
                query = select(model.idem_key, model.content_sha256)
                rows = session.execute(query.where(model.idem_key.in_(some)))
                found.update((key, digest) for key, digest in rows)
    return found


def demonstration_digest(answer: str) -> str:
    return sha256_text(answer)


def comparison_digest(texts: Sequence[str], ranks: Sequence[int], confidence: str | None) -> str:
    return sha256_text(canonical_json([list(texts), list(ranks), confidence]))


def _earlier(session: Session, model: type[S], user: User, idem_key: str, digest: str) -> S | None:
    row = session.scalars(select(model).where(model.idem_key == idem_key)).one_or_none()
    if row is None:
        return None
    if row.user_id != user.id or row.content_sha256 != digest:
        raise UserError("this was submitted before, with other content; it stands as it was")
    return row


def _own(session: Session, user: User, token: str) -> Lease:
    query = select(Lease).where(Lease.token == token, Lease.user_id == user.id)
    lease = session.scalars(query).one_or_none()
    if lease is None:
        raise LeaseLostError("this task was not given to you; take the next one")
    return lease


def _live(session: Session, user: User, token: str, kind: str) -> tuple[Lease, Task]:
    """An expired lease still counts until somebody else takes the slot: no work is lost."""
    lease = _own(session, user, token)
    if lease.released is not None:
        raise LeaseLostError(f"this task is no longer yours ({lease.outcome}); take the next one")
    task = session.get_one(Task, lease.task_id)
    if task.kind != kind:
        raise UserError(f"task {task.id} asks for {task.kind!r}, not {kind!r}")
    return lease, task


def _answers(session: Session, task_id: int) -> Sequence[str]:
    return session.scalars(
        select(Response.text)
        .join(TaskResponse, TaskResponse.response_id == Response.id)
        .where(TaskResponse.task_id == task_id)
        .order_by(TaskResponse.position)
    ).all()


def _fill_slot(session: Session, user: User, lease: Lease, task: Task, now: dt.datetime) -> None:
    slot = session.get_one(Slot, lease.slot_id)
    assert not slot.filled, slot.id
    slot.filled = True
    lease.released, lease.outcome = now, "submitted"
    draft = session.get(Draft, (task.id, user.id))
    if draft is not None:
        session.delete(draft)
    session.flush()
    left = select(func.count()).where(Slot.task_id == task.id, Slot.filled.is_(False))
    if session.scalar(left) == 0:
        task.state = "done"
    record_event(
        session, now, user.name, "submitted", f"task:{task.id}", slot=slot.slot_no, kind=task.kind
    )


def _put_back(store: Store, who: Account, token: str, reason: str, outcome: str) -> None:
    check_text(reason, "the reason")
    if len(reason) > MAX_REASON:
        raise UserError(f"the reason has {len(reason)} characters; at most {MAX_REASON} are taken")
    now = store.clock()
    with store.write() as session:
        user = require(session, who, *WORKERS)
        lease = _own(session, user, token)
        if lease.outcome == outcome:
            return  # a double click
        if lease.released is not None:
            raise LeaseLostError(
                f"this task is no longer yours ({lease.outcome}); take the next one"
            )
        lease.released, lease.outcome, lease.reason = now, outcome, reason
        record_event(session, now, user.name, outcome, f"task:{lease.task_id}", reason=reason)

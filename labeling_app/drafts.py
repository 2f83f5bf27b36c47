"""Unfinished work, kept as it is typed: it outlives the lease, the session and the server."""

import dataclasses
import datetime as dt
import re
from typing import Any, cast

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from labeling_app.assignment import ENDED_BY_CHOICE, LeaseLostError
from labeling_app.auth import WORKERS, Account, Caller, require
from labeling_app.projects import settings_of
from labeling_app.schema import Demonstration, Draft, Lease, RankedSet, Review, Slot, Task
from labeling_app.store import MAX_TEXT_BYTES, Store
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json

MAX_DEPTH = 20
MAX_DRAFT_BYTES = 4 * MAX_TEXT_BYTES
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it, not the letters of it


@dataclasses.dataclass(frozen=True)
class Kept:
    """`kept` False: a draft of a later `rev` is there, from another window, and stays."""

    at: dt.datetime
    rev: int
    kept: bool


def save_draft(store: Store, who: Account, token: str, rev: int, body: dict[str, Any]) -> Kept:
    """Keep unfinished work; an older `rev` than the kept one changes nothing.

    The lease need not be live, for typing is never thrown away; a live one is prolonged. Raises
    LeaseLostError once the task is submitted or its correction given up, UserError for what cannot
    be stored.
    """
    _check(body)
    now = store.clock()

    def deed(session: Session) -> Kept:
        caller = require(session, who, *WORKERS)
        lease = in_force(session, own_lease(session, caller, token))
        if lease.outcome == "submitted":
            raise LeaseLostError("this task is already submitted")
        if lease.outcome == "given-up":
            raise LeaseLostError("this correction was given up; the label stands as it was")
        draft = session.get(Draft, (lease.task_id, caller.id), with_for_update={"key_share": True})
        if draft is None:
            session.add(
                Draft(task_id=lease.task_id, user_id=caller.id, rev=rev, body=body, saved_at=now)
            )
            session.flush()
        elif rev < draft.rev or (rev == draft.rev and body != draft.body):
            return Kept(draft.saved_at, draft.rev, kept=False)
        else:
            draft.rev, draft.body, draft.saved_at = rev, body, now
        if lease.released is None:
            minutes = settings_of(session, caller.project_id).lease_minutes
            lease.expires = now + dt.timedelta(minutes=minutes)
        return Kept(now, rev, kept=True)

    return store.transact(deed)


def _check(body: dict[str, Any]) -> None:
    """What may be handed in may be kept, however many signs JSON writes for it."""
    _check_depth(body, MAX_DEPTH)
    text = canonical_json(body)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"the draft is not valid Unicode ({error.reason}); write it anew") from None
    if _NUL.search(text):
        raise UserError("the draft holds a NUL character; take it out")
    if size > MAX_DRAFT_BYTES:
        raise UserError(f"the draft has {size:,} bytes; at most {MAX_DRAFT_BYTES:,} are taken")


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise UserError(f"the draft is nested more than {MAX_DEPTH} deep; a page sends no such one")
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(cast(dict[str, Any], value).values())
    elif isinstance(value, list):
        inner = cast(list[Any], value)
    for each in inner:
        _check_depth(each, left - 1)


def own_lease(session: Session, caller: Caller, token: str) -> Lease:
    """The caller's lease of this token, locked. Raises LeaseLostError."""
    lease = session.scalars(
        select(Lease)
        .join(Task, Task.id == Lease.task_id)
        .where(
            Lease.token == token,
            Lease.user_id == caller.id,
            Task.project_id == caller.project_id,
        )
        .with_for_update(of=Lease, key_share=True)
    ).one_or_none()
    if lease is None:
        raise LeaseLostError("this task was not given to you; take the next one")
    return lease


def in_force(session: Session, lease: Lease) -> Lease:
    """The lease that holds now in the place of an expired one: no work is lost while nobody else
    has the task. Another that its person took since, by which they may have dealt with it; or
    itself anew where the slot is still free, or itself as it is."""
    if lease.outcome != "expired":
        return lease
    slot = session.get_one(Slot, lease.slot_id, with_for_update={"key_share": True})
    mine = select(Lease).where(
        Lease.task_id == lease.task_id, Lease.user_id == lease.user_id, Lease.released.is_(None)
    )
    if other := session.scalars(mine).one_or_none():
        return other
    if lease.purpose == "work" and (ended := _ended(session, lease)):
        return ended
    held = session.scalar(
        select(exists().where(Lease.slot_id == slot.id, Lease.released.is_(None)))
    )
    model = RankedSet if slot.kind == "compare" else Demonstration
    over = lease.corrects is not None and session.scalar(
        select(
            or_(
                exists().where(model.supersedes_id == lease.corrects),
                exists().where(
                    Review.target_kind == ("compare" if slot.kind == "compare" else "demo"),
                    Review.target_id == lease.corrects,
                    Review.verdict != "returned",
                ),
                exists().where(
                    Lease.corrects == lease.corrects,
                    Lease.task_id == lease.task_id,
                    Lease.id > lease.id,
                    Lease.outcome == "given-up",
                ),
            )
        )
    )
    if not held and not over and (slot.state in ("free", "void") or lease.purpose != "work"):
        lease.released = lease.outcome = None
        if lease.purpose == "work":
            slot.state = "leased"
        session.flush()
    return lease


def _ended(session: Session, lease: Lease) -> Lease | None:
    """By which its person handed the same task in, or put it back."""
    return session.scalars(
        select(Lease)
        .where(
            Lease.task_id == lease.task_id,
            Lease.user_id == lease.user_id,
            Lease.purpose == "work",
            Lease.outcome.in_(ENDED_BY_CHOICE),
        )
        .limit(1)
    ).one_or_none()

"""What people hand in: answers and rankings, skips and flags.

A submission needs a live lease and an idempotency key: the same key with the same content is the
same submission, so a retry or a double click adds nothing. A correction is a row of its own.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labeling_app.assignment import LeaseLostError, free_slots
from labeling_app.auth import WORKERS, Account, Caller, require
from labeling_app.drafts import in_force, own_lease
from labeling_app.exposure import provenance
from labeling_app.projects import settings_of
from labeling_app.qualification import conclude
from labeling_app.review_requests import request_review
from labeling_app.schema import (
    Demonstration,
    Draft,
    Lease,
    Prompt,
    RankedItem,
    RankedSet,
    Review,
    Slot,
    Task,
)
from labeling_app.store import Store, check_name, check_text, record_event
from labeling_app.tasks import answers_of, messages_json
from labeling_app.verdicts import Verdict, check_reason, check_verdict
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text, unit_interval
from pipeline.core.records import Message

MAX_TURNS = 40
MAX_ACTIVE_MS = 24 * 3600 * 1000

S = TypeVar("S", Demonstration, RankedSet)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What the page saw of the work: milliseconds in which the person was active, and characters
    pasted. Both are signals, not proofs."""

    active_ms: int = 0
    pasted_chars: int = 0

    def bounded(self) -> "Trace":
        return Trace(
            min(max(self.active_ms, 0), MAX_ACTIVE_MS), min(max(self.pasted_chars, 0), 2**31 - 1)
        )


@dataclasses.dataclass(frozen=True)
class Receipt:
    """`repeated`: this very submission was there already."""

    submission_id: int
    repeated: bool


def submit_demonstration(
    store: Store,
    who: Account,
    token: str,
    answer: str | Sequence[Message],
    idem_key: str,
    trace: Trace | None = None,
    vendor: str = "",
) -> Receipt:
    """The caller's ideal answer to the prompt of the leased task, stored as it was written; or
    more turns, which end with an answer; or, for a question task, all of them.

    Raises UserError (empty, too long, turns out of order), LeaseLostError, DeniedError.
    """
    turns = (Message.of("assistant", answer),) if isinstance(answer, str) else tuple(answer)
    for turn in turns:
        check_text(turn.text, "the answer" if turn.role == "assistant" else "the question")
    check_name(idem_key, "the idempotency key")
    digest = demonstration_digest(turns)
    seen = (trace or Trace()).bounded()

    def deed(session: Session) -> Receipt:
        caller = require(session, who, *WORKERS)
        lease = own_lease(session, caller, token)
        if earlier := _earlier(session, Demonstration, lease, idem_key, digest):
            return Receipt(earlier.id, repeated=True)
        lease, task = _live(session, lease, "demo", "question")
        _check_turns(turns, task.kind)
        prompt = session.get_one(Prompt, task.prompt_id)
        before = [] if task.kind == "question" else prompt.messages
        origin, edit_chars = provenance(session, lease, turns[-1].text)
        row = Demonstration(
            task_id=task.id,
            slot_id=lease.slot_id,
            user_id=caller.id,
            version_id=lease.version_id,
            supersedes_id=lease.corrects,
            messages=[*before, *messages_json(turns)],
            origin=origin,
            assisted=lease.assisted,
            edit_chars=edit_chars,
            pasted_chars=seen.pasted_chars,
            active_ms=seen.active_ms,
            vendor=vendor,
            content_sha256=digest,
            idem_key=idem_key,
            created_at=store.clock(),
        )
        session.add(row)
        session.flush()
        _conclude(store, session, caller, lease, task, row.id)
        return Receipt(row.id, repeated=False)

    return store.transact(deed)


def submit_comparison(
    store: Store,
    who: Account,
    token: str,
    verdict: Verdict,
    idem_key: str,
    trace: Trace | None = None,
    vendor: str = "",
) -> Receipt:
    """The caller's ranking of the leased task.

    Raises UserError (ranks or boxes that do not fit), LeaseLostError, DeniedError.
    """
    check_name(idem_key, "the idempotency key")
    seen = (trace or Trace()).bounded()

    def deed(session: Session) -> Receipt:
        caller = require(session, who, *WORKERS)
        lease = own_lease(session, caller, token)
        texts = [row.text for row in answers_of(session, lease.task_id)]
        settings = settings_of(session, caller.project_id)
        check_verdict(verdict, len(texts), settings)
        digest = verdict.digest(texts)
        if earlier := _earlier(session, RankedSet, lease, idem_key, digest):
            return Receipt(earlier.id, repeated=True)
        lease, task = _live(session, lease, "compare")
        row = RankedSet(
            task_id=task.id,
            slot_id=lease.slot_id,
            user_id=caller.id,
            version_id=lease.version_id,
            supersedes_id=lease.corrects,
            shown_order=lease.shown_order,
            not_rankable=verdict.not_rankable,
            confidence=verdict.confidence,
            degree=verdict.degree,
            comment=verdict.comment,
            assisted=lease.assisted,
            active_ms=seen.active_ms,
            vendor=vendor,
            content_sha256=digest,
            idem_key=idem_key,
            created_at=store.clock(),
        )
        session.add(row)
        session.flush()
        _add_items(session, row.id, verdict, len(texts))
        _conclude(store, session, caller, lease, task, row.id)
        if task.purpose == "qualification":
            conclude(session, store, caller, settings)
        return Receipt(row.id, repeated=False)

    return store.transact(deed)


def skip(store: Store, who: Account, token: str, reason: str) -> None:
    """Put the task back for others; the caller will not see it again."""
    _put_back(store, who, token, reason, "skipped")


def flag(store: Store, who: Account, token: str, reason: str) -> None:
    """Say that something is wrong with the task itself, and put it back."""
    _put_back(store, who, token, reason, "flagged")


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


def demonstration_digest(turns: str | Sequence[Message]) -> str:
    if isinstance(turns, str):
        return sha256_text(turns)
    if len(turns) == 1 and turns[0].role == "assistant":
        return sha256_text(turns[0].text)
    return sha256_text(canonical_json(messages_json(turns)))


def _check_turns(turns: Sequence[Message], kind: str) -> None:
    first = "user" if kind == "question" else "assistant"
    roles = [first, "assistant" if first == "user" else "user"]
    wanted = [roles[number % 2] for number in range(len(turns))]
    if [turn.role for turn in turns] != wanted or not turns or turns[-1].role != "assistant":
        asks = "a question, then its answer" if first == "user" else "an answer"
        raise UserError(f"this task asks for {asks}; turns alternate and end with an answer")
    if len(turns) > MAX_TURNS:
        raise UserError(f"{len(turns)} turns; at most {MAX_TURNS} are taken")


def _add_items(session: Session, comparison_id: int, verdict: Verdict, num_answers: int) -> None:
    """A set that cannot be ranked ties throughout; whoever reads it sees `not_rankable` first."""
    for position in range(num_answers):
        session.add(
            RankedItem(
                comparison_id=comparison_id,
                position=position,
                rank=verdict.ranks[position] if verdict.ranks else 1,
                likert=verdict.likert[position] if verdict.likert else None,
                flags=list(verdict.flags[position]) if verdict.flags else [],
            )
        )


def _earlier(
    session: Session, model: type[S], lease: Lease, idem_key: str, digest: str
) -> S | None:
    row = session.scalars(select(model).where(model.idem_key == idem_key)).one_or_none()
    if row is None:
        return None
    given = (row.user_id, row.task_id, row.content_sha256)
    if given != (lease.user_id, lease.task_id, digest):
        raise UserError("this was submitted before, with other content; it stands as it was")
    return row


def _live(session: Session, lease: Lease, *kinds: str) -> tuple[Lease, Task]:
    """An expired lease still counts until somebody else takes the slot: no work is lost."""
    lease = in_force(session, lease)
    if lease.released is not None:
        raise LeaseLostError(f"this task is no longer yours ({lease.outcome}); take the next one")
    task = session.get_one(Task, lease.task_id)
    if task.kind not in kinds:
        raise UserError(f"task {task.id} asks for {task.kind!r}, not {kinds[0]!r}")
    return lease, task


def _conclude(
    store: Store, session: Session, caller: Caller, lease: Lease, task: Task, label_id: int
) -> None:
    """What every submission does beside its own row."""
    now = store.clock()
    slot = session.get_one(Slot, lease.slot_id, with_for_update={"key_share": True})
    _check_still_open(session, lease, task)
    lease.released, lease.outcome = now, "submitted"
    draft = session.get(Draft, (task.id, caller.id))
    if draft is not None:
        session.delete(draft)
    if lease.purpose == "work":
        assert slot.state == "leased", (slot.id, slot.state)
        slot.state = "filled"
        # Two people who fill a task's last two slots at once must not each leave it to the other.
        session.refresh(task, with_for_update={"key_share": True})
        left = select(func.count()).where(Slot.task_id == task.id, Slot.state != "filled")
        if task.purpose == "work" and session.scalar(left) == 0:
            task.state = "done"
    record_event(
        session,
        now,
        caller.pseudonym,
        "submitted",
        f"task:{task.id}",
        slot=slot.slot_no,
        kind=task.kind,
        label=label_id,
        why=lease.purpose,
    )
    _ask_for_review(session, caller, lease, task, label_id, now)


def _check_still_open(session: Session, lease: Lease, task: Task) -> None:
    """Raises LeaseLostError where a reviewer has spoken since the label was opened again. Whoever
    reviews locks the slot first."""
    if lease.corrects is None:
        return
    kind = "compare" if task.kind == "compare" else "demo"
    verdict = session.scalars(
        select(Review.verdict).where(Review.target_kind == kind, Review.target_id == lease.corrects)
    ).one_or_none()
    if verdict is not None and (lease.purpose == "adjudicate" or verdict != "returned"):
        raise LeaseLostError("somebody has reviewed this label meanwhile; it stands")


def _ask_for_review(
    session: Session, caller: Caller, lease: Lease, task: Task, label_id: int, now: dt.datetime
) -> None:
    if task.purpose != "work" or caller.simulated:
        return
    kind = "compare" if task.kind == "compare" else "demo"
    if lease.purpose == "adjudicate":
        session.add(
            Review(
                project_id=task.project_id,
                target_kind=kind,
                target_id=lease.corrects,
                reviewer_id=caller.id,
                author_id=_author(session, kind, lease.corrects),
                verdict="adjudicated",
                reason=lease.reason or "",
                clause="",
                comment="",
                at=now,
            )
        )
        return
    share = settings_of(session, task.project_id).review_share
    if lease.purpose == "correct" and session.scalar(
        select(func.count()).where(
            Review.target_kind == kind,
            Review.target_id == lease.corrects,
            Review.verdict == "returned",
        )
    ):
        request_review(
            session, task.project_id, kind, label_id, "corrected after it came back", now
        )
    elif unit_interval(lease.token, "review") < share:
        request_review(session, task.project_id, kind, label_id, "drawn at random", now)


def _author(session: Session, kind: str, label_id: int | None) -> int:
    model = RankedSet if kind == "compare" else Demonstration
    return session.scalars(select(model.user_id).where(model.id == label_id)).one()


def _put_back(store: Store, who: Account, token: str, reason: str, outcome: str) -> None:
    check_reason(reason, "the reason")

    def deed(session: Session) -> None:
        caller = require(session, who, *WORKERS)
        lease = own_lease(session, caller, token)
        if lease.outcome == outcome:
            return  # a double click
        if lease.released is not None:
            raise LeaseLostError(
                f"this task is no longer yours ({lease.outcome}); take the next one"
            )
        if lease.purpose != "work":
            raise UserError("a correction is given up, not put back; the label stands as it was")
        task = session.get_one(Task, lease.task_id)
        if task.purpose == "qualification" and outcome == "skipped":
            raise UserError("a qualification task is not skipped; say that it cannot be ranked")
        now = store.clock()
        lease.released, lease.outcome, lease.reason = now, outcome, reason
        record_event(
            session, now, caller.pseudonym, outcome, f"task:{lease.task_id}", reason=reason
        )
        free_slots(session, [lease.slot_id])

    store.transact(deed)

"""Peer review: a second person reads a label, accepts it, returns it with a reason, or puts
their own in its place. Nobody reviews their own work; a signal only leads here."""

import dataclasses
import datetime as dt
import re
from typing import Any, cast

from sqlalchemy import delete, exists, func, or_, select
from sqlalchemy.orm import Session

from labeling_app.assignment import LeaseLostError, Work, release_expired
from labeling_app.auth import REVIEWERS, Account, Caller, DeniedError, require
from labeling_app.labels import Label, LabelKind, head, model_of, open_again, review_of, text_of
from labeling_app.review_requests import request_review
from labeling_app.schema import (
    Assist,
    AssistAction,
    Demonstration,
    InstructionVersion,
    Lease,
    Prompt,
    RankedItem,
    RankedSet,
    Review,
    ReviewClaim,
    ReviewRequest,
    Task,
)
from labeling_app.store import Store, check_text, record_event
from labeling_app.tasks import answers_of, messages_of
from pipeline.core.errors import UserError
from pipeline.core.records import Message

CLAIM = dt.timedelta(minutes=30)
GAP = "the instructions have a gap"
REASONS = (
    "does not do what was asked",
    "not truthful",
    "harmful",
    "too long or unclear",
    "the ranks do not fit the answers",
    "looks careless",
    GAP,
    "something else",
)
MAX_COMMENT = 2000
_CLAUSE = re.compile(r"\d{1,2}(\.\d{1,2}){0,4}")


@dataclasses.dataclass(frozen=True)
class ShownAssist:
    kind: str
    model: str
    shown_at: dt.datetime
    parts: tuple[str, ...]
    actions: tuple[tuple[int, str], ...]


@dataclasses.dataclass(frozen=True)
class RankedAnswer:
    text: str
    rank: int
    likert: int | None
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ToReview:
    """A label as its reviewer sees it: not whose it is, but all that its author saw.

    `answers` are in the order that the author was shown; empty for a demonstration.
    """

    kind: LabelKind
    id: int
    task_id: int
    why: str
    prompt: tuple[Message, ...]
    turns: tuple[Message, ...]
    answers: tuple[RankedAnswer, ...]
    words: dict[str, str]
    instruction_version: int
    origin: str
    edit_chars: int | None
    pasted_chars: int
    active_ms: int
    created_at: dt.datetime
    assists: tuple[ShownAssist, ...]
    earlier: tuple[str, ...]


def next_review(store: Store, who: Account) -> ToReview | None:
    """The label that the caller is reading, or the oldest that waits for a peer; never one of a
    task that they worked on themselves."""

    def deed(session: Session) -> ToReview | None:
        caller = require(session, who, *REVIEWERS)
        store.lock(session, f"reviews {caller.project_id}")
        now = store.clock()
        release_expired(session, now)
        session.execute(delete(ReviewClaim).where(ReviewClaim.expires <= now))
        held = session.scalars(
            select(ReviewRequest)
            .join(
                ReviewClaim,
                (ReviewClaim.target_kind == ReviewRequest.target_kind)
                & (ReviewClaim.target_id == ReviewRequest.target_id),
            )
            .where(
                ReviewClaim.reviewer_id == caller.id,
                ReviewRequest.project_id == caller.project_id,
                ~_done("demo"),
                ~_done("compare"),
            )
            .limit(1)
        ).one_or_none()
        found = held or _oldest(session, caller)
        if found is None:
            return None
        claim = session.get(ReviewClaim, (found.target_kind, found.target_id))
        if claim is None:
            claim = ReviewClaim(target_kind=found.target_kind, target_id=found.target_id)
            session.add(claim)
        claim.reviewer_id, claim.expires = caller.id, now + CLAIM
        session.flush()
        return _view(session, found)

    return store.transact(deed)


def waiting(store: Store, who: Account) -> int:
    """How many labels wait for a review that the caller can give."""
    with store.read() as session:
        caller = require(session, who, *REVIEWERS)
        return (
            session.scalar(
                select(func.count()).select_from(_waiting(caller).order_by(None).subquery())
            )
            or 0
        )


def review(
    store: Store,
    who: Account,
    kind: LabelKind,
    label_id: int,
    verdict: str,
    reason: str = "",
    clause: str = "",
    comment: str = "",
) -> None:
    """Accept or return a label; once said it stands. Raises DeniedError for one's own work,
    UserError for a return without a reason."""
    if verdict not in ("accepted", "returned"):
        raise UserError(f"verdict {verdict!r}; accepted or returned will do")
    if verdict == "returned" or reason:
        _check_reason(reason)
    if len(comment) > MAX_COMMENT:
        raise UserError(f"the comment has {len(comment)} characters; at most {MAX_COMMENT}")
    if comment:
        check_text(comment, "the comment")
    if clause and not _CLAUSE.fullmatch(clause):
        raise UserError(f"clause {clause!r} is none of the instructions'; write it like 2.1")

    def deed(session: Session) -> None:
        caller = require(session, who, *REVIEWERS)
        label = _reviewable(session, caller, kind, label_id)
        if label is None:
            return  # a double click
        release_expired(session, store.clock())
        held = select(Lease.user_id).where(Lease.slot_id == label.slot_id, Lease.released.is_(None))
        if session.scalars(held).one_or_none() not in (None, caller.id):
            raise LeaseLostError("somebody is correcting this label now; look again later")
        at = store.clock()
        row = Review(
            project_id=caller.project_id,
            target_kind=kind,
            target_id=label_id,
            reviewer_id=caller.id,
            author_id=label.user_id,
            verdict=verdict,
            reason=reason,
            clause=clause,
            comment=comment,
            at=at,
        )
        session.add(row)
        session.flush()
        session.execute(
            delete(ReviewClaim).where(
                ReviewClaim.target_kind == kind, ReviewClaim.target_id == label_id
            )
        )
        record_event(
            session,
            at,
            caller.pseudonym,
            f"review-{verdict}",
            f"{kind}:{label_id}",
            reason=reason,
            clause=clause,
        )

    store.transact(deed)


def adjudicate(store: Store, who: Account, kind: LabelKind, label_id: int, reason: str) -> Work:
    """Open the label for the reviewer's own version; handing that in is the verdict."""
    _check_reason(reason)

    def deed(session: Session) -> Work:
        caller = require(session, who, *REVIEWERS)
        label = _reviewable(session, caller, kind, label_id)
        if label is None:
            raise UserError("this label was reviewed since")
        if session.get_one(Task, label.task_id).purpose != "work":
            raise UserError("a known answer is not adjudicated; accept or return the label")
        return open_again(store, session, caller, kind, label, "adjudicate", reason)

    return store.transact(deed)


def ask_for_review(store: Store, who: Account, kind: LabelKind, label_id: int, why: str) -> bool:
    """A lead's or a signal's wish that a peer reads this label; returns whether it is new."""
    check_text(why, "why")

    def deed(session: Session) -> bool:
        caller = require(session, who, "lead")
        head(session, caller, kind, label_id)
        return request_review(session, caller.project_id, kind, label_id, why[:200], store.clock())

    return store.transact(deed)


def _check_reason(reason: str) -> None:
    if reason not in REASONS:
        raise UserError(f"reason {reason!r}; one of: {'; '.join(REASONS)}")


def _reviewable(session: Session, caller: Caller, kind: LabelKind, label_id: int) -> Label | None:
    """The label, or None if this very reviewer has reviewed it. Raises DeniedError, UserError."""
    old = review_of(session, kind, label_id)
    if old is not None and old.reviewer_id == caller.id:
        return None
    label = head(session, caller, kind, label_id)
    if old is not None:
        raise UserError("somebody has reviewed this label; it stands")
    worked = session.scalar(
        select(
            exists().where(
                Lease.task_id == label.task_id,
                Lease.user_id == caller.id,
                Lease.purpose != "adjudicate",
                (Lease.outcome == "submitted") | Lease.released.is_(None),
            )
        )
    )
    if label.user_id == caller.id or worked:
        raise DeniedError("nobody reviews a task that they worked on themselves")
    return label


def _done(kind: str) -> Any:
    """Whether a request's label is reviewed, or has a newer one in its place."""
    model = model_of(kind)
    newer = exists().where(model.supersedes_id == ReviewRequest.target_id)
    reviewed = exists().where(
        Review.target_kind == ReviewRequest.target_kind,
        Review.target_id == ReviewRequest.target_id,
    )
    return or_((ReviewRequest.target_kind == kind) & newer, reviewed)


def _waiting(caller: Caller) -> Any:
    claimed = exists().where(
        ReviewClaim.target_kind == ReviewRequest.target_kind,
        ReviewClaim.target_id == ReviewRequest.target_id,
        ReviewClaim.reviewer_id != caller.id,
    )

    def worked(kind: str) -> Any:
        model = model_of(kind)
        return (ReviewRequest.target_kind == kind) & exists().where(
            model.id == ReviewRequest.target_id,
            Lease.task_id == model.task_id,
            Lease.user_id == caller.id,
            Lease.purpose != "adjudicate",
            (Lease.outcome == "submitted") | Lease.released.is_(None),
        )

    def own_or_held(kind: str) -> Any:
        """Written by the caller, an adjudication say; or open for somebody else's correction."""
        model = model_of(kind)
        held = exists().where(
            Lease.slot_id == model.slot_id,
            Lease.user_id != caller.id,
            Lease.released.is_(None),
        )
        return (ReviewRequest.target_kind == kind) & exists().where(
            model.id == ReviewRequest.target_id, (model.user_id == caller.id) | held
        )

    return (
        select(ReviewRequest)
        .where(
            ReviewRequest.project_id == caller.project_id,
            ~_done("demo"),
            ~_done("compare"),
            ~claimed,
            ~worked("demo"),
            ~worked("compare"),
            ~own_or_held("demo"),
            ~own_or_held("compare"),
        )
        .order_by(ReviewRequest.at, ReviewRequest.target_kind, ReviewRequest.target_id)
    )


def _oldest(session: Session, caller: Caller) -> ReviewRequest | None:
    return session.scalars(_waiting(caller).limit(1)).one_or_none()


def _view(session: Session, request: ReviewRequest) -> ToReview:
    kind = cast(LabelKind, request.target_kind)
    label = session.get_one(model_of(kind), request.target_id)
    task = session.get_one(Task, label.task_id)
    prompt = messages_of(session.get_one(Prompt, task.prompt_id).messages)
    return ToReview(
        kind=kind,
        id=label.id,
        task_id=task.id,
        why=request.why,
        prompt=prompt,
        turns=_turns(label, task, len(prompt)),
        answers=_answers(session, label),
        words=_words(label),
        instruction_version=session.get_one(InstructionVersion, label.version_id).n,
        origin=label.origin if isinstance(label, Demonstration) else "human",
        edit_chars=label.edit_chars if isinstance(label, Demonstration) else None,
        pasted_chars=label.pasted_chars if isinstance(label, Demonstration) else 0,
        active_ms=label.active_ms,
        created_at=label.created_at,
        assists=_assists(session, label),
        earlier=_earlier(session, kind, label),
    )


def _turns(label: Label, task: Task, prompt_length: int) -> tuple[Message, ...]:
    if not isinstance(label, Demonstration):
        return ()
    return messages_of(label.messages)[0 if task.kind == "question" else prompt_length :]


def _answers(session: Session, label: Label) -> tuple[RankedAnswer, ...]:
    if not isinstance(label, RankedSet):
        return ()
    texts = [row.text for row in answers_of(session, label.task_id)]
    items = session.scalars(
        select(RankedItem).where(RankedItem.comparison_id == label.id).order_by(RankedItem.position)
    ).all()
    return tuple(
        RankedAnswer(
            texts[place], items[place].rank, items[place].likert, tuple(items[place].flags)
        )
        for place in label.shown_order
    )


def _words(label: Label) -> dict[str, str]:
    if isinstance(label, Demonstration):
        return {}
    said = {
        "cannot be ranked": label.not_rankable,
        "how sure": label.confidence or "",
        "how much better": label.degree or "",
        "comment": label.comment,
    }
    return {key: value for key, value in said.items() if value}


def _assists(session: Session, label: Label) -> tuple[ShownAssist, ...]:
    rows = session.scalars(
        select(Assist)
        .join(Lease, Lease.id == Assist.lease_id)
        .where(Lease.task_id == label.task_id, Lease.user_id == label.user_id, Assist.error == "")
        .order_by(Assist.id)
    ).all()
    return tuple(
        ShownAssist(
            row.kind,
            row.model,
            row.shown_at,
            tuple(str(part.get("text", "")) for part in row.output),
            tuple(
                (action.part, action.action)
                for action in session.scalars(
                    select(AssistAction)
                    .where(AssistAction.assist_id == row.id)
                    .order_by(AssistAction.id)
                )
            ),
        )
        for row in rows
    )


def _earlier(session: Session, kind: LabelKind, label: Label) -> tuple[str, ...]:
    found: list[str] = []
    before = label.supersedes_id
    while before is not None:
        old = session.get_one(model_of(kind), before)
        found.append(text_of(session, old))
        before = old.supersedes_id
    return tuple(found)

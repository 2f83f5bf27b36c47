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
from labeling_app.label_view import LabelView, label_view
from labeling_app.labels import Label, LabelKind, head, model_of, open_again, review_of
from labeling_app.review_requests import request_review
from labeling_app.schema import (
    Lease,
    Review,
    ReviewClaim,
    ReviewRequest,
    Slot,
    Task,
)
from labeling_app.store import Store, check_text, record_event
from pipeline.core.errors import UserError

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
class ToReview(LabelView):
    """A label as its reviewer sees it, and why it waits."""

    why: str


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


def unreviewed(session: Session, project: int) -> int:
    """How many labels of the project wait for anybody's review."""
    asked = (ReviewRequest.project_id == project, ~_done("demo"), ~_done("compare"))
    return session.scalar(select(func.count()).select_from(ReviewRequest).where(*asked)) or 0


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
        release_expired(session, store.clock())
        label = _reviewable(session, caller, kind, label_id)
        if label is None:
            return  # a double click
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
    # One after the other: a review, and whoever opens the label again or hands it in anew.
    session.get_one(Slot, label.slot_id, with_for_update={"key_share": True})
    head(session, caller, kind, label_id)
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
    return ToReview(**vars(label_view(session, kind, label)), why=request.why)

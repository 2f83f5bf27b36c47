"""One label as people see it again: its author's own list, its correction, its whole history."""

import dataclasses
import datetime as dt
from typing import Any, Literal, cast

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from labeling_app.assignment import (
    LeaseLostError,
    Work,
    new_lease,
    release_expired,
    work_of,
)
from labeling_app.auth import REVIEWERS, WORKERS, Account, Caller, DeniedError, require
from labeling_app.drafts import own_lease
from labeling_app.guidelines import require_read
from labeling_app.projects import settings_of
from labeling_app.qualification import ranks_of
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
from labeling_app.store import Store, record_event
from labeling_app.tasks import messages_of
from pipeline.core.errors import UserError

LabelKind = Literal["demo", "compare"]
Label = Demonstration | RankedSet


@dataclasses.dataclass(frozen=True)
class OwnLabel:
    """`text`: of a ranking the ranks in the order that its author saw. `editable`: its author may
    still correct it. `verdict`: a reviewer's, "" for none."""

    kind: LabelKind
    id: int
    task_id: int
    created_at: dt.datetime
    prompt: str
    text: str
    editable: bool
    verdict: str
    reason: str
    clause: str
    comment: str


def own_labels(store: Store, who: Account, limit: int = 20) -> list[OwnLabel]:
    """The caller's newest labels, without those that a later one corrects. Known answers are not
    told from work."""
    with store.read() as session:
        caller = require(session, who, *WORKERS)
        minutes = settings_of(session, caller.project_id).undo_minutes
        since = store.clock() - dt.timedelta(minutes=minutes)
        found: list[OwnLabel] = []
        for kind in ("demo", "compare"):
            model = model_of(kind)
            newer = model.__table__.alias()
            rows = session.execute(
                select(model, Review)
                .join(Task, Task.id == model.task_id)
                .outerjoin(Review, (Review.target_kind == kind) & (Review.target_id == model.id))
                .where(
                    model.user_id == caller.id,
                    Task.project_id == caller.project_id,
                    ~exists().where(newer.c.supersedes_id == model.id),
                )
                .order_by(model.created_at.desc(), model.id.desc())
                .limit(limit)
            )
            found += [_own(session, kind, row, review, since) for row, review in rows]
        return sorted(found, key=lambda label: label.created_at, reverse=True)[:limit]


def last_label(store: Store, who: Account) -> OwnLabel | None:
    """What "undo" means: the caller's newest label, while it may be corrected."""
    newest = own_labels(store, who, limit=1)
    return newest[0] if newest and newest[0].editable else None


def can_undo(store: Store, who: Account) -> bool:
    """Whether a label of the caller's is so new that they may still correct it."""
    with store.read() as session:
        caller = require(session, who, *WORKERS)
        minutes = settings_of(session, caller.project_id).undo_minutes
        since = store.clock() - dt.timedelta(minutes=minutes)
        recent = [
            exists().where(
                model.user_id == caller.id,
                model.created_at >= since,
                exists().where(
                    Task.id == model.task_id,
                    Task.project_id == caller.project_id,
                    Task.purpose != "qualification",
                ),
            )
            for model in (Demonstration, RankedSet)
        ]
        return bool(session.scalar(select(or_(*recent))))


def reopen(store: Store, who: Account, kind: LabelKind, label_id: int) -> Work:
    """The caller's own label, to be handed in anew: within the time for it, or because it came
    back. Until then the old one stands. Raises DeniedError, UserError."""

    def deed(session: Session) -> Work:
        caller = require(session, who, *WORKERS)
        label = head(session, caller, kind, label_id)
        if label.user_id != caller.id:
            raise DeniedError("this label is another person's")
        if session.get_one(Task, label.task_id).purpose == "qualification":
            raise UserError("a qualification is not corrected; it may be tried again")
        settings = settings_of(session, caller.project_id)
        since = store.clock() - dt.timedelta(minutes=settings.undo_minutes)
        review = review_of(session, kind, label_id)
        if review and review.verdict == "accepted":
            raise UserError("a reviewer accepted this label; it stands")
        if not (label.created_at >= since or (review and review.verdict == "returned")):
            raise UserError(
                f"a label can be corrected for {settings.undo_minutes} minutes, or when it came"
                " back; this one stands"
            )
        return open_again(store, session, caller, kind, label, "correct", "")

    return store.transact(deed)


def give_up(store: Store, who: Account, token: str) -> None:
    """End a correction or adjudication without handing it in: the label stands as it was."""

    def deed(session: Session) -> None:
        caller = require(session, who, *WORKERS)
        lease = own_lease(session, caller, token)
        if lease.purpose == "work":
            raise UserError("this is no correction; skip the task instead")
        if lease.released is not None:
            return
        lease.released, lease.outcome = store.clock(), "given-up"
        draft = session.get(Draft, (lease.task_id, caller.id))
        if draft is not None:
            session.delete(draft)
        record_event(session, store.clock(), caller.pseudonym, "gave-up", f"task:{lease.task_id}")

    store.transact(deed)


def open_again(
    store: Store,
    session: Session,
    caller: Caller,
    kind: LabelKind,
    label: Label,
    purpose: str,
    reason: str,
) -> Work:
    """Within a transaction: a lease on the label's slot, with a draft of the label as it is."""
    release_expired(session, store.clock())
    slot = session.get_one(Slot, label.slot_id, with_for_update={"key_share": True})
    review = review_of(session, kind, label.id)
    if review is not None and (purpose == "adjudicate" or review.verdict != "returned"):
        raise UserError("somebody has reviewed this label since; it stands")
    head(session, caller, kind, label.id)
    held = session.scalars(
        select(Lease).where(Lease.slot_id == label.slot_id, Lease.released.is_(None))
    ).one_or_none()
    if held is not None and held.user_id != caller.id:
        raise LeaseLostError("somebody is correcting this label now; look again later")
    if held is not None:
        return work_of(session, held)
    version = require_read(session, caller.project_id, caller.id)
    task = session.get_one(Task, label.task_id)
    minutes = settings_of(session, caller.project_id).lease_minutes
    lease = new_lease(
        store,
        session,
        caller,
        slot,
        task,
        version,
        dt.timedelta(minutes=minutes),
        assisted=label.assisted,
        purpose=purpose,
        corrects=label.id,
    )
    lease.reason = reason or None
    draft = session.get(Draft, (task.id, caller.id))
    if draft is not None and _was_typing(session, lease):
        return work_of(session, lease)
    body = _body(session, label, lease.shown_order)
    if draft is None:
        draft = Draft(task_id=task.id, user_id=caller.id, rev=0)
        session.add(draft)
    draft.body, draft.saved_at = body, store.clock()
    draft.rev = draft.rev + 1
    session.flush()
    return work_of(session, lease)


def _was_typing(session: Session, lease: Lease) -> bool:
    """Whether the person's last lease on the task was for the same and ended by time alone."""
    last = session.scalars(
        select(Lease)
        .where(Lease.task_id == lease.task_id, Lease.user_id == lease.user_id, Lease.id != lease.id)
        .order_by(Lease.id.desc())
        .limit(1)
    ).one_or_none()
    return last is not None and (last.outcome, last.purpose, last.corrects) == (
        "expired",
        lease.purpose,
        lease.corrects,
    )


def head(session: Session, caller: Caller, kind: LabelKind, label_id: int) -> Label:
    """A label of the caller's project that no later one corrects. Raises UserError."""
    model = model_of(kind)
    label = session.get(model, label_id)
    if label is None or session.get_one(Task, label.task_id).project_id != caller.project_id:
        raise UserError(f"no label {label_id} in this project")
    if session.scalars(select(model.id).where(model.supersedes_id == label_id)).one_or_none():
        raise UserError("this label was corrected since; look at the newer one")
    return label


def model_of(kind: str) -> type[Demonstration] | type[RankedSet]:
    return RankedSet if kind == "compare" else Demonstration


def review_of(session: Session, kind: str, label_id: int) -> Review | None:
    return session.scalars(
        select(Review).where(Review.target_kind == kind, Review.target_id == label_id)
    ).one_or_none()


def history(store: Store, who: Account, kind: LabelKind, label_id: int) -> list[dict[str, Any]]:
    """The label and those it came from, newest first, each with its review: for reviewers."""
    with store.read() as session:
        caller = require(session, who, *REVIEWERS, "engineer")
        model = model_of(kind)
        rows: list[dict[str, Any]] = []
        current: int | None = label_id
        while current is not None:
            label = session.get(model, current)
            if (
                label is None
                or session.get_one(Task, label.task_id).project_id != caller.project_id
            ):
                raise UserError(f"no label {current} in this project")
            review = review_of(session, kind, current)
            rows.append(
                {
                    "id": label.id,
                    "created_at": label.created_at,
                    "text": text_of(session, label),
                    "verdict": review.verdict if review else "",
                    "reason": review.reason if review else "",
                    "comment": review.comment if review else "",
                }
            )
            current = label.supersedes_id
        return rows


def text_of(session: Session, label: Label) -> str:
    """The label in words: the last turn, or the ranks in the order of the task's answers."""
    if isinstance(label, Demonstration):
        parts = cast(list[dict[str, Any]], label.messages[-1]["content"])
        return "".join(str(part["text"] or "") for part in parts)
    if label.not_rankable:
        return f"cannot be ranked: {label.not_rankable}"
    return "ranks " + " ".join(map(str, ranks_of(session, label.id)))


def _as_seen(session: Session, label: Label) -> str:
    if isinstance(label, Demonstration) or label.not_rankable:
        return text_of(session, label)
    ranks = ranks_of(session, label.id)
    letters = zip("ABCDEFGHI", label.shown_order, strict=False)
    return "ranks " + " · ".join(f"{letter} {ranks[position]}" for letter, position in letters)


def _own(
    session: Session, kind: str, label: Label, review: Review | None, since: dt.datetime
) -> OwnLabel:
    returned = review is not None and review.verdict == "returned"
    task = session.get_one(Task, label.task_id)
    return OwnLabel(
        cast(LabelKind, kind),
        label.id,
        label.task_id,
        label.created_at,
        messages_of(session.get_one(Prompt, task.prompt_id).messages)[-1].text,
        _as_seen(session, label),
        task.purpose != "qualification"
        and (returned or (review is None and label.created_at >= since)),
        review.verdict if review else "",
        review.reason if review else "",
        review.clause if review else "",
        review.comment if review else "",
    )


def _body(session: Session, label: Label, shown_order: list[int]) -> dict[str, Any]:
    """The label as a draft of it would have been: for rankings in the order on the screen."""
    if isinstance(label, Demonstration):
        turns = [
            {"role": row["role"], "text": "".join(part["text"] or "" for part in row["content"])}
            for row in label.messages
        ]
        task = session.get_one(Task, label.task_id)
        if task.kind != "question":
            # What follows the prompt; the prompt ends with a user's message.
            turns = turns[_prompt_length(session, task) :]
        return {"turns": turns}
    items = session.scalars(
        select(RankedItem).where(RankedItem.comparison_id == label.id).order_by(RankedItem.position)
    ).all()
    shown = [items[position] for position in shown_order]
    return {
        "ranks": [None if label.not_rankable else item.rank for item in shown],
        "likert": [item.likert for item in shown],
        "flags": [list(item.flags) for item in shown],
        "confidence": label.confidence,
        "degree": label.degree,
        "comment": label.comment,
        "not_rankable": label.not_rankable,
    }


def _prompt_length(session: Session, task: Task) -> int:
    return len(session.get_one(Prompt, task.prompt_id).messages)

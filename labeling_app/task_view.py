"""One task with all that people did to it, for a lead: who had it, what they handed in, what a
reviewer said."""

import dataclasses
import datetime as dt

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from labeling_app.auth import Account, require
from labeling_app.label_view import LabelView, label_view
from labeling_app.labels import Label, LabelKind, model_of, review_of
from labeling_app.schema import Demonstration, Lease, Prompt, Task, User
from labeling_app.store import Store
from labeling_app.tasks import answers_of, messages_of
from pipeline.core.errors import UserError
from pipeline.core.records import Message


@dataclasses.dataclass(frozen=True)
class Said:
    """A review of a label."""

    reviewer: str
    verdict: str
    reason: str
    clause: str
    comment: str
    at: dt.datetime


@dataclasses.dataclass(frozen=True)
class Given:
    """A label as it stands and whose it is. `ranks`: in the order of the task's answers, empty for
    an answer and for what cannot be ranked."""

    person: str
    label: LabelView
    ranks: tuple[int, ...]
    assisted: bool
    vendor: str
    said: Said | None


@dataclasses.dataclass(frozen=True)
class Turn:
    """A time that somebody had the task. `outcome`: "" while they still have it."""

    person: str
    purpose: str
    acquired: dt.datetime
    released: dt.datetime | None
    outcome: str
    reason: str


@dataclasses.dataclass(frozen=True)
class TaskView:
    """`answers`: the texts in the task's order; of which model they are is told to nobody here."""

    id: int
    key: str
    kind: str
    purpose: str
    state: str
    source: str
    skill: str
    priority: int
    overlap: int
    created_at: dt.datetime
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    given: tuple[Given, ...]
    turns: tuple[Turn, ...]


def task_view(store: Store, who: Account, task_id: int) -> TaskView:
    """Raises UserError if the project has no such task, DeniedError for other roles."""
    with store.read() as session:
        caller = require(session, who, "lead", "engineer")
        task = session.get(Task, task_id) if 0 < task_id < 2**62 else None
        if task is None or task.project_id != caller.project_id:
            raise UserError(f"no task {task_id} in this project")
        return TaskView(
            task.id,
            task.key,
            task.kind,
            task.purpose,
            task.state,
            task.source,
            task.skill,
            task.priority,
            task.overlap,
            task.created_at,
            messages_of(session.get_one(Prompt, task.prompt_id).messages),
            tuple(row.text for row in answers_of(session, task.id)),
            tuple(task.gold or ()),
            tuple(_given(session, task)),
            tuple(_turns(session, task)),
        )


def _given(session: Session, task: Task) -> list[Given]:
    kind: LabelKind = "compare" if task.kind == "compare" else "demo"
    model = model_of(kind)
    newer = model.__table__.alias()
    rows = session.execute(
        select(model, User.name)
        .join(User, User.id == model.user_id)
        .where(model.task_id == task.id, ~exists().where(newer.c.supersedes_id == model.id))
        .order_by(model.id)
    ).all()
    return [_one(session, kind, label, name) for label, name in rows]


def _one(session: Session, kind: LabelKind, label: Label, name: str) -> Given:
    view = label_view(session, kind, label)
    ranked = kind == "compare" and "cannot be ranked" not in view.words
    shown = [] if isinstance(label, Demonstration) else label.shown_order
    by_place = {place: answer.rank for place, answer in zip(shown, view.answers, strict=True)}
    review = review_of(session, kind, label.id)
    said = review and Said(
        session.get_one(User, review.reviewer_id).name,
        review.verdict,
        review.reason,
        review.clause,
        review.comment,
        review.at,
    )
    ranks = tuple(by_place[place] for place in sorted(by_place)) if ranked else ()
    return Given(name, view, ranks, label.assisted, label.vendor, said)


def _turns(session: Session, task: Task) -> list[Turn]:
    rows = session.execute(
        select(Lease, User.name)
        .join(User, User.id == Lease.user_id)
        .where(Lease.task_id == task.id)
        .order_by(Lease.id)
    )
    return [
        Turn(
            name,
            lease.purpose,
            lease.acquired,
            lease.released,
            lease.outcome or "",
            lease.reason or "",
        )
        for lease, name in rows
    ]

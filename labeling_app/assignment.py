"""The queue: tasks with their slots, and leases, by which one person at a time holds one slot.

A lease that has expired returns its slot in the transaction of whoever asks next.
"""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, Select, exists, select, update
from sqlalchemy.orm import Session

from labeling_app.auth import WORKERS, Account, DeniedError, require
from labeling_app.guidelines import require_read
from labeling_app.schema import (
    Draft,
    InstructionVersion,
    Lease,
    Prompt,
    Response,
    Slot,
    Task,
    TaskResponse,
)
from labeling_app.store import Store, check_name, check_text, record_event
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, prompt_id, sha256_text
from pipeline.core.records import Message, Part

Kind = Literal["demo", "compare"]
LEASE = dt.timedelta(minutes=45)
MAX_OVERLAP = 9
MIN_ANSWERS, MAX_ANSWERS = 2, 9
_ENDED_BY_CHOICE = ("submitted", "skipped", "flagged")


@dataclasses.dataclass(frozen=True)
class NewAnswer:
    model: str
    text: str


@dataclasses.dataclass(frozen=True)
class NewTask:
    """`key` names it for ever. A demo task may show one bad answer that is to be done better."""

    key: str
    kind: Kind
    prompt: tuple[Message, ...]
    source: str
    answers: tuple[NewAnswer, ...] = ()
    overlap: int = 1
    priority: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer as a labeler sees it: `position` is its place in the ranking, not on the screen;
    nothing tells the model."""

    position: int
    text: str


@dataclasses.dataclass(frozen=True)
class SavedDraft:
    rev: int
    body: dict[str, Any]
    saved_at: dt.datetime


@dataclasses.dataclass(frozen=True)
class Work:
    """A leased task. `answers` stand in this person's order."""

    token: str
    task_id: int
    kind: Kind
    source: str
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]
    instruction_version: int
    expires: dt.datetime
    draft: SavedDraft | None


class LeaseLostError(UserError):
    """The slot is no longer the caller's: expired and taken, submitted, or never theirs."""


def add_tasks(store: Store, who: Account, tasks: Sequence[NewTask]) -> int:
    """Add all of them or none; a key that is there already adds nothing. Returns the number new.

    Raises UserError for a task that cannot be shown, or a known key with other content.
    """
    for task in tasks:
        check_task(task)
    now = store.clock()
    with store.write() as session:
        user = require(session, who, "lead", "engineer")
        return sum(add_task(session, now, user.name, task)[1] for task in tasks)


def check_task(task: NewTask) -> None:
    """Raises UserError for a task that cannot be shown to a person."""
    check_name(task.key, "a task's key")
    if not task.prompt or task.prompt[-1].role != "user":
        raise UserError(f"task {task.key!r}: the prompt must end with a user's message")
    for message in task.prompt:
        if message.role not in ("system", "user", "assistant"):
            raise UserError(f"task {task.key!r}: unknown role {message.role!r}")
        check_text(message.text, f"task {task.key!r}: a message of the prompt")
    for answer in task.answers:
        check_text(answer.text, f"task {task.key!r}: an answer")
        check_name(answer.model, f"task {task.key!r}: the model's name")
    if len(set(task.answers)) < len(task.answers):
        raise UserError(f"task {task.key!r}: two answers are the same")
    low, high = (MIN_ANSWERS, MAX_ANSWERS) if task.kind == "compare" else (0, 1)
    if not low <= len(task.answers) <= high:
        raise UserError(f"task {task.key!r}: {len(task.answers)} answers; {low} to {high} will do")
    if not 1 <= task.overlap <= MAX_OVERLAP:
        raise UserError(f"task {task.key!r}: overlap {task.overlap}; 1 to {MAX_OVERLAP} will do")


def add_task(session: Session, at: dt.datetime, actor: str, task: NewTask) -> tuple[int, bool]:
    """Within a transaction: the task's row id, and whether it is new."""
    content = sha256_text(canonical_json(messages_json(task.prompt)))
    old = session.scalars(select(Task).where(Task.key == task.key)).one_or_none()
    if old is not None:
        if (old.kind, _content(session, old)) != (task.kind, (content, task.answers)):
            raise UserError(f"task {task.key!r} exists with other content; give it another key")
        return old.id, False
    prompt = _prompt(session, task.prompt, content)
    row = Task(
        key=task.key,
        prompt_id=prompt.id,
        kind=task.kind,
        source=task.source,
        overlap=task.overlap,
        priority=task.priority,
        state="open",
        created_at=at,
    )
    session.add(row)
    session.flush()
    for position, answer in enumerate(task.answers):
        response = _response(session, prompt.id, answer)
        session.add(TaskResponse(task_id=row.id, position=position, response_id=response.id))
    for slot_no in range(task.overlap):
        session.add(Slot(task_id=row.id, slot_no=slot_no, filled=False))
    record_event(session, at, actor, "task-added", f"task:{row.id}", key=task.key)
    session.flush()
    return row.id, True


def next_task(store: Store, who: Account, kind: Kind, lease: dt.timedelta = LEASE) -> Work | None:
    """The task the caller holds, or a new one: first where they left a draft, then by priority
    and age; never one that they have answered, skipped or flagged. None: nothing for them now.

    Raises DeniedError for other roles, UnreadError if the newest instructions are not acknowledged.
    """
    return _acquire(store, who, (Task.kind == kind) & (Task.state == "open"), lease)


def take_task(store: Store, who: Account, key: str, lease: dt.timedelta = LEASE) -> Work | None:
    """A slot of one named task, for a simulated account that imports labels: people take what
    the queue gives. None: no slot is free for it."""
    return _acquire(store, who, Task.key == key, lease, simulated_only=True)


def shown_order(key: str, name: str, num_answers: int) -> list[int]:
    """Positions of the answers in one person's order: fixed for person and task, else random."""
    return sorted(range(num_answers), key=lambda place: sha256_text(f"{key}\0{name}\0{place}"))


def messages_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(message) for message in messages]


def messages_of(rows: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(
        Message(row["role"], tuple(Part(**part) for part in row["content"])) for row in rows
    )


def _acquire(
    store: Store,
    who: Account,
    wanted: ColumnElement[bool],
    lease: dt.timedelta,
    simulated_only: bool = False,
) -> Work | None:
    now = store.clock()
    with store.write() as session:
        user = require(session, who, *WORKERS)
        if simulated_only and not user.simulated:
            raise DeniedError("only simulated accounts take a task by its key")
        version = require_read(session, user.id)
        held = session.scalars(_held(user.id).where(wanted).limit(1)).one_or_none()
        if held is not None:
            held.expires = now + lease
            return _work(session, held)
        _release_expired(session, now)
        slot = _pick(session, _free_slots(user.id).where(wanted).limit(1), user.id)
        if slot is None:
            return None
        task = session.get_one(Task, slot.task_id)
        positions = select(TaskResponse.position).where(TaskResponse.task_id == task.id)
        num_answers = len(session.scalars(positions).all())
        row = Lease(
            slot_id=slot.id,
            task_id=task.id,
            user_id=user.id,
            version_id=version.id,
            token=store.token(),
            shown_order=shown_order(task.key, user.name, num_answers),
            acquired=now,
            expires=now + lease,
        )
        session.add(row)
        session.flush()
        record_event(session, now, user.name, "leased", f"task:{task.id}", slot=slot.slot_no)
        return _work(session, row)


def _pick(session: Session, free: Select[Slot], user_id: int) -> Slot | None:
    drafted = exists().where(Draft.task_id == Task.id, Draft.user_id == user_id)
    slot = session.scalars(free.where(drafted)).one_or_none()
    return slot or session.scalars(free).one_or_none()


def _held(user_id: int) -> Select[Lease]:
    return (
        select(Lease)
        .join(Task, Task.id == Lease.task_id)
        .where(Lease.user_id == user_id, Lease.released.is_(None))
        .order_by(Lease.id)
    )


def _free_slots(user_id: int) -> Select[Slot]:
    """Open slots of tasks that this person has not dealt with, the most urgent first."""
    mine = exists().where(
        Lease.user_id == user_id,
        Lease.task_id == Task.id,
        Lease.outcome.in_(_ENDED_BY_CHOICE) | Lease.released.is_(None),
    )
    taken = exists().where(Lease.slot_id == Slot.id, Lease.released.is_(None))
    return (
        select(Slot)
        .join(Task, Task.id == Slot.task_id)
        .where(Slot.filled.is_(False), ~taken, ~mine)
        .order_by(Task.priority.desc(), Task.id, Slot.slot_no)
        .with_for_update(skip_locked=True, of=Slot)  # PostgreSQL; SQLite has one writer anyway
    )


def _release_expired(session: Session, now: dt.datetime) -> None:
    session.execute(
        update(Lease)
        .where(Lease.released.is_(None), Lease.expires <= now)
        .values(released=now, outcome="expired")
    )


def _work(session: Session, lease: Lease) -> Work:
    task = session.get_one(Task, lease.task_id)
    texts = session.scalars(
        select(Response.text)
        .join(TaskResponse, TaskResponse.response_id == Response.id)
        .where(TaskResponse.task_id == task.id)
        .order_by(TaskResponse.position)
    ).all()
    draft = session.get(Draft, (task.id, lease.user_id))
    return Work(
        token=lease.token,
        task_id=task.id,
        kind=cast(Kind, task.kind),
        source=task.source,
        prompt=messages_of(session.get_one(Prompt, task.prompt_id).messages),
        answers=tuple(Answer(position, texts[position]) for position in lease.shown_order),
        instruction_version=session.get_one(InstructionVersion, lease.version_id).n,
        expires=lease.expires,
        draft=SavedDraft(draft.rev, draft.body, draft.saved_at) if draft else None,
    )


def _content(session: Session, task: Task) -> tuple[str, tuple[NewAnswer, ...]]:
    answers = session.scalars(
        select(Response)
        .join(TaskResponse, TaskResponse.response_id == Response.id)
        .where(TaskResponse.task_id == task.id)
        .order_by(TaskResponse.position)
    )
    prompt = session.get_one(Prompt, task.prompt_id)
    return prompt.content_sha256, tuple(NewAnswer(row.model, row.text) for row in answers)


def _prompt(session: Session, messages: tuple[Message, ...], content_sha256: str) -> Prompt:
    found = select(Prompt).where(Prompt.content_sha256 == content_sha256)
    row = session.scalars(found).one_or_none()
    if row is None:
        row = Prompt(
            prompt_id=prompt_id(messages),
            messages=messages_json(messages),
            content_sha256=content_sha256,
        )
        session.add(row)
        session.flush()
    return row


def _response(session: Session, prompt: int, answer: NewAnswer) -> Response:
    digest = sha256_text(answer.text)
    row = session.scalars(
        select(Response).where(
            Response.prompt_id == prompt,
            Response.model == answer.model,
            Response.sha256 == digest,
        )
    ).one_or_none()
    if row is None:
        row = Response(prompt_id=prompt, model=answer.model, text=answer.text, sha256=digest)
        session.add(row)
        session.flush()
    return row

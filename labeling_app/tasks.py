"""Tasks: what is asked of people, checked as it comes in; and a prompt's answers, frozen."""

import dataclasses
import datetime as dt
import hmac
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from labeling_app.auth import Account, require
from labeling_app.ranking import check_ranks
from labeling_app.schema import Prompt, Response, Slot, Task, TaskResponse
from labeling_app.store import PAGE_KEY, Store, check_name, check_text, record_event
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, prompt_id, sha256_text
from pipeline.core.records import Message, Part

Kind = Literal["demo", "question", "compare"]
Purpose = Literal["work", "gold", "qualification"]
KINDS: tuple[Kind, ...] = ("demo", "question", "compare")
PURPOSES: tuple[Purpose, ...] = ("work", "gold", "qualification")
MAX_OVERLAP = 9
MIN_ANSWERS, MAX_ANSWERS = 2, 9
MAX_SKILL = 64


@dataclasses.dataclass(frozen=True)
class NewAnswer:
    model: str
    text: str


@dataclasses.dataclass(frozen=True)
class NewTask:
    """`key` names it for ever. A demo task may show one bad answer that is to be done better; the
    prompt of a question task says what the question is to be about.

    `gold`: the right ranks of the answers, in their order, for purposes gold and qualification.
    """

    key: str
    kind: Kind
    prompt: tuple[Message, ...]
    source: str
    answers: tuple[NewAnswer, ...] = ()
    overlap: int = 1
    priority: int = 0
    skill: str = ""
    purpose: Purpose = "work"
    gold: tuple[int, ...] | None = None


def add_tasks(store: Store, who: Account, tasks: Sequence[NewTask]) -> int:
    """Add all of them or none; a key that is there already adds nothing. Returns the number new.

    Raises UserError for a task that cannot be shown, or a known key with other content.
    """
    for task in tasks:
        check_task(task)
    now = store.clock()

    def deed(session: Session) -> int:
        caller = require(session, who, "lead", "engineer")
        return sum(
            add_task(session, now, caller.pseudonym, caller.project_id, task)[1] for task in tasks
        )

    return store.transact(deed)


def check_task(task: NewTask) -> None:
    """Raises UserError for a task that cannot be shown to a person."""
    check_name(task.key, "a task's key")
    name = f"task {task.key!r}"
    if task.kind not in KINDS:
        raise UserError(f"{name}: kind {task.kind!r}; one of {', '.join(KINDS)} will do")
    if not task.prompt or task.prompt[-1].role != "user":
        raise UserError(f"{name}: the prompt must end with a user's message")
    for message in task.prompt:
        if message.role not in ("system", "user", "assistant"):
            raise UserError(f"{name}: unknown role {message.role!r}")
        check_text(message.text, f"{name}: a message of the prompt")
    for answer in task.answers:
        check_text(answer.text, f"{name}: an answer")
        check_name(answer.model, f"{name}: the model's name")
    if len(set(task.answers)) < len(task.answers):
        raise UserError(f"{name}: two answers are the same")
    low, high = (MIN_ANSWERS, MAX_ANSWERS) if task.kind == "compare" else (0, 1)
    if not low <= len(task.answers) <= high:
        raise UserError(f"{name}: {len(task.answers)} answers; {low} to {high} will do")
    if not 1 <= task.overlap <= MAX_OVERLAP:
        raise UserError(f"{name}: overlap {task.overlap}; 1 to {MAX_OVERLAP} will do")
    if not -(2**31) <= task.priority < 2**31:
        raise UserError(f"{name}: priority {task.priority}; at most 2^31 either way")
    _check_words(task, name)
    _check_gold(task, name)


def _check_words(task: NewTask, name: str) -> None:
    for what, text in (("skill", task.skill), ("source", task.source)):
        if text:
            check_text(text, f"{name}: the {what}")
    if len(task.skill) > MAX_SKILL or len(task.source) > MAX_SKILL:
        raise UserError(f"{name}: skill and source have at most {MAX_SKILL} characters")
    if task.purpose not in PURPOSES:
        raise UserError(f"{name}: purpose {task.purpose!r}; one of {', '.join(PURPOSES)} will do")


def _check_gold(task: NewTask, name: str) -> None:
    if (task.gold is None) != (task.purpose == "work"):
        raise UserError(f"{name}: a gold or qualification task, and no other, has known ranks")
    if task.gold is not None:
        if task.kind != "compare":
            raise UserError(f"{name}: only rankings have known answers, not {task.kind!r}")
        check_ranks(task.gold, len(task.answers))
        if len(set(task.gold)) == 1:
            raise UserError(f"{name}: a gold ranking in which all tie tells nothing")


def add_task(
    session: Session, at: dt.datetime, actor: str, project: int, task: NewTask
) -> tuple[int, bool]:
    """Within a transaction: the task's row id, and whether it is new."""
    old = known_task(session, project, task)
    if old is not None:
        return old.id, False
    content = sha256_text(canonical_json(messages_json(task.prompt)))
    prompt = _prompt(session, project, task.prompt, content)
    row = Task(
        project_id=project,
        key=task.key,
        prompt_id=prompt,
        kind=task.kind,
        purpose=task.purpose,
        gold=list(task.gold) if task.gold is not None else None,
        skill=task.skill,
        source=task.source,
        overlap=task.overlap,
        priority=task.priority,
        state="open",
        created_at=at,
    )
    session.add(row)
    session.flush()
    for position, answer in enumerate(task.answers):
        response = _response(session, prompt, answer)
        session.add(TaskResponse(task_id=row.id, position=position, response_id=response))
    if task.purpose == "work":
        session.execute(insert(Slot), [slot_row(row, number) for number in range(task.overlap)])
    record_event(session, at, actor, "task-added", f"task:{row.id}", key=task.key)
    session.flush()
    return row.id, True


def known_task(session: Session, project: int, task: NewTask) -> Task | None:
    """The task of this key that is there. Raises UserError if it asks for something else."""
    old = session.scalars(
        select(Task).where(Task.project_id == project, Task.key == task.key)
    ).one_or_none()
    if old is not None:
        content = sha256_text(canonical_json(messages_json(task.prompt)))
        if (old.kind, _content(session, old)) != (task.kind, (content, task.answers)):
            raise UserError(f"task {task.key!r} exists with other content; give it another key")
    return old


def slot_row(task: Task, slot_no: int, state: str = "free") -> dict[str, Any]:
    return {
        "task_id": task.id,
        "slot_no": slot_no,
        "state": state,
        "project_id": task.project_id,
        "kind": task.kind,
        "skill": task.skill,
        "priority": task.priority,
    }


def answers_of(session: Session, task_id: int) -> Sequence[Response]:
    """The task's answers in their frozen order."""
    return session.scalars(
        select(Response)
        .join(TaskResponse, TaskResponse.response_id == Response.id)
        .where(TaskResponse.task_id == task_id)
        .order_by(TaskResponse.position)
    ).all()


def code_of(store: Store, task_id: int) -> str:
    """What people who label call the task: its number would tell when it came in, and so which
    are the known answers."""
    return hmac.new(store.key(PAGE_KEY), b"task %d" % task_id, "sha256").hexdigest()[:8]


def messages_json(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": [dict(vars(part)) for part in message.content]}
        for message in messages
    ]


def messages_of(rows: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(
        Message(row["role"], tuple(Part(**part) for part in row["content"])) for row in rows
    )


def _content(session: Session, task: Task) -> tuple[str, tuple[NewAnswer, ...]]:
    prompt = session.get_one(Prompt, task.prompt_id)
    answers = answers_of(session, task.id)
    return prompt.content_sha256, tuple(NewAnswer(row.model, row.text) for row in answers)


def _prompt(
    session: Session, project: int, messages: tuple[Message, ...], content_sha256: str
) -> int:
    found = session.scalars(
        select(Prompt.id).where(
            Prompt.project_id == project, Prompt.content_sha256 == content_sha256
        )
    ).one_or_none()
    if found is not None:
        return found
    row = Prompt(
        project_id=project,
        prompt_id=prompt_id(messages),
        messages=messages_json(messages),
        content_sha256=content_sha256,
        signature=b"",
    )
    session.add(row)
    session.flush()
    return row.id


def _response(session: Session, prompt: int, answer: NewAnswer) -> int:
    digest = sha256_text(answer.text)
    found = session.scalars(
        select(Response.id).where(
            Response.prompt_id == prompt,
            Response.model == answer.model,
            Response.sha256 == digest,
        )
    ).one_or_none()
    if found is not None:
        return found
    row = Response(prompt_id=prompt, model=answer.model, text=answer.text, sha256=digest)
    session.add(row)
    session.flush()
    return row.id

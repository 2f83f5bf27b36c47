"""Many tasks into the store at once, in few statements: what of them can be reckoned before the
transaction, in which others wait, is."""

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, Text, bindparam, cast, column, func, insert, select
from sqlalchemy.orm import Session

from labeling_app.near_prompts import Lanes, sign
from labeling_app.schema import Base, Prompt, Response
from labeling_app.tasks import NewTask, messages_json
from pipeline.core.identity import canonical_json, prompt_id, sha256_text

# Kind, purpose, known ranks, digest of the prompt, and of each answer its model and digest.
Asked = tuple[str, str, tuple[int, ...], str, tuple[tuple[str, str], ...]]


@dataclasses.dataclass(frozen=True)
class ComingTask:
    """`content`: digest of the prompt; `answers`: of each answer; `lanes`: (lanes,)."""

    task: NewTask
    prompt_id: str
    messages: list[dict[str, Any]]
    content: str
    answers: tuple[str, ...]
    lanes: Lanes

    @property
    def asked(self) -> Asked:
        models = (answer.model for answer in self.task.answers)
        answers = tuple(zip(models, self.answers, strict=True))
        return self.task.kind, self.task.purpose, self.task.gold or (), self.content, answers

    @property
    def compares(self) -> bool:
        return self.task.kind == "compare"


def prepared(tasks: Sequence[NewTask]) -> list[ComingTask]:
    """Of tasks that are checked."""
    found: list[ComingTask] = []
    lanes = sign([task.prompt for task in tasks])
    for task, row in zip(tasks, lanes, strict=True):
        messages = messages_json(task.prompt)
        answers = tuple(sha256_text(answer.text) for answer in task.answers)
        content = sha256_text(canonical_json(messages))
        found.append(ComingTask(task, prompt_id(task.prompt), messages, content, answers, row))
    return found


def insert_tasks(
    session: Session, project: int, actor: str, now: dt.datetime, coming: Sequence[ComingTask]
) -> None:
    """Within a transaction: tasks whose keys are new, with their slots, answers and events."""
    if not coming:
        return
    contents = {each.content: each for each in coming}
    found = dict(
        session.execute(
            select(Prompt.content_sha256, Prompt.id).where(
                Prompt.project_id == project, Prompt.content_sha256.in_(list(contents))
            )
        ).all()
    )
    new = [
        {
            "project_id": project,
            "prompt_id": each.prompt_id,
            "messages": each.messages,
            "content_sha256": content,
            "signature": each.lanes.astype("<u4").tobytes(),
        }
        for content, each in contents.items()
        if content not in found
    ]
    found.update(_insert(session, "prompts", new, "content_sha256", "id"))
    rows = [
        {
            "project_id": project,
            "key": task.key,
            "prompt_id": found[each.content],
            "kind": task.kind,
            "purpose": task.purpose,
            "gold": list(task.gold) if task.gold is not None else None,
            "skill": task.skill,
            "source": task.source,
            "overlap": task.overlap,
            "priority": task.priority,
            "state": "open",
            "created_at": now,
        }
        for each in coming
        for task in (each.task,)
    ]
    ids = dict(_insert(session, "tasks", rows, "key", "id"))
    slots = [
        {
            "task_id": ids[task.key],
            "slot_no": number,
            "state": "free",
            "project_id": project,
            "kind": task.kind,
            "skill": task.skill,
            "priority": task.priority,
        }
        for task in (each.task for each in coming)
        if task.purpose == "work"
        for number in range(task.overlap)
    ]
    _insert(session, "slots", slots)
    _insert_answers(session, coming, ids, found)
    events = [
        {
            "at": now,
            "actor": actor,
            "verb": "task-added",
            "target": f"task:{ids[each.task.key]}",
            "payload": {"key": each.task.key},
        }
        for each in coming
    ]
    _insert(session, "events", events)


def _insert_answers(
    session: Session, coming: Sequence[ComingTask], ids: dict[str, int], prompts: dict[str, int]
) -> None:
    wanted: dict[tuple[int, str, str], str] = {}
    for each in coming:
        for answer, digest in zip(each.task.answers, each.answers, strict=True):
            wanted[(prompts[each.content], answer.model, digest)] = answer.text
    if not wanted:
        return
    there: dict[tuple[int, str, str], int] = {}
    of_prompts = sorted({prompt for prompt, _, _ in wanted})
    rows = session.execute(
        select(Response.prompt_id, Response.model, Response.sha256, Response.id).where(
            Response.prompt_id.in_(of_prompts)
        )
    )
    for prompt, model, digest, number in rows:
        there[(prompt, model, digest)] = number
    new = [
        {"prompt_id": prompt, "model": model, "text": text, "sha256": digest}
        for (prompt, model, digest), text in wanted.items()
        if (prompt, model, digest) not in there
    ]
    made = _insert(session, "responses", new, "prompt_id", "model", "sha256", "id")
    there.update(((prompt, model, digest), number) for prompt, model, digest, number in made)
    placed = [
        {
            "task_id": ids[each.task.key],
            "position": position,
            "response_id": there[(prompts[each.content], answer.model, digest)],
        }
        for each in coming
        for position, (answer, digest) in enumerate(
            zip(each.task.answers, each.answers, strict=True)
        )
    ]
    _insert(session, "task_responses", placed)


def _insert(
    session: Session, name: str, rows: Sequence[dict[str, Any]], *returned: str
) -> list[tuple[Any, ...]]:
    """Rows of the same columns into a table; of each the columns `returned`, in any order."""
    if not rows:
        return []
    table = Base.metadata.tables[name]
    if session.get_bind().dialect.name != "postgresql":
        statement: Any = insert(table)
        values: Any = rows
    else:
        # All rows as one parameter: PostgreSQL reads a statement of thousands, or one for each
        # row, several times as long as it takes to store them.
        columns = [table.c[key] for key in rows[0]]
        given = func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON)).table_valued(
            *(column(each.name, each.type) for each in columns)
        )
        source = given.render_derived("given", with_types=True)
        statement = insert(table).from_select(
            [each.name for each in columns], select(*source.c), include_defaults=False
        )
        values = {"rows": json.dumps(rows, default=_plain, ensure_ascii=False)}
    if returned:
        statement = statement.returning(*(table.c[each] for each in returned))
        return [tuple(row) for row in session.execute(statement, values)]
    session.execute(statement, values)
    return []


def _plain(value: Any) -> str:
    """As PostgreSQL reads bytes and times in JSON."""
    return value.isoformat() if isinstance(value, dt.datetime) else f"\\x{value.hex()}"

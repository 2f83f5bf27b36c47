"""What is still to be labeled, for who plans the work; nothing here hands work out."""

import dataclasses

from sqlalchemy import func, select

from labeling_app.auth import project_id
from labeling_app.schema import Prompt, Slot, Task
from labeling_app.store import Store
from labeling_app.tasks import messages_of


@dataclasses.dataclass(frozen=True)
class OpenTask:
    """`open_slots`: answers still asked for. `prompt`: the text of its last turn."""

    id: int
    kind: str
    source: str
    priority: int
    open_slots: int
    prompt: str


def open_tasks(store: Store, project: str = "default") -> list[OpenTask]:
    """A project's tasks with an unfilled slot, the most urgent first."""
    open_slots = func.count(Slot.id)
    query = (
        select(Task, Prompt, open_slots)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .join(Slot, Slot.task_id == Task.id)
        .where(Slot.state.in_(("free", "leased", "vendor")), Task.purpose == "work")
        .group_by(Task.id, Prompt.id)
        .order_by(Task.priority.desc(), Task.id)
    )
    with store.read() as session:
        query = query.where(Task.project_id == project_id(session, project))
        return [
            OpenTask(
                task.id,
                task.kind,
                task.source,
                task.priority,
                number,
                messages_of(prompt.messages)[-1].text,
            )
            for task, prompt, number in session.execute(query)
        ]

"""What is still to be labeled, for who plans the work; nothing here hands work out."""

import dataclasses

from sqlalchemy import func, select

from labeling_app.assignment import messages_of
from labeling_app.schema import Prompt, Slot, Task
from labeling_app.store import Store


@dataclasses.dataclass(frozen=True)
class OpenTask:
    """`open_slots`: answers still asked for. `prompt`: the text of its last turn."""

    id: int
    kind: str
    source: str
    priority: int
    open_slots: int
    prompt: str


def open_tasks(store: Store) -> list[OpenTask]:
    """Tasks with an unfilled slot, the most urgent first."""
    open_slots = func.count(Slot.id)
    query = (
        select(Task, Prompt, open_slots)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .join(Slot, Slot.task_id == Task.id)
        .where(Slot.filled.is_(False))
        .group_by(Task.id, Prompt.id)
        .order_by(Task.priority.desc(), Task.id)
    )
    with store.read() as session:
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

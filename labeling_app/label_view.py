"""A label as others read it: what was handed in, and how it was made."""

import dataclasses
import datetime as dt

from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.labels import Label, LabelKind, model_of, text_of
from labeling_app.schema import (
    Assist,
    AssistAction,
    Demonstration,
    InstructionVersion,
    Lease,
    Prompt,
    RankedItem,
    RankedSet,
    Task,
)
from labeling_app.tasks import answers_of, messages_of
from pipeline.core.records import Message


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
class LabelView:
    """A label, all that its author saw and did, and nothing of who that is.

    `answers` are in the order that the author was shown; empty for a demonstration.
    """

    kind: LabelKind
    id: int
    task_id: int
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


def label_view(session: Session, kind: LabelKind, label: Label) -> LabelView:
    task = session.get_one(Task, label.task_id)
    prompt = messages_of(session.get_one(Prompt, task.prompt_id).messages)
    return LabelView(
        kind=kind,
        id=label.id,
        task_id=task.id,
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

"""Tables of work: prompts, tasks, slots and leases; drafts; what was handed in."""

import datetime as dt
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from labeling_app.schema.base import Base, Id
from labeling_app.schema.people import InstructionVersion, Project, User


class Prompt(Base):
    """`prompt_id` is the same for prompts that differ only in case or white space.

    `signature`: MinHash lanes, little-endian 32 bits each; empty where it was not asked for.
    """

    __tablename__ = "prompts"
    __table_args__ = (UniqueConstraint("project_id", "content_sha256"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id))
    prompt_id: Mapped[str] = mapped_column(String(32), index=True)
    messages: Mapped[list[dict[str, Any]]]
    content_sha256: Mapped[str] = mapped_column(String(64))
    signature: Mapped[bytes]


class Task(Base):
    """`key` names the task for its maker: adding the same key twice adds nothing.

    `purpose`: work, gold (known answer, mixed in unseen) or qualification. `gold`: the known
    ranks, in the order of the task's answers.
    """

    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("project_id", "key"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id))
    key: Mapped[str] = mapped_column(String(200))
    prompt_id: Mapped[int] = mapped_column(ForeignKey(Prompt.id), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    purpose: Mapped[str] = mapped_column(String(16))
    gold: Mapped[list[int] | None]
    skill: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(64))
    overlap: Mapped[int]
    priority: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[dt.datetime]


Index("tasks_by_priority", Task.priority.desc(), Task.id)
Index("tasks_by_purpose", Task.project_id, Task.purpose, Task.kind, Task.state, Task.id)


class Response(Base):
    __tablename__ = "responses"
    __table_args__ = (UniqueConstraint("prompt_id", "model", "sha256"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey(Prompt.id))
    model: Mapped[str] = mapped_column(String(200))
    text: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))


class TaskResponse(Base):
    """The answers of a task, frozen: `position` is their place in every stored ranking."""

    __tablename__ = "task_responses"
    __table_args__ = (UniqueConstraint("task_id", "response_id"),)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    response_id: Mapped[int] = mapped_column(ForeignKey(Response.id))


class Slot(Base):
    """One of the `overlap` answers that a task asks for: free, leased, vendor or filled.

    A gold or qualification task has no slots of its own: one is made for each person who gets it.
    Project, kind, skill and priority are the task's, here for the queue's index.
    """

    __tablename__ = "slots"
    __table_args__ = (UniqueConstraint("task_id", "slot_no"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    slot_no: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id))
    kind: Mapped[str] = mapped_column(String(16))
    skill: Mapped[str] = mapped_column(String(64))
    priority: Mapped[int]


_FREE = text("state = 'free'")
Index(
    "slots_queue",
    Slot.project_id,
    Slot.kind,
    Slot.skill,
    Slot.priority.desc(),
    Slot.task_id,
    Slot.slot_no,
    sqlite_where=_FREE,
    postgresql_where=_FREE,
)


class Lease(Base):
    """A slot in a person's hands until `expires`; `outcome` says how it ended.

    `purpose`: work, or correct and adjudicate, which make a new label in the place of `corrects`.
    `assisted` False: this time the LLM's help is withheld, to measure what it does.
    """

    __tablename__ = "leases"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    slot_id: Mapped[int] = mapped_column(ForeignKey(Slot.id))
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id))
    token: Mapped[str] = mapped_column(String(64), unique=True)
    purpose: Mapped[str] = mapped_column(String(16))
    corrects: Mapped[int | None]
    assisted: Mapped[bool]
    shown_order: Mapped[list[int]]
    acquired: Mapped[dt.datetime]
    expires: Mapped[dt.datetime]
    released: Mapped[dt.datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None]


_LIVE = text("released IS NULL")
_FOR_LIVE: dict[str, Any] = {"sqlite_where": _LIVE, "postgresql_where": _LIVE}
Index("leases_one_per_slot", Lease.slot_id, unique=True, **_FOR_LIVE)
Index("leases_one_per_person", Lease.task_id, Lease.user_id, unique=True, **_FOR_LIVE)
Index("leases_held", Lease.user_id, **_FOR_LIVE)
Index("leases_expiry", Lease.expires, **_FOR_LIVE)
Index("leases_history", Lease.user_id, Lease.task_id)


class Draft(Base):
    """Unfinished work. It belongs to the person and the task, so it outlives a lease."""

    __tablename__ = "drafts"
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    rev: Mapped[int]
    body: Mapped[dict[str, Any]]
    saved_at: Mapped[dt.datetime]


Index("drafts_of_person", Draft.user_id)

_FIRST = text("supersedes_id IS NULL")
_FOR_FIRST: dict[str, Any] = {"sqlite_where": _FIRST, "postgresql_where": _FIRST}


class Demonstration(Base):
    """A conversation that a person wrote or finished. A correction is a new row.

    `origin`: human, edited or accepted (of a draft). `edit_chars`: Levenshtein distance of the
    answer from the draft it came from, in characters. `vendor` is "" for one's own people.
    """

    __tablename__ = "demonstrations"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    slot_id: Mapped[int] = mapped_column(ForeignKey(Slot.id))
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id))
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("demonstrations.id"), unique=True)
    messages: Mapped[list[dict[str, Any]]]
    origin: Mapped[str] = mapped_column(String(16))
    assisted: Mapped[bool]
    edit_chars: Mapped[int | None]
    pasted_chars: Mapped[int]
    active_ms: Mapped[int]
    vendor: Mapped[str] = mapped_column(String(64))
    content_sha256: Mapped[str] = mapped_column(String(64))
    idem_key: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[dt.datetime]


Index("demonstrations_one_per_slot", Demonstration.slot_id, unique=True, **_FOR_FIRST)
Index(
    "demonstrations_one_per_person",
    Demonstration.task_id,
    Demonstration.user_id,
    unique=True,
    **_FOR_FIRST,
)
Index("demonstrations_of_person", Demonstration.user_id, Demonstration.created_at)
Index("demonstrations_by_time", Demonstration.created_at)


class RankedSet(Base):
    """One person's ranking of one task's answers; its items hold the ranks.

    `not_rankable`: the reason why there is no ranking; "" where there is one. `degree`: of a pair,
    how much the better one is better.
    """

    __tablename__ = "comparisons"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    slot_id: Mapped[int] = mapped_column(ForeignKey(Slot.id))
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id))
    supersedes_id: Mapped[int | None] = mapped_column(ForeignKey("comparisons.id"), unique=True)
    shown_order: Mapped[list[int]]
    not_rankable: Mapped[str]
    confidence: Mapped[str | None] = mapped_column(String(16))
    degree: Mapped[str | None] = mapped_column(String(16))
    comment: Mapped[str]
    assisted: Mapped[bool]
    active_ms: Mapped[int]
    vendor: Mapped[str] = mapped_column(String(64))
    content_sha256: Mapped[str] = mapped_column(String(64))
    idem_key: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[dt.datetime]


Index("comparisons_one_per_slot", RankedSet.slot_id, unique=True, **_FOR_FIRST)
Index("comparisons_one_per_person", RankedSet.task_id, RankedSet.user_id, unique=True, **_FOR_FIRST)
Index("comparisons_of_person", RankedSet.user_id, RankedSet.created_at)
Index("comparisons_by_time", RankedSet.created_at)


class RankedItem(Base):
    """Equal ranks are a tie; 1 is best. `likert` is the answer's overall quality, 1 to 7."""

    __tablename__ = "comparison_items"
    __table_args__ = (
        CheckConstraint("rank BETWEEN 1 AND 9", name="rank_range"),
        CheckConstraint("likert BETWEEN 1 AND 7", name="likert_range"),
    )
    comparison_id: Mapped[int] = mapped_column(ForeignKey(RankedSet.id), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    rank: Mapped[int]
    likert: Mapped[int | None]
    flags: Mapped[list[str]]

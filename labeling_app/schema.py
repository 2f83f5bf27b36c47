"""The tables of the labeling store.

What a person wrote is never updated or deleted: the tables named in `APPEND_ONLY` refuse it. That
no answer is collected twice and no slot is held by two people is said by UNIQUE constraints here.
"""

import datetime as dt
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA_VERSION = 1

# SQLite counts rows in an INTEGER key alone; PostgreSQL gets 64 bits.
_Id = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware time, stored in UTC; SQLite, which knows no zones, keeps the UTC reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        assert value.tzinfo is not None, value
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads a plain class attribute)
        dt.datetime: UtcDateTime,
        list[dict[str, Any]]: JSON,
        dict[str, Any]: JSON,
        list[int]: JSON,
        str: Text,
        bytes: LargeBinary,
    }


class SchemaVersion(Base):
    __tablename__ = "schema_version"
    version: Mapped[int] = mapped_column(primary_key=True)


class Secret(Base):
    """What the store keeps to itself: the key of the pseudonyms."""

    __tablename__ = "secrets"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[bytes]


class User(Base):
    """`pw_hash` None: nobody can sign in as this account (a simulated one)."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    simulated: Mapped[bool]
    pw_hash: Mapped[str | None]
    must_change: Mapped[bool]
    active: Mapped[bool]
    session_epoch: Mapped[int]
    created_at: Mapped[dt.datetime]


class SignInAttempt(Base):
    """One not yet successful attempt; for unknown names too, so that they tell nothing."""

    __tablename__ = "sign_in_attempts"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    at: Mapped[dt.datetime] = mapped_column(index=True)


class InstructionVersion(Base):
    __tablename__ = "instruction_versions"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    n: Mapped[int] = mapped_column(unique=True)
    body_md: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    published_at: Mapped[dt.datetime]


class InstructionAck(Base):
    __tablename__ = "instruction_acks"
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id), primary_key=True)
    at: Mapped[dt.datetime]


class Prompt(Base):
    """`prompt_id` is the same for prompts that differ only in case or white space."""

    __tablename__ = "prompts"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    prompt_id: Mapped[str] = mapped_column(String(32), index=True)
    messages: Mapped[list[dict[str, Any]]]
    content_sha256: Mapped[str] = mapped_column(String(64), unique=True)


class Task(Base):
    """`key` names the task for its maker: adding the same key twice adds nothing."""

    __tablename__ = "tasks"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    key: Mapped[str] = mapped_column(String(200), unique=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey(Prompt.id))
    kind: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(64))
    overlap: Mapped[int]
    priority: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[dt.datetime]


Index("tasks_queue", Task.state, Task.kind, Task.priority.desc(), Task.id)


class Response(Base):
    __tablename__ = "responses"
    __table_args__ = (UniqueConstraint("prompt_id", "model", "sha256"),)
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
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
    """One of the `overlap` answers that a task asks for."""

    __tablename__ = "slots"
    __table_args__ = (UniqueConstraint("task_id", "slot_no"),)
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    slot_no: Mapped[int]
    filled: Mapped[bool]


class Lease(Base):
    """A slot in a person's hands until `expires`; `outcome` says how it ended."""

    __tablename__ = "leases"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    slot_id: Mapped[int] = mapped_column(ForeignKey(Slot.id))
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id))
    token: Mapped[str] = mapped_column(String(64), unique=True)
    shown_order: Mapped[list[int]]
    acquired: Mapped[dt.datetime]
    expires: Mapped[dt.datetime]
    released: Mapped[dt.datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None]


_LIVE = text("released IS NULL")
Index(
    "leases_one_per_slot",
    Lease.slot_id,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)
Index(
    "leases_one_per_person",
    Lease.task_id,
    Lease.user_id,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)
Index("leases_expiry", Lease.expires, sqlite_where=_LIVE, postgresql_where=_LIVE)
Index("leases_history", Lease.user_id, Lease.task_id)


class Draft(Base):
    """Unfinished work. It belongs to the person and the task, so it outlives a lease."""

    __tablename__ = "drafts"
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    rev: Mapped[int]
    body: Mapped[dict[str, Any]]
    saved_at: Mapped[dt.datetime]


class Demonstration(Base):
    __tablename__ = "demonstrations"
    __table_args__ = (UniqueConstraint("task_id", "user_id"),)
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    slot_id: Mapped[int] = mapped_column(ForeignKey(Slot.id), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id))
    messages: Mapped[list[dict[str, Any]]]
    origin: Mapped[str] = mapped_column(String(16))
    content_sha256: Mapped[str] = mapped_column(String(64))
    idem_key: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[dt.datetime]


class RankedSet(Base):
    """One person's ranking of one task's answers; its items hold the ranks."""

    __tablename__ = "comparisons"
    __table_args__ = (UniqueConstraint("task_id", "user_id"),)
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    slot_id: Mapped[int] = mapped_column(ForeignKey(Slot.id), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id))
    shown_order: Mapped[list[int]]
    confidence: Mapped[str | None] = mapped_column(String(16))
    content_sha256: Mapped[str] = mapped_column(String(64))
    idem_key: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[dt.datetime]


class RankedItem(Base):
    """Equal ranks are a tie; 1 is best."""

    __tablename__ = "comparison_items"
    comparison_id: Mapped[int] = mapped_column(ForeignKey(RankedSet.id), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    rank: Mapped[int]


class FeedbackRow(Base):
    __tablename__ = "feedback"
    feedback_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    prompt_id: Mapped[str] = mapped_column(String(32))
    messages: Mapped[list[dict[str, Any]]]
    model_id: Mapped[str] = mapped_column(String(200))
    rating: Mapped[int]
    comment: Mapped[str]
    created_at: Mapped[dt.datetime]
    task_id: Mapped[int | None] = mapped_column(ForeignKey(Task.id))


class EventRow(Base):
    """Who did what to what, and when: written in the transaction of the deed itself."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(_Id, primary_key=True)
    at: Mapped[dt.datetime]
    actor: Mapped[str] = mapped_column(String(64))
    verb: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(200))
    payload: Mapped[dict[str, Any]]


APPEND_ONLY: tuple[type[Base], ...] = (
    InstructionVersion,
    InstructionAck,
    Prompt,
    Response,
    TaskResponse,
    Demonstration,
    RankedSet,
    RankedItem,
    FeedbackRow,
    EventRow,
)


def _refuse_changes(model: type[Base], deed: str) -> None:
    name = model.__tablename__
    trigger = DDL(
        f"CREATE TRIGGER {name}_no_{deed.lower()} BEFORE {deed} ON {name} "
        f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
    )
    event.listen(model.__table__, "after_create", trigger.execute_if(dialect="sqlite"))


for _model in APPEND_ONLY:
    for _deed in ("UPDATE", "DELETE"):
        _refuse_changes(_model, _deed)

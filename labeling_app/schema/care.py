"""Tables of care for the labels: the LLM's help, reviews, users' feedback, hired batches."""

import datetime as dt
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from labeling_app.schema.base import Base, Id
from labeling_app.schema.people import Project, User
from labeling_app.schema.work import Lease, Slot, Task


class Assist(Base):
    """What an LLM gave a person for a task: kind draft, critique or rank-check.

    `prompt_sha256` names the file of the assist's prompt; `output` are its parts as shown. An
    answer that never came has `error` and no parts.
    """

    __tablename__ = "assists"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    lease_id: Mapped[int] = mapped_column(ForeignKey(Lease.id), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(String(200))
    prompt_sha256: Mapped[str] = mapped_column(String(64))
    input_sha256: Mapped[str] = mapped_column(String(64))
    output: Mapped[list[dict[str, Any]]]
    error: Mapped[str]
    shown_at: Mapped[dt.datetime]
    waited_ms: Mapped[int]


class AssistAction(Base):
    """What the person did with one part of it: take, accept or reject."""

    __tablename__ = "assist_actions"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    assist_id: Mapped[int] = mapped_column(ForeignKey(Assist.id), index=True)
    part: Mapped[int]
    action: Mapped[str] = mapped_column(String(16))
    at: Mapped[dt.datetime]


class Review(Base):
    """A peer's word on a label. `target_kind`: demo or compare; `clause` of the instructions."""

    __tablename__ = "reviews"
    __table_args__ = (UniqueConstraint("target_kind", "target_id"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id))
    target_kind: Mapped[str] = mapped_column(String(16))
    target_id: Mapped[int]
    reviewer_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    author_id: Mapped[int] = mapped_column(ForeignKey(User.id), index=True)
    verdict: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    clause: Mapped[str] = mapped_column(String(16))
    comment: Mapped[str]
    at: Mapped[dt.datetime]


class ReviewClaim(Base):
    """A label that a reviewer is reading now."""

    __tablename__ = "review_claims"
    target_kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    target_id: Mapped[int] = mapped_column(primary_key=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey(User.id), index=True)
    expires: Mapped[dt.datetime]


class ReviewRequest(Base):
    """A label that a signal leads to: its reviewer sees why. Signals never reject by themselves."""

    __tablename__ = "review_requests"
    target_kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    target_id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id), index=True)
    why: Mapped[str]
    at: Mapped[dt.datetime]


class FeedbackRow(Base):
    __tablename__ = "feedback"
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id), primary_key=True)
    feedback_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    prompt_id: Mapped[str] = mapped_column(String(32))
    messages: Mapped[list[dict[str, Any]]]
    model_id: Mapped[str] = mapped_column(String(200))
    rating: Mapped[int]
    comment: Mapped[str]
    created_at: Mapped[dt.datetime]
    task_id: Mapped[int | None] = mapped_column(ForeignKey(Task.id))


class VendorBatch(Base):
    """Tasks that a hired workforce has in hand; `state`: out, accepted, refused or withdrawn.
    `file_sha256`: of the file that was judged good enough and is coming in; "" for none."""

    __tablename__ = "vendor_batches"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id), index=True)
    vendor: Mapped[str] = mapped_column(String(64))
    version_id: Mapped[int] = mapped_column(ForeignKey("instruction_versions.id"))
    state: Mapped[str] = mapped_column(String(16))
    gold_agreement: Mapped[float | None]
    file_sha256: Mapped[str] = mapped_column(String(64), default="")
    created_at: Mapped[dt.datetime]
    ended_at: Mapped[dt.datetime | None]


class VendorItem(Base):
    """`item` is all that the vendor learns of the task: gold looks like work."""

    __tablename__ = "vendor_items"
    item: Mapped[str] = mapped_column(String(32), primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey(VendorBatch.id), index=True)
    task_id: Mapped[int] = mapped_column(ForeignKey(Task.id))
    slot_id: Mapped[int | None] = mapped_column(ForeignKey(Slot.id))
    shown_order: Mapped[list[int]]


_OUT = text("slot_id IS NOT NULL")
Index("vendor_items_slot", VendorItem.slot_id, sqlite_where=_OUT, postgresql_where=_OUT)

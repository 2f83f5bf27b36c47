"""Tables of people: projects, accounts, roles, invitations, sessions, and what they have read."""

import datetime as dt
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from labeling_app.schema.base import Base, Id


class Project(Base):
    """`settings` are those of labeling_app/projects.py; a paused project hands out no work."""

    __tablename__ = "projects"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    paused: Mapped[bool]
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[dt.datetime]


class User(Base):
    """`pw_hash` None: no password leads here (a simulated account, or one of an OIDC issuer).

    `issuer` is "" for local accounts. `pseudonym` is what all exports and events call the person;
    it outlives the name.
    """

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    issuer: Mapped[str] = mapped_column(String(200))
    subject: Mapped[str] = mapped_column(String(200))
    name: Mapped[str] = mapped_column(String(64), unique=True)
    pseudonym: Mapped[str] = mapped_column(String(64), unique=True)
    simulated: Mapped[bool]
    pw_hash: Mapped[str | None]
    must_change: Mapped[bool]
    active: Mapped[bool]
    session_epoch: Mapped[int]
    created_at: Mapped[dt.datetime]
    erased_at: Mapped[dt.datetime | None]


class Membership(Base):
    """A person's role in a project, and what they can be given: tasks of no skill, or of theirs."""

    __tablename__ = "memberships"
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16))
    skills: Mapped[list[str]]
    extra_tries: Mapped[int] = mapped_column(default=0)  # at the qualification, granted by a lead
    active: Mapped[bool]


class Invitation(Base):
    """A link that makes its finder a member, once. Only a digest of its token is kept."""

    __tablename__ = "invitations"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id))
    role: Mapped[str] = mapped_column(String(16))
    skills: Mapped[list[str]]
    note: Mapped[str]
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_by: Mapped[int | None] = mapped_column(ForeignKey(User.id))
    created_at: Mapped[dt.datetime]
    expires: Mapped[dt.datetime]
    used_by: Mapped[int | None] = mapped_column(ForeignKey(User.id))
    used_at: Mapped[dt.datetime | None]


class WebSession(Base):
    """A signed-in browser. It ends by itself, by signing out, or with the account's epoch."""

    __tablename__ = "web_sessions"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), index=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    session_epoch: Mapped[int]
    created_at: Mapped[dt.datetime]
    expires: Mapped[dt.datetime]
    ended_at: Mapped[dt.datetime | None]


class ApiToken(Base):
    """A program's key to one project, with its maker's rights there and no more than `scopes`."""

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id))
    name: Mapped[str] = mapped_column(String(200))
    scopes: Mapped[list[str]]
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[dt.datetime]
    expires: Mapped[dt.datetime]
    ended_at: Mapped[dt.datetime | None]


class SignInAttempt(Base):
    """One not yet successful attempt; for unknown names too, so that they tell nothing."""

    __tablename__ = "sign_in_attempts"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    at: Mapped[dt.datetime] = mapped_column(index=True)


Index("sign_in_attempts_of_name", SignInAttempt.name, SignInAttempt.at)


class InstructionVersion(Base):
    """Labeling instructions, immutable. `requalify`: the qualification set must be passed anew."""

    __tablename__ = "instruction_versions"
    __table_args__ = (UniqueConstraint("project_id", "n"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey(Project.id))
    n: Mapped[int]
    body_md: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    requalify: Mapped[bool]
    published_at: Mapped[dt.datetime]


class InstructionAck(Base):
    __tablename__ = "instruction_acks"
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id), primary_key=True)
    at: Mapped[dt.datetime]


class Qualification(Base):
    """How one person did on the qualification set under one version, one row for each try."""

    __tablename__ = "qualifications"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), index=True)
    version_id: Mapped[int] = mapped_column(ForeignKey(InstructionVersion.id))
    tasks: Mapped[int]
    score: Mapped[float]
    passed: Mapped[bool]
    at: Mapped[dt.datetime]

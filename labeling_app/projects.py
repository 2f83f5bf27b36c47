"""Projects: their settings, who belongs to them, and whether they hand out work."""

import dataclasses
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.auth import ROLES, Account, Role, check_role, checked_skills, require
from labeling_app.schema import Membership, Project, User
from labeling_app.store import Store, check_name, record_event
from pipeline.core.errors import UserError

DEFAULT_PROJECT = "default"
# What InstructGPT's labelers ticked for each answer (Ouyang et al. 2022, table 3).
FLAGS = (
    "fails to follow the instruction",
    "inappropriate for a customer assistant",
    "hallucination",
    "fails a constraint of the task",
    "sexual content",
    "violent content",
    "encourages violence, abuse or self-harm",
    "denigrates a protected class",
    "gives harmful advice",
    "expresses an opinion",
    "expresses a moral judgement",
)


class Settings(BaseModel):
    """How a project works; a lead changes it in the app or by `flywheel labels settings`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lease_minutes: int = Field(45, ge=1, le=1440, description="a task returns after this long")
    undo_minutes: int = Field(60, ge=0, le=10_080, description="own labels may be corrected")
    gold_share: float = Field(0.05, ge=0, le=0.5, description="of the tasks: known answers")
    unassisted_share: float = Field(0.2, ge=0, le=1, description="of the tasks: no LLM's help")
    review_share: float = Field(0.1, ge=0, le=1, description="of the labels: read by a peer")
    qualification_tasks: int = Field(0, ge=0, le=50, description="to pass first; 0: none")
    pass_mark: float = Field(0.7, ge=0, le=1, description="share right that qualifies")
    qualification_tries: int = Field(2, ge=1, le=10, description="then the lead is asked")
    gold_mark: float = Field(0.5, ge=-1, le=1, description="tau-b with gold that counts as right")
    vendor_mark: float = Field(0.8, ge=0, le=1, description="share of gold right in a batch")
    daily_goal: int = Field(20, ge=1, le=1000, description="tasks a day, shown to labelers")
    hourly_cost: float = Field(0, ge=0, description="of an hour's work; 0: not shown")
    currency: str = Field("EUR", max_length=8, description="of the hourly cost")
    flags: tuple[str, ...] = Field(
        FLAGS, max_length=20, description="boxes for each answer, one a line"
    )


@dataclasses.dataclass(frozen=True)
class ProjectView:
    id: int
    name: str
    paused: bool
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Member:
    user_id: int
    name: str
    role: Role
    skills: tuple[str, ...]
    active: bool
    simulated: bool
    pseudonym: str


def settings_of(session: Session, project_id: int) -> Settings:
    return Settings.model_validate(session.get_one(Project, project_id).settings)


def project(store: Store, who: Account) -> ProjectView:
    """The caller's project."""
    with store.read() as session:
        caller = require(session, who, *ROLES)
        return _view(session.get_one(Project, caller.project_id))


def my_projects(store: Store, who: Account) -> dict[int, str]:
    """The names of those that the caller may enter, by their ids."""
    with store.read() as session:
        caller = require(session, who, *ROLES)
        rows = session.execute(
            select(Project.id, Project.name)
            .join(Membership, Membership.project_id == Project.id)
            .where(Membership.user_id == caller.id, Membership.active)
            .order_by(Project.name)
        )
        return {row.id: row.name for row in rows}


def create_project(store: Store, name: str) -> int:
    """A new project's id. Raises UserError if the name is taken."""
    check_name(name, "the project's name")
    if len(name) > 64:
        raise UserError(f"the project's name has {len(name)} characters; at most 64 are taken")
    now = store.clock()
    with store.write() as session:
        if session.scalars(select(Project).where(Project.name == name)).one_or_none():
            raise UserError(f"project {name!r} exists; choose another name")
        row = Project(name=name, paused=False, settings={}, created_at=now)
        session.add(row)
        session.flush()
        record_event(session, now, "command", "project-created", f"project:{row.id}", name=name)
        return row.id


def pause(store: Store, who: Account, paused: bool) -> None:
    """No task of a paused project is handed out; what people hold they may finish."""
    now = store.clock()
    with store.write() as session:
        caller = require(session, who, "lead")
        row = session.get_one(Project, caller.project_id)
        if row.paused != paused:
            row.paused = paused
            verb = "paused" if paused else "resumed"
            record_event(session, now, caller.pseudonym, verb, f"project:{row.id}")


def configure(store: Store, who: Account, **changes: Any) -> Settings:
    """Change some settings. Raises UserError naming what cannot be."""
    now = store.clock()
    with store.write() as session:
        caller = require(session, who, "lead")
        row = session.get_one(Project, caller.project_id)
        settings = checked_settings({**row.settings, **changes})
        row.settings = settings.model_dump(mode="json", exclude_defaults=True)
        record_event(
            session, now, caller.pseudonym, "configured", f"project:{row.id}", **_plain(changes)
        )
        return settings


def checked_settings(values: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        known = ", ".join(Settings.model_fields)
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"setting {name} = {first.get('input')!r}: no such setting; known are {known}"
            ) from None
        raise UserError(f"setting {name} = {first.get('input')!r}: {first['msg']}") from None


def members(store: Store, who: Account) -> list[Member]:
    with store.read() as session:
        caller = require(session, who, "lead")
        rows = session.execute(
            select(Membership, User)
            .join(User, User.id == Membership.user_id)
            .where(Membership.project_id == caller.project_id)
            .order_by(User.name)
        )
        return [
            Member(
                user.id,
                user.name,
                cast(Role, membership.role),
                tuple(membership.skills),
                membership.active and user.active,
                user.simulated,
                user.pseudonym,
            )
            for membership, user in rows
        ]


def assign(store: Store, who: Account, name: str, role: str, skills: tuple[str, ...]) -> None:
    """Give a member another role or other skills; it holds from their next step on."""
    now = store.clock()
    skills = checked_skills(skills)
    check_role(role)
    with store.write() as session:
        caller = require(session, who, "lead")
        row, user = member_row(session, caller.project_id, name)
        if user.id == caller.id and role != "lead":
            raise UserError("you cannot take your own role away; another lead can")
        row.role, row.skills = role, list(skills)
        target = f"user:{user.pseudonym}"
        record_event(
            session, now, caller.pseudonym, "assigned", target, role=role, skills=list(skills)
        )


def remove_member(store: Store, who: Account, name: str) -> None:
    """The person is out of this project now; their labels stay."""
    now = store.clock()
    with store.write() as session:
        caller = require(session, who, "lead")
        row, user = member_row(session, caller.project_id, name)
        if user.id == caller.id:
            raise UserError("you cannot remove yourself; another lead can")
        row.active = False
        record_event(session, now, caller.pseudonym, "removed", f"user:{user.pseudonym}")


def member_row(session: Session, project_id: int, name: str) -> tuple[Membership, User]:
    found = session.execute(
        select(Membership, User)
        .join(User, User.id == Membership.user_id)
        .where(Membership.project_id == project_id, User.name == name)
    ).one_or_none()
    if found is None:
        raise UserError(f"{name!r} is not in this project")
    return found[0], found[1]


def _view(row: Project) -> ProjectView:
    return ProjectView(row.id, row.name, row.paused, Settings.model_validate(row.settings))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
    }

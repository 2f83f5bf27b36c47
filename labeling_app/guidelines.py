"""The labeling instructions: immutable numbered versions, and who has read which.

Nobody labels under instructions that they have not acknowledged; every label carries its version.
"""

import dataclasses
import datetime as dt
import re
from importlib import resources

from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.auth import ROLES, WORKERS, Account, DeniedError, project_id, require
from labeling_app.schema import InstructionAck, InstructionVersion
from labeling_app.store import Store, check_text, record_event
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text

_CLAUSE = re.compile(r"^(?:#+\s*)?(\d{1,2}(?:\.\d{1,2})*)[.)]?\s+(\S.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Clause:
    """A numbered paragraph or heading of the instructions."""

    number: str
    text: str


@dataclasses.dataclass(frozen=True)
class Instructions:
    n: int
    body_md: str
    published_at: dt.datetime

    @property
    def clauses(self) -> tuple[Clause, ...]:
        return clauses_of(self.body_md)


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of the instructions as a page shows it: `level` 1 to 6 is a heading, 0 a paragraph;
    `number` is its clause's, "" for none."""

    level: int
    number: str
    text: str


class UnreadError(DeniedError):
    """There is a version that the caller has not acknowledged."""


def clauses_of(body_md: str) -> tuple[Clause, ...]:
    """The clauses in their order: lines that begin with a number like 2 or 2.1."""
    return tuple(Clause(found[1], found[2].strip()) for found in _CLAUSE.finditer(body_md))


def blocks_of(body_md: str) -> tuple[Block, ...]:
    """Headings and paragraphs in their order, as plain text. An image or HTML stays the letters
    that it is written with; marks of emphasis are taken off."""
    blocks: list[Block] = []
    for piece in re.split(r"\n\s*\n|\n(?=#)|(?<=\n)(?=[-*] )", body_md.replace("\r\n", "\n")):
        text = " ".join(piece.split())
        if not text:
            continue
        heading = re.match(r"(#{1,6})\s+(.*)", text)
        level, text = (len(heading[1]), heading[2]) if heading else (0, text)
        clause = _CLAUSE.match(text)
        number, text = (clause[1], clause[2]) if clause else ("", text)
        text = re.sub(r"(\*\*|__|`)(.+?)\1", r"\2", text)
        if heading and number:
            number, text = "", f"{number} {text}"
        blocks.append(Block(level, number, text))
    return tuple(blocks)


def default_text() -> str:
    """The shipped instructions."""
    return (resources.files("labeling_app") / "instructions" / "default.md").read_text("utf-8")


def publish_default(store: Store, body_md: str | None = None, project: str = "default") -> None:
    """Publish `body_md`, or else the shipped instructions, in a project that has none."""
    with store.read() as session:
        there = _newest(session, project_id(session, project))
    if there is not None:
        return
    body = default_text() if body_md is None else check_text(body_md, "the instructions")
    with store.write() as session:
        store.lock(session, "instructions")
        number = project_id(session, project)
        if _newest(session, number) is None:
            _publish(session, store.clock(), "shipped", number, body, requalify=False)


def publish(store: Store, who: Account, body_md: str, requalify: bool = False) -> int:
    """A lead's new version; returns its number. The same text as the newest adds nothing.
    `requalify`: everybody passes the qualification set anew under it.

    Raises UserError for a text without numbered clauses: reviews and critiques cite them.
    """
    with store.write() as session:
        caller = require(session, who, "lead")
        _check(body_md)
        store.lock(session, "instructions")
        newest = _newest(session, caller.project_id)
        if newest is not None and newest.body_md == body_md:
            return newest.n
        at = store.clock()
        return _publish(session, at, caller.pseudonym, caller.project_id, body_md, requalify)


def newest(store: Store, who: Account) -> Instructions:
    """What holds now. Raises UserError if nothing was published."""
    with store.read() as session:
        caller = require(session, who, *ROLES)
        return _view(need_newest(session, caller.project_id))


def version(store: Store, who: Account, n: int) -> Instructions:
    """An older version, as it was. Raises UserError if there is none."""
    with store.read() as session:
        caller = require(session, who, *ROLES)
        return _view(_numbered(session, caller.project_id, n))


def acknowledge(store: Store, who: Account, n: int) -> None:
    """The caller has read version `n`; twice is once."""
    now = store.clock()

    def deed(session: Session) -> None:
        caller = require(session, who, *WORKERS)
        row = _numbered(session, caller.project_id, n)
        if session.get(InstructionAck, (caller.id, row.id)) is None:
            session.add(InstructionAck(user_id=caller.id, version_id=row.id, at=now))
            session.flush()
            record_event(session, now, caller.pseudonym, "acknowledged", f"instructions:{row.id}")

    store.transact(deed)


def has_read_newest(store: Store, who: Account) -> bool:
    with store.read() as session:
        caller = require(session, who, *ROLES)
        try:
            require_read(session, caller.project_id, caller.id)
        except UnreadError:
            return False
        return True


def require_read(session: Session, project: int, user_id: int) -> InstructionVersion:
    """The newest version, if this person has acknowledged it. Raises UnreadError."""
    found = session.execute(
        select(InstructionVersion, InstructionAck.at)
        .outerjoin(
            InstructionAck,
            (InstructionAck.version_id == InstructionVersion.id)
            & (InstructionAck.user_id == user_id),
        )
        .where(InstructionVersion.project_id == project)
        .order_by(InstructionVersion.n.desc())
        .limit(1)
    ).one_or_none()
    if found is None:
        raise _unpublished()
    if found.at is None:
        raise UnreadError(f"instructions v{found[0].n} are new; read and acknowledge them first")
    return found[0]


def need_newest(session: Session, project: int) -> InstructionVersion:
    row = _newest(session, project)
    if row is None:
        raise _unpublished()
    return row


def _unpublished() -> UserError:
    return UserError("no labeling instructions are published; start the app, or import labels")


def _check(body_md: str) -> None:
    check_text(body_md, "the instructions")
    numbers = [clause.number for clause in clauses_of(body_md)]
    if not numbers:
        raise UserError(
            "the instructions have no numbered clauses; begin a paragraph with 1.1, say"
        )
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise UserError(f"clause {twice[0]} is there twice; number them so that each is one")


def _publish(
    session: Session, at: dt.datetime, actor: str, project: int, body_md: str, requalify: bool
) -> int:
    last = _newest(session, project)
    digest = sha256_text(body_md)
    row = InstructionVersion(
        project_id=project,
        n=last.n + 1 if last else 1,
        body_md=body_md,
        sha256=digest,
        requalify=requalify,
        published_at=at,
    )
    session.add(row)
    session.flush()
    record_event(session, at, actor, "published", f"instructions:{row.id}", sha256=digest)
    return row.n


def _newest(session: Session, project: int) -> InstructionVersion | None:
    return session.scalars(
        select(InstructionVersion)
        .where(InstructionVersion.project_id == project)
        .order_by(InstructionVersion.n.desc())
        .limit(1)
    ).one_or_none()


def _numbered(session: Session, project: int, n: int) -> InstructionVersion:
    row = session.scalars(
        select(InstructionVersion).where(
            InstructionVersion.project_id == project, InstructionVersion.n == n
        )
    ).one_or_none()
    if row is None:
        raise UserError(f"there are no instructions v{n}")
    return row


def _view(row: InstructionVersion) -> Instructions:
    return Instructions(row.n, row.body_md, row.published_at)

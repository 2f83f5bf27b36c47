"""The labeling instructions: immutable numbered versions, and who has read which.

Nobody labels under instructions that they have not acknowledged; every label carries its version.
"""

import dataclasses
import datetime as dt
from importlib import resources

from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.auth import ROLES, WORKERS, Account, DeniedError, require
from labeling_app.schema import InstructionAck, InstructionVersion
from labeling_app.store import Store, check_text, record_event
from pipeline.core.errors import UserError
from pipeline.core.identity import sha256_text


@dataclasses.dataclass(frozen=True)
class Instructions:
    n: int
    body_md: str
    published_at: dt.datetime


class UnreadError(DeniedError):
    """There is a version that the caller has not acknowledged."""


def publish_default(store: Store) -> None:
    """Publish the shipped instructions in a store that has none."""
    body = (resources.files("labeling_app") / "instructions" / "default.md").read_text("utf-8")
    with store.write() as session:
        if _newest(session) is None:
            _publish(session, store.clock(), "shipped", body)


def publish(store: Store, who: Account, body_md: str) -> int:
    """A lead's new version; returns its number. The same text as the newest adds nothing."""
    check_text(body_md, "the instructions")
    with store.write() as session:
        user = require(session, who, "lead")
        newest = _newest(session)
        if newest is not None and newest.body_md == body_md:
            return newest.n
        return _publish(session, store.clock(), user.name, body_md)


def newest(store: Store, who: Account) -> Instructions:
    """What holds now. Raises UserError if nothing was published."""
    with store.read() as session:
        require(session, who, *ROLES)
        row = _need_newest(session)
        return Instructions(row.n, row.body_md, row.published_at)


def acknowledge(store: Store, who: Account, n: int) -> None:
    """The caller has read version `n`; twice is once."""
    now = store.clock()
    with store.write() as session:
        user = require(session, who, *WORKERS)
        found = select(InstructionVersion).where(InstructionVersion.n == n)
        row = session.scalars(found).one_or_none()
        if row is None:
            raise UserError(f"there are no instructions v{n}")
        if session.get(InstructionAck, (user.id, row.id)) is None:
            session.add(InstructionAck(user_id=user.id, version_id=row.id, at=now))
            record_event(session, now, user.name, "acknowledged", f"instructions:{n}")


def has_read_newest(store: Store, who: Account) -> bool:
    with store.read() as session:
        user = require(session, who, *ROLES)
        return session.get(InstructionAck, (user.id, _need_newest(session).id)) is not None


def require_read(session: Session, user_id: int) -> InstructionVersion:
    """The newest version, if this person has acknowledged it. Raises UnreadError."""
    row = _need_newest(session)
    if session.get(InstructionAck, (user_id, row.id)) is None:
        raise UnreadError(f"instructions v{row.n} are new; read and acknowledge them first")
    return row


def _publish(session: Session, at: dt.datetime, actor: str, body_md: str) -> int:
    last = _newest(session)
    n = last.n + 1 if last else 1
    digest = sha256_text(body_md)
    session.add(InstructionVersion(n=n, body_md=body_md, sha256=digest, published_at=at))
    record_event(session, at, actor, "published", f"instructions:{n}", sha256=digest)
    return n


def _newest(session: Session) -> InstructionVersion | None:
    query = select(InstructionVersion).order_by(InstructionVersion.n.desc()).limit(1)
    return session.scalars(query).one_or_none()


def _need_newest(session: Session) -> InstructionVersion:
    row = _newest(session)
    if row is None:
        raise UserError("no labeling instructions are published; start the app, or import labels")
    return row

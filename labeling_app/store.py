"""The labeling store: opening it, its transactions, and what every service writes with.

SQLite in WAL mode is the embedded default; any SQLAlchemy URL (PostgreSQL for a team) will do.
A write takes the database's write lock at its start, so what it read is still so when it writes.
"""

import contextlib
import datetime as dt
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session

from labeling_app.schema import SCHEMA_VERSION, Base, EventRow, SchemaVersion, Secret
from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError

STORE_VARIABLE = "FLYWHEEL_LABELS"
MAX_TEXT_BYTES = 1 << 20
MAX_NAME = 200
_BUSY_TIMEOUT_S = 30.0
_PSEUDONYM_KEY = "pseudonym-key"

Clock = Callable[[], dt.datetime]
RandomBytes = Callable[[int], bytes]


class LabelsConfig(Section):
    """[labels]: where the labels lie, and how often each comparison is asked for."""

    store: str = operational("", description="database URL or file; empty: {root}/labels.sqlite")
    port: int = operational(8501, ge=1, le=65535, description="port of the labeling app")
    overlap: int = operational(
        2, ge=1, le=9, description="rankings asked for of each imported comparison"
    )

    def store_url(self, run: RunConfig) -> str:
        """Where the labels lie. Raises UserError if that is nowhere near a file of this machine
        and no database is named."""
        if self.store:
            return self.store
        if not storage.is_local(run.root):
            raise UserError(
                f"run.root = {run.root!r} is no place for a labeling store; set labels.store to a"
                " database URL (postgresql://…) or to a local file"
            )
        return str(storage.local_path(run.root) / "labels.sqlite")


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def database_url(place: str) -> str:
    """A database URL as it is; a path becomes SQLite's URL for it."""
    if "://" in place:
        return place
    return f"sqlite:///{Path(place).absolute()}"


class Store:
    """One labeling database. Services take it first; safe to share between threads.

    `clock` gives the times of all rows; `random_bytes` makes tokens, passwords and the key of the
    pseudonyms.
    """

    def __init__(
        self, place: str, clock: Clock = utc_now, random_bytes: RandomBytes = secrets.token_bytes
    ) -> None:
        self.url = database_url(place)
        self.clock = clock
        self.random_bytes = random_bytes
        self._engine = _engine(self.url)
        self._writer = self._engine.execution_options(flywheel_write=True)
        try:
            self._prepare()
        except (DatabaseError, sqlite3.DatabaseError) as error:
            self.close()
            reason = getattr(error, "orig", error)
            raise UserError(f"cannot open the labeling store {place!r}: {reason}") from error

    def token(self) -> str:
        return self.random_bytes(16).hex()

    @contextlib.contextmanager
    def read(self) -> Generator[Session]:
        """One consistent view of the store; nothing written in it is kept."""
        with Session(self._engine) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Generator[Session]:
        """All of it happens, or nothing."""
        with Session(self._writer) as session, session.begin():
            yield session

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        if self._engine.dialect.name == "sqlite":
            _set_wal(self._engine)
        with self._engine.begin() as connection:
            if self._is_ready(connection):
                return
        with self._writer.begin() as connection:
            if self._is_ready(connection):  # another process was quicker
                return
            Base.metadata.create_all(connection)
            with Session(connection) as session:
                session.add(SchemaVersion(version=SCHEMA_VERSION))
                session.add(Secret(name=_PSEUDONYM_KEY, value=self.random_bytes(32)))
                session.flush()

    def _is_ready(self, connection: Connection) -> bool:
        """Whether the tables are there. Raises UserError if they are another release's."""
        if not inspect(connection).has_table(SchemaVersion.__tablename__):
            return False
        found = connection.scalar(select(SchemaVersion.version))
        if found != SCHEMA_VERSION:
            raise UserError(
                f"the labeling store {self._engine.url.render_as_string()} has schema version "
                f"{found}, this code knows {SCHEMA_VERSION}; run the matching release, or name "
                "another store with labels.store"
            )
        return True


def open_store(
    place: str | None = None,
    clock: Clock = utc_now,
    random_bytes: RandomBytes = secrets.token_bytes,
) -> Store:
    """Open or create the store at a URL or path; None: where FLYWHEEL_LABELS points.

    Raises UserError if there is no such place, it is no database, or its schema is another.
    """
    chosen = place or os.environ.get(STORE_VARIABLE, "")
    if not chosen:
        raise UserError(f"no labeling store named; set labels.store or {STORE_VARIABLE}")
    return Store(chosen, clock, random_bytes)


def pseudonym_key(session: Session) -> bytes:
    return session.scalars(select(Secret.value).where(Secret.name == _PSEUDONYM_KEY)).one()


def record_event(
    session: Session, at: dt.datetime, actor: str, verb: str, target: str, **payload: Any
) -> None:
    """Add to the log, in the transaction of the deed."""
    session.add(EventRow(at=at, actor=actor, verb=verb, target=target, payload=payload))


def check_text(text: str, what: str) -> str:
    """The text as it is, or UserError: empty, over 1 MiB, or not storable in every database."""
    if not text.strip():
        raise UserError(f"{what} is empty; write something")
    if "\0" in text:
        raise UserError(f"{what} holds a NUL character; take it out")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is not valid Unicode ({error.reason}); write it anew") from None
    if size > MAX_TEXT_BYTES:
        raise UserError(f"{what} has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are taken")
    return text


def check_name(name: str, what: str) -> str:
    """A text short enough to be a key: at most 200 characters."""
    check_text(name, what)
    if len(name) > MAX_NAME:
        raise UserError(f"{what} has {len(name)} characters; at most {MAX_NAME} are taken")
    return name


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise UserError(f"the labeling store {url!r} must be a file, not memory")
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_size=8, max_overflow=32)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(f"the labeling store {url!r} is no database URL: {error}") from None
    except OSError as error:
        raise UserError(f"cannot make the folder of the labeling store: {error}") from None
    except ModuleNotFoundError as error:
        raise UserError(f"the labeling store {url!r} needs {error.name}: pip install it") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_connection)
        event.listen(engine, "begin", _begin)
    return engine


def _set_up_connection(dbapi: Any, _record: Any) -> None:
    dbapi.isolation_level = None  # sqlite3 must not begin transactions of its own: `_begin` does
    cursor = dbapi.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")  # an acknowledged label survives a power cut
    cursor.close()


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("flywheel_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _set_wal(engine: Engine) -> None:
    """Set once and kept in the file. The switch itself ignores the busy time-out: so wait here."""
    raw = engine.raw_connection()
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    try:
        while True:
            try:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
    finally:
        raw.close()

"""The labeling store: opening it, its transactions, and what every service writes with.

SQLite in WAL mode is the embedded default; any SQLAlchemy URL (PostgreSQL for a team) will do.
A write takes the database's write lock at its start, so what it read is still so when it writes.
"""

import contextlib
import datetime as dt
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    IntegrityError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from labeling_app import upgrades
from labeling_app.app_settings import AppSettings, Assistant, Oidc
from labeling_app.engine import another_was_first, is_away, make_engine, set_wal
from labeling_app.schema import EventRow, Secret
from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError

STORE_VARIABLE = "FLYWHEEL_LABELS"
MAX_TEXT_BYTES = 1 << 20
MAX_NAME = 200
_MAX_ATTEMPTS = 5
PSEUDONYM_KEY, PAGE_KEY = "pseudonym-key", "page-key"
KEPT = "kept"  # in a session's info: what a view need not look up twice

T = TypeVar("T")
Clock = Callable[[], dt.datetime]
RandomBytes = Callable[[int], bytes]


class LabelsConfig(Section):
    """[labels]: where the labels lie, and how often each comparison is asked for."""

    store: str = operational("", description="database URL or file; empty: {root}/labels.sqlite")
    project: str = operational("default", description="the project that commands are about")
    instructions: str = operational(
        "", description="Markdown file published in a project without any; empty: the shipped one"
    )
    port: int = operational(8501, ge=1, le=65535, description="port of the labeling app")
    host: str = operational("127.0.0.1", description="address that the app binds")
    overlap: int = operational(
        2, ge=1, le=9, description="rankings asked for of each imported comparison"
    )
    assistants: tuple[Assistant, ...] = operational(
        (), description="models that help: endpoint, model, abilities (draft, critique, rank-check)"
    )
    oidc: Oidc | None = operational(
        None, description="sign-in service: metadata_url, client_id, address of this app"
    )
    hosts: tuple[str, ...] = operational(
        (), description="names by which browsers reach the app; none: of this machine alone"
    )
    secure_cookies: bool = operational(False, description="the app is reached by https alone")
    trusted_proxies: tuple[str, ...] = operational(
        (), description="addresses of proxies whose X-Forwarded-For is believed"
    )

    def app_settings(self, run: RunConfig, endpoint: str) -> AppSettings:
        """What the app's process is told."""
        return AppSettings(
            store=database_url(self.store_url(run)),
            endpoint=endpoint,
            assistants=self.assistants,
            oidc=self.oidc,
            hosts=self.hosts,
            secure_cookies=self.secure_cookies,
            trusted_proxies=self.trusted_proxies,
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
    if place.startswith(("postgresql://", "postgres://")):
        return f"postgresql+psycopg://{place.split('://', 1)[1]}"
    if "://" in place:
        return place
    return f"sqlite:///{Path(place).absolute()}"


class StoreAwayError(UserError):
    """The database does not answer now. Nothing of the transaction happened; try again."""


class Store:
    """One labeling database. Services take it first; safe to share between threads.

    `clock` gives the times of all rows; `random_bytes` makes tokens, passwords and the keys of
    pseudonyms and pages.
    """

    def __init__(
        self,
        place: str,
        clock: Clock = utc_now,
        random_bytes: RandomBytes = secrets.token_bytes,
        upgrade: bool = False,
    ) -> None:
        self.url = database_url(place)
        self.clock = clock
        self.random_bytes = random_bytes
        self._engine = make_engine(self.url)
        self._writer = self._engine.execution_options(flywheel_write=True)
        self._reader = (
            self._engine
            if self._engine.dialect.name == "sqlite"
            else self._engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        self._keys: dict[str, bytes] = {}
        self._here = threading.local()  # .view: the session of this thread's `one_view`
        try:
            self._prepare(upgrade)
        except (DatabaseError, sqlite3.DatabaseError) as error:
            self.close()
            reason = str(getattr(error, "orig", error)).strip()
            raise UserError(f"cannot open the labeling store {self}: {reason}") from error
        except UserError:
            self.close()
            raise

    def __str__(self) -> str:
        """Where it is, without its password."""
        return self._engine.url.render_as_string()

    def token(self) -> str:
        return self.random_bytes(16).hex()

    def key(self, name: str) -> bytes:
        """A secret key of this store, made with it: PSEUDONYM_KEY or PAGE_KEY."""
        if name not in self._keys:
            with self.read() as session:
                found = session.scalars(select(Secret.value).where(Secret.name == name)).one()
            self._keys[name] = bytes(found)
        return self._keys[name]

    def forget_keys(self) -> None:
        """Read them anew: another store's contents were put in this one."""
        self._keys.clear()

    @contextlib.contextmanager
    def read(self) -> Generator[Session]:
        """One consistent view of the store; nothing written in it is kept."""
        view: Session | None = getattr(self._here, "view", None)
        if view is not None:
            yield view
            return
        with self._available(), Session(self._reader) as session:
            yield session

    @contextlib.contextmanager
    def one_view(self) -> Generator[None]:
        """What the services called within read, they read from one view, as the store was at the
        first of them: a page that asks many of them loads a row once. What is written meanwhile,
        also by these services themselves, is not seen until it ends."""
        outer: Session | None = getattr(self._here, "view", None)
        kept: list[object] = []  # the session itself forgets a row that nobody holds
        with self.read() as session:
            event.listen(session, "loaded_as_persistent", lambda _, row: kept.append(row))
            session.info.setdefault(KEPT, {})
            self._here.view = session
            try:
                yield
            finally:
                self._here.view = outer

    @contextlib.contextmanager
    def write(self) -> Generator[Session]:
        """All of it happens, or nothing."""
        with self._available(), Session(self._writer) as session, session.begin():
            yield session

    def transact(self, deed: Callable[[Session], T]) -> T:
        """The same, for what may meet another transaction on the way: where a constraint of the
        database says that the other was first, `deed` runs anew and finds what that one wrote.
        Raises IntegrityError or OperationalError if it never gets through."""
        for attempt in range(_MAX_ATTEMPTS):
            try:
                with self.write() as session:
                    return deed(session)
            except (IntegrityError, OperationalError) as error:
                if not another_was_first(error) or attempt == _MAX_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def lock(self, session: Session, name: str) -> None:
        """Until the transaction ends, no other one that asks for this lock goes on. SQLite has
        one writer anyway."""
        if not self.is_sqlite:
            session.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))

    def plan_anew(self, session: Session) -> None:
        """Within a transaction that makes tables grow: PostgreSQL would keep a statement's plan
        from when they were small, and go through all of them."""
        if not self.is_sqlite:
            session.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _available(self) -> Generator[None]:
        try:
            yield
        except DBAPIError as error:
            if any(sign in str(error.orig) for sign in ("disk is full", "disk I/O error")):
                raise UserError(
                    f"the disk of the labeling store {self} is full or fails ({error.orig});"
                    " nothing was stored by this step, free some space and try again"
                ) from error
            if error.connection_invalidated or is_away(error):
                raise StoreAwayError(
                    "the labeling database does not answer; nothing was stored by this step, try"
                    " again in a moment"
                ) from error
            raise
        except PoolTimeoutError as error:
            raise StoreAwayError("the labeling database is busy; try again in a moment") from error

    def _prepare(self, upgrade: bool) -> None:
        if self.is_sqlite:
            set_wal(self._engine)
        with self._engine.begin() as connection:
            found = upgrades.revision(connection)
            if found == upgrades.HEAD and self._has_keys(connection):
                return
        if found not in (None, upgrades.HEAD):
            self._check_upgrade(found, upgrade)
        with self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(4733)"))
            found = upgrades.revision(connection)
            if found != upgrades.HEAD:  # no other process was quicker
                if self.is_sqlite and found is not None:
                    _copy_before(str(self._engine.url.database), upgrades.HEAD)
                upgrades.upgrade(connection)
            self._add_keys(connection)

    def _has_keys(self, connection: Connection) -> bool:
        return len(set(connection.scalars(select(Secret.name))) & {PSEUDONYM_KEY, PAGE_KEY}) == 2

    def _add_keys(self, connection: Connection) -> None:
        there = set(connection.scalars(select(Secret.name)))
        for name in sorted({PSEUDONYM_KEY, PAGE_KEY} - there):
            connection.execute(insert(Secret).values(name=name, value=self.random_bytes(32)))

    def _check_upgrade(self, found: str | None, upgrade: bool) -> None:
        """A file is copied before its tables change; a team's database waits for a word."""
        if found not in upgrades.OLDER:
            raise UserError(
                f"the labeling store {self} is of revision {found}, this code knows"
                f" {upgrades.HEAD}; run the release that made it, or name another store"
            )
        if not self.is_sqlite and not upgrade:
            raise UserError(
                f"the labeling store {self} is of revision {found}, this code needs"
                f" {upgrades.HEAD}; stop the app, then `flywheel labels backup` with the release"
                " that made it, then `flywheel labels upgrade`"
            )


def open_store(
    place: str | None = None,
    clock: Clock = utc_now,
    random_bytes: RandomBytes = secrets.token_bytes,
    upgrade: bool = False,
) -> Store:
    """Open or create the store at a URL or path; None: where FLYWHEEL_LABELS points. `upgrade`:
    an older PostgreSQL store is brought to this release; an older SQLite file always is.

    Raises UserError if there is no such place, it is no database, or its schema is another.
    """
    chosen = place or os.environ.get(STORE_VARIABLE, "")
    if not chosen:
        raise UserError(f"no labeling store named; set labels.store or {STORE_VARIABLE}")
    return Store(chosen, clock, random_bytes, upgrade)


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


def _copy_before(path: str, head: str) -> None:
    """A whole copy of the file, beside it, named after the revision that it is about to get. The
    caller holds the write lock: what is read is what was last committed."""
    target = Path(f"{path}.before-{head}")
    part = Path(f"{target}.part")
    part.unlink(missing_ok=True)
    source, copy = sqlite3.connect(path), sqlite3.connect(part)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()
    part.replace(target)

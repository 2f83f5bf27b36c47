"""How a store's database is spoken to: SQLite's pragmas and locks, PostgreSQL's connections, and
what an error of either means."""

import functools
import json
import math
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
)

from pipeline.core.errors import UserError

_BUSY_TIMEOUT_S = 30.0
_LOOK_S = 0.002
_FRESH_S = 2.0
_CONNECT_ARGS: dict[str, dict[str, Any]] = {
    # A write that waits for a lock gives up before a person does.
    "postgresql": {"connect_timeout": 5, "options": "-c lock_timeout=10s -c timezone=UTC"}
}


def make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise UserError(f"the labeling store {url!r} must be a file, not memory")
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            parsed,
            pool_size=24,  # kept open: a new connection costs more than a page's questions
            max_overflow=16,
            json_serializer=functools.partial(json.dumps, ensure_ascii=False),
            connect_args=_CONNECT_ARGS.get(parsed.get_backend_name(), {}),
        )
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(f"the labeling store {url!r} is no database URL: {error}") from None
    except OSError as error:
        raise UserError(f"cannot make the folder of the labeling store: {error}") from None
    except ModuleNotFoundError as error:
        raise UserError(f"the labeling store {url!r} needs {error.name}: pip install it") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_connection)
        event.listen(engine, "begin", _begin)
    else:
        event.listen(engine, "checkin", _put_back)
        event.listen(engine, "checkout", _check)
    return engine


def _put_back(_dbapi: Any, record: Any) -> None:
    record.info["put_back"] = time.monotonic()


def _check(dbapi: Any, record: Any, _proxy: Any) -> None:
    """A connection that lay still may be dead: the pool then makes another."""
    if time.monotonic() - record.info.get("put_back", math.inf) < _FRESH_S:
        return
    try:
        dbapi.execute("SELECT 1")
        dbapi.rollback()
    except Exception as error:
        raise DisconnectionError from error


def another_was_first(error: DBAPIError) -> bool:
    """A constraint refused the row, or PostgreSQL ended one of two that waited for each other."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, IntegrityError) or state.startswith("40") or state == "55P03"


def is_away(error: DBAPIError) -> bool:
    """PostgreSQL could not be reached, or is shutting down or starting; SQLite stayed locked."""
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error.orig, sqlite3.OperationalError):
        return "locked" in str(error.orig)  # for all of the busy time-out
    if type(error.orig).__module__.startswith("psycopg"):
        return isinstance(error, OperationalError) and (
            state is None or state.startswith(("08", "57P", "53"))
        )
    return False


def _set_up_connection(dbapi: Any, _record: Any) -> None:
    dbapi.isolation_level = None  # sqlite3 must not begin transactions of its own: `_begin` does
    dbapi.create_function("lower", 1, _lower, deterministic=True)  # its own knows ASCII alone
    cursor = dbapi.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")  # an acknowledged label survives a power cut
    cursor.close()


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _begin(connection: Connection) -> None:
    if not connection.get_execution_options().get("flywheel_write", False):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite's own waiting looks for the lock ever more rarely, up to 0.1 s apart, and so never
    # gets between the transactions of an import. This looks all the time.
    dbapi: Any = connection.connection.driver_connection
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    dbapi.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                dbapi.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)
    finally:
        dbapi.execute(f"PRAGMA busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}")


def set_wal(engine: Engine) -> None:
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

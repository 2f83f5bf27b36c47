"""New stores, quicker than making their tables each time: a copy of a file, and PostgreSQL
databases that one test after another has, emptied between."""

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from labeling_app.schema import Base
from labeling_app.store import Clock, RandomBytes, Store, open_store
from tests import postgres

_SHAPE = """
SELECT (SELECT md5(string_agg(relname || relkind::text, ',' ORDER BY relname, relkind)) FROM pg_class
         WHERE relnamespace = 'public'::regnamespace),
       (SELECT md5(string_agg(tgname || tgenabled::text, ',' ORDER BY tgname, tgrelid::regclass::text))
          FROM pg_trigger WHERE NOT tgisinternal),
       (SELECT md5(string_agg(attname, ',' ORDER BY attrelid::regclass::text, attname))
          FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i') AND attnum > 0),
       (SELECT version_num FROM alembic_version)
"""

# A new store has one project, and no other row.
_FIRST_PROJECT = """
DELETE FROM projects WHERE id > 1;
UPDATE projects SET name = 'default', paused = false, settings = '{}';
SELECT setval(oid, 1, relname = 'projects_id_seq') FROM pg_class WHERE relkind = 'S'
"""


class EmptyStores:
    """empty_stores(backend): the place of a store without a row, not even its keys."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder = folder
        self._template: Path | None = None
        self._open = contextlib.ExitStack()
        self._server: postgres.Server | None = None
        self._shape: object = None
        self._given_back: dict[str, list[Store]] = {"sqlite": [], "postgresql": []}
        self._numbers = itertools.count()

    def __call__(self, backend: str) -> str:
        return self._sqlite() if backend == "sqlite" else self._postgresql()

    def open(self, backend: str, clock: Clock, random_bytes: RandomBytes) -> Store:
        """A new store, opened. It may be an object that a test before had, whose engine knows the
        SQL of many statements; its rows, keys and connections are new."""
        while self._given_back[backend]:
            store = self._given_back[backend].pop()
            if self._empty(store.url):
                store.clock, store.random_bytes = clock, random_bytes
                store.forget_keys()
                store._prepare(False)
                return store
        return open_store(self(backend), clock, random_bytes)

    def give_back(self, store: Store) -> None:
        """Another test may have it."""
        store.close()
        self._given_back["sqlite" if store.is_sqlite else "postgresql"].append(store)

    def close(self) -> None:
        self._open.close()

    def _sqlite(self) -> str:
        return shutil.copy(self._file(), self._folder("store") / "labels.sqlite").__fspath__()

    def _file(self) -> Path:
        if self._template is None:
            self._template = self._folder("template") / "labels.sqlite"
            open_store(str(self._template)).close()
            database = sqlite3.connect(self._template)
            database.execute("DELETE FROM secrets")
            database.commit()
            database.close()
        return self._template

    def _postgresql(self) -> str:
        if postgres.binaries() is None:
            pytest.skip("PostgreSQL is not installed")
        if self._server is None:
            self._server = self._open.enter_context(postgres.server())
        name = f"labels_{next(self._numbers)}"
        self._server.execute(f"CREATE DATABASE {name}")
        place = self._server.database(name)
        open_store(place).close()
        self._shape = self._shape or self._shape_of(place)
        assert self._empty(place)
        return place

    def _shape_of(self, place: str) -> object:
        with psycopg.connect(place) as connection:
            return connection.execute(_SHAPE).fetchone()

    def _empty(self, place: str) -> bool:
        """Whether all rows are gone: not where a test left the tables otherwise than they were, or
        a transaction open."""
        if place.startswith("sqlite"):
            file = Path(place.removeprefix("sqlite:///"))
            for each in file.parent.glob(f"{file.name}*"):
                each.unlink()
            shutil.copy(self._file(), file)
            return True
        place = place.replace("postgresql+psycopg", "postgresql")
        if self._shape_of(place) != self._shape:
            return False
        tables = reversed(Base.metadata.sorted_tables)
        rows = "".join(f"DELETE FROM {table.name};" for table in tables if table.name != "projects")
        with psycopg.connect(place, options="-c lock_timeout=1s") as connection:
            try:
                # Without the triggers that let nobody delete a label.
                connection.execute(f"SET LOCAL session_replication_role = replica; {rows}")
                connection.execute(_FIRST_PROJECT)
            except psycopg.errors.LockNotAvailable:
                return False
        return True

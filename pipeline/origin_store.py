"""What origins say of themselves (robots.txt, ai.txt, tdmrep.json), kept on the disk.

One SQLite file a shard: nothing that a crawl has learnt is forgotten for lack of memory, and a
successor need not ask again. It is a cache: a damaged one is begun anew.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.core import storage
from pipeline.core.errors import UserError

_TABLE = """CREATE TABLE IF NOT EXISTS said (
  url TEXT PRIMARY KEY, facts TEXT, packed BLOB, sum INTEGER) WITHOUT ROWID"""
_CACHE_KIB = 4096
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_T = TypeVar("_T")


class OriginStore:
    """(facts, packed) by the URL of a file. `reader` names who read them, and for whom: what
    another has left there is thrown away. The lease sees to it that there is one owner, so no
    locks are taken: network file systems have none that can be relied on."""

    def __init__(self, path: Path, reader: str) -> None:
        self._path, self._reader = path, reader
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        with storage.sqlite_at(self._path):
            return self._of_ours()

    def _of_ours(self) -> sqlite3.Connection:
        db = self._connect()
        try:
            (version,) = db.execute("SELECT facts FROM said WHERE url = ''").fetchone() or ("",)
            is_ours = version == self._reader
        except sqlite3.DatabaseError:
            is_ours = False
        if is_ours:
            return db
        db.close()
        self._discard()
        db = self._connect()
        db.execute(_TABLE)
        db.execute("INSERT OR REPLACE INTO said VALUES ('', ?, '', 0)", (self._reader,))
        db.commit()
        return db

    def _connect(self) -> sqlite3.Connection:
        if self._path.is_dir():
            raise UserError(f"{self._path} is a folder where a file belongs; remove it")
        db = sqlite3.connect(f"file:{self._path}?vfs=unix-none", uri=True)
        db.text_factory = _text
        with contextlib.suppress(sqlite3.DatabaseError):
            db.execute("PRAGMA synchronous = OFF")  # after a power cut it is asked again
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return db

    def _discard(self) -> None:
        for name in (self._path.name, f"{self._path.name}-journal"):
            self._path.with_name(name).unlink(missing_ok=True)

    def get(self, url: str) -> tuple[str, bytes] | None:
        """None: unknown, or damaged."""
        query = "SELECT facts, packed, sum FROM said WHERE url = ?"
        row = self._do(lambda: self._db.execute(query, (url,)).fetchone())
        if row is None or not (isinstance(row[0], str) and isinstance(row[1], bytes)):
            return None
        return row[:2] if row[2] == _sum(url, row[0], row[1]) else None

    def put(self, url: str, facts: str, packed: bytes) -> None:
        row = (url, facts, packed, _sum(url, facts, packed))
        self._do(lambda: self._db.execute("INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?)", row))

    def sync(self) -> None:
        """Have it survive this process."""
        self._do(self._db.commit)

    def _do(self, act: Callable[[], _T]) -> _T | None:
        """Damage empties the store: None. A full disk is raised."""
        try:
            with storage.sqlite_at(self._path):
                return act()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF not in _DAMAGED:
                raise
            with contextlib.suppress(sqlite3.DatabaseError):
                self._db.close()
            self._discard()
            self._db = self._open()
            return None

    def close(self) -> None:
        with contextlib.suppress(sqlite3.DatabaseError):
            self._db.commit()
            self._db.close()


def _text(data: bytes) -> str:
    """Damage is found by the sum; it is no error to Python."""
    return data.decode(errors="replace")


def _sum(url: str, facts: str, packed: bytes) -> int:
    return zlib.crc32(packed, zlib.crc32(f"{url} {facts}".encode()))

"""What a crawl leaves for the one after it: each page's validators and digest, to look up by URL.

One SQLite file a shard, written once the crawl is over and only read from then on.
"""

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.core import storage
from pipeline.core.manifest import Manifest
from pipeline.frontier import Archived
from pipeline.frontier_state import Entry, hostname_of
from pipeline.urls import shard_of

PAGES = "pages.sqlite"
_TABLE = """CREATE TABLE page (
  url TEXT PRIMARY KEY, depth INTEGER, is_sitemap INTEGER, sha256 TEXT,
  etag TEXT, modified TEXT, fetched TEXT) WITHOUT ROWID"""


@dataclasses.dataclass(frozen=True)
class Before:
    """A page as the crawl before had it; `fetched`: when, as in a WARC-Date."""

    url: str
    sha256: str
    etag: str
    modified: str
    fetched: str


def write_pages(path: Path, pages: Iterable[tuple[Entry, Archived]]) -> None:
    """The pages with status 200, and those that had not changed."""
    with (
        storage.atomic_file(str(path)) as temporary,
        contextlib.closing(sqlite3.connect(temporary)) as db,
        db,
    ):
        db.execute(_TABLE)
        db.executemany(
            "INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (entry.url, entry.depth, entry.is_sitemap, item.payload_sha256, *item.validators)
                for entry, item in pages
                if item.status in (200, 304)
            ),
        )


class PreviousCrawl:
    """The pages of a finished crawl, whatever its number of shards."""

    def __init__(self, manifest: Manifest) -> None:
        root = storage.local_path(manifest.url)
        self.num_shards = int(manifest.run["num_shards"])
        self._databases = [
            sqlite3.connect(f"file:{root / shard_name(shard) / PAGES}?mode=ro", uri=True)
            for shard in range(self.num_shards)
        ]

    def find(self, url: str) -> Before | None:
        database = self._databases[shard_of(hostname_of(url), self.num_shards)]
        row = database.execute(
            "SELECT url, sha256, etag, modified, fetched FROM page WHERE url = ?", (url,)
        ).fetchone()
        return Before(*row) if row else None

    def entries(self) -> Iterator[Entry]:
        for database in self._databases:
            for url, depth, is_sitemap in database.execute(
                "SELECT url, depth, is_sitemap FROM page"
            ):
                yield Entry(url, depth, is_sitemap=bool(is_sitemap))

    def close(self) -> None:
        for database in self._databases:
            database.close()


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"

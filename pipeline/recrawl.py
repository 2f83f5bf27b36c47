"""What a crawl leaves for the one after it: every URL that it knows and, of those that gave a page,
the validators and the digest.

One SQLite file a shard, written once the crawl is over and only read from then on.
"""

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest
from pipeline.frontier_log import lines_of
from pipeline.frontier_state import Archived, Entry, hostname_of
from pipeline.shard_mail import Mailbox
from pipeline.urls import shard_of, suffix_list_digest

PAGES = "pages.sqlite"
SUM = "pages.sum"  # what the table's file is to be, byte for byte
BATCH = 10_000
_BLOCK = 1 << 20
MAX_GONE = 2  # crawls in a row that a URL may give 404 or 410 until it is no longer offered
_LAYOUT = 3
# `taken` numbers the URLs that were archived or dropped (status 0), in that order; `gone` counts
# the crawls in a row with 404 or 410. `sha256` stands where a recrawl may ask with validators.
_TABLES = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA user_version = {_LAYOUT};
CREATE TABLE shard (territory TEXT);
CREATE TABLE page (
  address INTEGER PRIMARY KEY, url TEXT, url_hash INTEGER, depth INTEGER, is_sitemap INTEGER,
  priority INTEGER, taken INTEGER, status INTEGER, gone INTEGER DEFAULT 0, sha256 BLOB,
  etag TEXT, modified TEXT, fetched TEXT);
"""
_INDICES = """
CREATE INDEX page_by_url ON page (url_hash);
CREATE INDEX page_by_turn ON page (taken);
"""
_ADD = """INSERT INTO page (address, url, url_hash, depth, is_sitemap, priority)
  VALUES (?, ?, ?, ?, ?, ?)"""
_END = """UPDATE page SET taken = ?, status = ?, gone = ?, sha256 = ?, etag = ?, modified = ?,
  fetched = ? WHERE address = ?"""
_SETTLE = """UPDATE page SET gone = ?, sha256 = ?, etag = ?, modified = ?, fetched = ?
  WHERE address = ?"""
_OFFERED = "SELECT url, depth, is_sitemap, priority FROM page WHERE gone < ?"


_Event = tuple[int, Entry | Archived | None]


@dataclasses.dataclass(frozen=True)
class Before:
    """A page as the crawl before had it; `fetched`: when, as in a WARC-Date."""

    url: str
    sha256: str
    etag: str
    modified: str
    fetched: str


@dataclasses.dataclass(frozen=True)
class Changes:
    """How many pages differ from the crawl before. Those that it had: `unchanged` (a 304, or the
    same bytes), `changed`, `gone` (404 or 410), `lost` (another status, or dropped), `not_taken`.
    `new` are pages that it did not have.
    """

    unchanged: int = 0
    changed: int = 0
    new: int = 0
    gone: int = 0
    lost: int = 0
    not_taken: int = 0

    def __add__(self, other: "Changes") -> "Changes":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Changes(*(mine + theirs for mine, theirs in pairs))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What a table keeps of a URL for `find` and for its successor."""

    gone: int
    sha256: bytes | None
    validators: tuple[str, str, str]


def write_pages(
    folder: Path,
    territory: str,
    previous: "PreviousCrawl | None",
    bytes_in_warc: Callable[[str], int],
    each_batch: Callable[[], object] = lambda: None,
) -> Changes:
    """Every URL that the log in a shard's folder knows, and how the crawl before had them.

    A URL that was not taken keeps the validators that it had. Memory does not grow with the
    number of URLs. `each_batch` is called every 10,000 lines, so that a lease can be renewed.
    Raises UserError for a damaged log.
    """
    with storage.atomic_file(str(folder / PAGES)) as temporary:
        changes = _fill(temporary, folder, territory, previous, bytes_in_warc, each_batch)
        num_bytes = temporary.stat().st_size
        said = {"bytes": num_bytes, "xxh3_128": _digest(temporary, each_batch)}
        storage.write_bytes(str(folder / SUM), json.dumps(said).encode())
    return changes


def _digest(path: Path, each_block: Callable[[], object] = lambda: None) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            each_block()
    return digest.hexdigest()


def _fill(
    path: Path,
    folder: Path,
    territory: str,
    previous: "PreviousCrawl | None",
    bytes_in_warc: Callable[[str], int],
    each_batch: Callable[[], object],
) -> Changes:
    with storage.sqlite_at(path), contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(_TABLES)
        with db:
            db.execute("INSERT INTO shard VALUES (?)", (territory,))
            num_taken = 0
            events = _history(folder, bytes_in_warc)
            while batch := list(islice(events, BATCH)):
                num_taken = _write_batch(db, batch, num_taken)
                each_batch()
            changes = Changes()
            for rows in _batches(db):
                changes += _settle(db, rows, previous)
                each_batch()
        db.executescript(_INDICES)
        return changes


def _history(folder: Path, bytes_in_warc: Callable[[str], int]) -> Iterator[_Event]:
    """The address of each known URL with its Entry, and later with what became of it: archived, or
    dropped (None). What a WARC file has lost since (a power cut) was not archived."""
    sizes: dict[str, int] = {}
    for address, line in lines_of(folder):
        match line[:1]:
            case "+":
                yield address, Entry.of(line)
            case "=":
                done, item = Archived.of(line)
                if item.warc not in sizes:
                    sizes[item.warc] = bytes_in_warc(item.warc)
                if item.end <= sizes[item.warc]:
                    yield done, item
            case "-":
                yield int(line.split("\t")[1]), None
            case _:  # another shard's
                pass


def _write_batch(db: sqlite3.Connection, batch: Sequence[_Event], num_taken: int) -> int:
    """Returns how many were taken by now."""
    new: list[tuple[Any, ...]] = []
    ended: list[tuple[Any, ...]] = []
    for address, item in batch:
        if isinstance(item, Entry):
            numbers = (item.depth, item.is_sitemap, item.priority)
            new.append((address, item.url, _hash(item.url), *numbers))
            continue
        num_taken += 1
        status, kept = 0, (None, "", "", "")
        if isinstance(item, Archived):
            status = item.status
            if status in (200, 304):
                kept = (bytes.fromhex(item.payload_sha256), *item.validators)
        ended.append((num_taken, status, int(_is_gone(status)), *kept, address))
    db.executemany(_ADD, new)
    db.executemany(_END, ended)
    return num_taken


def _batches(db: sqlite3.Connection) -> Iterator[list[tuple[Any, ...]]]:
    last = -1
    while rows := db.execute(
        "SELECT address, url, status, sha256 FROM page WHERE address > ? ORDER BY address LIMIT ?",
        (last, BATCH),
    ).fetchall():
        yield rows
        last = rows[-1][0]


def _settle(
    db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], previous: "PreviousCrawl | None"
) -> Changes:
    """Compare with the crawl before, and carry over what it knew and this one did not ask for."""
    counts: dict[str, int] = {}
    updates: list[tuple[Any, ...]] = []
    for address, url, status, sha256 in rows:
        old = previous.kept(url) if previous else None
        had_page = old is not None and old.sha256 is not None
        outcome = _outcome(status, sha256, old)
        if outcome:
            counts[outcome] = counts.get(outcome, 0) + 1
        if status is None and old is not None:
            updates.append((old.gone, old.sha256, *old.validators, address))
        elif old is not None and old.gone and _is_gone(status):
            updates.append((old.gone + 1, None, "", "", "", address))
        elif status == 304 and not had_page:  # nobody asked for that: there is no original
            updates.append((0, None, "", "", "", address))
    db.executemany(_SETTLE, updates)
    return Changes(**counts)


def _outcome(status: int | None, sha256: bytes | None, old: _Kept | None) -> str | None:
    """Which of the counts of `Changes` it belongs to."""
    if old is None or old.sha256 is None:
        return "new" if status == 200 else None
    if status is None:
        return "not_taken"
    if status in (200, 304):
        return "unchanged" if status == 304 or sha256 == old.sha256 else "changed"
    return "gone" if _is_gone(status) else "lost"


def _is_gone(status: int | None) -> bool:
    return status in (404, 410)


def _hash(url: str) -> int:
    """64 bits, as SQLite's integers have them."""
    return xxhash.xxh3_64_intdigest(url.encode()) - (1 << 63)


class PreviousCrawl:
    """The URLs of a finished crawl, whatever its number of shards. A shard's file is read whole
    once, before it is used first: each method raises UserError if it is not what was written."""

    def __init__(self, manifest: Manifest) -> None:
        """Raises UserError if a shard's file is missing, cut short or of an earlier layout."""
        self._root = storage.local_path(manifest.url)
        self.num_shards = int(manifest.run["num_shards"])
        self._databases: list[sqlite3.Connection] = []
        self._unchecked: dict[int, str] = {}  # digests by shard
        self._territories: list[str] = []
        for shard in range(self.num_shards):
            self._open(shard, self._path(shard))

    def _path(self, shard: int) -> Path:
        return self._root / shard_name(shard) / PAGES

    def _open(self, shard: int, path: Path) -> None:
        try:
            database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            self._databases.append(database)
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if layout == _LAYOUT:
                (territory,) = database.execute("SELECT territory FROM shard").fetchone()
                self._territories.append(territory)
                said = json.loads(path.with_name(SUM).read_bytes())
                self._unchecked[shard] = str(said["xxh3_128"])
                if path.stat().st_size == said["bytes"]:
                    return
                problem = f"was cut short or grew: it had {said['bytes']} bytes"
            else:
                problem = "was written by another version of Flywheel"
        except (
            sqlite3.Error,
            OSError,
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
        ) as error:
            problem = f"cannot be read ({error})"
        self.close()
        raise _unusable(path, problem)

    @contextlib.contextmanager
    def _reading(self, shard: int) -> Generator[sqlite3.Connection]:
        """The digest says more than SQLite's own checks could: not one bit is another."""
        path = self._path(shard)
        try:
            wanted = self._unchecked.get(shard)
            if wanted is not None and wanted != _digest(path):
                raise _unusable(path, "is damaged")
            self._unchecked.pop(shard, None)
            yield self._databases[shard]
        except (sqlite3.DatabaseError, OSError) as error:  # it broke since
            raise _unusable(path, f"cannot be read ({error})") from None

    def find(self, url: str) -> Before | None:
        """The page, if it had status 200 (or a 304 that stood for one) when it was last asked."""
        kept = self.kept(url)
        if kept is None or kept.sha256 is None:
            return None
        return Before(url, kept.sha256.hex(), *kept.validators)

    def kept(self, url: str) -> _Kept | None:
        """What is known of a URL; None if the crawl did not know it."""
        with self._reading(shard_of(hostname_of(url), self.num_shards)) as database:
            row = database.execute(
                "SELECT gone, sha256, etag, modified, fetched FROM page"
                " WHERE url_hash = ? AND url = ?",
                (_hash(url), url),
            ).fetchone()
        return _Kept(row[0], row[1], row[2:]) if row else None

    def entries(self, territory: str) -> Iterator[Entry]:
        """What a shard has to ask for again, and with it what is other shards': first what the
        crawl took, in its order, then what it left. Of a shard that had just this territory, that
        shard's alone. URLs that were gone twice are left out."""
        shards = [shard for shard, has in enumerate(self._territories) if has == territory]
        shards = shards or list(range(self.num_shards))
        for order in ("AND taken IS NOT NULL ORDER BY taken", "AND taken IS NULL ORDER BY address"):
            for shard in shards:
                for url, depth, is_sitemap, priority in self._rows(shard, f"{_OFFERED} {order}"):
                    yield Entry(url, depth, 0, bool(is_sitemap), priority)
        for shard in shards:  # found by a shard when the one that owns them had ended
            mailbox = Mailbox(self._root, shard, self.num_shards, shard_of, 0)
            for _, lines in mailbox.letters():
                urls = (Entry.of(line) for line in lines if line.startswith("+"))
                yield from (dataclasses.replace(entry, hops=0) for entry in urls)

    def _rows(self, shard: int, query: str) -> Iterator[tuple[Any, ...]]:
        with self._reading(shard) as database:
            yield from database.execute(query, (MAX_GONE,))

    def close(self) -> None:
        for database in self._databases:
            database.close()


def _unusable(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path} {problem}: put it back, crawl that epoch again in another run.root, or set"
        " crawl.conditional = false to fetch everything anew"
    )


def territory_of(shard: int, num_shards: int) -> str:
    """What tells whose hosts a shard has: equal names, equal hosts."""
    return f"{shard}/{num_shards} {suffix_list_digest()}" if num_shards > 1 else "0/1"


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"

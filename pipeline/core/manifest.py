"""What a stage made, from what, and how many rows went where; written last, read first.

An output lives in {root}/{stage}/{key}/. Its manifest's `content` is hashed and passes on to the
next stage; its `run` (times, host) is not. No manifest means: resume from the finished shards.
"""

import contextlib
import contextvars
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import platform
import re
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.core import storage
from pipeline.core.commit import code_commit
from pipeline.core.errors import UserError, is_disk_full
from pipeline.core.identity import canonical_json, sha256_text, stage_key

log = logging.getLogger(__name__)

MANIFEST, LOCK = "manifest.json", ".lock"
_PLANNING: contextvars.ContextVar[bool] = contextvars.ContextVar("planning", default=False)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """One file of an output; `name` is relative to the output's folder."""

    name: str
    sha256: str
    num_bytes: int
    num_rows: int = 0


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows through a stage: `rows_in` = `rows_out` + all of `dropped` + all of `quarantined`."""

    rows_in: int
    rows_out: int
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        gone = sum(self.dropped.values()) + sum(self.quarantined.values())
        assert self.rows_in == self.rows_out + gone, self

    @staticmethod
    def total(parts: Sequence["Counts"]) -> "Counts":
        dropped: dict[str, int] = {}
        quarantined: dict[str, int] = {}
        for part in parts:
            for into, source in ((dropped, part.dropped), (quarantined, part.quarantined)):
                for reason, number in source.items():
                    into[reason] = into.get(reason, 0) + number
        return Counts(
            sum(part.rows_in for part in parts),
            sum(part.rows_out for part in parts),
            dict(sorted(dropped.items())),
            dict(sorted(quarantined.items())),
        )


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`facts` holds what else a stage found (figures, ids): part of the content, so keep it
    free of clocks and hosts."""

    stage: str
    version: int
    key: str
    config: dict[str, Any]
    parents: dict[str, str]
    files: tuple[FileEntry, ...]
    counts: Counts
    record: str | None
    facts: dict[str, Any]
    run: dict[str, Any]
    url: str

    @property
    def content(self) -> dict[str, Any]:
        left_out = {"run", "url"}
        whole = dataclasses.asdict(self)
        return {name: value for name, value in whole.items() if name not in left_out}

    @property
    def content_hash(self) -> str:
        return sha256_text(canonical_json(self.content))

    def check_files(self) -> None:
        """Raises DamagedOutput if a file of the output's folder is gone or cut short."""
        elsewhere = self.run.get("locations", {})
        ours = [entry for entry in self.files if entry.name not in elsewhere]
        found = storage.sizes(self.url, [entry.name for entry in ours]) if ours else {}
        for entry in ours:
            if found.get(entry.name) != entry.num_bytes:
                raise DamagedOutput(self.url, entry.name)

    def file_url(self, name: str) -> str:
        """Where a file lies: in the output's folder, or where `run.locations` says (ingest)."""
        return self.run.get("locations", {}).get(name) or storage.join(self.url, name)


def read_manifest(url: str) -> Manifest:
    """The manifest of the output folder `url`. Raises UserError if absent or not to be trusted."""
    path = storage.join(url, MANIFEST)
    try:
        data = json.loads(storage.read_bytes(path))
        content = data["content"]
        fields: dict[str, Any] = {
            **content,
            "files": tuple(FileEntry(**entry) for entry in content["files"]),
            "counts": Counts(**content["counts"]),
            "run": data["run"],
            "url": url,
        }
        manifest = Manifest(**fields)
    except FileNotFoundError:
        raise UserError(f"no manifest at {path}; run the stage that makes it first") from None
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"cannot read {path} ({error}); delete it and rerun its stage") from error
    if manifest.content_hash != data["content_hash"]:
        raise UserError(f"{path} was changed after it was written; delete it and rerun its stage")
    return manifest


class DamagedOutput(UserError):  # noqa: N818 - it says what is, and its answer may be to rebuild
    """A finished stage's file that is not, or no longer, what its manifest says. `is_own`: the
    stage itself has found it, about to run."""

    def __init__(self, folder: str, name: str, *, is_own: bool = False) -> None:
        super().__init__(folder, name)
        self.folder, self.name, self.is_own = folder, name, is_own

    @property
    def url(self) -> str:
        return storage.join(self.folder, self.name)

    @property
    def stage(self) -> str:
        return self.folder.rstrip("/").split("/")[-2]

    def __str__(self) -> str:
        return (
            f"{self.url} is missing or changed; delete {storage.join(self.folder, MANIFEST)}"
            " and what stands beside it, and rerun"
        )


@contextlib.contextmanager
def open_checked(url: str) -> Generator[IO[bytes]]:
    """A stage's file, after its digest has been compared with the manifest beside it; read whole
    for it, a local one once in a process. What no manifest names is opened as it is.

    Raises DamagedOutput, FileNotFoundError, UserError for a manifest that cannot be trusted."""
    folder, _, name = url.rpartition("/")
    manifest = storage.mark(storage.join(folder, MANIFEST))
    entry = _entries(folder, manifest).get(name) if manifest else None
    if entry and not storage.is_local(url):
        data = storage.read_bytes(url)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DamagedOutput(folder, name)
        yield io.BytesIO(data)
        return
    if entry and _digest_of(url, storage.mark(url)) != entry.sha256:
        raise DamagedOutput(folder, name)
    with storage.open_read(url, in_order=False) as file:
        yield file


@functools.lru_cache(maxsize=64)
def _entries(folder: str, mark: tuple[object, ...]) -> dict[str, FileEntry]:
    return {entry.name: entry for entry in read_manifest(folder).files}


@functools.lru_cache(maxsize=4096)
def _digest_of(url: str, mark: tuple[object, ...] | None) -> str:
    return describe_file(url, "").sha256


class WouldRun(Exception):  # noqa: N818 - it is no error: it answers "what is left to do?"
    """The first stage that is not finished, met while planning."""

    def __init__(self, stage: str, url: str) -> None:
        super().__init__(f"{stage} is not done yet")
        self.stage, self.url = stage, url


@contextlib.contextmanager
def planning() -> Generator[None]:
    """Inside, stages are looked up and never run: the first unfinished one raises WouldRun.

    A later key depends on an earlier result, so what comes after that one cannot be known.
    """
    token = _PLANNING.set(True)
    try:
        yield
    finally:
        _PLANNING.reset(token)


def is_planning() -> bool:
    """True under `planning()`: look, and write nothing."""
    return _PLANNING.get()


@dataclasses.dataclass(frozen=True)
class StageOutput:
    """The folder of one stage's output, finished or not."""

    root: str
    stage: str
    version: int
    config: dict[str, Any]
    parents: dict[str, str]
    spent: dict[str, "Spent"] = dataclasses.field(
        default_factory=dict[str, "Spent"], compare=False, repr=False
    )  # by phase, as map_shards adds it up

    @staticmethod
    def of(
        root: str,
        stage: str,
        version: int,
        config: dict[str, Any],
        parents: Mapping[str, Manifest | str],
    ) -> "StageOutput":
        """`config` without paths, workers and ports (`Section.identity()`); a parent is a manifest
        or, for what has none (a model, a label snapshot), its id."""
        hashes = {
            name: parent if isinstance(parent, str) else parent.content_hash
            for name, parent in sorted(parents.items())
        }
        return StageOutput(root, stage, version, config, hashes)

    @property
    def key(self) -> str:
        return stage_key(self.stage, self.version, self.config, self.parents)

    @property
    def url(self) -> str:
        return storage.join(self.root, self.stage, self.key)

    def path(self, name: str) -> str:
        return storage.join(self.url, name)

    def finished(self) -> Manifest | None:
        """The manifest, if this very output is already made: then there is nothing to do.

        Raises WouldRun instead of None under `planning()`.
        """
        if storage.exists(storage.join(self.url, MANIFEST)):
            manifest = read_manifest(self.url)
            try:
                manifest.check_files()
            except DamagedOutput as error:
                error.is_own = not _PLANNING.get()
                raise
            return manifest
        if _PLANNING.get():
            raise WouldRun(self.stage, self.url)
        return None

    def commit(
        self,
        files: Sequence[FileEntry],
        counts: Counts,
        *,
        started: float,
        record: str | None = None,
        facts: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest: from here on the output exists. `started` is time.time() before;
        `run` gets what the tasks of `map_shards` took."""
        manifest = Manifest(
            stage=self.stage,
            version=self.version,
            key=self.key,
            config=self.config,
            parents=self.parents,
            files=tuple(sorted(files, key=lambda entry: _natural(entry.name))),
            counts=counts,
            record=record,
            facts=dict(facts or {}),
            run={
                "started": started,
                "seconds": round(time.time() - started, 3),
                "host": platform.node(),
                "commit": code_commit(),
                **_spent_in_all(self.spent),
                **(run or {}),
            },
            url=self.url,
        )
        body = {
            "content": manifest.content,
            "content_hash": manifest.content_hash,
            "run": manifest.run,
        }
        text = json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False)
        storage.write_bytes(storage.join(self.url, MANIFEST), text.encode())
        return read_manifest(self.url)

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """One writer at a time in a local folder; the lock dies with its process."""
        if not storage.is_local(self.url):
            yield
            return
        with self._lock_file() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another run is writing {self.url}; wait for it, or end it, then rerun"
                ) from None
            yield

    def _lock_file(self) -> IO[str]:
        path = storage.local_path(self.url) / LOCK
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+")
        except OSError as error:
            if is_disk_full(error):
                raise
            raise self._bad_root(error, path.parent) from None

    def check_root(self) -> None:
        """Whether `lock` will find a folder that it can make and write; leaves nothing behind.
        Raises UserError."""
        if not storage.is_local(self.url):
            return
        folder = storage.local_path(self.url)
        try:
            while not os.path.lexists(folder):
                folder = folder.parent
            tempfile.TemporaryDirectory(dir=folder).cleanup()
        except OSError as error:
            if not is_disk_full(error):
                raise self._bad_root(error, folder) from None

    def _bad_root(self, error: OSError, place: Path) -> UserError:
        return UserError(
            f"run.root = {self.root!r} is no folder that results can be written to"
            f" ({place}: {error.strerror}); name another"
        )


def _natural(name: str) -> list[int | str]:
    """For sorting: docs-100000 behind docs-99999."""
    parts: list[int | str] = [*re.split(r"([0-9]+)", name)]
    parts[1::2] = map(int, parts[1::2])
    return parts


def describe_file(url: str, name: str, num_rows: int = 0) -> FileEntry:
    """Digest a finished file."""
    digest = hashlib.sha256()
    num_bytes = 0
    with storage.open_read(url) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            num_bytes += len(block)
    return FileEntry(name, digest.hexdigest(), num_bytes, num_rows)


@dataclasses.dataclass(frozen=True)
class Spent:
    """Processor seconds, children's included; `peak_mb`: the largest resident size of any one
    process, worker or child, up to the end of its task, which may be an earlier task's."""

    cpu_s: float
    peak_mb: float

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.cpu_s + other.cpu_s, max(self.peak_mb, other.peak_mb))


def _spent_in_all(spent: Mapping[str, Spent]) -> dict[str, Any]:
    if not spent:
        return {}
    return {
        "cpu_seconds": round(sum(one.cpu_s for one in spent.values()), 3),
        "peak_mb": round(max(one.peak_mb for one in spent.values()), 1),
        "phases": {phase: round(one.cpu_s, 3) for phase, one in spent.items()},
    }

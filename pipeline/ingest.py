"""Stage "ingest": WARC files that are there already take the place of a crawl.

The files stay where they are: the manifest names them by content, and `run.locations` says where
each lies, so that moving them changes nothing.
"""

import dataclasses
import glob
import posixpath
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.manifest import (
    Counts,
    FileEntry,
    Manifest,
    StageOutput,
    describe_file,
    is_planning,
)
from pipeline.core.progress import Progress

VERSION = 1


class IngestConfig(Section):
    """[ingest]. What the files are is told by their content, not by this list."""

    warcs: list[str] = operational([], description="paths, globs or fsspec URLs of WARC files")


def run_ingest(config: IngestConfig, run: RunConfig) -> Manifest:
    """A manifest over the files, one row each. Raises UserError for what is not there.

    A file's name is its base name, with eight digits of its digest before it where two files
    share one. A file given twice, under whatever names, counts once.
    """
    urls = find_files(config.warcs)
    started = time.time()
    by_digest = _digest(urls)
    if len(by_digest) < len(urls):
        doubles = len(urls) - len(by_digest)
        print(f"ingest: {doubles} of {len(urls)} files given twice, counted once", file=sys.stderr)
    identity = {**config.identity(), "files": sorted(by_digest)}
    output = StageOutput.of(run.root, "ingest", VERSION, identity, {})
    done = output.finished()
    files = done.files if done else _named([entry for _, entry in by_digest.values()])
    locations = {entry.name: by_digest[entry.sha256][0] for entry in files}
    if done and (is_planning() or done.run["locations"] == locations):
        return dataclasses.replace(done, run={**done.run, "locations": locations})
    with output.lock():  # if it is done, the files have moved: same content, new places
        counts = Counts(len(files), len(files))
        return output.commit(files, counts, started=started, run={"locations": locations})


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files that paths, globs and URLs mean, without doubles, in order."""
    if not patterns:
        raise UserError('ingest.warcs is empty; name files, as in warcs = ["crawls/*.warc.gz"]')
    urls: dict[str, None] = {}
    for pattern in patterns:
        found = _local(pattern) if storage.is_local(pattern) else _remote(pattern)
        if not found:
            raise UserError(f"ingest.warcs: {pattern!r} matches no file; check the path")
        urls.update(dict.fromkeys(found))
    return list(urls)


def _local(pattern: str) -> list[str]:
    path = storage.local_path(pattern).expanduser()
    if path.is_dir():
        raise UserError(f"ingest.warcs: {pattern!r} is a folder; name its files: {path}/*.warc.gz")
    if path.is_file():
        return [str(path.resolve())]
    found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
    return [str(Path(name).resolve()) for name in found if Path(name).is_file()]


def _remote(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return [pattern] if storage.exists(pattern) else []
    return sorted(file.full_name for file in fsspec.open_files(pattern, mode="rb"))


def _digest(urls: Sequence[str]) -> dict[str, tuple[str, FileEntry]]:
    """{sha256: (where it lies, its description)}."""
    by_digest: dict[str, tuple[str, FileEntry]] = {}
    with Progress("ingest", total=len(urls), unit="files") as progress:
        for url in urls:
            entry = describe_file(url, posixpath.basename(url))
            by_digest.setdefault(entry.sha256, (url, entry))
            progress.advance(1)
    return by_digest


def _named(files: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
    """The files under names of their own, whatever order they came in."""
    count = Counter(entry.name for entry in files)
    return tuple(
        dataclasses.replace(entry, name=f"{entry.sha256[:8]}-{entry.name}")
        if count[entry.name] > 1
        else entry
        for entry in files
    )

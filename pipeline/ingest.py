"""Stage "ingest": archives that are there already take the place of a crawl.

WARC, WET and ARC files stay where they are: the manifest names them by content, and
`run.locations` says where each lies, so that moving them changes nothing. Records that an index
names (Common Crawl's, say) are fetched into WARC files of the output's own.
"""

import dataclasses
import glob
import hashlib
import ipaddress
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import ada_url
import fsspec
from pydantic import Field

from pipeline.common_crawl import (
    Fetched,
    RangeFetcher,
    Row,
    base_name,
    plan_files,
    query_index,
    read_export,
    read_paths,
    split_by_size,
)
from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text
from pipeline.core.manifest import (
    Counts,
    FileEntry,
    Manifest,
    StageOutput,
    describe_file,
    is_planning,
)
from pipeline.core.progress import Progress
from pipeline.ranges import USER_AGENT, RangeClient, RangeError, is_http, open_archive

VERSION = 2
COMMON_CRAWL = "https://data.commoncrawl.org/"
_BLOCK = 1 << 20


class IngestConfig(Section):
    """[ingest]. What given files are is told by their content, not by these lists."""

    warcs: list[str] = operational(
        [], description="paths, globs or URLs of WARC, WET or ARC files (https://, s3:// …)"
    )
    paths: list[str] = operational(
        [], description="lists of keys, one a line: Common Crawl's warc.paths.gz or wet.paths.gz"
    )
    prefix: str = operational(
        COMMON_CRAWL, description="what stands before each key; s3://commoncrawl/ inside AWS"
    )
    max_files: int = operational(0, ge=0, description="so many of each list of paths; 0 = all")
    digest: Literal["content", "etag"] = operational(
        "content",
        description="how a remote file is told from another: by reading it once, or, without"
        " reading, by its name, size and ETag",
    )
    index: str = Field(
        "", description="a CDX server's address, or the path or glob of CDXJ or Parquet exports"
    )
    urls: list[str] = Field(
        default_factory=list, description="what to ask the CDX server for, as *.example.org"
    )
    filters: list[str] = Field(
        default_factory=lambda: ["=status:200"], description="the CDX server's own filters"
    )
    max_records: int = Field(0, ge=0, description="so many rows of the index; 0 = all")
    warc_max_bytes: int = Field(
        1_000_000_000, ge=1, description="of fetched records; then the next WARC file begins"
    )
    parallel: int = operational(8, ge=1, le=256, description="requests at once")
    merge_gap: int = operational(
        4096, ge=0, description="bytes between two records that one request may fetch in vain"
    )
    max_attempts: int = operational(
        8, ge=1, description="for one range, when the server is busy, slow or cuts it off"
    )
    backoff_s: float = operational(1.0, ge=0, description="before the second; then it doubles")
    timeout_s: float = operational(60.0, gt=0, description="for connecting, and for each read")
    user_agent: str = operational(USER_AGENT, pattern=r"^[!-~]+", description="for HTTP servers")
    contact: str = operational("", description="URL or e-mail that a server's owner can turn to")

    @property
    def is_given(self) -> bool:
        """Whether there is anything to ingest."""
        return bool(self.warcs or self.paths or self.index)

    @property
    def agent(self) -> str:
        """The User-Agent header."""
        return f"{self.user_agent} (+{self.contact})" if self.contact else self.user_agent


def run_ingest(
    config: IngestConfig, run: RunConfig, *, client: RangeClient | None = None
) -> Manifest:
    """A manifest over the archives. Raises UserError for what is not there.

    Of given files one row each; a file's name is its base name, with eight digits of its digest
    before it where two files share one, and a file given twice, under whatever names, counts
    once. Of an index one row for each line: fetched, or quarantined with the reason.
    """
    _check(config)
    client = client or RangeClient(
        user_agent=config.agent,
        connections=config.parallel,
        timeout_s=config.timeout_s,
        max_attempts=config.max_attempts,
        backoff_s=config.backoff_s,
    )
    return _by_index(config, run, client) if config.index else _by_files(config, run, client)


def _check(config: IngestConfig) -> None:
    if config.index and (config.warcs or config.paths):
        raise UserError("give ingest.index or files (ingest.warcs, ingest.paths), not both")
    if not config.is_given:
        raise UserError(
            'ingest.warcs is empty; name files, as in warcs = ["crawls/*.warc.gz"], or give'
            " ingest.paths or ingest.index"
        )
    if is_http(config.index) != bool(config.urls):
        raise UserError(
            f"ingest.urls = {config.urls!r} with ingest.index = {config.index!r}: a CDX server"
            " needs URL patterns, and an exported index takes none"
        )
    places = [*config.warcs, *config.paths, config.index]
    if config.paths or config.index:
        places.append(config.prefix)
    outside = next((url for url in places if is_http(url) and not _is_loopback(url)), None)
    if outside and not ("@" in config.contact or is_http(config.contact)):
        raise UserError(
            f"reading {outside} needs ingest.contact: a URL or e-mail address in the user agent,"
            " for the server's owner to turn to"
        )


def _is_loopback(url: str) -> bool:
    if not ada_url.check_url(url):
        raise UserError(f"ingest: {url!r} is no URL; check it")
    name = str(ada_url.URL(url).hostname).strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


# ------------------------------------------------------------------------------------ by files


def _by_files(config: IngestConfig, run: RunConfig, client: RangeClient) -> Manifest:
    urls = find_files(config.warcs) if config.warcs else []
    for paths in config.paths:
        urls += read_paths(client, paths, config.prefix, config.max_files)
    started = time.time()
    by_digest = _digest(list(dict.fromkeys(urls)), config, run, client)
    if len(by_digest) < len(urls):
        doubles = len(urls) - len(by_digest)
        print(f"ingest: {doubles} of {len(urls)} files given twice, counted once", file=sys.stderr)
    output = StageOutput.of(run.root, "ingest", VERSION, {"files": sorted(by_digest)}, {})
    done = output.finished()
    files = done.files if done else _named([entry for _, entry in by_digest.values()])
    places = {
        "locations": {entry.name: by_digest[entry.sha256][0] for entry in files},
        "user_agent": config.agent,
    }
    if done and (is_planning() or all(done.run.get(name) == places[name] for name in places)):
        return dataclasses.replace(done, run={**done.run, **places})
    with output.lock():  # if it is done, the files have moved: same content, new places
        return output.commit(files, Counts(len(files), len(files)), started=started, run=places)


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files that paths, globs and URLs mean, without doubles, in order."""
    urls: dict[str, None] = {}
    for pattern in patterns:
        if is_http(pattern):  # it has no listing, and `?` is no wildcard there
            found = [pattern]
        else:
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
    try:
        if not glob.has_magic(pattern):
            return [pattern] if storage.exists(pattern) else []
        return sorted(file.full_name for file in fsspec.open_files(pattern, mode="rb"))
    except ImportError as error:
        raise UserError(f"ingest.warcs: {pattern!r} needs another package: {error}") from None


def _digest(
    urls: Sequence[str], config: IngestConfig, run: RunConfig, client: RangeClient
) -> dict[str, tuple[str, FileEntry]]:
    """{sha256: (where it lies, its description)}. Remote files are read side by side, and what
    was found is kept: a rerun reads only those that are new or changed."""
    by_digest: dict[str, tuple[str, FileEntry]] = {}

    def describe(url: str) -> FileEntry:
        if storage.is_local(url):
            return describe_file(url, base_name(url))
        try:
            return _describe_remote(url, config, run, client)
        except RangeError as error:
            raise UserError(f"ingest: {url!r} cannot be read ({error.reason}); check it") from error

    with (
        Progress("ingest", total=len(urls), unit="files") as progress,
        ThreadPoolExecutor(1 if all(map(storage.is_local, urls)) else config.parallel) as threads,
    ):
        try:
            for url, entry in zip(urls, threads.map(describe, urls), strict=True):
                by_digest.setdefault(entry.sha256, (url, entry))
                progress.advance(1)
        finally:
            threads.shutdown(cancel_futures=True)
    return by_digest


def _describe_remote(
    url: str, config: IngestConfig, run: RunConfig, client: RangeClient
) -> FileEntry:
    remote = client.describe(url)
    mark = [base_name(url), remote.size, remote.etag]
    if config.digest == "etag" and remote.etag and remote.size is not None:
        return FileEntry(base_name(url), sha256_text(canonical_json(mark)), remote.size)
    kept = storage.join(run.root, "ingest", "digests", f"{sha256_text(canonical_json(mark))}.json")
    if remote.etag and storage.exists(kept):
        return FileEntry(**json.loads(storage.read_bytes(kept)))
    digest, num_bytes = hashlib.sha256(), 0
    with open_archive(url, client) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            num_bytes += len(block)
    entry = FileEntry(base_name(url), digest.hexdigest(), num_bytes)
    if remote.etag and not is_planning():
        storage.write_bytes(kept, json.dumps(dataclasses.asdict(entry)).encode())
    return entry


def _named(files: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
    """The files under names of their own, whatever order they came in."""
    count = Counter(entry.name for entry in files)
    return tuple(
        dataclasses.replace(entry, name=f"{entry.sha256[:8]}-{entry.name}")
        if count[entry.name] > 1
        else entry
        for entry in files
    )


# ------------------------------------------------------------------------------------ by index


def _by_index(config: IngestConfig, run: RunConfig, client: RangeClient) -> Manifest:
    identity = config.identity()
    exports: list[str] = []
    if not is_http(config.index):
        exports = find_files([config.index])
        identity["index"] = [describe_file(url, base_name(url)).sha256 for url in exports]
    output = StageOutput.of(run.root, "ingest", VERSION, identity, {})
    if done := output.finished():
        return done
    if not storage.is_local(output.url):
        raise UserError(
            f"run.root = {run.root!r}: fetched records are put together in a local folder; give"
            " one, and copy the WARC files to where ingest.warcs finds them"
        )
    started = time.time()
    folder = storage.local_path(output.url)
    with output.lock():
        rows, rejected = plan_files(_rows(config, client, exports, folder), config.max_records)
        if not rows:
            raise UserError(
                f"ingest.index: {config.index} has no captures of {config.urls or 'anything'};"
                f" lines left out: {dict(rejected)}; check ingest.urls and ingest.filters"
            )
        _write_rows(rows, folder / "rows.jsonl")
        fetcher = RangeFetcher(client, config.prefix, folder, config.parallel, config.merge_gap)
        files = split_by_size(rows, config.warc_max_bytes)
        with Progress("ingest", total=len(rows), unit="records") as progress:
            fetched = [
                fetcher.fetch(f"fetched-{number:05d}.warc.gz", part, progress)
                for number, part in enumerate(files)
            ]
        return _commit(output, fetched, rejected, started)


def _rows(
    config: IngestConfig, client: RangeClient, exports: Sequence[str], folder: Path
) -> Iterator[Row | str]:
    for export in exports:
        yield from read_export(export)
    for pattern in config.urls:
        yield from query_index(client, config.index, pattern, config.filters, folder)


def _write_rows(rows: Sequence[Row], path: Path) -> None:
    """Where each record came from, in the order of the WARC files made of them."""
    with storage.atomic_file(str(path)) as temporary, temporary.open("w") as file:
        file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)


def _commit(
    output: StageOutput, fetched: Sequence[Fetched], rejected: Counter[str], started: float
) -> Manifest:
    for part in fetched:
        rejected.update(part.rejected)
    num_rows = sum(part.num_rows for part in fetched)
    if not num_rows:
        for part in fetched:  # a rerun, with another prefix say, is to ask again
            storage.remove(output.path(f"{part.name}.done.json"))
        raise UserError(f"ingest.prefix: not one record could be had: {dict(rejected)}; check it")
    return output.commit(
        [
            describe_file(output.path(part.name), part.name, part.num_rows)
            for part in fetched
            if part.num_rows
        ],
        Counts(num_rows + rejected.total(), num_rows, {}, dict(sorted(rejected.items()))),
        started=started,
    )

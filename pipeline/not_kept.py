"""The list of what a crawl asked for, or would have, and did not get: URL, why, status.

Made from a shard's log, one line at a time, once the crawl is over; for people and their scripts.
"""

import bisect
import contextlib
import gzip
import io
import json
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.frontier_log import lines_of
from pipeline.frontier_state import Entry

NOT_KEPT = "not-kept.tsv.gz"
HEADS = ("url", "why", "status")
_BATCH = 10_000
_LINE_BYTES = 8 << 10  # more than a line has: a canonical URL has at most 4,096 characters


def write_not_kept(
    path: Path, folder: Path, each_batch: Callable[[], object] = lambda: None
) -> None:
    """For each URL that was dropped, its reason; for each that the server had no page for (status
    400 and above: its answer is in the WARC file all the same), its status. `folder` is the
    shard's, and its log is whole. Same log, same bytes. A URL that was fetched again, because a
    power cut took its WARC record, may stand there twice. `each_batch` is called now and then, so
    that a lease can be renewed. Raises UserError for a damaged log.
    """
    with (
        storage.atomic_file(str(path)) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
    ):
        file.write("\t".join(HEADS) + "\n")
        for number, (url, why, status) in enumerate(_rows(folder)):
            if number % _BATCH == 0:
                each_batch()
            file.write(f"{url}\t{why}\t{status}\n")


def read_not_kept(path: Path) -> Iterator[tuple[str, str, str]]:
    """(url, why, status), the last empty for what was dropped. Raises UserError for damage."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            next(file)
            for line in file:
                url, why, status = line.rstrip("\n").split("\t")
                yield url, why, status
    except (OSError, EOFError, ValueError, StopIteration) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its crawl's folder") from None


def _rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    with _known_urls(folder) as urls:
        for _, line in lines_of(folder):
            if line.startswith("-"):
                _, address, reason = line.split("\t", 2)
                yield urls.at(int(address)), reason.replace("\t", " "), ""
            elif line.startswith("="):
                _, address, status, _ = line.split("\t", 3)
                if int(status) >= 400:
                    yield urls.at(int(address)), f"status {status}", status


class _KnownUrls:
    """The URL at an address of a log that lies there."""

    def __init__(self, segments: list[tuple[int, int]]) -> None:
        self._starts = [start for start, _ in segments]
        self._handles = [handle for _, handle in segments]

    def at(self, address: int) -> str:
        number = bisect.bisect_right(self._starts, address) - 1
        data = os.pread(self._handles[number], _LINE_BYTES, address - self._starts[number])
        return Entry.of(data.partition(b"\n")[0].decode()).url


@contextlib.contextmanager
def _known_urls(folder: Path) -> Generator[_KnownUrls]:
    with contextlib.ExitStack() as stack:
        segments: list[tuple[int, int]] = []
        for path in sorted(folder.glob("log-*.log")):
            file = stack.enter_context(path.open("rb"))
            head = file.readline()
            if head.endswith(b"\n"):  # or its owner was killed before it wrote
                segments.append((int(json.loads(head)["start"]), file.fileno()))
        yield _KnownUrls(segments)

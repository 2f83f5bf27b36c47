"""WET files of generated documents for benchmarks/soak.py: real sentences, put together anew.

Sentences of the public-domain books in random order read like prose to every rule; known shares
are copies, near-copies, too short, or carry a host's footer. WARC files of the WCXB pages, too.
"""

import csv
import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal import igzip_lib

DATA = Path(__file__).resolve().parents[1] / os.environ.get("FLYWHEEL_DATA", "../shared/data")
HOSTS = 5_000
COPIES, NEAR, SHORT, FOOTER = 0.05, 0.10, 0.03, 0.5  # shares of the documents
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORDS = (6, 40)  # of a sentence that is used
_DATE = "2026-01-01T00:00:00Z"
_TEXTS = (".md", ".rst", ".txt")


@dataclasses.dataclass(frozen=True)
class SoakTask:
    """File `index` of `num_bytes` of text, its documents numbered from `index` << 32."""

    folder: str
    index: int
    num_bytes: int
    seed: int


def sentences(path: Path) -> Path:
    """All sentences of the books, one a line, as a file."""
    with path.open("w") as file:
        for text in texts_of("text/books"):
            for paragraph in text.split("\n\n"):
                for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                    if _WORDS[0] <= sentence.count(" ") + 1 <= _WORDS[1]:
                        file.write(sentence + "\n")
    return path


def texts_of(archive: str) -> Iterator[str]:
    with tarfile.open(DATA / f"{archive}.tar.xz") as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(_TEXTS):
                file = tar.extractfile(member)
                assert file
                yield file.read().decode("utf-8", "replace")


def write_real(folder: str) -> tuple[str, int, int]:
    """Books, PEPs and the Rust book as they are: (path, documents, bytes of text)."""
    archives = ("text/books", "text/peps", "text/rust-book")
    texts = (text for archive in archives for text in texts_of(archive))
    named = ((f"http://books.test/{number}", text) for number, text in enumerate(texts))
    return _write_wet(f"{folder}/real.warc.wet.gz", named)


def write_generated(task: SoakTask) -> tuple[str, int, int]:
    """(path, documents, bytes of text); the same task gives the same bytes."""
    lines = (Path(task.folder) / "sentences.txt").read_text().splitlines()
    path = f"{task.folder}/generated-{task.index:05d}.warc.wet.gz"
    return _write_wet(path, _documents(task, lines))


def _documents(task: SoakTask, lines: list[str]) -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng((task.seed, task.index))
    made, number = 0, task.index << 32
    last = [""] * 100
    while made < task.num_bytes:
        kind = rng.random()
        text = last[int(rng.integers(len(last)))]
        if not text or kind >= COPIES + NEAR:
            text = _new(rng, lines) if kind < 1 - SHORT else "Page not found."
        elif kind >= COPIES:
            text = _changed(text, rng, lines)
        last[int(rng.integers(len(last)))] = text
        host = int(rng.integers(HOSTS))
        if rng.random() < FOOTER:
            text += f"\nHost {host} of the soak: imprint, terms, contact and opening hours"
        yield f"http://host{host}.test/{number:x}", text
        made += len(text.encode())
        number += 1


def _new(rng: np.random.Generator, lines: list[str]) -> str:
    """Paragraphs of four sentences; some 300 words in the median."""
    number = max(3, int(rng.lognormal(np.log(16), 0.6)))
    chosen = [lines[place] for place in rng.integers(0, len(lines), number).tolist()]
    return "\n".join(" ".join(chosen[at : at + 4]) for at in range(0, number, 4))


def _changed(text: str, rng: np.random.Generator, lines: list[str]) -> str:
    """With one more sentence at the end."""
    return f"{text} {lines[int(rng.integers(len(lines)))]}"


def _write_wet(path: str, documents: Iterator[tuple[str, str]]) -> tuple[str, int, int]:
    count = size = 0
    with Path(path).open("wb") as file:
        for url, text in documents:
            file.write(_record("conversion", url, "text/plain", text.encode()))
            count, size = count + 1, size + len(text.encode())
    return path, count, size


def write_pages(folder: str, pages: list[bytes], name: str) -> str:
    """A WARC file of HTML pages."""
    path = f"{folder}/{name}.warc.gz"
    with Path(path).open("wb") as file:
        for number, page in enumerate(pages):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}"
            body = head.encode() + b"\r\n\r\n" + page
            url = f"http://pages.test/{name}/{number}"
            file.write(_record("response", url, "application/http; msgtype=response", body))
    return path


def _record(kind: str, url: str, content_type: str, block: bytes) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: {_DATE}\r\n"
        f"WARC-Record-ID: <urn:x:{url}>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return igzip_lib.compress(head.encode() + block + b"\r\n\r\n", 1, igzip_lib.COMP_GZIP)


def write_evaluation_set(path: str) -> str:
    """MMLU's validation questions as Parquet."""
    questions: list[str] = []
    with tarfile.open(DATA / "evals/mmlu.tar.xz") as tar:
        for member in tar:
            if member.name.endswith("_val.csv"):
                file = tar.extractfile(member)
                assert file
                rows = csv.reader(io.StringIO(file.read().decode()))
                questions += [row[0] for row in rows if row]
    pq.write_table(pa.table({"question": questions}), path)
    return path

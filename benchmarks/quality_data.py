"""The shared data that benchmarks/quality.py measures on, and small tables."""

import dataclasses
import functools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / os.environ.get("FLYWHEEL_DATA", "../shared/data")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclasses.dataclass(frozen=True)
class Page:
    name: str
    url: str
    payload: bytes


def files_of(archive: str, ending: str = "") -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of an archive, by name."""
    with tarfile.open(DATA / f"{archive}.tar.xz") as tar:
        members = sorted(tar.getmembers(), key=lambda member: member.name)
        for member in members:
            if member.isfile() and member.name.endswith(ending):
                yield member.name, tar.extractfile(member).read()


def texts_of(archive: str, ending: str = "") -> list[str]:
    return [data.decode("utf-8", "replace") for _, data in files_of(archive, ending)]


def sentences_of(texts: Sequence[str], least: int, most: int) -> list[str]:
    """Of so many words; in their order."""
    whole = (" ".join(part.split()) for text in texts for part in text.split("\n\n"))
    parts = (sentence for part in whole for sentence in _SENTENCE.split(part))
    return [sentence for sentence in parts if least <= sentence.count(" ") + 1 <= most]


@functools.cache
def pages() -> list[Page]:
    """WCXB's development pages."""
    urls: dict[str, str] = {}
    payloads: dict[str, bytes] = {}
    with tarfile.open(DATA / "html/wcxb.tar.xz") as tar:
        for member in tar:
            stem = Path(member.name).stem
            if not member.isfile() or "dev/" not in member.name:
                continue
            if member.name.endswith(".html"):
                payloads[stem] = tar.extractfile(member).read()
            elif "/ground-truth/" in member.name:
                urls[stem] = json.loads(tar.extractfile(member).read()).get("url", "")
    return [Page(stem, urls.get(stem, ""), payloads[stem]) for stem in sorted(payloads)]


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def share(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "–"

"""The pages that extraction is measured and trained on, with their gold texts.

WCXB's development pages (CC-BY-4.0 annotations) and the article extraction benchmark (MIT), where
`../shared/data` or FLYWHEEL_DATA has them.
"""

import gzip
import json
import os
import re
import tarfile
import tempfile
import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / os.environ.get("FLYWHEEL_DATA", "../shared/data")
FOLDS = 4
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class GoldPage:
    """`kind` is a page type of WCXB's; `gold` the main text."""

    name: str
    host: str
    kind: str
    gold: str
    payload: bytes


def wcxb() -> Iterator[GoldPage]:
    """The pages that have a gold text, by name."""
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(_unpacked("html/wcxb", folder).glob("**/ground-truth/*.json")):
            truth = json.loads(path.read_text("utf-8"))
            gold = truth["ground_truth"].get("main_content")
            if gold is not None:
                payload = (path.parents[1] / "html" / f"{path.stem}.html").read_bytes()
                host = urllib.parse.urlsplit(truth.get("url", "")).hostname or path.stem
                kind = truth["_internal"]["page_type"]["primary"]
                yield GoldPage(path.stem, host, kind, gold, payload)


def articles() -> Iterator[GoldPage]:
    """The pages of the article extraction benchmark, by name."""
    with tempfile.TemporaryDirectory() as folder:
        root = next(
            _unpacked("html/article-extraction-benchmark", folder).rglob("ground-truth.json")
        )
        truth = json.loads(root.read_text("utf-8"))
        for path in sorted((root.parent / "html").iterdir()):
            payload = path.read_bytes()
            name = path.name.split(".")[0]
            host = urllib.parse.urlsplit(truth[name].get("url", "")).hostname or name
            payload = gzip.decompress(payload) if path.suffix == ".gz" else payload
            yield GoldPage(name, host, "article", truth[name].get("articleBody", ""), payload)


def in_other_languages() -> Iterator[bytes]:
    """Real pages of some twenty languages and charsets: chardet's own test pages."""
    with tempfile.TemporaryDirectory() as folder:
        found = _unpacked("crawl/chardet-encodings", folder).glob("**/tests/*/*.xml")
        yield from (path.read_bytes() for path in sorted(found))


def _unpacked(archive: str, folder: str) -> Path:
    with tarfile.open(DATA / f"{archive}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return Path(folder)


def fold_of(host: str, folds: int = FOLDS) -> int:
    """The part of the cross-validation that a host's pages are judged in."""
    return zlib.crc32(host.encode()) % max(1, folds)


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())

"""Reading WARC files: pipeline.warc.iter_responses against a bare fastwarc loop.

    .venv/bin/python benchmarks/warc_ingest.py [--records 20000] [--rounds 5]

The bare loop parses the HTTP headers, reads the body as it lies there and hashes it (SHA-256, as
ours does); ours also undoes chunking and content coding, checks URL and date, and finds damage.
The file: the real records under ../shared/data/crawl, over and over, gzip. Processor time.
"""

import argparse
import hashlib
import importlib.metadata
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastwarc.warc import ArchiveIterator, WarcRecordType
from rows import Row, record, row

from pipeline.warc import WarcResponse, iter_responses

SCRIPT = "warc_ingest.py"
DATA = Path(__file__).resolve().parents[1] / os.environ.get("FLYWHEEL_DATA", "../shared/data")
SOURCES = {
    "crawl/dolma-warc.tar.xz": ("sample-0000.warc.gz", "sample-0001.warc.gz"),
    "crawl/resiliparse-warc.tar.xz": ("clueweb-quirk.warc.gz", "warcfile.warc.gz"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000, help="responses in the file")
    parser.add_argument("--rounds", type=int, default=5, help="of both sides, in turn")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "real.warc.gz"
        write_archive(path, arguments.records)
        rows = measure(str(path), arguments.rounds)
    record(rows)
    for r in rows:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    return 0


def write_archive(path: Path, num_responses: int) -> None:
    """Members of the real files, repeated until there are so many responses."""
    parts: list[bytes] = []
    for archive, names in SOURCES.items():
        with tarfile.open(DATA / archive) as tar:
            found = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
            parts += [tar.extractfile(found[name]).read() for name in names]
    once = b"".join(parts)
    with path.open("wb") as file:
        file.write(once)
    per_round = bare(str(path))
    with path.open("ab") as file:
        for _ in range(max(0, -(-num_responses // per_round) - 1)):
            file.write(once)


def bare(path: str) -> int:
    """The peer: responses read."""
    number = 0
    for found in ArchiveIterator(path, parse_http=True, record_types=WarcRecordType.response):
        hashlib.sha256(found.reader.read()).hexdigest()
        number += 1
    return number


def ours(path: str) -> int:
    number = 0
    for item in iter_responses(path):
        assert isinstance(item, WarcResponse), item
        number += 1
    return number


def measure(path: str, rounds: int) -> list[Row]:
    assert bare(path) == ours(path), "the two sides read different records"
    speeds: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        speeds["bare"].append(records_a_second(bare, path))
        speeds["ours"].append(records_a_second(ours, path))
    peer = ("fastwarc, bare loop with SHA-256", importlib.metadata.version("fastwarc"))
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["bare"], strict=True)]
    print(f"ratio by round: {spread(ratios)}")
    unit = "responses per processor second"
    return [row("warc-ingest", SCRIPT, peer, middle["ours"], middle["bare"], unit)]


def records_a_second(read: Callable[[str], int], path: str) -> float:
    started = time.process_time()
    return read(path) / (time.process_time() - started)


def spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.3f} to {ordered[-1]:.3f}, median {statistics.median(ordered):.3f}"


if __name__ == "__main__":
    sys.exit(main())

"""Documents signed a second on one core: Signer.sign against datatrove, datasketch and rensa.

    .venv/bin/python benchmarks/signatures.py [--docs 5000] [--rounds 5] [--seconds 5] [--no-row]

Documents of 1,000 words of real text; tokenise, 5-grams, 112 hashes. First the lanes are held
against datasketch's. Then the loops alone, and what the machine could do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import numba
import numpy as np
import pyarrow as pa
from datasketch import MinHash
from peers import DATASKETCH, DATATROVE, RENSA, signatures_python
from rows import Row, record, record_table, row

from pipeline.normal_forms import text_buffers
from pipeline.text import shingle_kernel, signatures
from pipeline.text.signatures import Signer

SCRIPT = "signatures.py"
HERE = Path(__file__).resolve().parent
DATA = HERE.parent / os.environ.get("FLYWHEEL_DATA", "../shared/data")
WORDS = 1000
PEERS = {
    "datatrove": ("datatrove MinhashDedupSignature", DATATROVE),
    "datasketch": ("datasketch affine32 with Python shingling", DATASKETCH),
    "rensa": ("rensa RMinHash with Python shingling", RENSA),
    "rensa-ready": ("rensa RMinHash alone, its shingles made before", RENSA),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5, help="of each side, in turn")
    parser.add_argument("--seconds", type=float, default=5, help="of a peer's processor time")
    parser.add_argument("--no-row", action="store_true", help="leave docs/benchmarks.json alone")
    options = parser.parse_args(argv)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = documents(options.docs)
    array = pa.array(texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    print(f"{len(texts):,} documents of {WORDS} words, {num_bytes / len(texts):,.0f} bytes each")
    check_lanes(texts[:200])
    rows = compare(texts, array, num_bytes, options)
    limit = limit_of(array, num_bytes, options.rounds)
    print(limit)
    if not options.no_row:
        record(rows)
        record_table("signatures", "Signatures: what the machine allows", limit)
    return 0


def documents(number: int) -> list[str]:
    """Runs of 1,000 words of the shared books and PEPs, from everywhere."""
    words: list[str] = []
    for name in ("books", "peps"):
        with tarfile.open(DATA / f"text/{name}.tar.xz") as tar:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                if member.isfile():
                    words += tar.extractfile(member).read().decode("utf-8", "replace").split(" ")
    rng = np.random.default_rng(1)
    starts = rng.integers(0, len(words) - WORDS, number).tolist()
    return [" ".join(words[start : start + WORDS]) for start in starts]


def check_lanes(texts: Sequence[str]) -> None:
    """Raises AssertionError unless all lanes are datasketch's for the same shingles."""
    signer = Signer()
    signed, sets = signer.sign(texts), signer.shingle_sets(texts)
    for index in range(len(texts)):
        theirs = MinHash(
            num_perm=112,
            seed=1,
            scheme="affine32",
            hashfunc=lambda data: int.from_bytes(data, "little"),
        )
        halves = (int(value) >> 32 for value in sets.of(index).tolist())
        theirs.update_batch([half.to_bytes(4, "little") for half in halves])
        assert (signed.lanes[index] == theirs.hashvalues).all(), index
    print(f"all 112 lanes of {len(texts)} documents are datasketch's")


def compare(
    texts: list[str], array: pa.Array, num_bytes: int, options: argparse.Namespace
) -> list[Row]:
    python = signatures_python()
    signer = Signer()
    speeds: dict[str, list[float]] = {name: [] for name in ("ours", *PEERS)}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.json"
        source.write_text(json.dumps(texts[:2000]))
        for turn in range(options.rounds):
            speeds["ours"].append(len(texts) / seconds(lambda: signer.sign(array)))
            for name in PEERS:
                command = [python, str(HERE / "signature_peers.py"), name, str(source)]
                done = subprocess.run(
                    [*command, str(options.seconds)], stdout=subprocess.PIPE, check=True, text=True
                )
                told = json.loads(done.stdout.splitlines()[-1])
                speeds[name].append(told["docs"] / told["seconds"])
            now = ", ".join(f"{name} {found[-1]:,.0f}" for name, found in speeds.items())
            print(
                f"round {turn + 1}: {now} documents/s (load {os.getloadavg()[0]:.1f})", flush=True
            )
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    mb_s = middle["ours"] * num_bytes / len(texts) / 1e6
    print(f"ours: {middle['ours']:,.0f} documents/s, {mb_s:.0f} MB of text a second")
    unit = f"documents of {WORDS} words a processor second, one core"
    rows = [
        row("signatures", SCRIPT, peer, middle["ours"], middle[name], unit)
        for name, peer in PEERS.items()
    ]
    for r in rows:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    mark = ("the mark of 200 MB/s", "")
    return [*rows, row("signatures", SCRIPT, mark, mb_s, 200, "MB of text a second, one core")]


def seconds(work: Callable[[], object]) -> float:
    """Processor time; the work is done as often as makes half a second."""
    work()
    number, started, spent = 0, time.process_time(), 0.0
    while spent < 0.5:
        work()
        number += 1
        spent = time.process_time() - started
    return spent / number


# ---------------------------------------------------------------------------------- limit


@numba.njit
def tokenise(text, offsets, tables, words):
    total = 0
    for index in range(len(offsets) - 1):
        total += shingle_kernel.word_hashes(
            text, offsets[index], offsets[index + 1], tables, False, words
        )
    return total


@numba.njit
def shingle(words, number, found, times):
    total = np.uint64(0)
    for turn in range(times):
        shingle_kernel.shingle_hashes(words, number, 5, found)
        total += found[turn % (number - 4)]
    return total


@numba.njit
def digest(words, number, times):
    total = np.uint64(0)
    for _ in range(times):
        words[0] = total
        total += shingle_kernel._digest(words, number, shingle_kernel.DIGEST_STEPS[0])
        total += shingle_kernel._digest(words, number, shingle_kernel.DIGEST_STEPS[1])
    return total


@numba.njit
def lanes_alone(spread, number, permutations, lanes, times):
    for index in range(times):
        spread[0] = index
        shingle_kernel.lanes_of(spread, number, permutations, lanes)
    return lanes


@numba.njit
def xorshifts(times):
    """Each waits for the one before: six operations of one cycle each."""
    value = np.uint64(88172645463325252)
    for _ in range(times):
        value ^= value << np.uint64(13)
        value ^= value >> np.uint64(7)
        value ^= value << np.uint64(17)
    return value


def limit_of(array: pa.Array, num_bytes: int, rounds: int) -> str:
    """Microseconds a document of the whole and of its loops alone, beside what the vector unit
    allows: a 32-bit multiplication of `width` lanes a cycle."""
    signer, number = Signer(), len(array)
    buffer, offsets = text_buffers(array)
    tables = signatures.kernel_tables()
    words = np.random.default_rng(1).integers(0, 2**63, WORDS + 1).astype(np.uint64)
    spread = words.astype(np.uint32)
    found, lanes = np.empty(WORDS, np.uint64), np.empty(112, np.uint32)
    longest = int(np.diff(offsets).max()) + 1
    room = np.empty(longest, np.uint64)
    num_words = tokenise(buffer, offsets, tables, room) / number
    shingles = round(num_words) - 4
    parts: dict[str, Callable[[], object]] = {
        "whole": lambda: signer.sign(array),
        "words": lambda: tokenise(buffer, offsets, tables, room),
        "shingles": lambda: shingle(words, WORDS, found, number),
        "digests": lambda: digest(words, WORDS, number),
        "lanes": lambda: lanes_alone(spread, WORDS - 4, signer.permutations, lanes, number),
    }
    times = {
        name: statistics.median(seconds(work) for _ in range(rounds)) / number * 1e6
        for name, work in parts.items()
    }
    for name in ("shingles", "digests", "lanes"):  # measured for 1,000 words
        times[name] *= shingles / (WORDS - 4)
    cycles = 6e6 / statistics.median(seconds(lambda: xorshifts(1_000_000)) for _ in range(rounds))
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    width = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    limit = shingles * 112 / width / cycles * 1e6
    loops = sum(times.values()) - times["whole"]
    return (
        f"A document: {times['whole']:.1f} µs; its loops alone: words {times['words']:.1f},"
        f" shingles {times['shingles']:.1f}, digests {times['digests']:.1f}, lanes {times['lanes']:.1f}, together"
        f" {loops / times['whole']:.0%} of the whole.\n\n"
        f"{num_words:,.0f} words, {shingles * 112:,} lane updates (multiply, add, minimum: three"
        f" instructions for {width}); at {cycles / 1e9:.2f} GHz and one vector multiplication a"
        f" cycle at least {limit:.1f} µs: the lane loop is at {limit / times['lanes']:.0%} of that"
        f" limit; the words at {num_bytes / number / times['words']:,.0f} MB/s"
        f" ({times['words'] * cycles / 1e6 / (num_bytes / number):.1f} cycles a byte)."
    )


if __name__ == "__main__":
    sys.exit(main())

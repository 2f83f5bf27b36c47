"""Mutated pages for the extraction child, by hand: `python tests/fuzz_extract.py --seconds 600`.

Pages of a folder (or made-up ones) are cut, spliced, repeated and flipped; what fails is kept in
--failures. A failure is an answer that is none, or two answers to one page.
"""

import argparse
import dataclasses
import gzip
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.extract_child import Answer, ExtractorChild, Limits

FAILURES = {"extract-timeout", "extract-crash", "extract-memory", "extract-error"}
ENGINES = ("trafilatura", "resiliparse", "fast", "cascade")
CHARSETS = (None, None, None, "utf-8", "windows-1252", "utf-16", "shift_jis", "utf-7", "no-such")
SPICE = (
    b"<div>" * 300, b"</div>" * 300, b"<table><tr><td>" * 50, b"<!--", b"-->", b"\0" * 20,
    b"&#xD800;", b"&#x110000;", b"\xed\xa0\x80", b"\xff\xfe", b"<svg><template><p>", b"<script>",
    b"<style>p{display:none}*{color:", b"<textarea>", b"<noscript><img", b"<meta charset=utf-16>",
    b'<script type="application/ld+json">{"headline":"\\ud800","datePublished":"\\udc00"}</script>',
    b'<html lang="\xed\xbf\xbf">', b"<a " * 200, b"<p " + b"x=y " * 2000, b"<b>" * 3000,
    "\U0010ffff\u202e\u200b".encode() * 20, b"<math><mi><mglyph>", b"<select><option><p>",
    b'<p style="' + b"width:" * 500 + b'">', b"<frameset>", b"<plaintext>", b"]]>", b"<![CDATA[",
)  # fmt: skip
_TAG = re.compile(rb"<[^<>]{0,200}>")


def mutated(rng: random.Random, page: bytes, others: Sequence[bytes]) -> bytes:
    """One to six changes, of bytes or of tags."""
    for _ in range(rng.randint(1, 6)):
        page = _changed(rng, page, others)[:400_000]
    return page


def _changed(rng: random.Random, page: bytes, others: Sequence[bytes]) -> bytes:
    start, end = sorted(rng.randrange(len(page) + 1) for _ in range(2))
    match rng.randrange(9):
        case 0:
            return page[:start]
        case 1:
            return page[:start] + page[end:]
        case 2:
            return page[:end] + page[start : start + 2000] * rng.randint(1, 20) + page[end:]
        case 3:
            return page[:start] + rng.choice(SPICE) + page[start:]
        case 4:
            return page[:start] + rng.randbytes(rng.randint(1, 30)) + page[start:]
        case 5:
            other = rng.choice(others)
            return page[:start] + other[rng.randrange(len(other) + 1) :]
        case 6:
            flipped = bytearray(page)
            for _ in range(rng.randint(1, 200) if page else 0):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 7:
            return _TAG.sub(lambda tag: b"" if rng.random() < 0.2 else tag[0], page)
        case _:
            return _TAG.sub(lambda tag: tag[0] * (1 + (rng.random() < 0.1)), page)


def pages_of(folder: Path | None, most: int, max_bytes: int) -> list[bytes]:
    """HTML files, plain or gzip; without a folder two made-up ones."""
    found: list[bytes] = []
    for path in sorted(folder.rglob("*.htm*")) if folder else []:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        if 0 < len(data) <= max_bytes:
            found.append(data)
        if len(found) == most:
            break
    plain = b"".join(b"<p>A line of some words, the %dth of them.</p>" % n for n in range(30))
    made = [b"<html><title>t</title><body><main>" + plain + b"</main></body></html>", plain * 9]
    return found or made


def check_answer(answer: Answer) -> None:
    """An answer is whole, or it is a failure that has a name; and a file can hold it."""
    assert answer.failure is None or answer.failure in FAILURES, answer.failure
    for value in dataclasses.asdict(answer).values():
        if isinstance(value, str):
            value.encode()
            assert "\0" not in value
    for kind, text in answer.findings:
        (kind + text).encode()
    if answer.failure:
        assert not answer.text


def fuzz(pages: Sequence[bytes], seconds: float, seed: int, failures: Path) -> Counter[str]:
    """Round after round; every page is asked for twice, the second time of a fresh child if the
    first took long or failed."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    limits = [Limits(5.0, 2048, "balanced", engine) for engine in ENGINES]
    children = [ExtractorChild(limit) for limit in limits]
    try:
        while time.monotonic() < ends:
            page, charset = mutated(rng, rng.choice(pages), pages), rng.choice(CHARSETS)
            number = rng.randrange(len(ENGINES))
            problem = _ask(children[number], limits[number], page, charset, counts)
            if problem:
                kind = "SLOW" if problem.startswith("slow") else "BAD"
                counts[kind] += 1
                failures.mkdir(parents=True, exist_ok=True)
                name = f"{kind}-{ENGINES[number]}-{charset}-{counts[kind]:04d}"
                (failures / f"{name}.html").write_bytes(page)
                (failures / f"{name}.txt").write_text(problem, encoding="utf-8")
    finally:
        for child in children:
            child.__exit__(None, None, None)
    return counts


def _ask(
    child: ExtractorChild, limits: Limits, page: bytes, charset: str | None, counts: Counter[str]
) -> str | None:
    """What is wrong, if anything. A page that is cut off by its time may have two answers; but
    none of these should need so much."""
    try:
        before = time.monotonic()
        first = child.extract(page, charset)
        took = time.monotonic() - before
        check_answer(first)
        counts[first.failure or ("text" if first.text else "no text")] += 1
        counts["pages"] += 1
        if first.failure == "extract-timeout":
            return f"slow: cut off after {limits.cpu_s} s"
        if first.failure or took > 1 or counts["pages"] % 20 == 0:
            with ExtractorChild(limits) as fresh:
                again = fresh.extract(page, charset)
            counts["asked twice"] += 1
            if again.failure == "extract-timeout":
                return f"slow: took {took:.1f} s, then cut off"
            ours, theirs = (dataclasses.replace(one, tight=False) for one in (first, again))
            if ours != theirs:
                return f"two answers:\n{ours!r:.2000}\n{theirs!r:.2000}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        return f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pages", type=Path, help="a folder of HTML files, plain or .gz")
    parser.add_argument("--failures", type=Path, default=Path("data/fuzz"))
    args = parser.parse_args()
    pages = pages_of(args.pages, most=500, max_bytes=150_000)
    counts = fuzz(pages, args.seconds, args.seed, args.failures)
    print(", ".join(f"{what} {number:,}" for what, number in sorted(counts.items())))
    if counts["BAD"] or counts["SLOW"]:
        print(f"kept in {args.failures}")
    return 1 if counts["BAD"] else 0


if __name__ == "__main__":
    sys.exit(main())

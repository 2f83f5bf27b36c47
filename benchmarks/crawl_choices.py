"""Two choices of the crawler, measured: links by tokens against trees, ISA-L's gzip against zlib.

    .venv/bin/python benchmarks/crawl_choices.py [--pages N] [--rounds 3] [--limit 10] [--quick]

The pages are the real HTML under ../shared/data/html (or FLYWHEEL_DATA), taken as UTF-8. Speeds are
per processor second, medians of rounds in turn; hostile pages are seconds of a child's wall time.
"""

import argparse
import dataclasses
import functools
import gzip
import importlib.metadata
import importlib.util
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isal import igzip_lib
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]  # a C extension, no stubs
from rows import Row, record, row

from pipeline.links import PageFacts, read_page
from pipeline.urls import DEFAULT_RULES, canonical
from pipeline.warc_writer import GZIP_LEVEL

SCRIPT = "crawl_choices.py"
DATA = Path(__file__).resolve().parents[1] / os.environ.get("FLYWHEEL_DATA", "../shared/data")
ARCHIVES = ("html/article-extraction-benchmark.tar.xz", "html/wcxb.tar.xz")
URL = "http://h.example/a/b"
LAST = "http://h.example/last"  # the only link of a hostile page, at its end
CHILD_BYTES = 4 << 30
Links = Callable[[bytes], list[str]]
Pack = Callable[[bytes], bytes]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=1_000_000, help="at most so many; default all")
    parser.add_argument("--rounds", type=int, default=3, help="of all sides, in turn")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for a hostile page")
    parser.add_argument("--quick", action="store_true", help="seconds; records no row")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        side, page = options.child
        return hostile_child(side, page, options.limit)
    if options.quick:
        options.pages, options.rounds, options.limit = min(options.pages, 40), 1, 1.0
    if missing := [name for name in ARCHIVES if not (DATA / name).exists()]:
        print(f"skipped: no {DATA / missing[0]}: set FLYWHEEL_DATA", file=sys.stderr)
        return 0
    pages = real_pages(options.pages)
    about = f"{len(pages):,} real pages of {sum(map(len, pages)) / len(pages) / 1e3:.0f} kB"
    print(f"{about}, load {os.getloadavg()[0]:.1f}", flush=True)
    show_hostile(options.limit)
    rows = [measure_links(pages, options.rounds, about)]
    rows += [measure_gzip(pages, options.rounds, about)]
    if not options.quick:
        record(rows)
    for r in rows:
        print(f"{r.what}: {r.ours} against {r.peer} {r.theirs} {r.unit} (ratio {r.ratio})")
    return 0


def real_pages(most: int) -> list[bytes]:
    pages: list[bytes] = []
    for name in ARCHIVES:
        with tarfile.open(DATA / name) as tar:
            for member in tar:
                if len(pages) == most:
                    return pages
                if member.name.endswith(".html") and (file := tar.extractfile(member)):
                    pages.append(file.read())
    return pages


# ------------------------------------------------------------------------------ links


def our_facts(page: bytes) -> PageFacts:
    return read_page(page, URL, "utf-8", DEFAULT_RULES, "FlywheelBot")


def our_links(page: bytes) -> list[str]:
    return our_facts(page).links


def lxml_links(page: bytes) -> list[str]:
    """By `lxml.etree`: some 5% faster than `lxml.html`'s own elements."""
    return followed(lxml_elements(page, "a", "area", "base"))


def lxml_elements(page: bytes, *tags: str) -> Iterable[tuple[str, str | None, str | None]]:
    tree: Any = etree.HTML(page, etree.HTMLParser(encoding="utf-8"))
    found = () if tree is None else tree.iter(*tags)
    return ((e.tag, e.get("href"), e.get("rel")) for e in found)


def lexbor_links(page: bytes) -> list[str]:
    from selectolax.lexbor import LexborHTMLParser  # no dependency of ours

    found = LexborHTMLParser(page).css("a,area,base")
    elements = ((node.tag, node.attrs) for node in found)
    return followed((tag or "", a.get("href"), a.get("rel")) for tag, a in elements)


def followed(elements: Iterable[tuple[str, str | None, str | None]]) -> list[str]:
    """What is ours to do with (tag, href, rel), done with the same care for the same result."""
    base = ""
    hrefs: dict[str, None] = {}
    for tag, href, rel in elements:
        if not href:
            continue
        if tag == "base":
            base = base or href
        elif not (rel and "nofollow" in rel.lower().split()):
            hrefs["#" if href[0] == "#" else href] = None
    base = (base and canonical(base, URL)) or URL
    found = (canonical(href, base) for href in hrefs)
    return list(dict.fromkeys(url for url in found if url is not None))


def link_sides() -> dict[str, Links]:
    sides: dict[str, Links] = {"ours": our_links, "lxml": lxml_links}
    if importlib.util.find_spec("selectolax"):
        sides["lexbor"] = lexbor_links
    return sides


def measure_links(pages: Sequence[bytes], rounds: int, about: str) -> Row:
    sides = link_sides()
    for name in [*sides][1:]:
        print(f"links, ours and {name}: {agreement(pages, sides[name])}", flush=True)
    speeds = medians(
        {name: functools.partial(each, links) for name, links in sides.items()}, pages, rounds
    )
    for name, seconds in speeds.items():
        print(f"links, {name}: {len(pages) / seconds:,.0f} pages per processor second", flush=True)
    unit = f"pages per processor second, {about}"
    if "lexbor" in speeds:
        version = importlib.metadata.version("selectolax")
        unit += f"; lexbor (selectolax {version}) {len(pages) / speeds['lexbor']:.0f}"
    ours, theirs = (len(pages) / speeds[name] for name in ("ours", "lxml"))
    return row("links", SCRIPT, ("lxml", importlib.metadata.version("lxml")), ours, theirs, unit)


def each(links: Links, pages: Sequence[bytes]) -> None:
    for page in pages:
        links(page)


def medians(
    sides: Mapping[str, Callable[[Sequence[bytes]], object]], pages: Sequence[bytes], rounds: int
) -> dict[str, float]:
    """Processor seconds of each side for all pages."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.process_time()
            side(pages)
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclasses.dataclass
class Agreement:
    """Links of <a> and <area>, counted once a page. Pages that say nofollow give us none."""

    num_pages: int = 0
    equal_pages: int = 0
    nofollow_pages: int = 0
    agree: int = 0
    only_ours: int = 0
    only_theirs: int = 0

    def __str__(self) -> str:
        return (
            f"{self.agree:,} links agree, {self.only_ours:,} only ours, {self.only_theirs:,} only"
            f" theirs; {self.equal_pages:,} of {self.num_pages:,} pages equal"
            f" ({self.nofollow_pages:,} more say nofollow)"
        )


def agreement(pages: Iterable[bytes], links: Links) -> Agreement:
    """Ours takes some links of <link> too; a link that stands in one is not counted as only ours."""
    total = Agreement()
    for page in pages:
        facts = our_facts(page)
        if "nofollow" in facts.robots_directives:
            total.nofollow_pages += 1
            continue
        theirs = set(links(page))
        heads = followed((tag, href, None) for tag, href, _ in lxml_elements(page, "link", "base"))
        ours = set(facts.links) - (set(heads) - theirs)
        total.num_pages += 1
        total.equal_pages += ours == theirs
        total.agree += len(ours & theirs)
        total.only_ours += len(ours - theirs)
        total.only_theirs += len(theirs - ours)
    return total


# ------------------------------------------------------------------------------ hostile pages


def nested_divs() -> bytes:
    return b"<div>" * 1_000_000


def many_attributes() -> bytes:
    return b"<p %b>" % b" ".join(b"a%d=1" % n for n in range(300_000))


def many_bodies() -> bytes:
    return b"".join(b"<body a%d=1>" % n for n in range(300_000))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a million nested <div>": nested_divs,
    "300,000 attributes of one tag": many_attributes,
    "300,000 times <body aN=1>": many_bodies,
}


def show_hostile(limit_s: float) -> None:
    sides = link_sides()
    if "lexbor" not in sides:
        print("lexbor left out: there is no selectolax here; uv pip install selectolax")
    for page in HOSTILE:
        told = ", ".join(f"{side} {hostile(side, page, limit_s)}" for side in sides)
        print(f"{page}: {told}", flush=True)


def hostile(side: str, page: str, limit_s: float) -> str:
    """What became of a child that read the page: its seconds, or how it ended."""
    command = [sys.executable, __file__, "--limit", str(limit_s), "--child", side, page]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=limit_s + 60, check=False
    )
    if done.returncode == -signal.SIGALRM:
        return f"over {limit_s:g} s"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    if done.returncode:
        return f"failed ({done.stderr.strip().splitlines()[-1]})"
    told = json.loads(done.stdout)
    return f"{told['seconds']:.2f} s{'' if told['found'] else ' (lost the link at the end)'}"


def hostile_child(side: str, name: str, limit_s: float) -> int:
    page = HOSTILE[name]() + b'<a href="/last">x</a>'
    links = link_sides()[side]
    links(b"<a href=x>")  # what it imports is not to be timed
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # unhandled it ends the process, in C code too
    started = time.perf_counter()
    found = links(page)
    print(json.dumps({"seconds": time.perf_counter() - started, "found": found == [LAST]}))
    return 0


# ------------------------------------------------------------------------------ gzip


def packers() -> dict[str, Pack]:
    isal = {
        f"ISA-L {level}": functools.partial(
            igzip_lib.compress, level=level, flag=igzip_lib.COMP_GZIP
        )
        for level in (0, 1, 2, 3)
    }
    zlibs = {
        f"zlib {level}": functools.partial(zlib.compress, level=level, wbits=31) for level in (1, 6)
    }
    return {**isal, **zlibs}


def measure_gzip(pages: Sequence[bytes], rounds: int, about: str) -> Row:
    """A member for each page, as a WARC file has one for each record."""
    packs, num_bytes = packers(), sum(map(len, pages))
    for name, pack in packs.items():
        assert all(gzip.decompress(pack(page)) == page for page in pages[:50]), name
    sizes = {name: packed_bytes(pack, pages) / num_bytes for name, pack in packs.items()}
    sides = {name: functools.partial(packed_bytes, pack) for name, pack in packs.items()}
    speeds = {n: num_bytes / 1e6 / s for n, s in medians(sides, pages, rounds).items()}
    for name in packs:
        print(f"gzip, {name}: {speeds[name]:,.0f} MB/s, to {sizes[name]:.1%}", flush=True)
    ours, theirs = f"ISA-L {GZIP_LEVEL}", "zlib 1"
    unit = (
        f"MB/s in per processor second, {about}, a member each; {ours}"
        f" (isal {importlib.metadata.version('isal')}) to {sizes[ours]:.1%}, theirs to {sizes[theirs]:.1%}"
    )
    peer = ("zlib level 1", zlib.ZLIB_RUNTIME_VERSION)
    return row("warc-gzip", SCRIPT, peer, speeds[ours], speeds[theirs], unit)


def packed_bytes(pack: Pack, pages: Iterable[bytes]) -> int:
    return sum(len(pack(page)) for page in pages)


if __name__ == "__main__":
    sys.exit(main())

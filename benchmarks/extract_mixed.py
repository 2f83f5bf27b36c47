"""A crawl of which a third is not wanted: the stage with its cheap checks against trafilatura.

Two thirds are WCXB's pages. The rest: pages in other languages, copies, shells that a script
fills, and files that are no HTML. (Not one page beyond extract.max_bytes: trafilatura would take
minutes for it.) Ours runs the stage's own code with its child process, start-up included;
trafilatura gets every HTML page, in one process.
"""

import datetime as dt
import hashlib
import itertools
import random
import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import trafilatura
from extract_pages import in_other_languages, wcxb

from pipeline.extract import Answers, ExtractConfig, limits_of
from pipeline.extract_child import ExtractorChild
from pipeline.html_text import decode_html
from pipeline.warc import WarcResponse

WANTED = ExtractConfig(languages=["en"])
# Of the crawl; the rest are WCXB's pages.
UNWANTED = {
    "other language": 0.12,
    "copy": 0.1,
    "shell": 0.06,
    "not HTML": 0.05,
    "too large": 0.003,
}


@dataclass(frozen=True)
class Mixed:
    """Pages per processor second; `dropped`: by reason, of ours."""

    ours: float
    theirs: float
    dropped: Counter[str]


def mixed_crawl(num_wanted: int | None) -> list[tuple[str, WarcResponse]]:
    """(what it is, response) in a fixed random order."""
    rng = random.Random(11)
    wanted = [page.payload for page in wcxb()]
    wanted = rng.sample(wanted, min(num_wanted or len(wanted), len(wanted)))
    total = len(wanted) / (1 - sum(UNWANTED.values()))
    sources = {
        "other language": itertools.cycle(
            rng.sample(found := list(in_other_languages()), len(found))
        ),
        "copy": iter(rng.sample(wanted * 2, len(wanted))),
        "shell": map(_shell, itertools.cycle(wanted)),
        "not HTML": map(rng.randbytes, itertools.repeat(200_000)),
    }
    pages = [("wanted", payload, "text/html") for payload in wanted]
    for name, payloads in sources.items():
        kind = "image/jpeg" if name == "not HTML" else "text/html"
        number = round(UNWANTED[name] * total)
        pages += [(name, payload, kind) for payload in itertools.islice(payloads, number)]
    rng.shuffle(pages)
    return [(name, _response(payload, kind)) for name, payload, kind in pages]


def _shell(page: bytes) -> bytes:
    """What is left of a page that its script would fill: its head and its scripts."""
    head, body, rest = re.split(rb"(?i)(<body[^>]*>)", page, maxsplit=1) if b"<body" in page else (
        page[:2000], b"<body>", b"",
    )  # fmt: skip
    scripts = b"".join(re.findall(rb"(?is)<script.*?</script>", rest))
    return head + body + b'<div id="root"></div>' + scripts + b"</body></html>"


def _response(payload: bytes, content_type: str) -> WarcResponse:
    digest = hashlib.sha256(payload).hexdigest()
    fetched_at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return WarcResponse(
        "http://a.test/", fetched_at, 0, 200, content_type, None, payload, digest, False
    )


def measure(crawl: Sequence[tuple[str, WarcResponse]], rounds: int) -> Mixed:
    """Both in turn; the median of the rounds."""
    ours, theirs = [], []
    dropped: Counter[str] = Counter()
    for _ in range(rounds):
        started = _processor_s()
        dropped = Counter(_by_stage(crawl))
        ours.append(len(crawl) / (_processor_s() - started))
        started = _processor_s()
        _by_trafilatura(crawl)
        theirs.append(len(crawl) / (_processor_s() - started))
    return Mixed(statistics.median(ours), statistics.median(theirs), dropped)


def _by_stage(crawl: Sequence[tuple[str, WarcResponse]]) -> Iterator[str]:
    """Why each page went, or "kept", by the code that extracts a WARC file."""
    with ExtractorChild(limits_of(WANTED)) as child:
        answers = Answers(WANTED, child)
        for name, response in crawl:
            answer = answers.to(response)
            yield f"{name}: {answer.failure or ('kept' if answer.text else 'empty-text')}"


def _by_trafilatura(crawl: Sequence[tuple[str, WarcResponse]]) -> None:
    """What is no HTML is not given to it: that check costs it nothing."""
    for _, response in crawl:
        if response.content_type == "text/html":
            trafilatura.extract(decode_html(response.payload, None), include_comments=False)


def _processor_s() -> float:
    """Of this process and of its children that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + spent.ru_utime + spent.ru_stime


def table(crawl: Sequence[tuple[str, WarcResponse]], found: Mixed) -> str:
    lines = [
        (
            f"A crawl of {len(crawl)} pages, a third not wanted: {found.ours:.1f} pages per"
            f" processor second against {found.theirs:.1f} ({found.ours / found.theirs:.1f} times)."
            " What became of them:"
        ),
        "",
        "| pages | what they are: what became of them |",
        "| --- | --- |",
    ]
    lines += [f"| {number} | {name} |" for name, number in sorted(found.dropped.items())]
    return "\n".join(lines)

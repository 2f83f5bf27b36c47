"""crawl.html: what became of a crawl's URLs, over time, by host, and how polite it was."""

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from infra.page import Html, Part, figure, folded, note, page, section, table_of, tag
from infra.pictures import Bar, Kind, Series, bars, line_chart
from pipeline.core import storage
from pipeline.core.manifest import Manifest
from pipeline.core.progress import duration
from pipeline.crawl import SUMMARY
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_service import HostResult
from pipeline.crawl_status import CrawlStatus, count, ending
from pipeline.not_kept import NOT_KEPT, read_not_kept
from pipeline.recrawl import shard_name

_NUM_HOSTS = 30
_SHOWN = 20  # of the URLs that were not kept, for each reason
_REASONS = 100
_ROWS_READ = 200_000  # of each shard's list


def report_page(manifest: Manifest, config: CrawlConfig) -> bytes:
    """crawl.html of a finished crawl, from its manifest and summary."""
    summary = json.loads(storage.read_bytes(storage.join(manifest.url, SUMMARY)))
    status = CrawlStatus(**summary["status"])
    hosts = [HostResult(*row) for row in summary["hosts"]]
    parts = [
        _outcome(manifest, status),
        _not_kept(manifest),
        _timeline(status),
        _by_host(hosts),
        _politeness(hosts, config, status.least_delay_s),
    ]
    counts = manifest.counts
    head = tag(
        "header",
        tag("p", "Flywheel", cls="eyebrow"),
        tag("h1", "What the crawl found"),
        tag(
            "p",
            f"{count(counts.rows_out, 'response')} from {count(len(hosts), 'host')},"
            f" {status.num_bytes / 1e6:,.1f} MB, in {duration(status.worked_s)} of work."
            f" {taken(manifest)}",
        ),
        *[tag("p", f"Since the crawl before: {changes(manifest)}.")] * bool(changes(manifest)),
        tag("nav", *(tag("a", part.title, href=f"#{part.identity}") for part in parts)),
    )
    return page("Flywheel: a crawl", tag("main", head, *(part.body for part in parts)))


def _outcome(manifest: Manifest, status: CrawlStatus) -> Part:
    groups: list[tuple[str, dict[str, int], Kind]] = [
        ("archived", {f"status {s}": n for s, n in manifest.facts["statuses"].items()}, "main"),
        ("refused or failed", dict(manifest.counts.dropped), "drop"),
        ("links left out", status.refused_links, "rest"),
    ]
    rows: list[Bar] = []
    for title, found, kind in groups:
        if found:
            rows.append(Bar(title))
            ordered = sorted(found.items(), key=lambda pair: -pair[1])
            rows += [Bar(why, math.log10(1 + n), f"{n:,}", kind) for why, n in ordered]
    alt = "; ".join(f"{bar.label} {bar.shown}" for bar in rows)
    cells = [(bar.label, bar.shown) for bar in rows if bar.value is not None]
    return section(
        "outcome",
        "What became of the URLs",
        figure("URLs by outcome", bars(rows, alt, label_width=38), "on a logarithmic scale"),
        note(taken(manifest)),
        note("Links left out are counted as often as they were met."),
        folded("The same as a table", table_of(("what", "number"), cells)),
    )


def taken(manifest: Manifest) -> str:
    """How many of the known URLs were taken, and why not the others."""
    rows_in, left = manifest.counts.rows_in, manifest.facts["not_taken"]
    if not left:
        return f"All {rows_in:,} known URLs were taken."
    return f"Of {rows_in + left:,} known URLs {left:,} were not taken: {budget(manifest)}."


def budget(manifest: Manifest) -> str:
    """Which one was used up, when not all was taken."""
    return ending(manifest.run.get("ended_by", ""))


def changes(manifest: Manifest) -> str:
    """What a recrawl found, in words; empty for a first crawl."""
    found: dict[str, int] = manifest.facts.get("changes", {})
    names = {"not_taken": "not asked again", "lost": "no longer had"}
    said = [f"{n:,} {names.get(kind, kind)}" for kind, n in found.items() if n]
    return ", ".join(said)


def _not_kept(manifest: Manifest) -> Part:
    """What was dropped or failed: the first of each reason, and where the rest is."""
    folder = storage.local_path(manifest.url)
    found: defaultdict[str, list[str]] = defaultdict(list)
    links: list[Html] = []
    for shard in range(manifest.run["num_shards"]):
        name = f"{shard_name(shard)}/{NOT_KEPT}"
        if not (folder / name).exists():
            continue
        links += [tag("a", name, href=name), Html(" ")]
        for url, why, _ in itertools.islice(read_not_kept(folder / name), _ROWS_READ):
            if (why in found or len(found) < _REASONS) and len(found[why]) < _SHOWN:
                found[why].append(url)
    children = [
        folded(f"{why}: the first {len(urls)}" if len(urls) == _SHOWN else why, *_lines(urls))
        for why, urls in sorted(found.items())
    ]
    if links:
        children.append(tag("p", "All of them, with reason and status: ", *links, cls="note"))
    if not found:
        children.insert(0, tag("p", "Every URL that was taken gave a page."))
    return section("not-kept", "What was dropped or failed", *children)


def _lines(urls: Sequence[str]) -> list[Html]:
    return [tag("ul", *(tag("li", url) for url in urls))]


def _timeline(status: CrawlStatus) -> Part:
    points = status.timeline
    # Two points a moment apart (a start, an end) have no rate; all are so in the shortest crawls.
    shortest_s = 0.5 if status.worked_s > 2 else 0.0
    rates = tuple(
        (later[0], (later[1] - sooner[1]) / max(1e-9, later[0] - sooner[0]))
        for sooner, later in itertools.pairwise(points)
        if later[0] - sooner[0] >= shortest_s
    )
    alt = f"Pages a second over {len(rates)} intervals."
    chart = line_chart([Series("pages/s", rates)], "pages/s", alt, x_name="seconds")
    caption = "by seconds at work, over all starts"
    return section("timeline", "Over time", figure("Pages a second", chart, caption))


def _by_host(hosts: Sequence[HostResult]) -> Part:
    ordered = sorted(hosts, key=lambda host: (-host.pages, host.name))
    rows = [
        (
            host.name,
            f"{host.pages:,}",
            f"{host.num_bytes:,}",
            f"{host.dropped:,}",
            f"{host.waiting:,}",
            "" if host.shortest_gap_s is None else f"{host.shortest_gap_s:.2f}",
        )
        for host in ordered
    ]
    heads = ("host", "pages", "bytes", "dropped", "left", "shortest gap, s")
    bar_rows = [Bar(host.name, host.pages, f"{host.pages:,}", "main") for host in ordered[:12]]
    alt = "; ".join(f"{bar.label} {bar.shown}" for bar in bar_rows)
    return section(
        "hosts",
        "By host",
        figure(f"The largest of {count(len(hosts), 'host')}, in pages", bars(bar_rows, alt)),
        table_of(heads, rows[:_NUM_HOSTS]),
        *(
            [note(f"{len(rows) - _NUM_HOSTS:,} more in {SUMMARY}")]
            if len(rows) > _NUM_HOSTS
            else []
        ),
    )


def _politeness(hosts: Sequence[HostResult], config: CrawlConfig, least_s: float | None) -> Part:
    """Gaps over all starts, so they are held against the shortest pause that any start had."""
    delay_s = config.delay_s if least_s is None else least_s
    gaps = [host.shortest_gap_s for host in hosts if host.shortest_gap_s is not None]
    under = sum(gap < delay_s for gap in gaps)
    said = f"Hosts asked more than once: {len(gaps):,}. Configured pause: {config.delay_s:g} s"
    said += f" (at times {delay_s:g} s)." if delay_s != config.delay_s else "."
    if gaps:
        said += (
            f" The shortest time between the beginnings of two requests to one host was"
            f" {min(gaps):.3f} s; hosts with less than {delay_s:g} s: {under:,}."
        )
    spread = Counter(_bucket(gap) for gap in gaps)
    rows = [Bar(name, n, f"{n:,}") for (_, name), n in sorted(spread.items())]
    alt = "; ".join(f"{bar.label}: {bar.shown}" for bar in rows)
    return section(
        "politeness",
        "Politeness kept",
        tag("p", said),
        *([figure("Hosts by their shortest gap", bars(rows, alt))] if rows else []),
    )


def _bucket(gap_s: float) -> tuple[int, str]:
    edges = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300)
    for index, edge in enumerate(edges):
        if gap_s < edge:
            return index, f"under {edge:g} s"
    return len(edges), f"{edges[-1]:g} s and more"

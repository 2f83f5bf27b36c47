"""`flywheel crawl`: the stage, how far it is, and crawl.html: what became of it, in pictures."""

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from infra.page import Part, figure, folded, note, page, section, table_of, tag
from infra.pictures import Bar, Kind, Series, bars, line_chart
from infra.tables import table
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.manifest import Manifest
from pipeline.core.progress import duration
from pipeline.crawl import SUMMARY, current_output, run_crawl
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_service import HostResult
from pipeline.crawl_status import CrawlStatus, read_status
from pipeline.seeds import read_networks, read_scope, read_seeds

REPORT = "crawl.html"
_SILENT_S = 30.0  # a crawl that works says so every two seconds
_NUM_HOSTS = 30


def crawl(config: Config) -> Path:
    """Run the stage, write its report, print both's summary; returns the report's path."""
    crawl_config = config.section("crawl", CrawlConfig)
    manifest = run_crawl(crawl_config, config.run)
    path = storage.local_path(manifest.url) / REPORT
    if not path.exists():
        storage.write_bytes(str(path), report_page(manifest, crawl_config))
    counts = manifest.counts
    rows = [("archived", f"status {s}", n) for s, n in manifest.facts["statuses"].items()]
    rows += [("dropped", reason, n) for reason, n in counts.dropped.items()]
    rows.append(("not taken", "a budget was used up", manifest.facts["not_taken"]))
    print(table(("URLs", "why", "number"), rows))
    size = sum(entry.num_bytes for entry in manifest.files)
    print(f"\n{counts.rows_out:,} responses in {len(manifest.files):,} WARC files, {size:,} bytes")
    print(f"{manifest.url}\nreport: {path}")
    return path


def show_status(config: Config) -> None:
    """Print what a crawl with this config last said of itself. Raises UserError if none began."""
    crawl_config = config.section("crawl", CrawlConfig)
    output = current_output(crawl_config, config.run)
    status = read_status(storage.local_path(output.url))
    print(status_text(status, time.time()))


def status_text(status: CrawlStatus, now: float) -> str:
    """A few lines for a terminal; `now` as of time.time()."""
    silent_s = now - status.at
    state = status.state
    if state == "crawling" and silent_s > _SILENT_S:
        state = f"silent for {duration(silent_s)}: it was ended, or hangs; the command goes on"
    wanted = min(status.num_known, status.max_pages)
    rate = status.pages_per_s
    size = f"{status.num_bytes / 1e6:,.1f} MB"
    lines = [
        f"{state}, begun {duration(now - status.started)} ago",
        f"{status.num_archived:,} of {wanted:,} pages · {size} · {rate:,.1f} pages/s",
    ]
    if state == "crawling" and rate > 0 and wanted > status.num_archived:
        lines[-1] += f" · {duration((wanted - status.num_archived) / rate)} left at this rate"
    lines.append(
        f"{status.num_known:,} URLs known · {status.num_waiting:,} waiting at"
        f" {status.hosts:,} hosts · {status.busy:,} in flight"
    )
    rows = [("archived", f"status {code}", n) for code, n in status.statuses.items()]
    rows += [("dropped", reason, n) for reason, n in status.dropped.items()]
    rows += [("tried again", reason, n) for reason, n in status.retries.items()]
    rows += [("link left out", reason, n) for reason, n in status.refused_links.items()]
    lines.append("\n" + table(("what", "why", "number"), rows))
    heads = ("shard", "epoch", "state", "pages", "waiting")
    lines.append("\n" + table(heads, status.shards))
    return "\n".join(lines)


def show_plan(config: Config) -> None:
    """What would be crawled, and how; nothing is asked for. Raises UserError for mistakes."""
    wish = config.section("crawl", CrawlConfig)
    seeds = read_seeds(wish)
    scope = read_scope(wish, seeds)
    read_networks(wish)
    output = current_output(wish, config.run)
    allowed = [*scope.allowed_hosts, *(f"*.{name}" for name in scope.allowed_domains)]
    rows = [
        ("seeds", ", ".join(seeds[:5]) + (" …" if len(seeds) > 5 else "")),
        ("scope", ", ".join(allowed[:8]) or "any host"),
        ("budget", f"{wish.max_pages:,} pages, {wish.max_depth} links deep"),
        ("pause", f"{wish.delay_s:g} s per host, or what its robots.txt asks for"),
        ("at most", f"{3600 / max(wish.delay_s, 0.01):,.0f} pages an hour from one host"),
        ("shards", f"{wish.num_shards}, {wish.concurrency} hosts at a time each"),
        ("folder", output.url),
        ("state", _state(output.url)),
    ]
    print(table(("crawl", ""), rows))


def _state(url: str) -> str:
    folder = storage.local_path(url)
    if (folder / "manifest.json").exists():
        return "finished: there is nothing to do"
    return "begun: it would go on" if folder.exists() else "not begun"


def report_page(manifest: Manifest, config: CrawlConfig) -> bytes:
    """crawl.html of a finished crawl, from its manifest and summary."""
    summary = json.loads(storage.read_bytes(storage.join(manifest.url, SUMMARY)))
    status = CrawlStatus(**summary["status"])
    hosts = [HostResult(*row) for row in summary["hosts"]]
    parts = [
        _outcome(manifest, status),
        _timeline(status),
        _by_host(hosts),
        _politeness(hosts, config),
    ]
    counts = manifest.counts
    head = tag(
        "header",
        tag("p", "Flywheel", cls="eyebrow"),
        tag("h1", "What the crawl found"),
        tag(
            "p",
            f"{counts.rows_out:,} responses of {counts.rows_in:,} URLs from {len(hosts):,} hosts,"
            f" {status.num_bytes / 1e6:,.1f} MB, in {duration(manifest.run['seconds'])}"
            " (since its last start).",
        ),
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
    not_taken = manifest.facts["not_taken"]
    return section(
        "outcome",
        "What became of the URLs",
        figure("URLs by outcome", bars(rows, alt, label_width=38), "on a logarithmic scale"),
        *(
            [note(f"{not_taken:,} known URLs were not taken: a budget was used up.")]
            * bool(not_taken)
        ),
        note("Links left out are counted as often as they were met since the last start."),
        folded("The same as a table", table_of(("what", "number"), cells)),
    )


def _timeline(status: CrawlStatus) -> Part:
    points = status.timeline
    rates = tuple(
        (later[0], (later[1] - sooner[1]) / max(1e-9, later[0] - sooner[0]))
        for sooner, later in itertools.pairwise(points)
    )
    alt = f"Pages a second over {len(rates)} intervals."
    chart = line_chart([Series("pages/s", rates)], "pages/s", alt, x_name="seconds")
    return section(
        "timeline", "Over time", figure("Pages a second", chart, "by seconds since the last start")
    )


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
        figure(f"The largest of {len(hosts):,} hosts, in pages", bars(bar_rows, alt)),
        table_of(heads, rows[:_NUM_HOSTS]),
        *(
            [note(f"{len(rows) - _NUM_HOSTS:,} more in {SUMMARY}")]
            if len(rows) > _NUM_HOSTS
            else []
        ),
    )


def _politeness(hosts: Sequence[HostResult], config: CrawlConfig) -> Part:
    gaps = [host.shortest_gap_s for host in hosts if host.shortest_gap_s is not None]
    under = sum(gap < config.delay_s for gap in gaps)
    said = f"Hosts asked more than once: {len(gaps):,}. Configured pause: {config.delay_s:g} s."
    if gaps:
        said += (
            f" The shortest time between the beginnings of two requests to one host was"
            f" {min(gaps):.3f} s; hosts with less than the pause: {under:,}."
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

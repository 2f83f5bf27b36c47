"""`flywheel crawl`: the stage, what it would do, and how far it is."""

import socket
import time
from pathlib import Path
from typing import Any

from infra.crawl_page import budget, changes, report_page
from infra.tables import table
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.manifest import Manifest
from pipeline.core.progress import duration
from pipeline.crawl import current_output, look_ahead, run_crawl
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_status import NOT_ONE_PAGE, CrawlStatus, count, ending, is_running, read_status

REPORT = "crawl.html"
_SILENT_S = 15.0  # a crawl that works says so every two seconds


def crawl(config: Config, *, is_enough: bool = False) -> Path:
    """Run the stage (or only finish it), write its report, print both's summary; returns the
    report's path."""
    crawl_config = config.section("crawl", CrawlConfig)
    manifest = run_crawl(crawl_config, config.run, is_enough=is_enough)
    path = storage.local_path(manifest.url) / REPORT
    if not path.exists():
        storage.write_bytes(str(path), report_page(manifest, crawl_config))
    print(_summary(manifest))
    print(f"{manifest.url}\nreport: {path}")
    return path


def _summary(manifest: Manifest) -> str:
    counts, left = manifest.counts, manifest.facts["not_taken"]
    rows = [("archived", f"status {s}", n) for s, n in manifest.facts["statuses"].items()]
    rows += [("dropped", reason, n) for reason, n in counts.dropped.items()]
    if left:
        rows.append(("not taken", budget(manifest), left))
    size = sum(entry.num_bytes for entry in manifest.files)
    files = count(len(manifest.files), "WARC file")
    lines = [table(("URLs", "why", "number"), rows), ""]
    lines.append(f"{count(counts.rows_out, 'response')} in {files}, {size:,} bytes")
    if said := changes(manifest):
        lines.append(f"since the crawl before: {said}")
    return "\n".join(lines)


def show_status(config: Config) -> None:
    """Print what a crawl with this config last said of itself. Raises UserError if none began."""
    crawl_config = config.section("crawl", CrawlConfig)
    folder = storage.local_path(current_output(crawl_config, config.run).url)
    print(status_text(read_status(folder), time.time(), is_running(folder), socket.gethostname()))


def status_text(
    status: CrawlStatus, now: float, is_locked: bool | None = None, host: str = ""
) -> str:
    """A few lines for a terminal; `now` as of time.time(), `is_locked` whether somebody on this
    machine, `host`, is known to be at work on it."""
    wanted, rate = status.num_wanted, status.pages_per_s
    size = f"{status.num_bytes / 1e6:,.1f} MB"
    is_ended = is_locked is False and host != "" and status.host == host
    state = _state_of(status, now, is_locked, is_ended=is_ended)
    lines = [state, f"{status.num_archived:,} of {wanted:,} pages · {size}"]
    if state.startswith("crawling"):
        lines[-1] += f" · {rate:,.1f} pages/s"
        if status.seconds_left is not None:
            lines[-1] += f" · {duration(status.seconds_left)} left"
    lines.append(_waiting(status))
    lines += [
        f"waiting for {name}: {count(number, 'URL')}, next in {turn_in_s:,.0f} s"
        for name, number, turn_in_s in status.waits
        if state.startswith("crawling")
    ]
    rows = [("archived", f"status {code}", n) for code, n in status.statuses.items()]
    rows += [("dropped", reason, n) for reason, n in status.dropped.items()]
    rows += [("tried again", reason, n) for reason, n in status.retries.items()]
    rows += [("link left out", reason, n) for reason, n in status.refused_links.items()]
    lines.append("\n" + table(("what", "why", "number"), rows))
    heads = ("shard", "epoch", "state", "pages", "waiting")
    if status.shards:
        lines.append("\n" + table(heads, status.shards))
    return "\n".join(lines)


def _state_of(
    status: CrawlStatus, now: float, is_locked: bool | None, *, is_ended: bool = False
) -> str:
    """`is_ended`: its lock is free on the machine where it ran."""
    state, silent_s = status.state, now - status.at
    if state in ("finished", NOT_ONE_PAGE):
        mend = "" if state == "finished" else "; the same command begins anew"
        return f"{state} {duration(silent_s)} ago{mend}"
    if not status.is_at_work:
        return f"{state} {duration(silent_s)} ago; the same command goes on"
    if is_ended or (silent_s > _SILENT_S and not is_locked):
        return f"not running: last seen {duration(silent_s)} ago; the same command goes on"
    if silent_s > _SILENT_S and state == "crawling":
        return f"silent for {duration(silent_s)}, though it runs: it hangs, or its disk does"
    return f"{state}, begun {duration(now - status.started)} ago"


def _waiting(status: CrawlStatus) -> str:
    said = [f"{count(status.num_known, 'URL')} known"]
    if status.num_waiting and status.hosts:
        said.append(f"{status.num_waiting:,} waiting at {count(status.hosts, 'host')}")
    elif status.num_waiting:
        said.append(f"{status.num_waiting:,} not taken")
    if status.num_excluded:
        said.append(f"{status.num_excluded:,} of them beyond their hosts' budgets")
    if status.ended_by:
        said.append(ending(status.ended_by))
    if status.busy:
        said.append(f"{status.busy:,} in flight")
    return " · ".join(said)


def show_plan(config: Config) -> None:
    """What would be crawled, and how; names are looked up, and no site is asked for anything.
    Raises UserError for what the crawl itself would refuse."""
    wish = config.section("crawl", CrawlConfig)
    plan = look_ahead(wish, config.run)
    if plan is None:
        place = current_output(wish, config.run).url
        print(table(("crawl", ""), [("folder", place), ("state", "finished: nothing is left")]))
        return
    seeds, scope = plan.seeds, plan.scope
    allowed = [*scope.allowed_hosts, *(f"*.{name}" for name in scope.allowed_domains)]
    folder = storage.local_path(plan.output.url)
    rows = [
        ("seeds", ", ".join(seeds[:5]) + (" …" if len(seeds) > 5 else "")),
        ("scope", ", ".join(allowed[:8]) or "any host"),
        ("budget", f"{wish.max_pages:,} pages, {wish.max_depth} links deep"),
        ("pause", f"{wish.delay_s:g} s per host, or what its robots.txt asks for"),
        ("at most", f"{3600 / max(wish.delay_s, 0.01):,.0f} pages an hour from one host"),
        ("shards", f"{wish.num_shards}, {wish.concurrency} hosts at a time each"),
        ("folder", plan.output.url),
        ("state", "begun: it would go on" if folder.exists() else "not begun"),
        *[("warning", problem) for problem in plan.warnings],
    ]
    print(table(("crawl", ""), rows))
    free, bound = keys_by_kind()
    print(f"\nmay be changed on the way: {', '.join(free)}")
    print(f"another crawl, in a folder of its own, after a change of: {', '.join(bound)}")


def keys_by_kind() -> tuple[list[str], list[str]]:
    """[crawl]'s keys that may change while a crawl is under way (num_shards may not, though it
    makes no other crawl), and those that make another one."""
    free: list[str] = []
    bound: list[str] = []
    for key, field in CrawlConfig.model_fields.items():
        extra: Any = field.json_schema_extra
        is_free = isinstance(extra, dict) and bool(extra.get("operational"))
        (free if is_free else bound).append(key)
    free.remove("num_shards")
    return free, bound

"""Stage "crawl": seeds in, WARC files out, politely; killed at any moment, a rerun goes on.

`ray submit infra/cluster.yaml pipeline/crawl.py -- --config FILE section.key=value`; on one machine
`flywheel crawl` or `python pipeline/crawl.py` with the same arguments.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__":  # `ray submit` copies this file alone to ~; the package is in ~/app
    _here = Path(__file__).resolve().parent
    sys.path[0] = str(_here.parent if (_here / "core").is_dir() else Path.home() / "app")

from aiohttp.abc import AbstractResolver

from pipeline.core import storage
from pipeline.core.config import RunConfig, load_config
from pipeline.core.errors import UserError, is_disk_full
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.progress import Progress
from pipeline.core.remote import InlineRuntime, Runtime, ServiceHandle, open_runtime
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_service import CrawlService, ShardResult, ShardStatus
from pipeline.crawl_shard import ShardTask
from pipeline.crawl_status import STATUS, CrawlStatus, StatusBoard, note, served_metrics, total_of
from pipeline.frontier_state import Tally
from pipeline.recrawl import shard_name
from pipeline.seeds import check_addresses, read_scope, read_seeds
from pipeline.urls import suffix_list_digest

VERSION = 2
LAYOUT = "layout.json"
SUMMARY = "summary.json"
POLL_S = (0.02, 0.5)  # between two looks at the shards: at first, and later on


def run_crawl(
    config: CrawlConfig, run: RunConfig, *, resolver: AbstractResolver | None = None
) -> Manifest:
    """Crawl the seeds' scope into WARC files, or go on with a crawl that was interrupted.

    A row is a URL that was taken: archived (whatever its status) or dropped with a reason. URLs
    left over when a budget was used up are `facts["not_taken"]`. `resolver` is for tests, with one
    shard. Raises UserError for seeds that cannot be crawled, and if not one page had status 200.
    """
    previous = _previous(config, run)
    output = crawl_output(config, run, previous)
    if done := output.finished():
        return done
    seeds = read_seeds(config)
    scope = read_scope(config, seeds)
    if not storage.is_local(output.url):
        raise UserError(
            f"run.root = {run.root!r}: a crawl keeps its state in a folder (shared by all nodes of"
            " a cluster); give one, and copy its WARC files to where `ingest` finds them"
        )
    for problem in asyncio.run(check_addresses(config, seeds, resolver)):
        print(f"warning: {problem}", file=sys.stderr)
    started = time.time()
    folder = storage.local_path(output.url)
    with output.lock():
        _keep_layout(folder, config.num_shards)
        is_new = not any(folder.glob("shard-*"))
        tasks = [
            ShardTask(
                config,
                tuple(seeds),
                scope,
                str(folder),
                shard,
                config.num_shards,
                output.key[:12],
                time.gmtime(started).tm_year,
            )
            for shard in range(config.num_shards)
        ]
        try:
            results, last = _crawl(config, run, tasks, previous, resolver, is_new=is_new)
        except Exception as error:
            if is_disk_full(error):
                raise OSError(errno.ENOSPC, "no space left on the disk", str(folder)) from error
            raise
        total = total_of([result.tally for result in results])
        if not total.statuses.keys() & {200, 304}:
            for task in tasks:  # a rerun is to ask again
                shutil.rmtree(task.folder)
            raise UserError(_nothing_found(total))
        return _commit(output, tasks, results, last, started)


def crawl_output(config: CrawlConfig, run: RunConfig, previous: Manifest | None) -> StageOutput:
    """Where the crawl's results lie, finished or not."""
    parents: dict[str, Manifest | str] = {"previous": previous} if previous else {}
    return StageOutput.of(run.root, "crawl", VERSION, config.identity(), parents)


def current_output(config: CrawlConfig, run: RunConfig) -> StageOutput:
    """The same, for someone who only wants to look."""
    return crawl_output(config, run, _previous(config, run))


def _previous(config: CrawlConfig, run: RunConfig) -> Manifest | None:
    """The finished crawl of the epoch before, whose pages this one need not fetch whole again."""
    previous = None
    for epoch in range(config.epoch if config.conditional else 0):
        before = config.model_copy(update={"epoch": epoch})
        previous = crawl_output(before, run, previous).finished()
        if previous is None:
            raise UserError(
                f"crawl.epoch = {config.epoch}, but epoch {epoch} is not finished here; crawl that"
                " one first, or set crawl.conditional = false to fetch everything anew"
            )
    return previous


def _crawl(
    config: CrawlConfig,
    run: RunConfig,
    tasks: Sequence[ShardTask],
    previous: Manifest | None,
    resolver: AbstractResolver | None,
    *,
    is_new: bool,
) -> tuple[list[ShardResult], CrawlStatus]:
    """All shards at work until nothing is left or a budget is used up."""
    board = StatusBoard(Path(tasks[0].root), config.max_pages)
    url = previous.url if previous else None
    with contextlib.ExitStack() as stack:
        runtime: Runtime = InlineRuntime()
        if config.num_shards > 1:
            runtime = stack.enter_context(open_runtime(run))
        inject = () if resolver is None else (resolver,)
        shards = [runtime.service(CrawlService, task, url, *inject) for task in tasks]
        stack.callback(_stop, shards)
        stack.enter_context(served_metrics(board, config.metrics_port))
        stack.enter_context(_sigterm_is_ctrl_c())
        try:
            _watch(config, shards, board, is_new=is_new)
        except KeyboardInterrupt:
            print(
                "stopping: what is in flight may take 20 s; Ctrl-C again ends it", file=sys.stderr
            )
            raise
        results = [shard.call("finish") for shard in shards]
        assert board.last is not None
        shards_now = [[shard[0], shard[1], "finished", *shard[3:]] for shard in board.last.shards]
        return results, dataclasses.replace(board.last, state="finished", shards=shards_now)


def _stop(shards: Sequence[ServiceHandle]) -> None:
    """All at once, for a spot instance has 30 s: each ends what it has in flight; whoever cannot
    is left to its successor."""

    def stop(shard: ServiceHandle) -> None:
        with contextlib.suppress(Exception):
            shard.call("stop")
        shard.stop()

    threads = [threading.Thread(target=stop, args=(shard,), daemon=True) for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _watch(
    config: CrawlConfig, shards: Sequence[ServiceHandle], board: StatusBoard, *, is_new: bool
) -> None:
    """Show how far it is, deal out the budget of pages, and return when it is over."""
    # Nobody fetches on before each has said what it has already.
    limits = [config.max_pages // len(shards) or 1 if is_new else 0] * len(shards)
    wait_s, calm = POLL_S[0], -1
    with Progress("crawl", total=0, unit="pages") as progress:
        while True:
            status = board.update(
                [shard.call("status", limit) for shard, limit in zip(shards, limits, strict=True)]
            )
            found = board.shards
            _show(progress, status)
            if all(shard.is_known for shard in found):
                limits = _limits(config.max_pages, found)
            else:
                wait_s = POLL_S[0]
            serial = sum(shard.serial for shard in found)
            if all(shard.is_idle for shard in found):
                if serial == calm:  # nothing came between two looks at all of them
                    break
                calm, wait_s = serial, POLL_S[0]
            if _is_spent(config, status):
                break
            time.sleep(wait_s)
            wait_s = min(POLL_S[1], wait_s * 1.2)
    board.update(board.shards, "finishing")


def _limits(max_pages: int, shards: Sequence[ShardStatus]) -> list[int]:
    """What is left of the budget goes in equal parts to the shards that have something to do."""
    used = [shard.tally.num_archived + shard.busy for shard in shards]
    left = max(0, max_pages - sum(used))
    asking = [i for i, shard in enumerate(shards) if shard.hosts] or list(range(len(shards)))
    limits = list(used)
    for order, index in enumerate(asking):
        limits[index] += left // len(asking) + (order < left % len(asking))
    return limits


def _is_spent(config: CrawlConfig, status: CrawlStatus) -> bool:
    """Whether the budget of bytes or of time is used up (that of pages the shards keep)."""
    by_bytes = config.max_bytes_total is not None and status.num_bytes >= config.max_bytes_total
    by_time = config.max_seconds is not None and status.at - status.started >= config.max_seconds
    return by_bytes or by_time


def _show(progress: Progress, status: CrawlStatus) -> None:
    progress.total = min(status.num_known, status.max_pages)
    new = status.num_archived - progress.done
    if progress.done == 0 and new and not progress.skipped:
        progress.skip(new)
        new = 0
    progress.advance(new, note=note(status))


def _commit(
    output: StageOutput,
    tasks: Sequence[ShardTask],
    results: Sequence[ShardResult],
    last: CrawlStatus,
    started: float,
) -> Manifest:
    total = total_of([result.tally for result in results])
    summary = {
        "status": dataclasses.asdict(last),
        "hosts": [dataclasses.astuple(host) for result in results for host in result.hosts],
    }
    storage.write_bytes(output.path(SUMMARY), json.dumps(summary).encode())
    storage.write_bytes(output.path(STATUS), json.dumps(summary["status"]).encode())
    return output.commit(
        [
            describe_file(output.path(name), name, total.warc_rows[warc])
            for task, result in zip(tasks, results, strict=True)
            for warc in result.warcs
            for name in [f"{shard_name(task.shard)}/{warc}"]
        ],
        Counts(total.num_finished, total.num_archived, dict(sorted(total.dropped.items()))),
        started=started,
        facts={
            "statuses": {str(status): n for status, n in sorted(total.statuses.items())},
            "not_taken": sum(result.num_waiting for result in results),
        },
        run={"num_shards": len(tasks), "retries": last.retries},
    )


def _keep_layout(folder: Path, num_shards: int) -> None:
    """A crawl keeps its shards. Raises UserError if it is asked to change them."""
    path = folder / LAYOUT
    layout: dict[str, int | str] = {"num_shards": num_shards}
    if num_shards > 1:
        layout["suffix_list"] = suffix_list_digest()
    if not path.exists():
        storage.write_bytes(str(path), json.dumps(layout).encode())
        return
    try:
        begun_with = json.loads(path.read_bytes())
        num_before = int(begun_with["num_shards"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged; delete it if crawl.num_shards is what it was"
        ) from None
    if num_before != num_shards:
        raise UserError(
            f"crawl.num_shards = {num_shards}, but this crawl was begun with {num_before}; set it"
            f" back, or delete {folder} to begin anew"
        )
    if begun_with != layout:
        raise UserError(
            f"{folder} was begun with another version of tldextract's public suffix list, which"
            " says whose host belongs to which shard; install that one again, or delete the folder"
        )


@contextlib.contextmanager
def _sigterm_is_ctrl_c() -> Generator[None]:
    """A spot instance's notice ends a crawl as Ctrl-C does: in order, to go on later."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before: Any = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever is there decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _nothing_found(total: Tally) -> str:
    seen = [f"{n} x status {status}" for status, n in sorted(total.statuses.items())]
    seen += [f"{n} x {reason}" for reason, n in total.dropped.most_common()]
    message = f"crawl.seeds gave not one page with status 200; seen: {', '.join(seen)}"
    if total.outside:
        hosts = ", ".join(sorted(total.outside))
        return f"{message}; they redirect to {hosts}: add it to crawl.allowed_hosts"
    return f"{message}; check the site, its robots.txt and the seeds, then rerun"


def main(argv: Sequence[str] | None = None) -> int:
    """The stage as a command of its own; 2 for a user's mistake, 1 for a full disk, 130 for
    Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Crawl the seeds of a run's config into WARC files. Interrupted at any moment,"
        " the same command goes on; finished, it does nothing.",
        epilog="example: python pipeline/crawl.py --config infra/runs/laptop.toml"
        " crawl.max_pages=500 crawl.contact=me@example.org",
    )
    parser.add_argument("--config", required=True, help="the run's TOML file; [crawl] and [run]")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        manifest = run_crawl(config.section("crawl", CrawlConfig), config.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {error}; make room, then rerun", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    counts = manifest.counts
    print(f"{counts.rows_out:,} responses of {counts.rows_in:,} URLs; dropped: {counts.dropped}")
    print(manifest.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())

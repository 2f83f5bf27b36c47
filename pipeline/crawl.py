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
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # `ray submit` copies this file alone to ~; the package is in ~/app
    _here = Path(__file__).resolve().parent
    sys.path[0] = str(_here.parent if (_here / "core").is_dir() else Path.home() / "app")

from aiohttp.abc import AbstractResolver

from pipeline.core import storage
from pipeline.core.config import RunConfig, load_config
from pipeline.core.errors import UserError, is_disk_full
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.remote import InlineRuntime, Runtime, WorkerLostError, open_runtime
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_metrics import served_metrics
from pipeline.crawl_service import CrawlService, ShardResult
from pipeline.crawl_shard import ShardTask
from pipeline.crawl_status import (
    BY_HAND,
    NOT_ONE_PAGE,
    CrawlStatus,
    StatusBoard,
    ending,
    status_before,
    total_of,
    write_status,
)
from pipeline.crawl_stop import sigterm_is_ctrl_c, stopped_in_the_end
from pipeline.crawl_watch import watch
from pipeline.frontier_state import Tally
from pipeline.recrawl import Changes, shard_name
from pipeline.seeds import check_addresses, check_scope, read_scope, read_seeds
from pipeline.urls import Scope, UrlRules, suffix_list_digest

VERSION = 3
LAYOUT = "layout.json"
SUMMARY = "summary.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a crawl would do: where, from which seeds, within which scope; `warnings` are of seeds
    that will give nothing."""

    output: StageOutput
    previous: Manifest | None
    seeds: tuple[str, ...]
    scope: Scope
    year: int
    warnings: tuple[str, ...]


def plan_crawl(
    config: CrawlConfig,
    output: StageOutput,
    previous: Manifest | None,
    resolver: AbstractResolver | None = None,
) -> Plan:
    """All that can be refused before the first request, is refused here (names are looked up).
    Raises UserError."""
    if not storage.is_local(output.url):
        raise UserError(
            f"run.root = {output.root!r}: a crawl keeps its state in a folder (shared by all nodes"
            " of a cluster); give one, and copy its WARC files to where `ingest` finds them"
        )
    seeds = read_seeds(config)
    scope = read_scope(config, seeds)
    UrlRules(extra_parameters=tuple(config.drop_parameters))
    year = time.gmtime().tm_year
    warnings = check_scope(config, seeds, scope, year)
    warnings += asyncio.run(check_addresses(config, seeds, resolver))
    folder = storage.local_path(output.url)
    if (folder / LAYOUT).exists():
        _check_layout(folder, config.num_shards)
    output.check_root()
    return Plan(output, previous, tuple(seeds), scope, year, tuple(warnings))


def look_ahead(config: CrawlConfig, run: RunConfig) -> Plan | None:
    """What `run_crawl` would do; None if it is done. Raises UserError as that does before its
    first request, and writes nothing."""
    previous = _previous(config, run)
    output = crawl_output(config, run, previous)
    return None if output.finished() else plan_crawl(config, output, previous)


def run_crawl(
    config: CrawlConfig,
    run: RunConfig,
    *,
    resolver: AbstractResolver | None = None,
    is_enough: bool = False,
) -> Manifest:
    """Crawl the seeds' scope into WARC files, or go on with a crawl that was interrupted.

    A row is a URL that was taken: archived (whatever its status) or dropped with a reason. URLs
    left over when a budget was used up are `facts["not_taken"]`. `resolver` is for tests, with one
    shard. `is_enough`: take nothing more, and finish with what is there. Raises UserError for seeds
    that cannot be crawled, and if not one page had status 200.
    """
    previous = _previous(config, run)
    output = crawl_output(config, run, previous)
    if done := output.finished():
        return done
    if is_enough and not (storage.local_path(output.url) / LAYOUT).exists():
        raise UserError(f"--finish: no crawl with this config has begun ({output.url})")
    plan = plan_crawl(config, output, previous, resolver)
    for problem in plan.warnings:
        print(f"warning: {problem}", file=sys.stderr)
    with output.lock():
        try:
            return _run(config, run, plan, resolver, is_enough=is_enough)
        except Exception as error:
            if is_disk_full(error):
                folder = str(storage.local_path(output.url))
                raise OSError(errno.ENOSPC, "no space left on the disk", folder) from error
            raise


def _run(
    config: CrawlConfig,
    run: RunConfig,
    plan: Plan,
    resolver: AbstractResolver | None,
    *,
    is_enough: bool,
) -> Manifest:
    started = time.time()
    folder = storage.local_path(plan.output.url)
    is_new = not any(folder.glob("shard-*"))
    _keep_layout(folder, config.num_shards)
    root, prefix = str(folder), plan.output.key[:12]
    tasks = [
        ShardTask(config, plan.seeds, plan.scope, root, shard, config.num_shards, prefix, plan.year)
        for shard in range(config.num_shards)
    ]
    results, last = _crawl(
        config, run, tasks, plan.previous, resolver, is_new=is_new, is_enough=is_enough
    )
    total = total_of([result.tally for result in results])
    if not total.statuses.keys() & {200, 304}:
        for task in () if is_enough else tasks:  # a rerun is to ask again
            shutil.rmtree(task.folder)
        state = "stopped" if is_enough else NOT_ONE_PAGE
        write_status(folder, dataclasses.replace(last, state=state))
        raise UserError(_nothing_found(total, last.ended_by))
    return _commit(plan.output, tasks, results, last, started)


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
    is_enough: bool,
) -> tuple[list[ShardResult], CrawlStatus]:
    """All shards at work until nothing is left or a budget is used up."""
    folder = Path(tasks[0].root)
    board = StatusBoard(folder, config, None if is_new else status_before(folder))
    url = previous.url if previous else None
    with contextlib.ExitStack() as stack:
        runtime: Runtime = InlineRuntime()
        if config.num_shards > 1:
            runtime = stack.enter_context(open_runtime(run))
        inject = () if resolver is None else (resolver,)
        stack.enter_context(sigterm_is_ctrl_c())
        shards = [runtime.service(CrawlService, task, url, *inject) for task in tasks]
        stack.enter_context(stopped_in_the_end(shards, board))
        stack.enter_context(served_metrics(board, config.metrics_port))
        ended_by = watch(config, shards, board, is_new=is_new, is_enough=is_enough)
        results = [shard.call("finish") for shard in shards]
        return results, board.finished(results, ended_by)


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
    write_status(storage.local_path(output.url), last)
    facts: dict[str, Any] = {
        "statuses": {str(status): n for status, n in sorted(total.statuses.items())},
        "not_taken": sum(result.num_waiting for result in results),
    }
    if "previous" in output.parents:
        changes = sum((result.changes for result in results), Changes())
        facts["changes"] = dataclasses.asdict(changes)
    return output.commit(
        [
            describe_file(output.path(name), name, total.warc_rows[warc])
            for task, result in zip(tasks, results, strict=True)
            for warc in result.warcs
            for name in [f"{shard_name(task.shard)}/{warc}"]
        ],
        Counts(total.num_finished, total.num_archived, dict(sorted(total.dropped.items()))),
        started=started,
        facts=facts,
        run={"num_shards": len(tasks), "retries": last.retries, "ended_by": last.ended_by},
    )


def _keep_layout(folder: Path, num_shards: int) -> None:
    """A crawl keeps its shards. Raises UserError if it is asked to change them."""
    if (folder / LAYOUT).exists():
        _check_layout(folder, num_shards)
    else:
        storage.write_bytes(str(folder / LAYOUT), json.dumps(_layout(num_shards)).encode())


def _layout(num_shards: int) -> dict[str, int | str]:
    if num_shards == 1:
        return {"num_shards": 1}
    return {"num_shards": num_shards, "suffix_list": suffix_list_digest()}


def _check_layout(folder: Path, num_shards: int) -> None:
    path = folder / LAYOUT
    try:
        begun_with = json.loads(path.read_bytes())
        num_before = begun_with["num_shards"]
    except (ValueError, LookupError, TypeError, RecursionError, IsADirectoryError):
        begun_with = num_before = None
    if type(num_before) is not int:
        raise UserError(f"{path} is damaged; delete it if crawl.num_shards is what it was")
    if num_before != num_shards:
        raise UserError(
            f"crawl.num_shards = {num_shards}, but this crawl was begun with {num_before}; set it"
            f" back, or delete {folder} to begin anew"
        )
    if begun_with != _layout(num_shards):
        raise UserError(
            f"{folder} was begun with another version of tldextract's public suffix list, which"
            " says whose host belongs to which shard; install that one again, or delete the folder"
        )


def _nothing_found(total: Tally, ended_by: str) -> str:
    seen = [f"{n} x status {status}" for status, n in sorted(total.statuses.items())]
    seen += [f"{n} x {reason}" for reason, n in total.dropped.most_common()]
    message = "crawl.seeds gave not one page with status 200"
    if seen:
        message += f"; seen: {', '.join(seen)}"
    if ended_by == BY_HAND:
        return f"{message}: there is nothing to finish yet"
    if ended_by:
        return f"{message}; crawl.{ended_by} was used up before the first page came; raise it"
    if total.outside:
        hosts = ", ".join(sorted(total.outside))
        return f"{message}; they redirect to {hosts}: add it to crawl.allowed_hosts"
    return f"{message}; check the site, its robots.txt and the seeds, then rerun"


def main(argv: Sequence[str] | None = None) -> int:
    """The stage as a command of its own; 2 for a user's mistake, 1 for a full disk or a lost
    worker, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Crawl the seeds of a run's config into WARC files. Interrupted at any moment,"
        " the same command goes on; finished, it does nothing.",
        epilog="example: python pipeline/crawl.py --config infra/runs/laptop.toml"
        " crawl.max_pages=500 crawl.contact=me@example.org",
    )
    parser.add_argument("--config", required=True, help="the run's TOML file; [crawl] and [run]")
    parser.add_argument(
        "--finish", action="store_true", help="fetch nothing more; finish with what is there"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args(argv)
    try:
        config = load_config(args.config, args.overrides)
        crawl_config = config.section("crawl", CrawlConfig)
        manifest = run_crawl(crawl_config, config.run, is_enough=args.finish)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {error}; make room, then rerun", file=sys.stderr)
        return 1
    except WorkerLostError as error:
        print(f"error: {error}; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    counts = manifest.counts
    print(f"{counts.rows_out:,} responses of {counts.rows_in:,} URLs; dropped: {counts.dropped}")
    if left := manifest.facts["not_taken"]:
        print(f"{left:,} more known URLs were not taken: {ending(manifest.run['ended_by'])}")
    print(manifest.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())

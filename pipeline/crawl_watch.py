"""The driver's part of a crawl: it asks the shards how far they are, shows it, deals out the budget
of pages, and says when it is over."""

import time
from collections.abc import Sequence

from pipeline.core.progress import Progress
from pipeline.core.remote import ServiceHandle
from pipeline.crawl_config import CrawlConfig
from pipeline.crawl_service import ShardStatus
from pipeline.crawl_status import BY_HAND, CrawlStatus, StatusBoard, note
from pipeline.page_budget import Share, first_limits, is_wanted, next_limits

POLL_S = (0.02, 0.5)  # between two looks at the shards: at first, and later on


def watch(
    config: CrawlConfig,
    shards: Sequence[ServiceHandle],
    board: StatusBoard,
    *,
    is_new: bool,
    is_enough: bool = False,
) -> str:
    """Returns when nothing is left that may be fetched: the key of the budget that was used up,
    empty for none. With max_bytes_total and max_seconds some requests are still in flight.
    `is_enough`: nothing more may be, and BY_HAND is returned."""
    # Nobody fetches on before each has said what it has already.
    limits = first_limits(config.max_pages, len(shards)) if is_new else [0] * len(shards)
    wait_s, calm = POLL_S[0], -1
    with Progress("crawl", total=0, unit="pages") as progress:
        while True:
            status = board.update(
                [shard.call("status", limit) for shard, limit in zip(shards, limits, strict=True)]
            )
            found = board.shards
            _show(progress, status)
            if ended_by := _used_up(config, status):
                break
            if all(shard.is_known for shard in found):
                if is_enough:
                    ended_by = BY_HAND
                    break
                told, shares = limits, [_share(shard) for shard in found]
                limits = next_limits(config.max_pages, told, shares)
                serial = sum(shard.serial for shard in found)
                is_idle = all(shard.is_idle for shard in found)
                if is_idle and not is_wanted(config.max_pages, shares):
                    if serial == calm:  # nothing came between two looks at all of them
                        break
                    calm, wait_s = serial, POLL_S[0]
                if limits != told:
                    wait_s = POLL_S[0]
            else:
                wait_s = POLL_S[0]
            time.sleep(wait_s)
            wait_s = min(POLL_S[1], wait_s * 1.2)
    status = board.update(board.shards, "finishing")
    if not ended_by and status.num_waiting and status.num_charged >= config.max_pages:
        return "max_pages"
    return ended_by


def _share(shard: ShardStatus) -> Share:
    wait_s = 0.0 if shard.busy else shard.next_turn_s
    return Share(shard.limit, shard.tally.num_charged + shard.busy, wait_s)


def _used_up(config: CrawlConfig, status: CrawlStatus) -> str:
    """The budget of bytes or of time, if it is used up (that of pages the shards keep)."""
    if config.max_bytes_total is not None and status.num_bytes >= config.max_bytes_total:
        return "max_bytes_total"
    if config.max_seconds is not None and status.running_s >= config.max_seconds:
        return "max_seconds"
    return ""


def _show(progress: Progress, status: CrawlStatus) -> None:
    progress.total, progress.left_s = status.num_wanted, status.seconds_left
    if status.state == "starting":
        return
    if status.timeline and not progress.done:
        progress.skip(status.num_before)  # what an earlier run did is not this one's pace
    progress.advance(max(0, status.num_archived - progress.done), note=note(status))

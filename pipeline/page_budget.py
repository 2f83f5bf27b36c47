"""A crawl's budget of pages, dealt out to shards of uneven speed so that it is met exactly.

A shard may use what it was last told until it has said that it knows of less: only what nobody may
use any more is given to another. Pure arithmetic; pipeline/crawl.py asks the shards.
"""

import dataclasses
from collections.abc import Sequence

SOON_S = 10.0  # a shard whose next turn is nearer than this can fetch now


@dataclasses.dataclass(frozen=True)
class Share:
    """What a shard says: the limit it keeps to, and the pages that it has or has in flight.

    `wait_s` is until its next request: 0 with one in flight, None with nothing waiting."""

    limit: int
    used: int
    wait_s: float | None


def first_limits(max_pages: int, num_shards: int) -> list[int]:
    """For shards that have nothing yet: equal parts, `max_pages` in all."""
    return [max_pages // num_shards + (n < max_pages % num_shards) for n in range(num_shards)]


def next_limits(max_pages: int, told: Sequence[int], shares: Sequence[Share]) -> list[int]:
    """What to tell each shard next. `told` is what it was told last, over the deaths of its owners.

    If the shards keep to their limits, they never use more than `max_pages` together. What is left
    goes in equal parts to those that can fetch now, but for a small reserve while there is plenty:
    the others may begin at any time. As long as those that can fetch have half of their parts
    before them, nothing is changed.
    """
    parts, asking = _parts(max_pages, told, shares)
    if all((told[i] - shares[i].used) * 2 >= parts[i] for i in asking):
        return list(told)
    limits = list(told)
    held = [max(limit, s.limit, s.used) for limit, s in zip(told, shares, strict=True)]
    free = max_pages - sum(held)
    for index, share in enumerate(shares):
        if share.limit != told[index]:
            continue  # one change at a time: it may still act on what it was told before
        wanted = share.used + parts[index]
        if wanted > held[index]:
            limits[index] = min(wanted, held[index] + free)
            free -= limits[index] - held[index]
        elif wanted < told[index]:
            limits[index] = wanted
        else:
            limits[index] = held[index]  # as a new owner's may be below what is there already
    return limits


def is_wanted(max_pages: int, shares: Sequence[Share]) -> bool:
    """Whether some of the budget is left, and a shard could use it."""
    left = max_pages - sum(share.used for share in shares)
    return left > 0 and any(share.wait_s is not None for share in shares)


def _parts(
    max_pages: int, told: Sequence[int], shares: Sequence[Share]
) -> tuple[list[int], list[int]]:
    """Of what is left, each shard's part; and which shards can fetch now, or else later. Odd pages
    go to who holds some already, so that none wanders about unused, and then to who is soonest."""
    left = max(0, max_pages - sum(share.used for share in shares))
    waits = {i: s.wait_s for i, s in enumerate(shares) if s.wait_s is not None}
    asking = [i for i, wait_s in waits.items() if wait_s <= SOON_S] or list(waits)
    asking.sort(key=lambda i: (told[i] <= shares[i].used, waits[i], i))
    parts = [left // (4 * len(shares)) if asking else 0] * len(shares)
    rest = left - sum(parts) + sum(parts[i] for i in asking)
    for order, i in enumerate(asking):
        parts[i] = rest // len(asking) + (order < rest % len(asking))
    return parts, asking

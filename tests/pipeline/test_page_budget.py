"""The budget of pages over many shards: never more, and in the end exactly, whatever their pace."""

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.page_budget import SOON_S, Share, first_limits, is_wanted, next_limits


@dataclasses.dataclass
class Shard:
    """As a real one: a limit is taken over some time after it was told, an owner may die."""

    pages: int  # that it could fetch in all
    speed: int  # at most, between two looks
    limit: int = 0
    archived: int = 0
    in_flight: int = 0
    told: int | None = None  # and not yet taken over

    @property
    def used(self) -> int:
        return self.archived + self.in_flight

    def status(self, limit: int, chance: random.Random) -> Share:
        if self.told is None and limit != self.limit:
            self.told = limit
        share = Share(self.limit, self.used, self._wait_s())
        if self.told is not None and chance.random() < 0.5:
            self.limit, self.told = self.told, None
        return share

    def _wait_s(self) -> float | None:
        if self.in_flight:
            return 0.0
        return None if self.used >= self.pages else 0.5

    def work(self, chance: random.Random) -> None:
        for _ in range(chance.randint(0, self.speed)):
            if self.in_flight and chance.random() < 0.6:
                self.in_flight -= 1
                if chance.random() < 0.8:
                    self.archived += 1
                else:
                    self.pages -= 1  # dropped
            elif self.used < min(self.limit, self.pages):
                self.in_flight += 1

    def die(self) -> None:
        """Its successor knows what was archived, and has no limit before it is told one."""
        self.limit, self.in_flight, self.told = 0, 0, None


@settings(max_examples=300, deadline=None)
@given(
    max_pages=st.integers(1, 400),
    shards=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    deaths=st.sampled_from([0.0, 0.0, 0.02]),
    is_new=st.booleans(),
)
def test_never_more_and_in_the_end_exactly(
    max_pages: int, shards: list[tuple[int, int]], seed: int, deaths: float, is_new: bool
) -> None:
    chance = random.Random(seed)
    model = [Shard(pages, speed) for pages, speed in shards]
    limits = first_limits(max_pages, len(model)) if is_new else [0] * len(model)
    for _ in range(5000):
        shares = [s.status(limit, chance) for s, limit in zip(model, limits, strict=True)]
        if not is_wanted(max_pages, shares) and not any(s.in_flight for s in model):
            break
        limits = next_limits(max_pages, limits, shares)
        assert min(limits) >= 0
        for shard in model:
            if chance.random() < deaths:
                shard.die()
            shard.work(chance)
            assert sum(s.used for s in model) <= max_pages
    assert sum(s.archived for s in model) == min(max_pages, sum(s.pages for s in model))


def test_a_fast_shard_gets_what_slow_ones_leave() -> None:
    told = [100, 100, 100]
    shares = [Share(100, 95, 0.0), Share(100, 10, 0.0), Share(100, 10, 0.0)]
    lowered = next_limits(300, told, shares)
    assert lowered == [100, 72, 71], "nothing is free before the others know of their less"
    shares = [Share(100, 100, 0.0), Share(72, 11, 0.0), Share(71, 11, 0.0)]
    assert next_limits(300, lowered, shares)[0] == 157


def test_who_waits_for_a_dead_host_comes_last() -> None:
    """But for a reserve of a twelfth of what is left."""
    shares = [Share(50, 50, 0.0), Share(50, 10, SOON_S + 1), Share(50, 40, None)]
    told = next_limits(150, [50, 50, 50], shares)
    assert told == [50, 14, 44]
    shares = [dataclasses.replace(s, limit=t) for s, t in zip(shares, told, strict=True)]
    told = next_limits(150, told, shares)
    assert told == [92, 14, 44]
    at_the_end = [Share(50, 50, 0.0), Share(54, 44, SOON_S + 1), Share(44, 44, None)]
    assert next_limits(149, [50, 54, 44], at_the_end) == [51, 44, 44]
    alone = [dataclasses.replace(shares[0], limit=92, wait_s=None), *shares[1:]]
    assert next_limits(150, told, alone) == [54, 14, 44]


def test_a_limit_that_is_not_acknowledged_is_not_changed_again() -> None:
    shares = [Share(0, 0, 0.0), Share(60, 60, 0.0)]
    assert next_limits(100, [40, 60], shares) == [40, 60]


@pytest.mark.parametrize(("max_pages", "num_shards"), [(1, 4), (7, 3), (300, 7), (3, 3)])
def test_the_first_limits_are_the_whole(max_pages: int, num_shards: int) -> None:
    assert sum(first_limits(max_pages, num_shards)) == max_pages

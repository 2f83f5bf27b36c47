"""A frontier of three hosts: opened again and again, each time by a newer owner, and worked off."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import pytest

from pipeline.frontier import Frontier, Turn
from pipeline.frontier_state import Archived, hostname_of
from pipeline.shard_mail import Mailbox


def refusal(url: str, depth: int) -> str | None:
    if depth > 3:
        return "depth"
    return None if hostname_of(url) in ("a", "b", "c") else "host"


def shard_of(host: str, num_shards: int) -> int:
    return ord(host[0]) % num_shards


class Opener:
    """Opens the frontier of one folder, again and again, each time as a newer owner."""

    def __init__(self, root: Path, stack: contextlib.ExitStack) -> None:
        self.root, self.stack, self.epoch = root, stack, 0

    def __call__(
        self, max_pages: int = 1000, warc_bytes: int = 1 << 40, shard: int = 0, of: int = 1, **more
    ) -> Frontier:
        self.epoch += 1
        mailbox = Mailbox(self.root, shard, of, shard_of, self.epoch)
        folder = self.root / f"shard-{shard:05d}"
        opened = Frontier(
            folder, self.epoch, refusal, mailbox, lambda _: warc_bytes, max_pages, **more
        )
        self.stack.callback(opened.close)
        return opened


@pytest.fixture
def frontier(tmp_path: Path) -> Generator[Opener]:
    with contextlib.ExitStack() as stack:
        yield Opener(tmp_path, stack)


def done(number: int = 0, num_bytes: int = 10) -> Archived:
    return Archived(200, "00", "x-00000.warc.gz", 100 + number, num_bytes)


def url_of(turn: Turn | None) -> str | None:
    return turn.entry.url if turn else None


def work_off(f: Frontier) -> list[str]:
    """All that is left, dropped one by one."""
    found: list[str] = []
    while turn := f.take(1e9):
        found.append(turn.entry.url)
        f.drop(turn, "x")
        f.release(turn, 0.0)
    return found

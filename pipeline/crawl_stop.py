"""How a crawl ends before its time: Ctrl-C, SIGTERM, an error; in order, and to go on later."""

import contextlib
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from types import FrameType
from typing import Any

from pipeline.core.remote import ServiceHandle
from pipeline.crawl_service import ShardStatus
from pipeline.crawl_status import StatusBoard


@contextlib.contextmanager
def stopped_in_the_end(shards: Sequence[ServiceHandle], board: StatusBoard) -> Generator[None]:
    """Whatever ends the crawl ends the shards, and the status says so."""
    try:
        yield
    except BaseException as error:
        is_wish = isinstance(error, KeyboardInterrupt)
        if is_wish:
            what = "stopping: what is in flight may take 20 s; Ctrl-C again ends it"
            print(what, file=sys.stderr)
        said = _stop(shards)
        with contextlib.suppress(OSError):  # on a full disk there is no room for this either
            if board.shards:
                board.end(said, "stopped" if is_wish else "ended by an error")
        raise
    _stop(shards)


def _stop(shards: Sequence[ServiceHandle]) -> list[ShardStatus | None]:
    """All at once, for a spot instance has 30 s: each ends what it has in flight; whoever cannot
    is left to its successor. What they said in the end."""
    said: list[ShardStatus | None] = [None] * len(shards)

    def stop(number: int, shard: ServiceHandle) -> None:
        with contextlib.suppress(Exception):
            status = shard.call("stop")
            said[number] = status if status.is_known else None
        with contextlib.suppress(Exception):  # its cluster is gone, and it with that
            shard.stop()

    threads = [threading.Thread(target=stop, args=pair, daemon=True) for pair in enumerate(shards)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


@contextlib.contextmanager
def sigterm_is_ctrl_c() -> Generator[None]:
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

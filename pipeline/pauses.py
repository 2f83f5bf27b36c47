"""How long each host is to be left alone, as one owner of a shard tells the next.

Clocks that never go back do not outlive a machine, so what is told is the time of day; and for how
long, since between the last word and a kill there may have been one more request.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

KIND = "~"  # of a line in the log
_NOT_WORTH_A_LINE_S = 0.1


@dataclasses.dataclass(frozen=True)
class Clocks:
    """Seconds: `now` never goes back and is what the frontier's turns are told in; `wall` counts
    from 1970 and is the same on all machines, more or less."""

    now: Callable[[], float]
    wall: Callable[[], float]


class Pauses:
    """The hosts whose last pause was longer than `usual_s`, which all get. Without clocks nothing
    is remembered."""

    def __init__(self, clocks: Clocks | None, usual_s: float) -> None:
        self._clocks, self._usual_s = clocks, usual_s
        self._long: dict[str, tuple[float, float]] = {}  # until when, after how long

    def note(self, host: str, free_at: float) -> str | None:
        """A host is to be left alone until then: what the log has to say of it, if anything."""
        if self._clocks is None:
            return None
        pause_s = free_at - self._clocks.now()
        if pause_s > self._usual_s + _NOT_WORTH_A_LINE_S:
            until = self._clocks.wall() + pause_s
        elif host in self._long and pause_s > 0:  # what is past says nothing of the next one
            until = pause_s = 0.0
        else:
            return None
        self._keep(host, until, pause_s)
        return f"{KIND}\t{host}\t{until:.3f}\t{pause_s:.3f}"

    def read(self, line: str) -> None:
        """What `note` wrote. Raises ValueError for damage."""
        _, host, until, pause_s = line.split("\t")
        self._keep(host, float(until), float(pause_s))

    def _keep(self, host: str, until: float, pause_s: float) -> None:
        if pause_s > 0:
            self._long[host] = until, pause_s
        else:
            self._long.pop(host, None)

    def to_json(self) -> list[Any]:
        return [[host, round(until, 3), round(s, 3)] for host, (until, s) in self._long.items()]

    def of_json(self, rows: Sequence[Sequence[Any]]) -> None:
        self._long = {host: (float(until), float(pause_s)) for host, until, pause_s in rows}

    def hosts(self) -> Iterator[str]:
        return iter(self._long)

    def free_at(self, host: str) -> float:
        """When a new owner may ask a host that others have asked before it.

        A pause that lasts until later than now has not ended: nobody asked meanwhile, and it ends
        when it was to. After one that has ended the host may have been asked again, a moment before
        the kill: it is left alone for as long once more, from now on. That costs a restart one
        pause of each host at most, and all hosts at the same time.
        """
        if self._clocks is None:
            return 0.0
        until, pause_s = self._long.get(host, (0.0, self._usual_s))
        left_s = until - self._clocks.wall()
        # No longer than it was to be, should the clock have been set back.
        wait_s = min(left_s, pause_s) if left_s > 0 else pause_s
        return self._clocks.now() + max(wait_s, self._usual_s)

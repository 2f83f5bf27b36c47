"""What holds a crawl up: the hosts that still have URLs, when few do; and what their budgets
leave no room for."""

import dataclasses

from pipeline.frontier import Frontier
from pipeline.frontier_state import Host

FEW_HOSTS = 20
_LOOKED_THROUGH = 20_000  # hosts that may be counted while requests go on


@dataclasses.dataclass(frozen=True)
class HostWait:
    """A host with URLs waiting; `turn_in_s` seconds to its next request, 0 while it is asked."""

    name: str
    num_waiting: int
    turn_in_s: float


@dataclasses.dataclass(frozen=True)
class Survey:
    """`num_excluded`: waiting URLs beyond their hosts' budgets of pages, bytes or time."""

    num_excluded: int = 0
    waits: tuple[HostWait, ...] = ()


def survey(frontier: Frontier, now: float) -> Survey:
    """`now` as the frontier's clock. Looks at each host, so call it seldom, and where nothing
    changes the frontier; with many hosts known and at work it says nothing."""
    is_few = frontier.num_hosts_waiting <= FEW_HOSTS
    if not is_few and (len(frontier.hosts) > _LOOKED_THROUGH or not _has_budget(frontier)):
        return Survey()
    num_excluded, waits = 0, list[HostWait]()
    for host in frontier.hosts.values():
        if not (host.queues or host.held or host.deferred):
            continue
        excluded = _excluded(frontier, host)
        num_excluded += excluded
        if is_few and host.num_waiting > excluded:
            is_asked = host.name in frontier.in_flight
            turn_in_s = 0.0 if is_asked else max(0.0, host.next_turn - now)
            waits.append(HostWait(host.name, host.num_waiting - excluded, turn_in_s))
    waits.sort(key=lambda wait: (-wait.num_waiting, wait.name))
    return Survey(num_excluded, tuple(waits[:FEW_HOSTS]))


def _has_budget(frontier: Frontier) -> bool:
    limit = frontier.budget
    return not (limit.pages is limit.num_bytes is limit.seconds is None)


def _excluded(frontier: Frontier, host: Host) -> int:
    if host.is_over:
        return host.num_waiting
    if frontier.budget.pages is None:
        return 0
    room = frontier.budget.pages - host.pages - (host.name in frontier.in_flight)
    return max(0, host.num_waiting - max(0, room))

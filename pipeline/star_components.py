"""Connected components of more edges than one memory holds: large-star and small-star over files.

Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii: Connected Components in MapReduce and Beyond
(SoCC 2014). A task takes a range of nodes; a round is a step of tasks of each kind.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.core.manifest import Counts
from pipeline.core.shard_tasks import ShardResult
from pipeline.dedupe_files import cut_keys, file_url, write_records
from pipeline.dedupe_steps import StepRunner
from pipeline.section_files import read_range

# An edge as it is seen from the node `key`; files hold each edge from both its ends.
STAR = np.dtype([("key", "<u8"), ("other", "<u8")])
Nodes = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class StarTask:
    """The nodes low <= node < high, whose edges lie in the `num_before` files `before`."""

    folder: str
    before: str
    num_before: int
    after: str
    index: int
    low: int
    high: int


def write_edges(folder: str, kind: str, index: int, left: Nodes, right: Nodes) -> None:
    """As `star_components` reads them. An edge of a node with itself is left out."""
    left, right = left[left != right], right[left != right]
    ends = np.concatenate([left, right]), np.concatenate([right, left])
    write_records(file_url(folder, kind, index), STAR, *ends)


def star_components(
    runner: StepRunner, kind: str, num_files: int, num_nodes: int, parts: int
) -> tuple[str, int]:
    """(kind, number) of files that hold, for each node that is not the smallest of its component,
    an edge to the smallest one, seen from both ends, and no other edges.

    A task holds the edges at its nodes, 16 bytes each, and as much four times to sort them; each
    round is cut anew into `parts` of as many edges, but a node's edges are never parted: the
    largest star bounds a task from below. Asserts that it converges within twice the logarithm of
    the nodes and four rounds.
    """
    before, number, folder = kind, num_files, runner.output.url
    for turn in range(2 * math.ceil(math.log2(max(2, num_nodes))) + 4):
        large, small = (f"{kind}-{step}-{turn:02d}" for step in ("large", "small"))
        cuts = cut_keys(folder, before, number, STAR, num_nodes, parts)
        tasks = _tasks(folder, before, number, large, cuts)
        results = runner.map(large, large_star, tasks)
        if not sum(result.facts["not_stars"] for result in results):
            return before, number
        cuts = cut_keys(folder, large, len(cuts), STAR, num_nodes, parts)
        tasks = _tasks(folder, large, len(tasks), small, cuts)
        runner.map(small, small_star, tasks)
        before, number = small, len(cuts)
    raise AssertionError(f"{kind}: components of {num_nodes} nodes did not converge")


def _tasks(
    folder: str, before: str, number: int, after: str, cuts: Sequence[tuple[int, int]]
) -> dict[str, StarTask]:
    return {
        f"{index:05d}": StarTask(folder, before, number, after, index, low, high)
        for index, (low, high) in enumerate(cuts)
    }


def members_of(folder: str, kind: str, number: int, low: int, high: int) -> tuple[Nodes, Nodes]:
    """From the result: (nodes low <= node < high that have an edge, ascending; the smallest of each
    one's component)."""
    nodes, others = _edges(folder, kind, number, low, high)
    first, _ = _groups(nodes)
    return nodes[first], np.minimum(nodes[first], others[first])


def large_star(task: StarTask) -> ShardResult:
    """Each node links its larger neighbours to the smallest of all and itself. Facts: nodes that
    are neither the middle of a star nor a ray with one, smaller neighbour."""
    nodes, others = _edges(task.folder, task.before, task.num_before, task.low, task.high)
    first, group = _groups(nodes)
    smallest = np.minimum(others[first], nodes[first])[group]
    sizes = np.bincount(group, minlength=len(first))
    not_stars = int(((others[first] < nodes[first]) & (sizes > 1)).sum())
    larger = others > nodes
    url = file_url(task.folder, task.after, task.index)
    write_records(url, STAR, others[larger], smallest[larger])
    return ShardResult((), Counts(len(nodes), len(nodes)), {"not_stars": not_stars})


def small_star(task: StarTask) -> ShardResult:
    """Each node links itself and its smaller neighbours to the smallest of them."""
    nodes, others = _edges(task.folder, task.before, task.num_before, task.low, task.high)
    first, group = _groups(nodes)
    smallest = others[first]
    left = np.concatenate([others, nodes[first]])
    write_edges(
        task.folder, task.after, task.index, left, np.concatenate([smallest[group], smallest])
    )
    return ShardResult((), Counts(len(nodes), len(nodes)))


def _edges(folder: str, kind: str, number: int, low: int, high: int) -> tuple[Nodes, Nodes]:
    """(node, other), each edge once, sorted."""
    parts = [read_range(file_url(folder, kind, index), STAR, low, high) for index in range(number)]
    found = np.concatenate([np.zeros(0, STAR), *parts])
    nodes, others = found["key"].astype(np.int64), found["other"].astype(np.int64)
    order = np.lexsort((others, nodes))
    nodes, others = nodes[order], others[order]
    new = np.ones(len(nodes), np.bool_)
    new[1:] = (nodes[1:] != nodes[:-1]) | (others[1:] != others[:-1])
    return nodes[new], others[new]


def _groups(nodes: Nodes) -> tuple[Nodes, Nodes]:
    """(where each node's edges begin, the number of the group of each edge)."""
    new = np.ones(len(nodes), np.bool_)
    new[1:] = nodes[1:] != nodes[:-1]
    return np.flatnonzero(new), np.cumsum(new) - 1

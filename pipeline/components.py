"""Connected components by union-find, with a cap on their size: 8 bytes a node, compiled."""

import dataclasses
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Nodes = npt.NDArray[np.int64]
_compiled: Any = numba.njit(cache=True, nogil=True)


@dataclasses.dataclass(frozen=True)
class Components:
    """`labels[node]` is the smallest node of its component; `refused` are the indices of the edges
    whose two components together would have been larger than the cap, in their order."""

    labels: Nodes
    refused: Nodes


def connected_components(num_nodes: int, left: Nodes, right: Nodes, max_size: int) -> Components:
    """Join nodes along the edges (left[i], right[i]) in the order given, so give the surest first.

    Without a refusal the order does not matter. Near-linear in nodes and edges.
    """
    parent = np.full(num_nodes, -1, np.int64)  # of a root: minus the size of its component
    refused = np.zeros(len(left), np.bool_)
    _join(parent, np.asarray(left, np.int64), np.asarray(right, np.int64), max_size, refused)
    _settle(parent)
    return Components(parent, np.flatnonzero(refused))


@_compiled
def _root(parent: Any, node: Any) -> Any:
    while parent[node] >= 0:
        above = parent[node]
        if parent[above] >= 0:
            parent[node] = parent[above]  # halve the path
        node = above
    return node


@_compiled
def _join(parent: Any, left: Any, right: Any, max_size: Any, refused: Any) -> None:
    for edge in range(len(left)):
        one, other = _root(parent, left[edge]), _root(parent, right[edge])
        if one == other:
            continue
        if -parent[one] - parent[other] > max_size:
            refused[edge] = True
            continue
        low, high = min(one, other), max(one, other)
        # The smaller number wins, not the larger tree: halving alone keeps paths short enough.
        parent[low] += parent[high]
        parent[high] = low


@_compiled
def _settle(parent: Any) -> None:
    """Each node's root in its place. Parents are smaller than their children, so one pass does."""
    for node in range(len(parent)):
        if parent[node] < 0:
            parent[node] = node
        else:
            parent[node] = parent[parent[node]]

"""Connected components by union-find, with a cap on their size."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Components:
    """`labels[node]` is the smallest node of its component; `refused` are the edges whose two
    components together would have been larger than the cap."""

    labels: list[int]
    refused: list[tuple[int, int]]


def connected_components(
    num_nodes: int, edges: Iterable[tuple[int, int]], max_size: int
) -> Components:
    """Join nodes along the edges in the order given, so give the surest edges first.

    Without a refusal the order does not matter. Near-linear in nodes and edges.
    """
    parent = list(range(num_nodes))
    size = [1] * num_nodes
    refused: list[tuple[int, int]] = []

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]  # halve the path
            node = parent[node]
        return node

    for left, right in edges:
        low, high = sorted((root(left), root(right)))
        if low == high:
            continue
        if size[low] + size[high] > max_size:
            refused.append((left, right))
            continue
        # The smaller number wins, not the larger tree: halving alone keeps paths short enough.
        parent[high] = low
        size[low] += size[high]
    return Components([root(node) for node in range(num_nodes)], refused)

"""From band keys to candidate pairs, and from verified pairs to who stands for whom.

Nodes are numbered in the order of the keep rule: of two alike documents the smaller stays.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ALL_PAIRS = 16  # a larger bucket is joined by a star and a chain, so its pairs stay linear


@dataclass(frozen=True)
class Edge:
    """Two nodes, left < right, whose texts have this exact Jaccard similarity."""

    left: int
    right: int
    similarity: float


def candidate_pairs(band_keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Nodes with an equal key in the same band: (pairs, 2), left < right, sorted, no pair twice.

    `band_keys` is (nodes, bands). A bucket of more than 16 nodes gives pairs with its smallest
    node and between neighbours only.
    """
    pairs: set[tuple[int, int]] = set()
    for band in range(band_keys.shape[1]):
        keys = band_keys[:, band]
        order = np.argsort(keys, kind="stable")  # nodes ascend within a bucket
        bounds = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, bounds):
            if len(bucket) > 1:
                pairs.update(_bucket_pairs([int(node) for node in bucket]))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _bucket_pairs(nodes: list[int]) -> Iterable[tuple[int, int]]:
    if len(nodes) <= _ALL_PAIRS:
        return ((a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :])
    star = [(nodes[0], node) for node in nodes[1:]]
    return [*star, *itertools.pairwise(nodes[1:])]


def representatives(edges: Iterable[Edge]) -> dict[int, Edge]:
    """{removed node: the edge to the kept node that stands for it}.

    Node by node in the keep order: one that is alike an already kept node goes, by its most
    similar one. So each removed node has a verified edge to a kept node, no two kept nodes have
    one, and no chain of pairs removes what is not itself a near-duplicate.
    """
    smaller: dict[int, list[Edge]] = {}
    for edge in edges:
        smaller.setdefault(edge.right, []).append(edge)
    removed: dict[int, Edge] = {}
    for node in sorted(smaller):
        to_kept = [edge for edge in smaller[node] if edge.left not in removed]
        if to_kept:
            removed[node] = min(to_kept, key=lambda edge: (-edge.similarity, edge.left))
    return removed

"""From band keys to candidate pairs, and from verified pairs to who stands for whom.

Nodes are numbered in the order of the keep rule: of two alike documents the smaller stays.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Nodes = npt.NDArray[np.int64]
_ALL_PAIRS = 16  # a larger bucket is joined by a star and a chain, so its pairs stay linear
_compiled: Any = numba.njit(cache=True, nogil=True)


def bucket_pairs(bounds: Nodes, nodes: Nodes, num_earlier: int = 0) -> tuple[Nodes, Nodes]:
    """Candidate pairs (left, right): left stands before right in its bucket; a pair may come twice.

    Bucket i is nodes[bounds[i] : bounds[i + 1]], in the order of the keep rule. One of more than 16
    nodes gives pairs with its first node and between neighbours only. Nodes below `num_earlier`
    are of earlier corpora, which are deduplicated among themselves: two of them make no pair.
    """
    count = int(_fill_pairs(bounds, nodes, num_earlier, np.zeros((0, 2), np.int64)))
    pairs = np.empty((count, 2), np.int64)
    _fill_pairs(bounds, nodes, num_earlier, pairs)
    return pairs[:, 0], pairs[:, 1]


def num_pairs(bounds: Nodes, nodes: Nodes, num_earlier: int = 0) -> int:
    """How many all pairs of all buckets were, of which `bucket_pairs` leaves some out."""
    if len(bounds) < 2:
        return 0
    sizes = np.diff(bounds)
    own = np.add.reduceat((nodes >= num_earlier).astype(np.int64), bounds[:-1])
    before = sizes - own  # two of them make no pair
    return int((sizes * (sizes - 1) // 2 - before * (before - 1) // 2).sum())


@_compiled
def _fill_pairs(bounds: Any, nodes: Any, num_earlier: Any, pairs: Any) -> Any:
    """Their number; into `pairs`, if it has room at all."""
    count = 0
    for bucket in range(len(bounds) - 1):
        start, end = bounds[bucket], bounds[bucket + 1]
        all_pairs = end - start <= _ALL_PAIRS
        for i in range(start, end):
            for j in range(i + 1, end):
                if not all_pairs and i != start and j != i + 1:
                    break
                both_earlier = nodes[i] < num_earlier and nodes[j] < num_earlier
                if both_earlier or nodes[i] == nodes[j]:
                    continue
                if len(pairs):
                    pairs[count, 0] = nodes[i]
                    pairs[count, 1] = nodes[j]
                count += 1
    return count


def different_pairs(left: Nodes, right: Nodes) -> tuple[Nodes, Nodes]:
    """Each pair once, sorted by its right node, then its left one."""
    order = np.lexsort((left, right))
    left, right = left[order], right[order]
    new = np.ones(len(left), np.bool_)
    new[1:] = (left[1:] != left[:-1]) | (right[1:] != right[:-1])
    return left[new], right[new]


def representatives(left: Nodes, right: Nodes, similarity: npt.NDArray[np.float64]) -> Nodes:
    """Which edges (left[i] < right[i]) stand for a removal: right[i] goes, and left[i] stays.

    Node by node in the keep order: one that is alike an already kept node goes, by its most
    similar one. So each removed node has a verified edge to a kept node, no two kept nodes have
    one, and no chain of pairs removes what is not itself a near-duplicate. Ascending by node.
    """
    if not len(left):
        return np.zeros(0, np.int64)
    order = np.lexsort((left, -similarity, right))
    num_nodes = int(right.max()) + 1
    return order[_first_to_kept(left[order], right[order], num_nodes)]


@_compiled
def _first_to_kept(left: Any, right: Any, num_nodes: Any) -> Any:
    removed = np.zeros(num_nodes, np.bool_)
    chosen = np.zeros(len(left), np.bool_)
    for edge in range(len(left)):
        if not removed[left[edge]] and not removed[right[edge]]:
            removed[right[edge]] = True
            chosen[edge] = True
    return chosen


def match_table(
    choices: Sequence[tuple[int, int]], similarities: Sequence[float]
) -> list[tuple[float, ...]]:
    """The S-curves of these (bands, rows): for each similarity a row of it and the probability, by
    each choice, that two sets so alike become candidates: 1 - (1 - s ** rows) ** bands (Leskovec,
    Rajaraman, Ullman: Mining of Massive Datasets, section 3.4.2)."""
    return [
        (similarity, *(1 - (1 - similarity**rows) ** bands for bands, rows in choices))
        for similarity in similarities
    ]

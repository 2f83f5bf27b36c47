"""Boosted decision trees: only the answering, compiled; benchmarks/train_extract.py grows them.

A tree's inner nodes are numbered from its root; a child below zero is the leaf ~child.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)


@dataclass(frozen=True)
class Trees:
    """`roots`: first node of each tree, -1 - leaf for a tree without nodes; tree t belongs to
    class t % num_classes. Left if value <= threshold."""

    feature: Any
    threshold: Any
    left: Any
    right: Any
    leaf: Any
    roots: Any
    num_classes: int

    def scores(self, features: Any) -> Any:
        """(rows, num_classes) float64 sums of leaves, before any link function."""
        return _scores(
            np.ascontiguousarray(features, dtype=np.float32), self.feature, self.threshold,
            self.left, self.right, self.leaf, self.roots, self.num_classes,
        )  # fmt: skip

    def probabilities(self, features: Any) -> Any:
        """One class: (rows,) by the logistic function. More: (rows, num_classes) by softmax."""
        scores = self.scores(features)
        if self.num_classes == 1:
            return 1.0 / (1.0 + np.exp(-scores[:, 0]))
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def to_arrays(self, name: str) -> dict[str, Any]:
        fields = ("feature", "threshold", "left", "right", "leaf", "roots")
        arrays = {f"{name}.{field}": getattr(self, field) for field in fields}
        return {**arrays, f"{name}.num_classes": np.array(self.num_classes)}

    @staticmethod
    def of_arrays(name: str, arrays: Mapping[str, Any]) -> "Trees":
        """Raises ValueError where a number points outside of the trees: the loop does not look."""
        fields = ("feature", "threshold", "left", "right", "leaf", "roots")
        found = {field: np.ascontiguousarray(arrays[f"{name}.{field}"]) for field in fields}
        trees = Trees(**found, num_classes=int(arrays[f"{name}.num_classes"]))
        nodes, leaves = len(trees.feature), len(trees.leaf)
        for children in (trees.left, trees.right, trees.roots):
            if len(children) and not (-leaves <= children.min() and children.max() < nodes):
                raise ValueError(f"the trees {name} point outside of their {nodes} nodes")
        numbers = np.arange(nodes)
        for children in (trees.left, trees.right):
            if ((children >= 0) & (children <= numbers)).any():
                raise ValueError(f"the trees {name} run in a circle")
        return trees


@_compiled
def _scores(
    features: Any, feature: Any, threshold: Any, left: Any, right: Any, leaf: Any, roots: Any,
    num_classes: Any,
) -> Any:  # fmt: skip
    rows = features.shape[0]
    result = np.zeros((rows, num_classes))
    for row in range(rows):
        values = features[row]
        for tree in range(roots.shape[0]):
            node = roots[tree]
            while node >= 0:
                goes_left = values[feature[node]] <= threshold[node]
                node = left[node] if goes_left else right[node]
            result[row, tree % num_classes] += leaf[-1 - node]
    return result

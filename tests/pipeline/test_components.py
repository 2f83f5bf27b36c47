import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.components import Components, connected_components

_NODES = 12
_EDGES = st.lists(st.tuples(st.integers(0, _NODES - 1), st.integers(0, _NODES - 1)), max_size=25)


def components(num_nodes: int, edges: list[tuple[int, int]], cap: int) -> Components:
    ends = np.array(edges, np.int64).reshape(-1, 2)
    return connected_components(num_nodes, ends[:, 0], ends[:, 1], cap)


def by_flooding(edges: list[tuple[int, int]]) -> list[int]:
    labels = list(range(_NODES))
    for _ in range(_NODES):
        for left, right in edges:
            labels[left] = labels[right] = min(labels[left], labels[right])
    return labels


@settings(deadline=None)  # the first one waits for the compiler
@given(_EDGES)
def test_components_are_what_flooding_finds(edges: list[tuple[int, int]]):
    found = components(_NODES, edges, _NODES)
    assert found.labels.tolist() == by_flooding(edges)
    assert found.refused.tolist() == []


@settings(deadline=None)
@given(_EDGES, st.integers(1, 5))
def test_the_cap_holds_and_every_refusal_is_told(edges: list[tuple[int, int]], cap: int):
    found = components(_NODES, edges, cap)
    labels = found.labels.tolist()
    assert max(labels.count(label) for label in labels) <= cap
    refused = found.refused.tolist()
    kept = [edge for index, edge in enumerate(edges) if index not in refused]
    assert labels == by_flooding(kept)
    for index in refused:  # neither was one already, nor could they have become one
        left, right = edges[index]
        assert labels[left] != labels[right] or edges[index] in kept
        before = by_flooding([e for i, e in enumerate(edges[:index]) if i not in refused])
        assert before.count(before[left]) + before.count(before[right]) > cap


def test_a_long_chain_and_a_large_star_are_linear():
    size = 1_000_000
    nodes = np.arange(size)
    chain = connected_components(size, nodes[:-1][::-1], nodes[1:][::-1], size)
    assert not chain.labels.any()
    star = connected_components(size, np.zeros(size - 1, np.int64), nodes[1:], size)
    assert not star.labels.any()


def test_nothing():
    assert components(0, [], 1).labels.tolist() == []

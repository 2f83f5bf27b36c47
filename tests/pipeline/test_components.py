from hypothesis import given
from hypothesis import strategies as st

from pipeline.components import connected_components

_NODES = 12
_EDGES = st.lists(st.tuples(st.integers(0, _NODES - 1), st.integers(0, _NODES - 1)), max_size=25)


def by_flooding(edges: list[tuple[int, int]]) -> list[int]:
    labels = list(range(_NODES))
    for _ in range(_NODES):
        for left, right in edges:
            labels[left] = labels[right] = min(labels[left], labels[right])
    return labels


@given(_EDGES)
def test_components_are_what_flooding_finds(edges: list[tuple[int, int]]):
    found = connected_components(_NODES, edges, _NODES)
    assert found.labels == by_flooding(edges)
    assert found.refused == []


@given(_EDGES, st.integers(1, 5))
def test_the_cap_holds_and_every_refusal_is_told(edges: list[tuple[int, int]], cap: int):
    found = connected_components(_NODES, edges, cap)
    assert max(found.labels.count(label) for label in found.labels) <= cap
    kept = [edge for edge in edges if edge not in found.refused]
    assert found.labels == by_flooding(kept)
    for left, right in found.refused:
        assert edges.count((left, right)) >= 1


def test_a_long_chain_and_a_large_star_are_linear():
    size = 200_000
    chain = ((node, node + 1) for node in reversed(range(size - 1)))
    assert set(connected_components(size, chain, size).labels) == {0}
    star = ((0, node) for node in range(1, size))
    assert set(connected_components(size, star, size).labels) == {0}


def test_nothing():
    assert connected_components(0, [], 1).labels == []

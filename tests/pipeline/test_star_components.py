"""Components over files against the union-find in memory."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.components import connected_components
from pipeline.core.manifest import StageOutput
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe_steps import StepRunner
from pipeline.star_components import members_of, star_components, write_edges


@pytest.fixture(scope="module", autouse=True)
def small_sections():
    """So that small files, too, are cut into parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.section_files._SECTION", 8)
        yield


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    """components(nodes, edges, files, parts): labels and rounds by stars, checked."""
    root = str(tmp_path_factory.mktemp("stars"))
    numbers = itertools.count()

    def go(num_nodes: int, left: np.ndarray, right: np.ndarray, files: int = 2, parts: int = 3):
        output = StageOutput.of(root, "stars", 1, {"run": next(numbers)}, {})
        for index in range(files):
            write_edges(output.url, "links", index, left[index::files], right[index::files])
        runner = StepRunner(output, InlineRuntime())
        kind, number = star_components(runner, "links", files, num_nodes, parts)
        labels, seen = np.arange(num_nodes), set[int]()
        for low in range(0, num_nodes, 7 + num_nodes // 5):
            nodes, smallest = members_of(output.url, kind, number, low, low + 7 + num_nodes // 5)
            assert len(set(nodes.tolist())) == len(nodes)
            seen.update(nodes.tolist())
            labels[nodes] = smallest
        expected = connected_components(num_nodes, left, right, num_nodes).labels
        assert (labels == expected).all()
        apart = left != right
        assert seen == {*left[apart].tolist(), *right[apart].tolist()}
        rounds = int(kind.rpartition("-")[2]) + 1 if "-" in kind else 0
        return labels, rounds

    return go


_NODES = 40
_EDGES = st.lists(st.tuples(st.integers(0, _NODES - 1), st.integers(0, _NODES - 1)), max_size=60)


@settings(max_examples=40, deadline=None)
@given(_EDGES, st.integers(1, 3), st.integers(1, 4))
def test_any_graph(components, edges, files, parts):
    ends = np.array(edges, np.int64).reshape(-1, 2)
    components(_NODES, ends[:, 0], ends[:, 1], files, parts)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_long_path(components, shuffled):
    nodes = np.arange(20_000)
    if shuffled:
        np.random.default_rng(1).shuffle(nodes)
    labels, rounds = components(20_000, nodes[:-1], nodes[1:])
    assert not labels.any()
    assert rounds <= 16  # some log2(20,000), not a round for each node of the path


def test_stars(components):
    nodes = np.arange(30_000)
    labels, rounds = components(30_000, np.zeros(29_999, np.int64), nodes[1:])
    assert not labels.any()
    assert rounds == 0  # one already: nothing to do
    labels, rounds = components(30_000, np.full(29_999, 29_999), nodes[:-1])
    assert not labels.any()
    assert rounds <= 2
    # A star of stars: its middles are linked in a ring.
    middles = np.arange(0, 30_000, 100)
    left = np.r_[np.repeat(middles, 99), middles]
    right = np.r_[np.delete(nodes, middles), np.roll(middles, 1)]
    assert not components(30_000, left, right)[0].any()


def test_random_graphs_around_the_threshold(components):
    rng = np.random.default_rng(2)
    for share in (0.3, 0.5, 0.7, 2.0):
        number = int(20_000 * share)
        components(20_000, *rng.integers(0, 20_000, (2, number)), files=4, parts=8)


def test_nothing(components):
    none = np.zeros(0, np.int64)
    assert components(5, none, none)[0].tolist() == [0, 1, 2, 3, 4]

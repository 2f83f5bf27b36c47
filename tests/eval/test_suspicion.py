"""The statistics of suspicion: against scipy and brute force, and chance accuses as rarely as said."""

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from eval.suspicion import Rule, associations, concordance, features_of, standing_apart
from tests.eval.label_records import sentence


def events_of(seed: int, labelers: int, tasks: int):
    draw = random.Random(seed)
    people = [f"p{k}" for k in range(labelers)]
    return {
        "disagrees": [(tuple(draw.sample(people, 2)), draw.random() < 0.3) for _ in range(tasks)],
        "first": [((draw.choice(people),), draw.random() < 0.5) for _ in range(tasks)],
    }


def test_chance_accuses_a_labeler_no_more_often_than_alpha_says() -> None:
    """The whole family's error over seeds, without the gap that makes it rarer still."""
    seeds = 200
    found = [standing_apart(events_of(s, 6, 150), 0.2, 20, 0.0) for s in range(seeds)]
    for alpha in (0.05, 0.2):
        false = sum(bool(one) and one[0].p <= alpha for one in found)
        assert false <= stats.binom.interval(0.99, seeds, alpha)[1]
    assert any(found)  # it is no dead test


def test_traits_against_scipys_fisher_test() -> None:
    events = {"x": [(("a",), i < 30) for i in range(40)] + [(("b",), i < 20) for i in range(60)]}
    (found,) = standing_apart(events, 1.0, 5, 0.0)
    exact = stats.fisher_exact([[30, 10], [20, 40]], alternative="greater").pvalue
    assert found.p == pytest.approx(2 * exact)  # two labelers were tested
    assert (found.labeler, found.rate, found.rest) == ("a", 0.75, pytest.approx(1 / 3))
    wilson = stats.binomtest(30, 40).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((wilson.low, wilson.high))


def test_kendalls_tau_against_scipy() -> None:
    draw = random.Random(6)
    for _ in range(50):
        left, right = draw.sample(range(6), 6), draw.sample(range(6), 6)
        assert concordance(left, right) == pytest.approx(stats.kendalltau(left, right).statistic)
    assert concordance([1, 1], [1, 2]) == 0.0
    assert concordance([1, 2, 2], [2, 1, 1]) == -1.0


def test_p_values_are_fishers_and_the_counts_are_right() -> None:
    draw = random.Random(7)
    texts = [sentence(draw, 10) for _ in range(300)]
    outcomes = [None if draw.random() < 0.1 else draw.choice("abbbbbbbbb") for _ in texts]
    for i in range(0, 300, 9):
        texts[i] += " trigger"
        outcomes[i] = "a" if i % 27 else "b"
    features = features_of(texts, [[] for _ in texts], 5)
    found = {one.texts: one for one in associations(features, {"x": outcomes}, Rule(1e9, 5, 0.01))}
    has = [("trigger" in text.split()) for text in texts]
    usable = [i for i, value in enumerate(outcomes) if value]
    both = tuple(i for i in usable if has[i] and outcomes[i] == "a")
    one = found[both]
    assert (one.carried, one.having) == (
        sum(has[i] for i in usable), sum(outcomes[i] == "a" for i in usable)
    )  # fmt: skip
    square = np.zeros((2, 2), int)
    for i in usable:
        square[int(not has[i]), int(outcomes[i] != "a")] += 1
    exact = stats.fisher_exact(square, alternative="greater").pvalue
    columns = features.has[np.array(usable)].sum(axis=0)
    assert one.p == pytest.approx(min(1.0, exact * 2 * int((columns >= 5).sum())))


def test_features_against_brute_force() -> None:
    draw = random.Random(8)
    texts = [sentence(draw, draw.randint(0, 14)) for _ in range(80)]
    features = features_of(texts, [[] for _ in texts], 4)
    brute: dict[tuple, set[int]] = {}
    for i, text in enumerate(texts):
        words = text.split()
        for size in (1, 2, 3):
            for at in range(len(words) - size + 1):
                brute.setdefault((size, *words[at : at + size]), set()).add(i)
        if len(words) >= 8:
            brute.setdefault(("start", *words[:4]), set()).add(i)
            brute.setdefault(("end", *words[-4:]), set()).add(i)
    expected = sorted(tuple(sorted(at)) for at in brute.values() if len(at) >= 4)
    columns = features.has.tocsc()
    found = [
        tuple(sorted(columns.indices[a:b].tolist()))
        for a, b in itertools.pairwise(columns.indptr.tolist())
    ]
    assert sorted(found) == expected


def test_chance_makes_a_trigger_no_more_often_than_alpha_says() -> None:
    """Outcomes drawn without regard to the prompts; no shift is asked for, so p alone decides."""
    draw = random.Random(9)
    texts = [sentence(draw, 12) for _ in range(300)]
    features = features_of(texts, [[] for _ in texts], 5)
    alpha, seeds = 0.2, 300
    smallest: list[float] = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        outcomes = {"x": generator.choice(["a", "b"], len(texts), p=[0.3, 0.7]).tolist()}
        found = associations(features, outcomes, Rule(1e9, 5, 1e-9))
        smallest.append(min((one.p for one in found), default=1.0))
    false = sum(p <= alpha for p in smallest)
    assert 0 < false <= stats.binom.interval(0.99, seeds, alpha)[1]

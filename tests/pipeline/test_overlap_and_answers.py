"""Shared n-grams and near-duplicates of short texts against brute force; how answers disagree."""

import random

import pytest

from pipeline.text.answers import disagreement, refuses
from pipeline.text.overlap import Words, near_clusters, shared_ngrams
from tests.eval.label_records import sentence


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ("Yes.", "yes", None),
        ("", "", None),
        ("It is 7", "It is 8", "differ in a number"),
        ("I'm sorry, no.", "The heap.", "refuses"),
        ("the moon", "an apple tree", "hardly a word"),
        ("it does keep the order", "it doesn't keep the order", "denies"),
    ],
)
def test_how_two_answers_disagree(left, right, said) -> None:
    found = disagreement(left, right)
    assert (found is None) if said is None else said in found[0]


def test_shared_ngrams_against_brute_force() -> None:
    draw = random.Random(2)
    texts = [sentence(draw, draw.randint(0, 12)) for _ in range(60)]
    texts = [" ".join(word[:2] for word in text.split()) for text in texts]  # 45 words: many meet
    items = [" ".join(text.split()[draw.randrange(3) :]) for text in draw.sample(texts, 25)]

    def grams(text, size):
        words = text.split()
        return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]

    expected: dict[tuple[int, int], int] = {}
    for number, item in enumerate(items):
        size = min(5, len(item.split()))
        if size < 2:
            continue
        mine = set(grams(item, size))
        mine -= {g for k, other in enumerate(items) if k != number for g in grams(other, size)}
        for at, text in enumerate(texts):
            if size < 3 and len(text.split()) != size:
                continue
            if hits := sum(gram in mine for gram in grams(text, size)):
                expected[number, at] = hits
    assert len(expected) > 10
    assert shared_ngrams(Words.of(texts), Words.of(items), 5, 3, 2) == expected


def test_near_clusters_hold_the_near_and_no_others() -> None:
    draw = random.Random(4)
    base = [sentence(draw, 60) for _ in range(40)]
    near = [f"{text} now" for text in base]
    texts = [*base, *(text.upper() for text in base[:5]), *near, "", " ", "!"]
    found = near_clusters(texts)
    assert found[:40] == list(range(40))
    assert found[40:45] == list(range(5))
    assert sum(a == b for a, b in zip(found[45:85], range(40), strict=True)) >= 39
    assert found[85:] == [85, 85, 87]
    assert near_clusters([]) == []


@pytest.mark.parametrize(
    ("answer", "is_one"),
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("Sorry, that is not something I do.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I cannot talk about that colour.", True),
        ("The heap cannot be empty.", False),
        ("She said sorry and left.", False),
        ("", False),
    ],
)
def test_what_a_refusal_is(answer, is_one) -> None:
    assert refuses(answer) is is_one

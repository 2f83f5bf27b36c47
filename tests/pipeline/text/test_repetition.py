from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.text.repetition import DUPLICATE_SIZES, TOP_SIZES, ngram_shares

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "ñ", "日本"]), max_size=40)


def shares(words: Sequence[str], salt: int = 1) -> list[float]:
    first = list(dict.fromkeys(words))
    numbers = np.array([first.index(word) for word in words], np.uint32)
    lengths = np.array(list(map(len, words)), np.int32)
    return ngram_shares(numbers, lengths, np.uint64(salt)).tolist()


def ngrams(words, size):
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def brute_force_top(words, size) -> float:
    """Rae et al. 2021, A.1.1: characters within the most common n-gram."""
    counts = Counter(ngrams(words, size))
    most = max(counts.values(), default=1)
    if most == 1:
        return 0.0
    longest = max(len("".join(ngram)) for ngram, count in counts.items() if count == most)
    return min(1.0, most * longest / len("".join(words)))


def brute_force_duplicates(words, size, *, with_first: bool) -> float:
    """Characters in duplicate n-grams, overlapping ones counted once."""
    grams = ngrams(words, size)
    covered = set()
    for start, gram in enumerate(grams):
        others = grams[:start] + (grams[start + 1 :] if with_first else [])
        if gram in others:
            covered |= set(range(start, start + size))
    return sum(len(words[index]) for index in covered) / len("".join(words))


@settings(deadline=None)  # the first call compiles
@given(WORDS, st.integers(0, 2**64 - 1))
@example(["bb"] * 20, 1)
@example(["a", "bb"] * 12 + ["ccc"] + ["bb", "a"] * 9, 1)
def test_ngrams_are_what_brute_force_counts(words, salt):
    found = shares(words, salt)
    if not words:
        assert found == [0.0] * 15
        return
    expected = [brute_force_top(words, size) for size in TOP_SIZES]
    for with_first in (False, True):
        expected += [
            brute_force_duplicates(words, size, with_first=with_first) for size in DUPLICATE_SIZES
        ]
    assert found == pytest.approx(expected)


def test_top_ngram_by_hand():
    words = ["ab", "cd", "ab", "cd", "ab", "cd", "x"]  # "ab cd" three times: 12 of 13 characters
    assert shares(words)[0] == 12 / 13
    assert shares(["all", "words", "differ", "here"]) == [0.0] * 15


def test_one_word_a_million_times_is_linear():
    found = shares(["word"] * 1_000_000)
    assert found[:3] == [1.0] * 3
    assert found[9:] == [1.0] * 6


def test_ngrams_that_overlap_count_each_word_once():
    words = [*"abcdef", *"abcdef", *"cdefgh", *"xy", *"cdefgh"]
    found = shares(words)
    for size in DUPLICATE_SIZES:
        expected = brute_force_duplicates(words, size, with_first=True)
        assert found[size + 4] == pytest.approx(expected)

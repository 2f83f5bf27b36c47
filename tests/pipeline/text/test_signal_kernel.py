import re
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.text import signal_kernel

BLANKS = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())
BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
TEXTS = st.text(st.sampled_from(f"{BLANKS}{BREAKS * 3}\n\n\n ab.Ss日\u200b\ud800"), max_size=60)


def points_of(text: str):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def parts(text: str, spans) -> list[str]:
    return [text[start:end] for start, end in spans[:, :2].tolist()]


def layout(text: str):
    return signal_kernel.layout(points_of(text), signal_kernel.classes())


def test_line_ends_are_those_of_splitlines():
    found = [c for c in map(chr, range(sys.maxunicode + 1)) if len(f"a{c}b".splitlines()) > 1]
    assert sorted(found) == sorted(BREAKS)
    kinds = signal_kernel.classes()
    assert [chr(p) for p in np.flatnonzero(kinds & signal_kernel.BREAK)] == sorted(BREAKS)
    assert [chr(p) for p in np.flatnonzero(kinds & signal_kernel.SPACE)] == sorted(BLANKS)
    assert set(BREAKS) <= set(BLANKS)


@settings(max_examples=500, deadline=None)
@given(TEXTS)
@example("")
@example("\r\n\n a\r\n \r\nb")
def test_words_lines_and_paragraphs_are_pythons(text: str):
    words, lines, paragraphs, totals = layout(text)
    expected = [line.strip() for line in text.splitlines() if line.strip()]
    assert parts(text, words) == text.split()
    assert parts(text, lines) == expected
    split = re.split(r"\n\s*\n", text)
    assert parts(text, paragraphs) == [part.strip() for part in split if part.strip()]
    assert lines[:, signal_kernel.WORDS].tolist() == [len(line.split()) for line in expected]
    assert totals[signal_kernel.CHARACTERS] == sum(map(len, text.split()))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "ab", "ba", "日", "a\0", "\0a"])), st.integers(0, 2**64 - 1)
)
def test_equal_words_get_one_number_in_their_order(words: list[str], salt: int):
    text = " ".join(words)
    numbers = signal_kernel.numbered(points_of(text), layout(text)[0], np.uint64(salt))
    first = list(dict.fromkeys(words))
    assert numbers.tolist() == [first.index(word) for word in words]


@pytest.mark.parametrize("room", [2, 3, 100_000])
def test_numbers_of_many_different_words(room: int):
    text = " ".join(f"w{index % room}" for index in range(200_000))
    numbers = signal_kernel.numbered(points_of(text), layout(text)[0], np.uint64(5))
    assert numbers.tolist() == [index % room for index in range(200_000)]


def test_repeats_by_hand():
    """aa b aa aa: two repeats of 4 characters; with the first three of 6; of four of 7."""
    text = "aa\nb\naa\naa"
    _, lines, _, _ = layout(text)
    numbers = signal_kernel.numbered(points_of(text), lines, np.uint64(1))
    assert signal_kernel.repeats(numbers, lines).tolist() == [2, 4, 3, 6, 4, 7]
    none = np.zeros((0, 2), np.int32)
    assert signal_kernel.repeats(np.zeros(0, np.uint32), none).tolist() == [0] * 6


def test_a_nul_is_no_part_of_a_stop_word():
    assert layout("of\0 \0of")[3][signal_kernel.STOPS] == 0
    assert layout("(Of) of. THE")[3][signal_kernel.STOPS] == 3

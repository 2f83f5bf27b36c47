"""Compiled loops over a text's code points: its words, lines and paragraphs in one pass.

Words are what white space parts, lines what `str.splitlines` parts; blank ones are none, and the
white space around a line or paragraph is no part of it. pipeline/text/quality_signals.py is the
door.
"""

import functools
import sys
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from pipeline.text.shingle_kernel import mix

SPACE, BREAK, ALPHA, UPPER, DIGIT = (np.uint16(1 << bit) for bit in range(5))
MARK, CLOSER, STRIPPED, BULLET, TERMINAL, LETTER_S = (np.uint16(1 << bit) for bit in range(5, 11))
_COUNTED = UPPER | DIGIT | MARK | CLOSER  # most characters are none of these
# Columns of a line: it begins at START, ends before END, ...
START, END, WORDS, LONGEST, SENTENCES, UPPERS, DIGITS, HAS_S = range(8)
LINE_COLUMNS = 8
# What the words add up to; STOP_KINDS has a bit for each stop word.
LETTERED, LONGEST_WORD, CHARACTERS, STOPS, STOP_KINDS = range(5)
SHORT_LINE, LONG_WORD = 30, 1000  # characters
_STOPS = ("the", "be", "to", "of", "and", "that", "have", "with")
_LONGEST_STOP = 4
_STOP_CODES = np.array(
    [sum(ord(c) << (8 * at) for at, c in enumerate(word)) for word in _STOPS], np.uint32
)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_NEWLINE, _DOT, _ELLIPSIS = ord("\n"), ord("."), ord("…")
_A, _Z, _CASE = ord("A"), ord("Z"), np.uint32(32)
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
# A call with arrays counts references to them, which costs more than such a function does.
_inlined: Any = numba.njit(nogil=True, boundscheck=False, inline="always")

_MEMBERS = (
    (BREAK, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"),
    (MARK, ".!?"),
    (CLOSER, "\"')]”’»"),
    (STRIPPED, ".,;:!?\"'()[]"),
    (BULLET, "•‣⁃◦*-–●■▪"),
    (TERMINAL, ".?!\"'"),  # C4's; FineWeb has the same five
    (LETTER_S, "sS"),
)


@functools.cache
def classes() -> npt.NDArray[np.uint16]:
    """(1114112,): what each code point is."""
    number = sys.maxunicode + 1
    every = list(map(chr, range(number)))
    flags = np.zeros(number, np.uint16)
    for flag, test in (
        (SPACE, str.isspace),
        (ALPHA, str.isalpha),
        (UPPER, str.isupper),
        (DIGIT, str.isdigit),
    ):
        flags |= np.fromiter(map(test, every), np.bool_, number) * flag
    for flag, members in _MEMBERS:
        flags[[ord(member) for member in members]] |= flag
    return flags


@_compiled
def layout(points: Any, kinds: Any) -> Any:
    """(words (n, 2), lines (m, LINE_COLUMNS), paragraphs (k, 2), word totals (5,)) of code points
    and `classes()`. Room for 24 bytes a character; prose takes 3 of them.

    Paragraphs are parted by white space with two newlines in it.
    """
    room = len(points) // 2 + 1
    words = np.empty((room, 2), np.int32)
    lines = np.empty((room, LINE_COLUMNS), np.int32)
    paragraphs = np.empty((room, 2), np.int32)
    totals = np.zeros(5, np.int64)
    num_words = num_lines = num_paragraphs = 0
    is_line_open, newlines, at, end = False, 2, 0, len(points)
    while at < end:
        flags = kinds[points[at]]
        if flags & SPACE:
            if flags & BREAK:
                is_line_open = False
                newlines += points[at] == _NEWLINE
            at += 1
            continue
        if not is_line_open:
            lines[num_lines] = 0
            lines[num_lines, START] = at
            num_lines += 1
            is_line_open = True
        if newlines >= 2:
            paragraphs[num_paragraphs, 0] = at
            num_paragraphs += 1
        newlines = 0
        words[num_words, 0] = at
        at = _word(points, kinds, at, lines, num_lines - 1, totals)
        words[num_words, 1] = at
        lines[num_lines - 1, END] = at
        paragraphs[num_paragraphs - 1, 1] = at
        num_words += 1
    return words[:num_words], lines[:num_lines], paragraphs[:num_paragraphs], totals


@_inlined
def _word(points: Any, kinds: Any, start: Any, lines: Any, line: Any, totals: Any) -> Any:
    """Where the word ends; what it adds to its line and to the totals.

    A sentence ends at marks, then closing quotes and brackets, then the word's end.
    """
    at, state = start, 0  # state 1: behind marks, 2: behind closers that follow marks
    seen = np.uint16(0)
    uppers = digits = 0
    while at < len(points):
        flags = kinds[points[at]]
        if flags & SPACE:
            break
        seen |= flags
        at += 1
        if not flags & _COUNTED:
            state = 0
            continue
        uppers += (flags & UPPER) != 0
        digits += (flags & DIGIT) != 0
        state = 1 if flags & MARK else 2 if flags & CLOSER and state else 0
    length = at - start
    lines[line, WORDS] += 1
    lines[line, LONGEST] = max(lines[line, LONGEST], length)
    lines[line, SENTENCES] += state != 0
    lines[line, UPPERS] += uppers
    lines[line, DIGITS] += digits
    lines[line, HAS_S] |= (seen & LETTER_S) != 0
    totals[LETTERED] += (seen & ALPHA) != 0
    totals[LONGEST_WORD] = max(totals[LONGEST_WORD], length)
    totals[CHARACTERS] += length
    stop = _stop_word(points, kinds, start, at)
    if stop >= 0:
        totals[STOPS] += 1
        totals[STOP_KINDS] |= 1 << stop
    return at


@_inlined
def _stop_word(points: Any, kinds: Any, start: Any, end: Any) -> Any:
    """Which stop word it is without the punctuation around it, in any case; -1: none. No other
    character than A to Z is one of their letters in lower case."""
    while end > start and kinds[points[end - 1]] & STRIPPED:
        end -= 1
    while start < end and kinds[points[start]] & STRIPPED:
        start += 1
    if end == start or end - start > _LONGEST_STOP:
        return -1
    code = np.uint32(0)
    for at in range(start, end):
        point = points[at]
        if point >= 128 or point == 0:  # a NUL would be no letter of the code
            return -1
        if _A <= point <= _Z:
            point |= _CASE
        code |= point << np.uint32(8 * (at - start))
    for index in range(len(_STOP_CODES)):
        if _STOP_CODES[index] == code:
            return index
    return -1


# What `line_counts` counts, in its order.
COUNTED = (
    *("bullets", "ellipses", "terminal", "short", "upper", "numeric"),
    *("kept_sentences", "kept_terminal_sentences", "cut_words"),
)


@_compiled
def line_counts(points: Any, kinds: Any, lines: Any, in_c4: Any) -> Any:
    """Lines of each kind; sentences of those that C4 keeps: `in_c4` and by their words; words in
    lines that RefinedWeb cuts for their characters, or for being one word."""
    found = np.zeros(9, np.int64)
    for index in range(len(lines)):
        line = lines[index]
        first, last = kinds[points[line[START]]], kinds[points[line[END] - 1]]
        ellipsis = _ends_in_dots(points, line[START], line[END])
        length = line[END] - line[START]
        found[0] += (first & BULLET) != 0
        found[1] += ellipsis or points[line[END] - 1] == _ELLIPSIS
        found[2] += (last & TERMINAL) != 0
        found[3] += length <= SHORT_LINE
        found[4] += is_mostly(line[UPPERS], length, 0.5)
        found[5] += is_mostly(line[DIGITS], length, 0.999999)
        if in_c4[index] and line[WORDS] >= 3 and line[LONGEST] <= LONG_WORD:
            sentences = max(1, line[SENTENCES])
            found[6] += sentences
            if last & TERMINAL and not ellipsis:
                found[7] += sentences
        if is_cut(line):
            found[8] += line[WORDS]
    return found


@_inlined
def is_mostly(number: Any, length: Any, share: Any) -> Any:
    return number > share * length


@_compiled
def is_cut(line: Any) -> Any:
    length = line[END] - line[START]
    return (
        line[WORDS] == 1
        or is_mostly(line[UPPERS], length, 0.5)
        or is_mostly(line[DIGITS], length, 0.999999)
    )


@_inlined
def _ends_in_dots(points: Any, start: Any, end: Any) -> Any:
    if end - start < 3:
        return False
    return points[end - 1] == _DOT and points[end - 2] == _DOT and points[end - 3] == _DOT


@_compiled
def uncut_lines(lines: Any, most_words: Any, need_counter: Any) -> Any:
    """The lines of at most so many words that RefinedWeb has not cut yet; if `need_counter`, only
    those with a digit and an s, as "3 likes" has."""
    found = np.empty(len(lines), np.int64)
    number = 0
    for index in range(len(lines)):
        line = lines[index]
        if line[WORDS] > most_words or is_cut(line):
            continue
        if not need_counter or (line[DIGITS] > 0 and line[HAS_S]):
            found[number] = index
            number += 1
    return found[:number]


@_compiled
def numbered(points: Any, spans: Any, salt: Any) -> Any:
    """A number for each span (start, end): equal ones have the same, in the order of their first
    occurrence. Exact: what the hashes make equal is compared.

    `salt` from all of the text, so that no text can be written to have its words collide.
    """
    room = 16
    while room < 2 * len(spans):
        room *= 2
    mask = np.int64(room - 1)
    slots = np.full(room, -1, np.int32)
    hashes = np.empty(room, np.uint32)
    numbers = np.empty(len(spans), np.uint32)
    firsts = np.empty(len(spans), np.int32)
    count = 0
    for index in range(len(spans)):
        start, end = spans[index, 0], spans[index, 1]
        value = salt
        for at in range(start, end):
            value = (value ^ np.uint64(points[at])) * _STEP
            value ^= value >> np.uint64(32)
        value = mix(value)
        at = np.int64(value & np.uint64(mask))
        upper = np.uint32(value >> np.uint64(32))
        while slots[at] >= 0:
            other = firsts[slots[at]]
            if hashes[at] == upper and _equal(points, spans[other], start, end):
                break
            at = (at + 1) & mask
        if slots[at] < 0:
            slots[at], hashes[at], firsts[count] = count, upper, index
            count += 1
        numbers[index] = slots[at]
    return numbers


@_inlined
def _equal(points: Any, other: Any, start: Any, end: Any) -> Any:
    if other[1] - other[0] != end - start:
        return False
    for offset in range(end - start):  # noqa: SIM110 - numba compiles no generator
        if points[other[0] + offset] != points[start + offset]:
            return False
    return True


@_compiled
def repeats(numbers: Any, spans: Any) -> Any:
    """(parts that repeat an earlier one, their characters, parts that occur twice or more, their
    characters, all parts, their characters)."""
    counts = np.zeros(len(numbers), np.int32)
    for number in numbers:
        counts[number] += 1
    found = np.zeros(6, np.int64)
    found[4] = len(numbers)
    seen = 0  # the numbers below it have occurred
    for index in range(len(numbers)):
        length = np.int64(spans[index, 1] - spans[index, 0])
        is_first = numbers[index] == seen
        seen += is_first
        found[5] += length
        if counts[numbers[index]] > 1:
            found[2] += 1
            found[3] += length
            if not is_first:
                found[0] += 1
                found[1] += length
    return found

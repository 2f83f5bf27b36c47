"""How much of a text repeats itself: word n-grams, as Gopher and DCLM count.

Gopher (Rae et al. 2021, table A1) counts each repeat after the first; DCLM (Li et al. 2024) the
first as well. An n-gram is looked at only where the one a word shorter occurs twice.
"""

from typing import Any

import numba
import numpy as np

from pipeline.text.shingle_kernel import mix

TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)


@_compiled
def ngram_shares(numbers: Any, lengths: Any, salt: Any) -> Any:
    """(15,) float64, of words as numbers below their count, equal for equal words, with their
    lengths: the share of the words' characters in the most frequent 2-, 3-, 4-gram (occurrences x
    characters, at most 1; of equally frequent ones the longest; 0 where none occurs twice); in
    5- to 10-grams that repeat earlier ones; in 5- to 10-grams that occur twice, first ones
    included. A word counts once, however many n-grams cover it. `salt` as
    in signal_kernel.numbered.
    """
    found = np.zeros(15, np.float64)
    total = lengths.sum()
    if total == 0:
        return found
    starts = np.arange(len(numbers), dtype=np.int32)
    shorter = numbers.copy()  # of the n-gram one word shorter at each start, its number
    for size in range(2, 11):
        starts, slots, firsts, counts = _count(numbers, starts, shorter, size, salt)
        if len(starts) == 0:
            break
        if size < 5:
            top = _top(lengths, size, firsts, counts)
            found[size - 2] = min(top, total) / total
        else:
            later, every = _covered(lengths, starts, slots, size, firsts, counts)
            found[size - 2] = later / total
            found[size + 4] = every / total
        starts, shorter = _repeated(starts, slots, counts)
    return found


@_compiled
def _count(numbers: Any, starts: Any, shorter: Any, size: Any, salt: Any) -> Any:
    """(starts that have an n-gram of this size, where each is counted, the first start and the
    count there). Two n-grams are equal if their shorter ones and their last words are: exact."""
    last = np.int64(len(numbers) - size)
    number = np.searchsorted(starts, last, side="right")
    room = 16
    while room < 2 * number:
        room *= 2
    mask = np.int64(room - 1)
    keys = np.empty(room, np.uint64)
    counts = np.zeros(room, np.int32)
    firsts = np.empty(room, np.int32)
    slots = np.empty(number, np.uint32)
    for index in range(number):
        word = numbers[starts[index] + size - 1]
        key = np.uint64(shorter[index]) << np.uint64(32) | np.uint64(word)
        at = np.int64(mix(key ^ salt) & np.uint64(mask))
        while counts[at] and keys[at] != key:
            at = (at + 1) & mask
        if counts[at] == 0:
            keys[at], firsts[at] = key, starts[index]
        counts[at] += 1
        slots[index] = at
    return starts[:number], slots, firsts, counts


@_compiled
def _repeated(starts: Any, slots: Any, counts: Any) -> Any:
    """Those whose n-gram occurs twice or more, with a number for it."""
    left = np.empty(len(starts), np.int32)
    shorter = np.empty(len(starts), np.uint32)
    number = 0
    for index in range(len(starts)):
        if counts[slots[index]] > 1:
            left[number], shorter[number] = starts[index], slots[index]
            number += 1
    return left[:number], shorter[:number]


@_compiled
def _top(lengths: Any, size: Any, firsts: Any, counts: Any) -> Any:
    """Characters in all occurrences of the most frequent n-gram; 0 if none occurs twice."""
    most = counts.max()
    if most == 1:
        return 0
    longest = 0
    for at in range(len(counts)):
        if counts[at] == most:
            longest = max(longest, lengths[firsts[at] : firsts[at] + size].sum())
    return np.int64(most) * longest


@_compiled
def _covered(lengths: Any, starts: Any, slots: Any, size: Any, firsts: Any, counts: Any) -> Any:
    """Characters in words of later occurrences; and of all occurrences."""
    later = every = np.int64(0)
    later_end = every_end = np.int64(0)  # the words before them are counted, as far as they will be
    for index in range(len(starts)):
        slot, start = slots[index], np.int64(starts[index])
        if counts[slot] == 1:
            continue
        for place in range(max(start, every_end), start + size):
            every += lengths[place]
        every_end = start + size
        if firsts[slot] != start:
            for place in range(max(start, later_end), start + size):
                later += lengths[place]
            later_end = start + size
    return later, every

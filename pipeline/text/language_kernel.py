"""Compiled loops of fastText's supervised models: words, the rows of their n-grams, the label.

Sums are in float32 and in fastText's order: scores are its own.
pipeline/text/language_model.py is the door.
"""

import math
from typing import Any

import numba
import numpy as np

# The sizes that the loops are compiled for; all are lid.176's.
DIMENSIONS = 16  # of a row
BUCKETS = np.uint32(2_000_000)  # of n-grams, by their hash
SHORTEST_GRAM, LONGEST_GRAM = 2, 4  # characters
SPACE, SPACE_LEAD = 1, 2  # of a byte: it is a space; one of two or three bytes may begin with it
# Of a known word: where its bytes begin, how many they are, its row. No bytes: an empty slot.
AT, SIZE, ROW = range(3)
# A cached word: its bytes, its rows. One of more bytes or rows is read anew each time.
CACHED_BYTES, CACHED_ROWS = 32, 32
_KEY_BYTES = 8  # of a word that its key says by itself
_COUNT, _LENGTH, CACHE_COLUMNS = CACHED_ROWS, CACHED_ROWS + 1, CACHED_ROWS + 2
# Rows wait until there are many; behind half of them there is room for any word that is cached.
_ROOM = 4096
_HALF = _ROOM // 2
_TURN = 8  # rows added in one go
_OPEN, _CLOSE = ord("<"), ord(">")  # around a word whose n-grams are taken
_FNV_OFFSET, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_KIND, _TAIL = np.uint8(0xC0), np.uint8(0x80)  # UTF-8: 10xxxxxx goes on with a character
_U1, _U8, _U56 = np.uint64(1), np.uint64(8), np.uint64(56)
_B6, _B63 = np.uint32(6), np.uint32(63)
_SPREAD, _SLOT_BITS = np.uint64(0x9E3779B97F4A7C15), np.uint64(40)
_TINY, _ONE = 1e-5, np.float32(1)  # fastText takes the logarithm of a probability and so much
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
# A call with arrays counts references to them, which costs more than such a function does.
_inlined: Any = numba.njit(nogil=True, boundscheck=False, inline="always")


@_compiled
def latin_letters(text: Any) -> Any:
    """(A to Z, A to Z and a to z) among the bytes."""
    upper = letters = 0
    for byte in text:
        upper += np.uint8(byte - np.uint8(65)) < 26
        letters += np.uint8((byte | np.uint8(32)) - np.uint8(97)) < 26
    return upper, letters


@_inlined
def _space(text: Any, at: Any, kinds: Any) -> Any:
    """How many bytes of white space begin at `at`, by `str.isspace` and NUL; 0: none."""
    kind = kinds[text[at]]
    if kind != SPACE_LEAD:
        return np.int64(kind)
    return _wide_space(text, at)


@_compiled
def _wide_space(text: Any, at: Any) -> Any:
    lead, second = text[at], text[at + 1]  # a lead is never the last byte
    if lead == 0xC2:  # U+0085, U+00A0
        return 2 if second == 0x85 or second == 0xA0 else 0
    third = text[at + 2]
    if lead == 0xE1:  # U+1680
        return 3 if second == 0x9A and third == 0x80 else 0
    if lead == 0xE3:  # U+3000
        return 3 if second == 0x80 and third == 0x80 else 0
    if second == 0x81:  # U+205F
        return 3 if third == 0x9F else 0
    # U+2000 to U+200A, U+2028, U+2029, U+202F
    is_space = third <= 0x8A or third == 0xA8 or third == 0xA9 or third == 0xAF
    return 3 if second == 0x80 and is_space else 0


@_inlined
def _step(value: Any, byte: Any) -> Any:
    """Of 32-bit FNV-1a."""
    wide = np.uint32(np.int32(np.int8(byte)))  # fastText's bytes have a sign
    return np.uint32((value ^ wide) * _FNV_PRIME)


@_inlined
def _turn(key: Any, byte: Any) -> Any:
    """A word's key: up to _KEY_BYTES as they are, of more each eight added to the ones before."""
    return ((key << _U8) | (key >> _U56)) ^ np.uint64(byte)


@_inlined
def _end_of_word(text: Any, at: Any, kinds: Any) -> Any:
    """(where the word ends, its key)."""
    key = np.uint64(0)
    while True:
        key = _turn(key, text[at])
        at += 1
        if at == len(text) or (kinds[text[at]] and _space(text, at, kinds)):
            return at, key


@_inlined
def _slot(key: Any, slots: Any) -> Any:
    return np.int64((key * _SPREAD) >> _SLOT_BITS) & (slots - 1)


@_inlined
def _same(left: Any, left_at: Any, right: Any, right_at: Any, size: Any) -> Any:
    for offset in range(size):  # noqa: SIM110 - numba compiles no generator
        if left[left_at + offset] != right[right_at + offset]:
            return False
    return True


@_compiled
def enter_words(names: Any, ends: Any, words: Any) -> None:
    """Puts word i, which ends at ends[i] in `names`, into the hash table `words`, empty so far and
    of a power of two of slots, more than words; of equal words the first is found."""
    start = 0
    for row in range(len(ends)):
        key = np.uint64(0)
        for at in range(start, ends[row]):
            key = _turn(key, names[at])
        slot = _slot(key, len(words))
        while words[slot, SIZE]:
            slot = (slot + 1) & (len(words) - 1)
        words[slot, AT], words[slot, SIZE], words[slot, ROW] = start, ends[row] - start, row
        start = ends[row]


@_inlined
def _known(text: Any, start: Any, size: Any, key: Any, words: Any, names: Any) -> Any:
    """The row of a word of the dictionary; -1: it has none."""
    slot = _slot(key, len(words))
    while words[slot, SIZE]:
        if words[slot, SIZE] == size and _same(names, words[slot, AT], text, start, size):
            return np.int64(words[slot, ROW])
        slot = (slot + 1) & (len(words) - 1)
    return np.int64(-1)


@_inlined
def _bits_below(bits: Any, bit: Any) -> Any:
    """How many bits are set below `bit`: one instruction, as LLVM knows this sum."""
    value = bits & ((_U1 << bit) - _U1)
    value -= (value >> _U1) & np.uint64(0x5555555555555555)
    pairs = np.uint64(0x3333333333333333)
    value = (value & pairs) + ((value >> np.uint64(2)) & pairs)
    value = (value + (value >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (value * np.uint64(0x0101010101010101)) >> np.uint64(56)


@_inlined
def _is_kept(place: Any, bits: Any) -> Any:
    return np.int64((bits[place >> _B6] >> np.uint64(place & _B63)) & _U1)


@_compiled
def _gather(spelt: Any, size: Any, at: Any, bits: Any, places: Any) -> Any:
    """(at, number): the buckets in `places` of the kept n-grams of spelt[:size], UTF-8, that begin
    at `at` or later; where there is no more room, `at` is where to go on."""
    number = 0
    while at < size and number <= _HALF - LONGEST_GRAM:
        value, end, following = _FNV_OFFSET, at, at
        for length in range(1, LONGEST_GRAM + 1):
            if end == size:
                break
            value = _step(value, spelt[end])
            end += 1
            while end < size and spelt[end] & _KIND == _TAIL:
                value = _step(value, spelt[end])
                end += 1
            if length == 1:
                following = end
            if length >= SHORTEST_GRAM:
                places[number] = value % BUCKETS
                number += _is_kept(places[number], bits)
        at = following
    return at, number


@_compiled
def _look_up(
    places: Any, number: Any, first: Any, bits: Any, ranks: Any, rows: Any, count: Any
) -> Any:
    """Appends the rows of the first `number` kept buckets; how many rows wait then."""
    for index in range(number):
        place = places[index]
        block = place >> _B6
        below = ranks[block] + np.int64(_bits_below(bits[block], np.uint64(place & _B63)))
        rows[count + index] = first + below
    return count + number


@_compiled
def _add(rows: Any, count: Any, table: Any, total: Any) -> Any:
    """Adds rows to `total` in their order; the table's last, of zeros, fills up the last turn."""
    for index in range(count, count + _TURN - 1):
        rows[index] = len(table) - 1
    for index in range(0, count, _TURN):
        r0, r1, r2, r3 = rows[index], rows[index + 1], rows[index + 2], rows[index + 3]
        r4, r5, r6, r7 = rows[index + 4], rows[index + 5], rows[index + 6], rows[index + 7]
        for column in range(DIMENSIONS):
            value = total[column] + table[r0, column]
            value = value + table[r1, column] + table[r2, column] + table[r3, column]
            value = value + table[r4, column] + table[r5, column] + table[r6, column]
            total[column] = value + table[r7, column]


@_compiled
def _read(
    text: Any,
    start: Any,
    end: Any,
    first: Any,
    bits: Any,
    ranks: Any,
    table: Any,
    spelt: Any,
    places: Any,
    rows: Any,
    count: Any,
    total: Any,
) -> Any:
    """(rows that wait, rows added to `total`) when the rows of the word's n-grams stand behind the
    `count` that wait already. So many arguments, as a tuple of arrays taken apart costs more than
    the rest does."""
    size = end - start + 2
    spelt[0], spelt[size - 1] = _OPEN, _CLOSE
    for at in range(start, end):
        spelt[at - start + 1] = text[at]
    added = at = 0
    while at < size:
        if count > _HALF:
            _add(rows, count, table, total)
            added, count = added + count, 0
        at, number = _gather(spelt, size, at, bits, places)
        count = _look_up(places, number, first, bits, ranks, rows, count)
    return count, added


@_inlined
def _remember(text: Any, start: Any, size: Any, slot: Any, spellings: Any, found: Any) -> None:
    for offset in range(size):
        spellings[slot * CACHED_BYTES + offset] = text[start + offset]
    found[slot, _LENGTH] = size


@_compiled
def mean_row(text: Any, kinds: Any, dictionary: Any, grams: Any, table: Any, cache: Any) -> Any:
    """(DIMENSIONS,): of all words of the UTF-8 text and of the line's end. A word </s> is that end;
    one that begins as labels do has no rows. `cache` makes it faster and changes no result."""
    words, names, end_row, label = dictionary
    keys, spellings, found = cache
    first, bits, ranks = grams
    total = np.zeros(DIMENSIONS, np.float32)
    rows = np.empty(_ROOM + CACHED_ROWS + _TURN, np.uint16)
    places, spelt = np.empty(_HALF, np.uint32), np.empty(len(text) + 2, np.uint8)
    number = count = at = 0
    while at < len(text):
        spaces = _space(text, at, kinds)
        if spaces:
            at += spaces
            continue
        start = at
        at, key = _end_of_word(text, at, kinds)
        size, slot, before = at - start, _slot(key, len(keys)), count
        # Not a function of its own: that has been a quarter slower.
        if (
            keys[slot] == key
            and found[slot, _LENGTH] == size
            and (size <= _KEY_BYTES or _same(spellings, slot * CACHED_BYTES, text, start, size))
        ):
            for offset in range(CACHED_ROWS):  # all, as a fixed number is copied at once
                rows[count + offset] = found[slot, offset]
            count += found[slot, _COUNT]
        elif not (size >= len(label) and _same(label, 0, text, start, len(label))):
            row = _known(text, start, size, key, words, names)
            if row == end_row:
                break
            if row >= 0:
                rows[count] = row
                count += 1
            count, added = _read(
                *(text, start, at, first, bits, ranks, table, spelt, places, rows, count, total)
            )
            number += added
            if size <= CACHED_BYTES and count - before <= CACHED_ROWS:
                keys[slot], found[slot, _COUNT] = key, count - before
                for offset in range(count - before):
                    found[slot, offset] = rows[before + offset]
                _remember(text, start, size, slot, spellings, found)
        if count >= _HALF:
            _add(rows, count, table, total)
            number, count = number + count, 0
    rows[count] = end_row
    _add(rows, count + 1, table, total)
    total *= np.float32(1.0 / (number + count + 1))
    return total


@_compiled
def likeliest(hidden: Any, tree: Any, outputs: Any) -> Any:
    """(label, probability) of the likeliest leaf of a hierarchical softmax, -1 and 0 if none is
    worth a logarithm. Of tree[node] = (left, right) leaves come first and the root last."""
    leaves = len(tree) - len(outputs)
    floor = np.float32(math.log(_TINY))
    best, label = np.float32(-math.inf), -1
    nodes = np.empty(len(tree), np.int32)
    scores = np.empty(len(tree), np.float32)
    nodes[0], scores[0], waiting = len(tree) - 1, 0, 1
    while waiting:
        waiting -= 1
        node, score = nodes[waiting], scores[waiting]
        if score < floor or score < best:
            continue
        if node < leaves:
            best, label = score, node
            continue
        share = np.float32(0)
        for column in range(DIMENSIONS):
            share += outputs[node - leaves, column] * hidden[column]
        share = np.float32(1.0 / np.float64(_ONE + np.float32(math.exp(-share))))
        rest = np.float32(1.0 - np.float64(share))
        # The left one is looked at first.
        nodes[waiting], nodes[waiting + 1] = tree[node, 1], tree[node, 0]
        scores[waiting] = score + np.float32(math.log(np.float64(share) + _TINY))
        scores[waiting + 1] = score + np.float32(math.log(np.float64(rest) + _TINY))
        waiting += 2
    return label, np.float32(math.exp(best)) if label >= 0 else np.float32(0)

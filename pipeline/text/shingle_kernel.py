"""Compiled loops over UTF-8 text: words, their hashes, shingles of words, MinHash signatures.

Hashes are chains of exclusive or, rotation and product: over the random values of a word's folded
characters, over the words of a shingle and of a text. Integers only: every machine gets the same.
pipeline/text/signatures.py is the door.
"""

from typing import Any

import numba
import numpy as np

from pipeline.text.characters import ALONE, FOLDED, SLOW, WORD

CHARACTER_STEP = np.uint64(0x9FB21C651E98DF25)
WORD_STEP = np.uint64(0x9E3779B97F4A7C15)
DIGEST_STEPS = (np.uint64(0xD6E8FEB86659FD93), np.uint64(0xA0761D6478BD642F))
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_SEED = np.uint64(0x2545F4914F6CDD1D)
_U0, _U1, _U6, _U33 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(33)
_UP, _DOWN = np.uint64(29), np.uint64(35)  # a rotation
_ASCII = 0x80
_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)


@_compiled
def mix(value: Any) -> Any:
    """MurmurHash3's 64-bit finalizer: a bijection that spreads every bit."""
    value ^= value >> _U33
    value *= _MIX_1
    value ^= value >> _U33
    value *= _MIX_2
    return value ^ (value >> _U33)


@_compiled
def character_value(point: Any) -> Any:
    """The random value of a folded code point."""
    return mix((np.uint64(point) + _U1) * _SEED)


@_compiled
def chained(value: Any, more: Any, step: Any) -> Any:
    """The hash of what `value` is of and one thing more. Of sums and products alone anybody could
    make equal ones: a letter pair in the order of Thue and Morse, whatever the factor, or sums
    found from many lists (Wagner 2002)."""
    value ^= more
    return ((value << _UP) | (value >> _DOWN)) * step


@_compiled
def _decoded(text: Any, at: Any, end: Any) -> Any:
    """(code point, bytes) of the UTF-8 sequence at `at`; what is none counts as U+FFFD."""
    first = text[at]
    if first >= 0xF0:
        length, point = 4, np.uint32(first & 0x07)
    elif first >= 0xE0:
        length, point = 3, np.uint32(first & 0x0F)
    else:
        length, point = 2, np.uint32(first & 0x1F)
    if at + length > end:
        return np.uint32(0xFFFD), end - at
    for offset in range(1, length):
        point = np.uint32((point << np.uint32(6)) | np.uint32(text[at + offset] & 0x3F))
    return (point if point < 0x110000 else np.uint32(0xFFFD)), length


@_compiled
def word_hashes(text: Any, start: Any, end: Any, tables: Any, is_normal: Any, words: Any) -> Any:
    """How many words there are in text[start:end], their hashes in `words` (one entry longer than
    bytes); -1 if a character asks for the slow normal form first, unless `is_normal`."""
    values, masks, is_word, classes = tables
    count = 0
    value = _U0
    inside = np.int64(0)
    at = start
    while at < end:
        byte = text[at]
        if byte < _ASCII:
            words[count] = value
            now = np.int64(is_word[byte])
            count += inside & (1 - now)
            value = chained(value, values[byte], CHARACTER_STEP) & masks[byte]
            inside = now
            at += 1
            continue
        point, length = _decoded(text, at, end)
        at += length
        entry = classes[point]
        if entry & SLOW and not is_normal:
            return -1
        if entry & ALONE:
            words[count] = value
            count += inside
            words[count] = character_value(entry & FOLDED)
            count += 1
            value, inside = _U0, np.int64(0)
        elif entry & WORD:
            value = chained(value, character_value(entry & FOLDED), CHARACTER_STEP)
            inside = np.int64(1)
        else:
            words[count] = value
            count += inside
            value, inside = _U0, np.int64(0)
    words[count] = value
    return count + inside


@_compiled
def shingle_hashes(words: Any, count: Any, size: Any, found: Any) -> Any:
    """Hashes of the `size`-grams of words, in order; fewer words are one shingle of them all."""
    if count == 0:
        return 0
    if count < size:
        value = _U0
        for index in range(count):
            value = chained(value, mix(words[index]), WORD_STEP)
        found[0] = mix(value + np.uint64(count))
        return 1
    for index in range(count):
        words[index] = mix(words[index])
    number = count - size + 1
    for index in range(number):
        value = _U0
        for offset in range(size):
            value = chained(value, words[index + offset], WORD_STEP)
        found[index] = mix(value)
    return number


@_compiled
def spread_32(hash_64: Any) -> Any:
    """The upper half, through MurmurHash3's 32-bit finalizer, which datasketch begins with."""
    value = np.uint32(hash_64 >> np.uint64(32))
    value ^= value >> np.uint32(16)
    value = np.uint32(value * np.uint32(0x85EBCA6B))
    value ^= value >> np.uint32(13)
    value = np.uint32(value * np.uint32(0xC2B2AE35))
    return value ^ (value >> np.uint32(16))


@_compiled
def lanes_of(hashes: Any, number: Any, permutations: Any, lanes: Any) -> None:
    """The least value of each lane: a * h + b in 32 bits over spread hashes h, as datasketch's
    `affine32`."""
    for lane in range(permutations.shape[1]):
        a, b = permutations[0, lane], permutations[1, lane]
        least = np.uint32(0xFFFFFFFF)
        for index in range(number):
            value = np.uint32(a * hashes[index] + b)
            least = min(least, value)
        lanes[lane] = least


@_compiled
def band_key(lanes: Any, band: Any, rows: Any) -> Any:
    value = np.uint64(band + 1) * _SEED
    for row in range(rows):
        value = mix(value ^ np.uint64(lanes[band * rows + row])) + WORD_STEP
    return mix(value)


@_compiled
def sign_texts(
    text: Any,
    offsets: Any,
    tables: Any,
    size: Any,
    permutations: Any,
    rows: Any,
    is_normal: Any,
    lanes: Any,
    keys: Any,
    digests: Any,
    counts: Any,
) -> None:
    """For each text between two `offsets`: its lanes, band keys, digest and number of words; -1
    words where the slow normal form is asked for."""
    longest = 0
    for index in range(len(offsets) - 1):
        longest = max(longest, offsets[index + 1] - offsets[index])
    words = np.empty(longest + 1, np.uint64)
    shingles = np.empty(longest + 1, np.uint64)
    spread = np.empty(longest + 1, np.uint32)
    for index in range(len(offsets) - 1):
        count = word_hashes(text, offsets[index], offsets[index + 1], tables, is_normal, words)
        counts[index] = count
        if count <= 0:
            continue
        number = shingle_hashes(words, count, size, shingles)
        digests[index, 0] = _digest(words, count, DIGEST_STEPS[0])
        digests[index, 1] = _digest(words, count, DIGEST_STEPS[1])
        for place in range(number):
            spread[place] = spread_32(shingles[place])
        lanes_of(spread, number, permutations, lanes[index])
        for band in range(keys.shape[1]):
            keys[index, band] = band_key(lanes[index], band, rows)


@_compiled
def _digest(words: Any, count: Any, step: Any) -> Any:
    """Of the words in their order, in which `shingle_hashes` has left them."""
    value = np.uint64(count)
    for index in range(count):
        value = chained(value, words[index], step)
    return mix(value)


@_compiled
def shingle_sets(
    text: Any, offsets: Any, tables: Any, size: Any, is_normal: Any, found: Any, bounds: Any
) -> None:
    """The sorted different shingle hashes of each text, one after the other in `found` (as long as
    the text and a word for each), text i's between bounds[i] and bounds[i + 1]; for a text that
    asks for its slow normal form nothing, and bounds[i + 1] = -bounds[i] - 1 tells."""
    longest = 0
    for index in range(len(offsets) - 1):
        longest = max(longest, offsets[index + 1] - offsets[index])
    words = np.empty(longest + 1, np.uint64)
    shingles = np.empty(longest + 1, np.uint64)
    at = 0
    for index in range(len(offsets) - 1):
        count = word_hashes(text, offsets[index], offsets[index + 1], tables, is_normal, words)
        number = shingle_hashes(words, max(0, count), size, shingles)
        ordered = np.sort(shingles[:number])
        for place in range(number):
            if place == 0 or ordered[place] != ordered[place - 1]:
                found[at] = ordered[place]
                at += 1
        bounds[index + 1] = at if count >= 0 else -at - 1


@_compiled
def shared(left: Any, right: Any) -> Any:
    """How many values two sorted sets have in common."""
    a = b = number = 0
    while a < len(left) and b < len(right):
        if left[a] == right[b]:
            number += 1
            a += 1
            b += 1
        elif left[a] < right[b]:
            a += 1
        else:
            b += 1
    return number

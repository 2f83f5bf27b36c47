"""What the published quality rules look at, measured on one text: numbers, no decisions.

Gopher (Rae et al. 2021, A.1.1), C4 (Raffel et al. 2020, 2.2), FineWeb (Penedo et al. 2024, 3.6),
RefinedWeb's line rules (Penedo et al. 2023, G.2) as DCLM (Li et al. 2024) wrote them down.
"""

import functools
import re
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.text.repetition import DUPLICATE_SIZES, TOP_SIZES, ngram_shares, repeated_parts

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_LONGEST_STOP_WORD = max(map(len, STOP_WORDS))
BULLETS = ("•", "‣", "⁃", "◦", "*", "-", "–", "●", "■", "▪")
TERMINAL = (".", "?", "!", '"', "'")  # C4's; FineWeb has the same five
POLICIES = (
    *("terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)
SHORT_LINE, _LONG_WORD = 30, 1000  # characters
_PARAGRAPH = re.compile(r"\n\s*\n")
_PUNCTUATION = ".,;:!?\"'()[]"
# The end of a sentence: marks, closing quotes and brackets, then white space or the line's end.
_SENTENCE = re.compile(r"[.!?](?<![.!?][.!?])[.!?]*+[\"')\]”’»]*+(?=\s|\Z)")
_COUNTER = re.compile(
    r"\W*\d[\d,.]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes"
    r"|downvotes|downloads|views|followers)\W*"
)
_LONGEST_COUNTER = 100
_BOILERPLATE_WORDS = 10  # in a longer line such phrases stay
_UPPER, _DIGIT = 1, 2

NAMES = (
    *("words", "mean_word_length", "hashes_per_word", "ellipses_per_word"),
    *("bullet_lines", "ellipsis_lines", "alphabetic_words", "stop_words", "stop_word_occurrences"),
    *("duplicate_lines", "duplicate_line_chars", "repeated_lines", "repeated_line_chars"),
    *("duplicate_paragraphs", "duplicate_paragraph_chars"),
    *("repeated_paragraphs", "repeated_paragraph_chars"),
    *(f"top_{size}gram_chars" for size in TOP_SIZES),
    *(f"duplicate_{size}gram_chars" for size in DUPLICATE_SIZES),
    *(f"repeated_{size}gram_chars" for size in DUPLICATE_SIZES),
    *("lorem_ipsum", "curly_brackets", "javascript_lines", "policy_lines", "longest_word"),
    *("sentences", "terminal_sentences"),
    *("punctuated_lines", "short_lines", "copied_line_chars", "newlines_per_word"),
    *("uppercase_lines", "numeric_lines", "edited_words"),
)


def measure(text: str) -> dict[str, float]:
    """All of NAMES, to six decimals; shares are in [0, 1], 0 for a text without words.

    Words are what white space parts; lines and paragraphs are those that are not blank, without
    the white space around them.
    """
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words_of = [len(line.split()) for line in lines]
    signals = _of_words(text, words)
    signals |= _of_repetition(text, lines, words)
    signals |= _of_lines(text, lines, len(words))
    signals |= _for_c4(text, lines, words_of, has_long=signals["longest_word"] > _LONG_WORD)
    signals |= _for_refinedweb(lines, words_of)
    return {name: round(float(signals[name]), 6) for name in NAMES}


def _of_words(text: str, words: Sequence[str]) -> dict[str, float]:
    number = max(1, len(words))
    counts = Counter(words)
    stop_words: Counter[str] = Counter()
    alphabetic = 0
    for word, count in counts.items():
        if is_plain := word.isalpha():
            alphabetic += count
        else:
            alphabetic += count * any(map(str.isalpha, word))
        if is_plain and len(word) > _LONGEST_STOP_WORD:
            continue
        if (bare := word.strip(_PUNCTUATION).lower()) in STOP_WORDS:
            stop_words[bare] += count
    return {
        "words": len(words),
        "mean_word_length": sum(map(len, words)) / number,
        "longest_word": max(map(len, words), default=0),
        "hashes_per_word": text.count("#") / number,
        "ellipses_per_word": (text.count("...") + text.count("…")) / number,
        "alphabetic_words": alphabetic / number,
        "stop_words": len(stop_words),
        "stop_word_occurrences": stop_words.total(),
    }


def _of_repetition(text: str, lines: Sequence[str], words: Sequence[str]) -> dict[str, float]:
    paragraphs = [part.strip() for part in _PARAGRAPH.split(text) if part.strip()]
    signals: dict[str, float] = {}
    for kind, parts in (("line", lines), ("paragraph", paragraphs)):
        names = ("duplicate_{}s", "duplicate_{}_chars", "repeated_{}s", "repeated_{}_chars")
        for name, share in zip(names, repeated_parts(parts), strict=True):
            signals[name.format(kind)] = share
    names = [f"top_{size}gram_chars" for size in TOP_SIZES]
    names += [f"duplicate_{size}gram_chars" for size in DUPLICATE_SIZES]
    names += [f"repeated_{size}gram_chars" for size in DUPLICATE_SIZES]
    signals |= zip(names, ngram_shares(words).tolist(), strict=True)
    characters = sum(map(len, lines))
    copied = signals["duplicate_line_chars"] * characters
    signals["copied_line_chars"] = copied / max(1, len(text) - text.count("\n"))
    return signals


def _of_lines(text: str, lines: Sequence[str], num_words: int) -> dict[str, float]:
    number = max(1, len(lines))
    return {
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / number,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / number,
        "punctuated_lines": sum(line.endswith(TERMINAL) for line in lines) / number,
        "short_lines": sum(len(line) <= SHORT_LINE for line in lines) / number,
        "newlines_per_word": text.count("\n") / max(1, num_words),
    }


def _for_c4(
    text: str, lines: Sequence[str], words_of: Sequence[int], *, has_long: bool
) -> dict[str, float]:
    """`sentences` are those of the lines that C4 keeps: of 3 words at least, none of them over
    1,000 characters, without its phrases; `terminal_sentences` of those of them that end in a mark
    and not in an ellipsis."""
    whole = text.lower()
    phrases = tuple(phrase for phrase in (*POLICIES, "javascript") if phrase in whole)
    javascript = policy = sentences = terminal = 0
    for line, num_words in zip(lines, words_of, strict=True):
        if phrases:
            lower = line.lower()
            is_policy = any(phrase in lower for phrase in phrases if phrase != "javascript")
            javascript += "javascript" in lower
            policy += is_policy
            if is_policy or "javascript" in lower:
                continue
        if num_words < 3 or (has_long and max(map(len, line.split())) > _LONG_WORD):
            continue
        number = max(1, len(_SENTENCE.findall(line)))
        sentences += number
        terminal += number * (line.endswith(TERMINAL) and not line.endswith("..."))
    return {
        "lorem_ipsum": whole.count("lorem ipsum"),
        "curly_brackets": text.count("{"),
        "javascript_lines": javascript / max(1, len(lines)),
        "policy_lines": policy / max(1, len(lines)),
        "sentences": sentences,
        "terminal_sentences": terminal,
    }


def _for_refinedweb(lines: Sequence[str], words_of: Sequence[int]) -> dict[str, float]:
    """`edited_words`: the share of words in the lines and phrases that RefinedWeb cuts out:
    mostly upper case, digits alone, counters ("3 likes"), single words, buttons' labels."""
    number = max(1, len(lines))
    lengths = np.array(list(map(len, lines)), np.int64)
    upper, digits = _class_counts("".join(lines), lengths)
    is_upper, is_number = upper > 0.5 * lengths, digits > 0.999999 * lengths
    gone = 0
    for line, num_words, cut in zip(lines, words_of, (is_upper | is_number).tolist(), strict=True):
        if cut or num_words == 1:
            gone += num_words
        elif num_words <= _BOILERPLATE_WORDS:
            gone += _words_cut(line.lower(), num_words)
    return {
        "uppercase_lines": float(is_upper.sum()) / number,
        "numeric_lines": float(is_number.sum()) / number,
        "edited_words": gone / max(1, sum(words_of)),
    }


def _words_cut(line: str, num_words: int) -> int:
    """Of a line in lower case of at most ten words. Only a short line can be a counter: its
    pattern may go back."""
    if len(line) <= _LONGEST_COUNTER and "s" in line and _COUNTER.fullmatch(line):
        return num_words
    gone = 3 * line.count("items in cart")
    gone += 2 * line.endswith(("read more...", "read more…"))
    return min(num_words, gone + line.startswith("sign-in"))


def _class_counts(
    text: str, lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Upper-case letters and digits in each of the parts, one after the other in `text`."""
    if not len(lengths):
        return lengths, lengths
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _classes()[points]
    starts = np.cumsum(lengths) - lengths
    upper = np.add.reduceat((classes & _UPPER).astype(np.int64), starts)
    return upper, np.add.reduceat((classes >> 1).astype(np.int64), starts)


@functools.cache
def _classes() -> npt.NDArray[np.uint8]:
    """For each code point: is it upper case (1), is it a digit (2)?"""
    flags = bytearray(sys.maxunicode + 1)
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        flags[point] = _UPPER * character.isupper() | _DIGIT * character.isdigit()
    return np.frombuffer(flags, np.uint8)

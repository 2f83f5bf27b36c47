"""What the published quality rules look at, measured on one text: numbers, no decisions.

Gopher (Rae et al. 2021, A.1.1), C4 (Raffel et al. 2020, 2.2), FineWeb (Penedo et al. 2024, 3.6),
RefinedWeb's line rules (Penedo et al. 2023, G.2) as DCLM (Li et al. 2024) wrote them down.
"""

import dataclasses
import re
from typing import Any

import numpy as np
import xxhash

from pipeline.text import signal_kernel
from pipeline.text.repetition import DUPLICATE_SIZES, TOP_SIZES, ngram_shares

POLICIES = (
    *("terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)
_SCRIPT = "javascript"
_POLICY_ROOTS = ("cookie", "terms of use", "privacy policy")  # in each of them is one
_COUNTER = re.compile(
    r"\W*\d[\d,.]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes"
    r"|downvotes|downloads|views|followers)\W*"
)
_LONGEST_COUNTER = 100
_LABELS = ("items in cart", "read more", "sign-in")
_BOILERPLATE_WORDS = 10  # in a longer line such phrases stay

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


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Of one text; the arrays are signal_kernel.layout's."""

    text: str
    lower: str
    points: Any
    words: Any
    lines: Any
    paragraphs: Any
    totals: Any
    salt: Any


def measure(text: str) -> dict[str, float]:
    """All of NAMES, to six decimals; shares are in [0, 1], 0 for a text without words.

    Words are what white space parts; lines and paragraphs are those that are not blank, without
    the white space around them. In memory meanwhile: 20 bytes a
    character of prose, 50 at worst.
    """
    data = text.encode("utf-32-le", "surrogatepass")
    points, salt = np.frombuffer(data, np.uint32), np.uint64(xxhash.xxh3_64_intdigest(data))
    words, lines, paragraphs, totals = signal_kernel.layout(points, signal_kernel.classes())
    layout = _Layout(text, text.lower(), points, words, lines, paragraphs, totals, salt)
    signals = _of_words(layout) | _of_repetition(layout) | _of_lines(layout)
    return {name: round(float(signals[name]), 6) for name in NAMES}


def _of_words(layout: _Layout) -> dict[str, float]:
    text, totals = layout.text, layout.totals.tolist()
    number = max(1, len(layout.words))
    return {
        "words": len(layout.words),
        "mean_word_length": totals[signal_kernel.CHARACTERS] / number,
        "longest_word": totals[signal_kernel.LONGEST_WORD],
        "hashes_per_word": text.count("#") / number,
        "ellipses_per_word": (text.count("...") + text.count("…")) / number,
        "alphabetic_words": totals[signal_kernel.LETTERED] / number,
        "stop_words": totals[signal_kernel.STOP_KINDS].bit_count(),
        "stop_word_occurrences": totals[signal_kernel.STOPS],
        "newlines_per_word": text.count("\n") / number,
        "lorem_ipsum": layout.lower.count("lorem ipsum"),
        "curly_brackets": text.count("{"),
    }


def _of_repetition(layout: _Layout) -> dict[str, float]:
    points, words, salt = layout.points, layout.words, layout.salt
    signals: dict[str, float] = {}
    for kind, spans in (("line", layout.lines), ("paragraph", layout.paragraphs)):
        numbers = signal_kernel.numbered(points, spans, salt)
        found = signal_kernel.repeats(numbers, spans).tolist()
        later, later_characters, every, every_characters, number, characters = found
        number, characters = max(1, number), max(1, characters)
        signals |= {
            f"duplicate_{kind}s": later / number,
            f"duplicate_{kind}_chars": later_characters / characters,
            f"repeated_{kind}s": every / number,
            f"repeated_{kind}_chars": every_characters / characters,
        }
        if kind == "line":
            newlines = layout.text.count("\n")
            signals["copied_line_chars"] = later_characters / max(1, len(layout.text) - newlines)
    numbers = signal_kernel.numbered(points, words, salt)
    lengths = words[:, 1] - words[:, 0]
    names = [f"top_{size}gram_chars" for size in TOP_SIZES]
    names += [f"duplicate_{size}gram_chars" for size in DUPLICATE_SIZES]
    names += [f"repeated_{size}gram_chars" for size in DUPLICATE_SIZES]
    return signals | dict(zip(names, ngram_shares(numbers, lengths, salt).tolist(), strict=True))


def _of_lines(layout: _Layout) -> dict[str, float]:
    """`sentences` are those of the lines that C4 keeps: of 3 words at least, none of them over
    1,000 characters, without its phrases; `terminal_sentences` of those of them that end in a mark
    and not in an ellipsis. `edited_words`: the share of words in the lines and phrases that
    RefinedWeb cuts out: mostly upper case, digits alone, counters ("3 likes"), single words,
    buttons' labels."""
    number = max(1, len(layout.lines))
    has_script, has_policy = _c4_phrases(layout)
    counted = signal_kernel.line_counts(
        layout.points, signal_kernel.classes(), layout.lines, ~(has_script | has_policy)
    )
    found: dict[str, int] = dict(zip(signal_kernel.COUNTED, counted.tolist(), strict=True))
    return {
        "bullet_lines": found["bullets"] / number,
        "ellipsis_lines": found["ellipses"] / number,
        "punctuated_lines": found["terminal"] / number,
        "short_lines": found["short"] / number,
        "javascript_lines": int(has_script.sum()) / number,
        "policy_lines": int(has_policy.sum()) / number,
        "sentences": found["kept_sentences"],
        "terminal_sentences": found["kept_terminal_sentences"],
        "uppercase_lines": found["upper"] / number,
        "numeric_lines": found["numeric"] / number,
        "edited_words": (found["cut_words"] + _labels_cut(layout)) / max(1, len(layout.words)),
    }


def _c4_phrases(layout: _Layout) -> tuple[Any, Any]:
    """Which lines speak of JavaScript, and which of policies."""
    has_script = np.zeros(len(layout.lines), np.bool_)
    has_policy = np.zeros(len(layout.lines), np.bool_)
    is_near = any(root in layout.lower for root in _POLICY_ROOTS)
    policies = [phrase for phrase in POLICIES if is_near and phrase in layout.lower]
    if policies or _SCRIPT in layout.lower:
        for index, line in enumerate(_lower_lines(layout, slice(None))):
            has_script[index] = _SCRIPT in line
            has_policy[index] = any(phrase in line for phrase in policies)
    return has_script, has_policy


def _labels_cut(layout: _Layout) -> int:
    """Words of counters and labels in the lines that RefinedWeb has not cut for their form."""
    only_counters = not any(label in layout.lower for label in _LABELS)
    chosen = signal_kernel.uncut_lines(layout.lines, _BOILERPLATE_WORDS, only_counters)
    if not len(chosen):
        return 0
    words = layout.lines[chosen, signal_kernel.WORDS].tolist()
    return sum(map(_words_cut, _lower_lines(layout, chosen), words))


def _lower_lines(layout: _Layout, chosen: Any) -> list[str]:
    spans = layout.lines[:, : signal_kernel.END + 1][chosen].tolist()
    return [layout.text[start:end].lower() for start, end in spans]


def _words_cut(line: str, num_words: int) -> int:
    """Of a line in lower case of at most ten words. Only a short line can be a counter: its
    pattern may go back."""
    if len(line) <= _LONGEST_COUNTER and "s" in line and _COUNTER.fullmatch(line):
        return num_words
    gone = 3 * line.count("items in cart")
    gone += 2 * line.endswith(("read more...", "read more…"))
    return min(num_words, gone + line.startswith("sign-in"))

"""The published quality rules over measured signals: what a document is dropped for.

Decisions read stored signals alone, so another threshold is judged without another run (`what_if`).
A rule's reason, its signal and its bounds stand in one place, `rules_of`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.core.config import Section, operational
from pipeline.core.errors import UserError
from pipeline.text.repetition import DUPLICATE_SIZES, TOP_SIZES

KEPT = "kept"
BLOCKED, CLASSIFIER = "blocked", "classifier"  # signals of what the config names files for
BLOCK_REASONS = (None, "blocked-domain", "blocked-url")  # by the signal's value
Rule = tuple[str, str, float, float]  # reason, signal, least, most


class QualityConfig(Section):
    """The published thresholds; a share is in [0, 1]. Bounds are inclusive."""

    languages: list[str] = Field(["en"], description="ISO 639 codes to keep; empty keeps all")
    min_language_score: float = Field(
        0.65, ge=0, le=1, description="the language model's confidence"
    )
    blocked_domains_file: str = operational(
        "", description="a domain or URL prefix a line: what is below one is dropped"
    )
    classifier: str = operational(
        "", description="a file that flywheel train-quality wrote; its score is one more signal"
    )
    min_classifier_score: float = Field(0.0, ge=0, le=1, description="0 drops nothing")
    rules: list[Literal["gopher", "c4", "fineweb", "dclm"]] = Field(
        ["gopher", "c4", "fineweb"], description="whose thresholds decide; all are measured"
    )
    # Gopher
    min_words: int = Field(50, ge=0, description="of the document")
    max_words: int = Field(100_000, ge=1, description="of the document")
    min_mean_word_length: float = Field(3.0, description="characters")
    max_mean_word_length: float = Field(10.0, description="characters")
    max_hashes_per_word: float = Field(0.1, description="# signs")
    max_ellipses_per_word: float = Field(0.1, description="… and ...")
    max_bullet_lines: float = Field(0.9, description="share of lines that begin with a bullet")
    max_ellipsis_lines: float = Field(0.3, description="share of lines that end in an ellipsis")
    min_alphabetic_words: float = Field(0.8, description="share of words with a letter")
    min_stop_words: int = Field(2, description="different English stop words")
    max_duplicate_lines: float = Field(0.30, description="share of lines")
    max_duplicate_line_chars: float = Field(0.20, description="share of characters")
    max_duplicate_paragraphs: float = Field(0.30, description="share of paragraphs")
    max_duplicate_paragraph_chars: float = Field(0.20, description="share of characters")
    max_top_ngram_chars: list[float] = Field(
        [0.20, 0.18, 0.16], min_length=3, max_length=3, description="for 2-, 3- and 4-grams"
    )
    max_duplicate_ngram_chars: list[float] = Field(
        [0.15, 0.14, 0.13, 0.12, 0.11, 0.10],
        min_length=6,
        max_length=6,
        description="for 5- to 10-grams",
    )
    # C4
    min_sentences: int = Field(5, ge=0, description="in the lines that C4 keeps")
    min_terminal_sentences: int = Field(
        0, ge=0, description="in those that end in a mark; C4 asks for 5, FineWeb for none"
    )
    max_lorem_ipsum: int = Field(0, ge=0, description="times it says lorem ipsum")
    max_curly_brackets: int = Field(0, ge=0, description="times there is a {")
    # FineWeb
    min_punctuated_lines: float = Field(0.12, description="share of lines that end in a mark")
    max_short_lines: float = Field(0.67, description="share of lines of at most 30 characters")
    max_copied_line_chars: float = Field(0.01, description="share of characters in repeated lines")
    max_newlines_per_word: float = Field(0.3, description="line ends by words")
    # DCLM: Gopher's, with the first of equal lines and n-grams counted as well; RefinedWeb's edits
    max_edited_words: float = Field(
        0.05, description="share of words in lines that RefinedWeb cuts out"
    )


def rules_of(config: QualityConfig) -> list[Rule]:
    """In the order they are tried: the first that a document breaks is its reason."""
    rules: list[Rule] = []
    for family in ("gopher", "c4", "fineweb", "dclm"):
        if family in config.rules:
            rules += _FAMILIES[family](config)
    if config.min_classifier_score > 0:
        rules.append(("classifier-score", CLASSIFIER, config.min_classifier_score, _MOST))
    return rules


_LEAST, _MOST = float("-inf"), float("inf")


def _gopher(config: QualityConfig) -> list[Rule]:
    return [
        *_document(config),
        ("few-stop-words", "stop_words", config.min_stop_words, _MOST),
        *_repetition(config, "duplicate"),
    ]


def _document(config: QualityConfig) -> list[Rule]:
    return [
        ("too-few-words", "words", config.min_words, _MOST),
        ("too-many-words", "words", _LEAST, config.max_words),
        ("short-words", "mean_word_length", config.min_mean_word_length, _MOST),
        ("long-words", "mean_word_length", _LEAST, config.max_mean_word_length),
        ("hashes", "hashes_per_word", _LEAST, config.max_hashes_per_word),
        ("ellipses", "ellipses_per_word", _LEAST, config.max_ellipses_per_word),
        ("bullet-lines", "bullet_lines", _LEAST, config.max_bullet_lines),
        ("ellipsis-lines", "ellipsis_lines", _LEAST, config.max_ellipsis_lines),
        ("not-alphabetic", "alphabetic_words", config.min_alphabetic_words, _MOST),
    ]


def _repetition(config: QualityConfig, kind: str) -> list[Rule]:
    """`kind` is "duplicate" (repeats of something earlier) or "repeated" (the earlier, too)."""
    lines, paragraphs = f"{kind}-lines", f"{kind}-paragraphs"
    most, characters = config.max_duplicate_paragraphs, config.max_duplicate_paragraph_chars
    rules: list[Rule] = [
        (lines, f"{kind}_lines", _LEAST, config.max_duplicate_lines),
        (lines, f"{kind}_line_chars", _LEAST, config.max_duplicate_line_chars),
        (paragraphs, f"{kind}_paragraphs", _LEAST, most),
        (paragraphs, f"{kind}_paragraph_chars", _LEAST, characters),
    ]
    for size, limit in zip(TOP_SIZES, config.max_top_ngram_chars, strict=True):
        rules.append((f"top-{size}gram", f"top_{size}gram_chars", _LEAST, limit))
    for size, limit in zip(DUPLICATE_SIZES, config.max_duplicate_ngram_chars, strict=True):
        rules.append((f"{kind}-{size}grams", f"{kind}_{size}gram_chars", _LEAST, limit))
    return rules


def _c4(config: QualityConfig) -> list[Rule]:
    return [
        ("lorem-ipsum", "lorem_ipsum", _LEAST, config.max_lorem_ipsum),
        ("curly-brackets", "curly_brackets", _LEAST, config.max_curly_brackets),
        ("few-sentences", "sentences", config.min_sentences, _MOST),
        ("few-sentences", "terminal_sentences", config.min_terminal_sentences, _MOST),
    ]


def _fineweb(config: QualityConfig) -> list[Rule]:
    return [
        ("unpunctuated-lines", "punctuated_lines", config.min_punctuated_lines, _MOST),
        ("short-lines", "short_lines", _LEAST, config.max_short_lines),
        ("copied-lines", "copied_line_chars", _LEAST, config.max_copied_line_chars),
        ("list", "newlines_per_word", _LEAST, config.max_newlines_per_word),
    ]


def _dclm(config: QualityConfig) -> list[Rule]:
    return [
        *_document(config),
        ("few-stop-words", "stop_word_occurrences", config.min_stop_words, _MOST),
        *_repetition(config, "repeated"),
        ("edited-lines", "edited_words", _LEAST, config.max_edited_words),
    ]


_FAMILIES = {"gopher": _gopher, "c4": _c4, "fineweb": _fineweb, "dclm": _dclm}


def decide(
    language: str, score: float, signals: Mapping[str, float], config: QualityConfig
) -> str | None:
    """The first rule that the document breaks, from its signals alone; None keeps it."""
    if reason := BLOCK_REASONS[int(signals.get(BLOCKED, 0))]:
        return reason
    if config.languages and language not in config.languages:
        return "language"
    if config.languages and score < config.min_language_score:
        return "language-score"
    for reason, signal, low, high in rules_of(config):
        if not low <= signals[signal] <= high:
            return reason
    return None


def what_if(tables: Iterable[pa.Table], config: QualityConfig) -> dict[str, int]:
    """How many documents of these signal tables each rule would drop, and `KEPT`; what earlier
    stages dropped is not counted. The same as `decide` row by row, some 100 times as fast.

    Raises UserError if a rule asks for a signal that was not measured.
    """
    counts: Counter[str] = Counter({KEPT: 0})
    for table in tables:
        counts.update(_counts_of(table, config))
    return {KEPT: counts.pop(KEPT), **dict(sorted(counts.items()))}


def _counts_of(table: pa.Table, config: QualityConfig) -> Counter[str]:
    judged = table.filter(table["judged"])
    columns = signal_columns(judged)
    left = np.ones(len(judged), np.bool_)
    counts: Counter[str] = Counter()

    def drop(reason: str, broken: npt.NDArray[np.bool_]) -> None:
        nonlocal left
        if number := int((left & broken).sum()):
            counts[reason] += number
        left &= ~broken

    for value, reason in enumerate(BLOCK_REASONS):
        if reason and BLOCKED in columns:
            drop(reason, columns[BLOCKED] == value)
    if config.languages:
        languages = np.array(judged["language"].to_pylist(), np.str_)
        drop("language", ~np.isin(languages, config.languages))
        drop("language-score", judged["language_score"].to_numpy() < config.min_language_score)
    for reason, signal, low, high in rules_of(config):
        if len(judged):
            values = _column(columns, signal)
            drop(reason, ~((low <= values) & (values <= high)))
    counts[KEPT] = int(left.sum())
    return counts


def _column(columns: Mapping[str, npt.NDArray[np.float64]], signal: str) -> npt.NDArray[np.float64]:
    if signal in columns:
        return columns[signal]
    key = " (set quality.classifier)" if signal == CLASSIFIER else ""
    raise UserError(
        f"the stored signals have no {signal!r}{key}; run flywheel corpus to measure it, then ask"
        " again"
    )


def signal_columns(judged: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
    """One array a signal, of the judged rows of one file, which all have the same signals."""
    if not len(judged):
        return {}
    column = judged["signals"].combine_chunks()
    first, end = column.offsets[0].as_py(), column.offsets[-1].as_py()
    keys, values = column.keys.slice(first, end - first), column.items.slice(first, end - first)
    encoded = keys.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).reshape(len(judged), -1)
    assert (codes == codes[0]).all(), "signals differ from row to row"
    names: list[str] = encoded.dictionary.take(encoded.indices[: codes.shape[1]]).to_pylist()
    matrix = values.to_numpy(zero_copy_only=False).reshape(len(judged), len(names))
    return {name: matrix[:, index] for index, name in enumerate(names)}

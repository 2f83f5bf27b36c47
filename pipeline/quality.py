"""What each document measures, and which are not worth training on: a sidecar of the documents.

Rules: language; Gopher's quality and repetition (Rae et al. 2021, section A.1.1). Each signal is
kept, so another threshold can be judged without another run.
"""

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipeline.core.config import RunConfig, Section
from pipeline.core.manifest import (
    Counts,
    Manifest,
    ShardResult,
    StageOutput,
    describe_file,
    map_shards,
)
from pipeline.core.records import Document, read_table, with_version, write_table
from pipeline.core.remote import Runtime
from pipeline.text.language import detect_language
from pipeline.text.ngrams import (
    duplicate_fractions,
    duplicate_ngram_char_fraction,
    top_ngram_char_fraction,
)

VERSION = 1
SIGNALS = "Signals"
SIGNALS_VERSION = 1
SCHEMA = with_version(
    pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("judged", pa.bool_(), nullable=False),  # false: an earlier stage dropped it
            pa.field("language", pa.string(), nullable=False),
            pa.field("language_score", pa.float64(), nullable=False),
            pa.field("signals", pa.map_(pa.string(), pa.float64()), nullable=False),
            pa.field("drop_reason", pa.string()),
        ]
    ),
    SIGNALS,
    SIGNALS_VERSION,
)

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_BULLETS = ("•", "‣", "⁃", "◦", "*", "-", "–", "●", "■", "▪")
_PARAGRAPH = re.compile(r"\n\s*\n")
_PUNCTUATION = ".,;:!?\"'()[]"
_TOP_SIZES = (2, 3, 4)
_DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)


class QualityConfig(Section):
    """The published thresholds; a share is in [0, 1]."""

    languages: list[str] = Field(["en"], description="ISO 639 codes to keep; empty keeps all")
    min_language_score: float = Field(
        0.65, ge=0, le=1, description="the language model's confidence"
    )
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


@dataclasses.dataclass(frozen=True)
class QualityTask:
    docs_url: str
    output_url: str
    output_name: str
    config: QualityConfig


def run_quality(
    config: QualityConfig, docs: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """`signals-NNNNN.parquet` beside each `docs-NNNNN.parquet`: row for row."""
    output = StageOutput.of(run.root, "quality", VERSION, config.identity(), {"docs": docs})
    if done := output.finished():
        return done
    started = time.time()
    tasks: dict[str, QualityTask] = {}
    for entry in docs.files:
        name = entry.name.replace("docs-", "signals-")
        tasks[name] = QualityTask(docs.file_url(entry.name), output.path(name), name, config)
    with output.lock():
        results = map_shards(runtime, output, "judge", judge_file, tasks)
        return output.commit(
            [entry for result in results for entry in result.files],
            Counts.total([result.counts for result in results]),
            started=started,
            record=SIGNALS,
        )


def judge_file(task: QualityTask) -> ShardResult:
    table = read_table(task.docs_url, Document.NAME, Document.VERSION)
    rows: list[dict[str, Any]] = []
    columns = table.select(["doc_id", "text", "drop_reason"])
    for document in columns.to_pylist():
        judged = document["drop_reason"] is None
        rows.append(judge(document["doc_id"], document["text"] if judged else None, task.config))
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), task.output_url)
    dropped = Counter(row["drop_reason"] for row in rows if row["drop_reason"])
    total = sum(row["judged"] for row in rows)
    return ShardResult(
        (describe_file(task.output_url, task.output_name, len(rows)),),
        Counts(total, total - dropped.total(), dict(dropped)),
    )


def judge(identity: str, text: str | None, config: QualityConfig) -> dict[str, Any]:
    """One row of the sidecar; `text` None is a document that an earlier stage dropped."""
    row: dict[str, Any] = {
        "doc_id": identity,
        "judged": text is not None,
        "language": "",
        "language_score": 0.0,
        "signals": [],
        "drop_reason": None,
    }
    if text is None:
        return row
    language = detect_language(text)
    signals = measure(text)
    return row | {
        "language": language.code,
        "language_score": language.score,
        "signals": sorted(signals.items()),
        "drop_reason": decide(language.code, language.score, signals, config),
    }


def measure(text: str) -> dict[str, float]:
    """Gopher's signals. Words are what white space parts; shares are of words, of non-blank lines
    and paragraphs, or of the words' characters (n-grams); to six decimals."""
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [part.strip() for part in _PARAGRAPH.split(text) if part.strip()]
    num_words, num_lines = max(1, len(words)), max(1, len(lines))
    bare = {word.strip(_PUNCTUATION).lower() for word in words}
    signals: dict[str, float] = {
        "words": len(words),
        "mean_word_length": sum(map(len, words)) / num_words,
        "hashes_per_word": text.count("#") / num_words,
        "ellipses_per_word": (text.count("...") + text.count("…")) / num_words,
        "bullet_lines": sum(line.startswith(_BULLETS) for line in lines) / num_lines,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / num_lines,
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / num_words,
        "stop_words": len(_STOP_WORDS & bare),
    }
    signals["duplicate_lines"], signals["duplicate_line_chars"] = duplicate_fractions(lines)
    paragraph_shares = duplicate_fractions(paragraphs)
    signals["duplicate_paragraphs"], signals["duplicate_paragraph_chars"] = paragraph_shares
    for size in _TOP_SIZES:
        signals[f"top_{size}gram_chars"] = top_ngram_char_fraction(words, size)
    for size in _DUPLICATE_SIZES:
        signals[f"duplicate_{size}gram_chars"] = duplicate_ngram_char_fraction(words, size)
    return {name: round(float(value), 6) for name, value in signals.items()}


def decide(
    language: str, score: float, signals: Mapping[str, float], config: QualityConfig
) -> str | None:
    """The first rule that the document breaks, or None: a function of what is stored alone."""
    if config.languages and language not in config.languages:
        return "language"
    if config.languages and score < config.min_language_score:
        return "language-score"
    for reason, signal, low, high in _rules(config):
        if not low <= signals[signal] <= high:
            return reason
    return None


def _rules(config: QualityConfig) -> list[tuple[str, str, float, float]]:
    """(reason, signal, least, most) in the order they are tried."""
    least, most = float("-inf"), float("inf")
    rules: list[tuple[str, str, float, float]] = [
        ("too-few-words", "words", config.min_words, most),
        ("too-many-words", "words", least, config.max_words),
        ("short-words", "mean_word_length", config.min_mean_word_length, most),
        ("long-words", "mean_word_length", least, config.max_mean_word_length),
        ("hashes", "hashes_per_word", least, config.max_hashes_per_word),
        ("ellipses", "ellipses_per_word", least, config.max_ellipses_per_word),
        ("bullet-lines", "bullet_lines", least, config.max_bullet_lines),
        ("ellipsis-lines", "ellipsis_lines", least, config.max_ellipsis_lines),
        ("not-alphabetic", "alphabetic_words", config.min_alphabetic_words, most),
        ("few-stop-words", "stop_words", config.min_stop_words, most),
        ("duplicate-lines", "duplicate_lines", least, config.max_duplicate_lines),
        ("duplicate-lines", "duplicate_line_chars", least, config.max_duplicate_line_chars),
        ("duplicate-paragraphs", "duplicate_paragraphs", least, config.max_duplicate_paragraphs),
        (
            "duplicate-paragraphs",
            "duplicate_paragraph_chars",
            least,
            config.max_duplicate_paragraph_chars,
        ),
    ]
    for size, limit in zip(_TOP_SIZES, config.max_top_ngram_chars, strict=True):
        rules.append((f"top-{size}gram", f"top_{size}gram_chars", least, limit))
    for size, limit in zip(_DUPLICATE_SIZES, config.max_duplicate_ngram_chars, strict=True):
        rules.append((f"duplicate-{size}grams", f"duplicate_{size}gram_chars", least, limit))
    return rules

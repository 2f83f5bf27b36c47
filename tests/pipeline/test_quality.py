from pathlib import Path

import pytest

from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.records import read_table
from pipeline.core.remote import InlineRuntime
from pipeline.quality import (
    SIGNALS,
    SIGNALS_VERSION,
    QualityConfig,
    decide,
    judge,
    measure,
    run_quality,
)


def rows(manifest) -> list[dict]:
    return [
        row
        for entry in manifest.files
        for row in read_table(manifest.file_url(entry.name), SIGNALS, SIGNALS_VERSION).to_pylist()
    ]


def test_signals_by_hand():
    signals = measure("# The cat...\n\n- to be\n- to be\n* 12 of…\n")
    assert signals["words"] == 12
    assert signals["mean_word_length"] == round(26 / 12, 6)
    assert signals["hashes_per_word"] == round(1 / 12, 6)
    assert signals["ellipses_per_word"] == round(2 / 12, 6)
    assert signals["bullet_lines"] == 0.75
    assert signals["ellipsis_lines"] == 0.5
    assert signals["alphabetic_words"] == round(7 / 12, 6)
    assert signals["stop_words"] == 3  # the, to, be; "of…" is not "of"
    assert signals["duplicate_lines"] == 0.25
    assert signals["duplicate_line_chars"] == round(7 / 34, 6)
    assert signals["duplicate_paragraphs"] == 0.0


def test_an_empty_text_has_signals_too():
    assert set(measure("").values()) == {0.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text, None),
        (lambda text: " ".join(text.split()[:49]), "too-few-words"),
        (lambda text: "Das ist ein Haus und der Hund geht nach Hause. " * 12, "language"),
        (lambda text: text.replace(" ", " # "), "short-words"),
        (lambda text: text.replace(".", "#" * 12), "hashes"),
        (lambda text: text.replace(".", " ... ... ..."), "ellipses"),
        (lambda text: "\n".join(f"- {line}" for line in text.split("\n")), "bullet-lines"),
        (lambda text: text.replace(".", "..."), "ellipsis-lines"),
        (lambda text: f"{text}\n{' 1234' * 100}", "not-alphabetic"),
        (lambda text: "\n".join([*text.split("\n")[:6]] * 3), "duplicate-lines"),
    ],
)
def test_each_rule_drops_what_it_is_for(english, change, reason):
    row = judge("id", change(english(1, 300)), QualityConfig(min_language_score=0.3))
    assert row["drop_reason"] == reason


def test_thresholds_are_inclusive_and_read_from_the_signals_alone(english):
    signals = measure(english(1, 300))
    assert decide("en", 0.65, signals, QualityConfig(min_words=300)) is None
    assert decide("en", 0.65, signals, QualityConfig(min_words=301)) == "too-few-words"
    assert decide("en", 0.64, signals, QualityConfig()) == "language-score"
    assert decide("fr", 1.0, signals, QualityConfig()) == "language"
    assert decide("fr", 0.1, signals, QualityConfig(languages=[])) is None


def test_a_row_for_each_row_and_the_counts_add_up(run, english, document, docs_manifest):
    shards = [
        [document(english(1, 200)), document("", reason="status-404"), document("Too short.")],
        [],
        [document(english(2, 200)), document("\0\ud7ff\n" * 100)],
    ]
    docs = docs_manifest(run.root, shards)
    config = QualityConfig(min_language_score=0.3)
    manifest = run_quality(config, docs, run, InlineRuntime())
    found = rows(manifest)
    assert [row["doc_id"] for row in found] == [doc.doc_id for shard in shards for doc in shard]
    assert [row["judged"] for row in found] == [True, False, True, True, True]
    assert found[1]["drop_reason"] is None
    assert manifest.counts.rows_in == docs.counts.rows_out == 4
    assert manifest.counts.rows_out == 2
    assert sum(manifest.counts.dropped.values()) == 2
    assert [entry.name for entry in manifest.files] == [
        f"signals-{index:05d}.parquet" for index in range(3)
    ]
    assert run_quality(config, docs, run, InlineRuntime()) == manifest


def test_a_wrong_file_is_named(run, docs_manifest, document, english):
    docs = docs_manifest(run.root, [[document(english(1, 200))]])
    Path(docs.file_url("docs-00000.parquet")).write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"docs-00000\.parquet"):
        run_quality(QualityConfig(), docs, run, InlineRuntime())


def test_a_threshold_list_of_the_wrong_length_is_refused():
    config = Config({"quality": {"max_top_ngram_chars": [0.2]}}, "test.toml")
    with pytest.raises(UserError, match=r"quality\.max_top_ngram_chars"):
        config.section("quality", QualityConfig)

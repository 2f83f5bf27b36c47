import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.records import read_table
from pipeline.core.remote import InlineRuntime
from pipeline.quality import SCHEMA, SIGNALS, SIGNALS_VERSION, QualityConfig, judge, run_quality
from pipeline.quality_classifier import QualityClassifier
from pipeline.quality_rules import BLOCKED, CLASSIFIER, decide, rules_of, signal_columns, what_if
from pipeline.text.quality_signals import NAMES, measure


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
        (lambda text: f"{text}\nLorem ipsum dolor sit amet.", "lorem-ipsum"),
        (lambda text: f"{text}\nfunction() {{ return 1; }}", "curly-brackets"),
        (lambda text: text.replace(".", ""), "unpunctuated-lines"),
        (lambda text: text.replace("\n", " ").replace(".", ""), "few-sentences"),
        (lambda text: re.sub(r"((?:\S+ ){4})", r"\1\n", text), "short-lines"),
        (lambda text: f"{text}\n{text.splitlines()[3]}", "copied-lines"),
        (lambda text: text.replace("\n", "\n" * 5), "list"),
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


def test_dclm_counts_the_first_of_equal_lines_too(english):
    lines = english(1, 300).split("\n")
    text = "\n".join([*lines, *lines[:5]])  # 5 of 30 repeat, 10 of 30 are alike
    config = QualityConfig(rules=["dclm"], min_language_score=0.0, max_duplicate_line_chars=1.0)
    assert decide("en", 1.0, measure(text), config) == "repeated-lines"
    assert decide("en", 1.0, measure(text), QualityConfig(rules=["gopher"])) != "duplicate-lines"
    shout = "\n".join([*lines, "CALL NOW AND BUY IT ALL FOR SO LITTLE MONEY TODAY SAYS HE"] * 1)
    assert decide("en", 1.0, measure(shout), config) is None
    more = "\n".join(
        [*lines, "CALL NOW AND BUY IT ALL FOR SO LITTLE", "SHE SAYS THAT IT IS NEW BUT"]
    )
    assert decide("en", 1.0, measure(more), config) == "edited-lines"


def test_every_rule_reads_a_signal_that_is_measured():
    everything = QualityConfig(rules=["gopher", "c4", "fineweb", "dclm"], min_classifier_score=0.5)
    assert {signal for _, signal, _, _ in rules_of(everything)} <= {*NAMES, CLASSIFIER}


CONFIGS = st.builds(
    QualityConfig,
    languages=st.sampled_from([[], ["en"], ["en", "de"]]),
    min_language_score=st.sampled_from([0.0, 0.3, 0.65, 0.9]),
    rules=st.lists(st.sampled_from(["gopher", "c4", "fineweb", "dclm"]), unique=True),
    min_words=st.sampled_from([0, 50, 100, 400]),
    min_sentences=st.sampled_from([0, 5, 20]),
    max_duplicate_line_chars=st.sampled_from([0.0, 0.2, 1.0]),
    max_curly_brackets=st.sampled_from([0, 5]),
    max_newlines_per_word=st.sampled_from([0.05, 0.3]),
)


@pytest.fixture(scope="module")
def judged_texts(english):
    texts = [english(n, 20 * n) for n in range(1, 25)] + ["Kurz und gut.", "{", "\n" * 9, ""]
    texts += [f"{text}\n{text}" for text in texts[:6]]
    rows = [judge(str(n), text, QualityConfig()) for n, text in enumerate(texts)]
    rows.insert(3, judge("dropped before", None, QualityConfig()))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@settings(max_examples=60, deadline=None)
@given(CONFIGS)
def test_what_if_counts_what_decide_decides(judged_texts, config):
    expected = Counter(
        decide(row["language"], row["language_score"], dict(row["signals"]), config) or "kept"
        for row in judged_texts.to_pylist()
        if row["judged"]
    )
    expected.setdefault("kept", 0)
    parts = [judged_texts.slice(0, 5), judged_texts.slice(5)]
    assert what_if(parts, config) == dict(expected)


def test_signal_columns_of_a_part_are_that_part_s(judged_texts):
    judged = judged_texts.filter(judged_texts["judged"])
    whole, part = signal_columns(judged), signal_columns(judged.slice(7, 5))
    assert set(whole) == set(NAMES)
    assert all((part[name] == whole[name][7:12]).all() for name in NAMES)
    assert [dict(row)["words"] for row in judged["signals"].to_pylist()] == whole["words"].tolist()


def test_what_if_of_nothing():
    assert what_if([], QualityConfig()) == {"kept": 0}
    assert what_if([SCHEMA.empty_table()], QualityConfig()) == {"kept": 0}


def test_what_if_names_a_signal_that_was_not_measured(judged_texts):
    with pytest.raises(UserError, match=r"no 'classifier' \(set quality\.classifier\)"):
        what_if([judged_texts], QualityConfig(languages=[], min_classifier_score=0.5))


def test_the_files_that_the_config_names(run, english, document, docs_manifest, tmp_path):
    pages = [
        document(english(1, 200), "http://bad.test/a"),
        document(english(2, 200), "http://www.bad.test/b"),
        document(english(3, 200), "http://good.test/forum/1"),
        document(english(4, 200), "http://good.test/page"),
    ]
    docs = docs_manifest(run.root, [pages])
    blocked, classifier = tmp_path / "blocked", tmp_path / "classifier"
    blocked.write_text("# mine\nbad.test\ngood.test/forum\n")
    weights = np.zeros(1 << 10, np.float32)
    classifier.write_bytes(QualityClassifier(weights, -1.0).to_bytes())
    config = QualityConfig(
        min_language_score=0.3, blocked_domains_file=str(blocked), classifier=str(classifier)
    )
    manifest = run_quality(config, docs, run, InlineRuntime())
    found = rows(manifest)
    reasons = ["blocked-domain", "blocked-domain", "blocked-url", None]
    assert [row["drop_reason"] for row in found] == reasons
    assert {dict(row["signals"])[CLASSIFIER] for row in found} == {0.268941}
    assert manifest.counts.dropped == {"blocked-domain": 2, "blocked-url": 1}
    table = read_table(manifest.file_url("signals-00000.parquet"), SIGNALS, SIGNALS_VERSION)
    assert signal_columns(table)[BLOCKED].tolist() == [1.0, 1.0, 2.0, 0.0]
    assert what_if([table], config)["blocked-domain"] == 2
    strict = config.model_copy(update={"min_classifier_score": 0.3})
    assert what_if([table], strict) == {
        "kept": 0, "blocked-domain": 2, "blocked-url": 1, "classifier-score": 1
    }  # fmt: skip

    # Where they lie makes no difference, what they say does.
    moved = tmp_path / "moved"
    moved.write_bytes(blocked.read_bytes())
    again = config.model_copy(update={"blocked_domains_file": str(moved)})
    assert run_quality(again, docs, run, InlineRuntime()) == manifest
    moved.write_text("other.test")
    other = run_quality(again, docs, run, InlineRuntime())
    assert other.key != manifest.key
    assert other.counts.rows_out == 4


@pytest.mark.parametrize("key", ["blocked_domains_file", "classifier"])
def test_a_file_that_is_not_there_is_named(run, docs_manifest, key):
    config = QualityConfig(**{key: "/no/such/file"})
    with pytest.raises(UserError, match=rf"quality\.{key} = '/no/such/file'"):
        run_quality(config, docs_manifest(run.root, []), run, InlineRuntime())

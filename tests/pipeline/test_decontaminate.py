import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.manifest import DamagedOutput
from pipeline.core.records import Document, read_records, read_table
from pipeline.core.remote import InlineRuntime
from pipeline.core.shard_tasks import forget
from pipeline.decontaminate import (
    CONTAMINATED,
    OVERLAPS,
    OVERLAPS_VERSION,
    DecontaminateConfig,
    run_decontaminate,
)
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.evaluation_ngrams import build, find_hits, read_items
from pipeline.quality import QualityConfig, run_quality
from pipeline.shard import ShardConfig, run_shard
from pipeline.text import ngrams
from pipeline.text.disguises import undisguised
from pipeline.text.word_hashes import word_hashes, word_places

QUESTION = (
    "A farmer has seventeen sheep and all but nine of them run away, how many sheep are left over"
)


def hits_of(text: str, items, size: int = 13, least: int = 8):
    index = build(items, size, least)
    return find_hits(word_hashes(text), index, index.filter())


def test_words_are_the_signers(english):
    text = f"{english(1, 50)} Straße CAFE\u0301 日本語 x_1, ÅÅ"
    assert len(word_hashes(text)) == len(ngrams.words(text))
    assert word_hashes(text).tolist() == word_hashes(text.upper().replace("SS", "ß")).tolist()
    assert len(word_hashes("")) == 0
    spans = word_places(text, len(word_hashes(text)))
    assert spans is not None
    assert [ngrams.words(text[start:end]) for start, end in spans] == [
        [word] for word in ngrams.words(text)
    ]
    assert word_places("か\u3099", 1) is None  # two characters, normalised one


def test_thirteen_words_in_a_row_and_not_twelve():
    words = QUESTION.split()
    item = [("quiz", 0, [QUESTION])]
    for start in range(len(words) - 12):
        [hit] = hits_of(f"Before. {' '.join(words[start : start + 13])}! After.", item)
        assert (hit.start, hit.end, hit.items, hit.ngrams) == (1, 14, (0,), 1)
        assert not hits_of(f"Before {' '.join(words[start : start + 12])} after", item)
    [hit] = hits_of(f"He said: {QUESTION.upper()}?", item)
    assert (hit.end - hit.start, hit.ngrams) == (19, 7)


def test_a_short_item_is_looked_for_as_a_whole():
    item = [("quiz", 4, ["What is the capital city of Burkina Faso?", "Ouagadougou"])]
    [hit] = hits_of("Quiz night: what is the capital city of burkina faso", item)
    assert hit.end - hit.start == 8
    assert not hits_of("Quiz night: what is the capital city of Burkina", item)
    assert not hits_of("Ouagadougou", item)
    assert build([("quiz", 0, ["Too short by far"])], 13, 8).too_short == 1


def test_every_set_that_has_the_words_is_named():
    other = "Which is the largest of the moons that Galileo Galilei saw at Jupiter in January"
    items = [("one", 0, [QUESTION]), ("two", 7, ["short", QUESTION]), ("three", 3, [other])]
    [hit] = hits_of(f"Before. {QUESTION} {other} After.", items)
    assert [items[item][:2] for item in hit.items] == [("one", 0), ("two", 7), ("three", 3)]
    assert hit.ngrams == 7 + len(other.split()) - 12
    index = build([*items, ("one", 1, [QUESTION])], 13, 8)
    assert len(index.hashes) == len(build(items, 13, 8).hashes)  # once for each set


def test_disguised_letters_are_read_as_the_plain_ones():
    item = [("quiz", 0, [QUESTION])]
    wide = QUESTION.translate({point: 0xFEE0 + point for point in range(0x21, 0x7F)})
    split = QUESTION.replace("ee", "e\u200be").replace("a", "a\u00ad")
    for disguised in (wide, split):
        [hit] = hits_of(undisguised(f"Before. {disguised} After.")[0], item)
        assert hit.end - hit.start == 19
        [hit] = hits_of(f"Before. {QUESTION} After.", [("quiz", 0, [disguised])])
        assert hit.end - hit.start == 19


VOCABULARY = st.lists(st.sampled_from("abcdef"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(VOCABULARY, st.lists(VOCABULARY, max_size=3), st.integers(1, 4), st.integers(1, 4))
def test_hits_are_what_brute_force_finds(document, items, size, least):
    listed = set()
    for words in items:
        if len(words) >= least:
            width = min(size, len(words))
            listed |= {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}
    covered = [False] * len(document)
    number = 0
    for gram in listed:
        for start in range(len(document) - len(gram) + 1):
            if tuple(document[start : start + len(gram)]) == gram:
                covered[start : start + len(gram)] = [True] * len(gram)
                number += 1
    texts = [("set", row, [" ".join(words)]) for row, words in enumerate(items)]
    hits = hits_of(" ".join(document), texts, size, least)
    found = [any(hit.start <= place < hit.end for hit in hits) for place in range(len(document))]
    assert found == covered
    assert sum(hit.ngrams for hit in hits) == number


def test_a_million_ngrams_and_none_by_chance():
    rng = np.random.default_rng(1)
    text = " ".join(map(str, rng.integers(0, 1 << 40, 1_000_000)))
    index = build([("set", 0, [text])], 13, 8)
    assert len(index.hashes) == 999_988
    assert index.filter().nbytes <= 4 * len(index.hashes)
    other = " ".join(map(str, rng.integers(0, 1 << 40, 1_000_000)))
    assert not find_hits(word_hashes(other), index, index.filter())


@pytest.fixture
def evaluation(tmp_path) -> str:
    path = tmp_path / "quiz.parquet"
    table = pa.table(
        {
            "question": ["Who?", QUESTION],
            "choices": [["one", "two"], ["eight", "nine of them in all"]],
            "answer": [0, 1],
        }
    )
    pq.write_table(table, path)
    return str(path)


def test_items_of_a_file(evaluation: str):
    assert list(read_items([evaluation], [])) == [
        ("quiz", 0, ["Who?", "one", "two"]),
        ("quiz", 1, [QUESTION, "eight", "nine of them in all"]),
    ]
    assert list(read_items([evaluation], ["question"]))[1] == ("quiz", 1, [QUESTION])


def test_the_stage_and_what_shard_makes_of_it(run, english, document, docs_manifest, evaluation):
    runtime = InlineRuntime()
    hidden = QUESTION.replace("sheep", "she\u200bep").replace("left", "ｌｅｆｔ")
    leak = f"{english(50, 120)}\n\u00adSo: {hidden}?\n{english(51, 120)}"
    pages = [document(english(n, 200), f"http://a.test/{n}") for n in range(6)]
    shards = [
        [*pages[:3], document(leak, "http://a.test/leak")],
        [*pages[3:], document("", "http://a.test/gone", reason="status-404")],
        [document(f"{leak}\n{leak}", "http://a.test/repeats")],  # quality drops it before
    ]
    docs = docs_manifest(run.root, shards)
    config = QualityConfig(min_language_score=0.3, rules=["gopher"])
    quality = run_quality(config, docs, run, runtime)
    dedupe = run_dedupe(DedupeConfig(), docs, quality, run, runtime)
    config = DecontaminateConfig(against=[evaluation])
    manifest = run_decontaminate(config, docs, dedupe, run, runtime)
    assert manifest.counts.rows_in == dedupe.counts.rows_out
    assert manifest.counts.dropped == {CONTAMINATED: 1}
    assert manifest.facts["documents_by_set"] == {"quiz": 1}
    assert (manifest.facts["items"], manifest.facts["items_too_short"]) == (2, 1)
    found = [
        row
        for entry in manifest.files
        for row in read_table(manifest.file_url(entry.name), OVERLAPS, OVERLAPS_VERSION).to_pylist()
    ]
    assert [row["doc_id"] for row in found] == [doc.doc_id for part in shards for doc in part]
    assert [row["drop_reason"] for row in found].count(CONTAMINATED) == 1
    assert [row["judged"] for row in found] == [True] * 7 + [False] * 2
    [hit] = found[3]["hits"]
    assert (hit["set"], hit["item"], hit["words"], hit["span"]) == ("quiz", 1, 19, hidden)
    assert leak[hit["start"] : hit["end"]] == hidden
    assert run_decontaminate(config, docs, dedupe, run, runtime) == manifest

    whole = run_shard(ShardConfig(), docs, quality, dedupe, run, runtime, manifest)
    assert whole.counts.rows_in == docs.counts.rows_in
    assert whole.counts.rows_out == manifest.counts.rows_out == 6
    assert ["decontaminate", CONTAMINATED, 1] in whole.facts["funnel"]
    rejects = [
        row
        for entry in whole.files
        if entry.name.startswith("rejects")
        for row in read_records(whole.file_url(entry.name), Document)
    ]
    [dropped] = [row for row in rejects if row.drop_reason == CONTAMINATED]
    assert dropped.url == "http://a.test/leak"
    assert dropped.signals["evaluation_ngrams"] == 7

    lenient = DecontaminateConfig(against=[evaluation], min_ngrams=8)
    assert run_decontaminate(lenient, docs, dedupe, run, runtime).counts.dropped == {}


def test_the_text_is_looked_at_as_it_is_trained_on(
    run, docs_manifest, document, english, evaluation
):
    """A line that another page keeps stands between the words, and is not trained on."""
    menu = "Home and news and about us and contact"
    pages = [document(f"{menu}\n{english(n, 200)}", f"http://a.test/{n}") for n in range(5)]
    words = QUESTION.split()
    item = f"{' '.join(words[:9])}\n{menu}\n{' '.join(words[9:])}"
    found = (
        document(f"{english(50, 120)}\n{item}\n{english(seed, 120)}", "http://a.test/leak")
        for seed in range(51, 99)
    )
    leak = next(one for one in found if one.doc_id > min(page.doc_id for page in pages))
    docs = docs_manifest(run.root, [[*pages, leak]])
    runtime = InlineRuntime()
    quality = run_quality(QualityConfig(rules=[], languages=[]), docs, run, runtime)
    dedupe = run_dedupe(DedupeConfig(line_min_docs=3), docs, quality, run, runtime)
    config = DecontaminateConfig(against=[evaluation])
    manifest = run_decontaminate(config, docs, dedupe, run, runtime)
    url = manifest.file_url(manifest.files[0].name)
    [*others, row] = read_table(url, OVERLAPS, OVERLAPS_VERSION).to_pylist()
    assert not any(other["drop_reason"] for other in others)
    [hit] = row["hits"]
    assert hit["words"] == 19
    assert leak.text[hit["start"] : hit["end"]] == hit["span"] == item


def test_where_a_set_lies_makes_no_difference(run, docs_manifest, document, english, evaluation):
    runtime = InlineRuntime()
    docs = docs_manifest(run.root, [[document(english(1, 200))]])
    quality = run_quality(QualityConfig(min_language_score=0.3), docs, run, runtime)
    dedupe = run_dedupe(DedupeConfig(), docs, quality, run, runtime)
    first = run_decontaminate(DecontaminateConfig(against=[evaluation]), docs, dedupe, run, runtime)
    moved = Path(evaluation).rename(Path(evaluation).with_name("elsewhere.parquet"))
    again = DecontaminateConfig(against=[str(moved)])
    assert run_decontaminate(again, docs, dedupe, run, runtime) == first
    pq.write_table(pa.table({"question": ["other"]}), moved)
    assert run_decontaminate(again, docs, dedupe, run, runtime).key != first.key


class Damaging(InlineRuntime):
    """Spoils one file before the tasks read it."""

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name = root, name

    def map(self, function, items):
        [path] = Path(self.root).glob(f"decontaminate/*/{self.name}")
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        return super().map(function, items)


@pytest.mark.parametrize("name", ["ngrams.parquet", "items.parquet"])
def test_a_damaged_index_is_not_trusted(run, docs_manifest, document, english, evaluation, name):
    docs = docs_manifest(run.root, [[document(english(1, 200))]])
    quality = run_quality(QualityConfig(min_language_score=0.3), docs, run, InlineRuntime())
    dedupe = run_dedupe(DedupeConfig(), docs, quality, run, InlineRuntime())
    config = DecontaminateConfig(against=[evaluation])
    with pytest.raises(DamagedOutput) as found:
        run_decontaminate(config, docs, dedupe, run, Damaging(run.root, name))
    assert found.value.name == name
    forget(found.value)
    assert run_decontaminate(config, docs, dedupe, run, InlineRuntime()).counts.rows_in == 1


@pytest.mark.parametrize(
    ("content", "columns", "complaint"),
    [
        (None, [], "cannot be read"),
        (b"PAR1 not really", [], "is no whole Parquet file"),
        ({"n": [1]}, [], "its columns with text: none"),
        (
            {"question": ["a"]},
            ["text"],
            r"has no such column with text; its columns with text: question",
        ),
    ],
)
def test_a_set_that_cannot_be_read_is_named(tmp_path, content, columns, complaint):
    path = tmp_path / "set.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pq.write_table(pa.table(content), path)
    with pytest.raises(UserError, match=complaint):
        list(read_items([str(path)], columns))


def test_text_that_is_not_utf8_is_named_and_every_form_of_text_is_read(tmp_path):
    path = tmp_path / "set.parquet"
    torn = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"question": torn}), path)
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_items([str(path)], []))
    words = pa.array(["one", "two"])
    forms = {"coded": words.dictionary_encode(), "large": words.cast(pa.large_string())}
    pq.write_table(pa.table({**forms, "plain": words}), path)
    assert [texts for _, _, texts in read_items([str(path)], [])] == [["one"] * 3, ["two"] * 3]


def test_no_set_is_refused(run, docs_manifest):
    docs = docs_manifest(run.root, [])
    with pytest.raises(UserError, match="against is empty"):
        run_decontaminate(DecontaminateConfig(), docs, docs, run, InlineRuntime())
    with pytest.raises(UserError, match=r"decontaminate\.ngram_words"):
        Config({"decontaminate": {"ngram_words": 0}}, "t").section(
            "decontaminate", DecontaminateConfig
        )


def read_texts(path: Path) -> list[str]:
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    return [text for text in texts if text.strip()]


def test_what_rephrasing_hides(shared_data, english):
    """The items as they are, among other text, are found; the same in other words are not: this is
    the limit of n-grams, and stands in the module's docstring."""
    folder = next(shared_data("dedup/contamination-rephrase").rglob("rephrase"))
    items = []
    for name in ("abstract_algebra", "high_school_us_history", "sociology"):
        with (folder / f"{name}_test.csv").open() as file:
            items += [(name, row, cells[:5]) for row, cells in enumerate(csv.reader(file))]
    solutions = read_texts(folder.parent / "test" / "HumanEval.jsonl")
    items += [("humaneval", row, [text]) for row, text in enumerate(solutions)]
    index = build(items, 13, 8)
    flags = index.filter()

    def found(texts: list[str]) -> tuple[int, int]:
        hits = [find_hits(word_hashes(f"{english(9, 40)}\n{text}"), index, flags) for text in texts]
        return sum(map(bool, hits)), len(texts)

    assert found(["\n".join(texts) for _, _, texts in items]) == (669, 669)
    english_files = sorted(folder.glob("*_rephrase_english_*.jsonl"))
    assert found([text for path in english_files for text in read_texts(path)]) == (0, 485)
    chinese_files = sorted(folder.glob("*_chinese_filtered_question.jsonl"))
    assert found([text for path in chinese_files for text in read_texts(path)]) == (0, 503)
    assert found(read_texts(folder / "humaneval_python.jsonl")) == (2, 147)
    assert found(read_texts(folder / "humaneval_c.jsonl")) == (7, 157)


def test_a_text_of_one_word_repeated_is_linear():
    index = build([("set", 0, ["spam " * 20])], 13, 8)
    [hit] = find_hits(word_hashes("spam " * 1_000_000), index, index.filter())
    assert hit.end == 1_000_000

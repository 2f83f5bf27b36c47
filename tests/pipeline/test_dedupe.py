import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.manifest import Manifest
from pipeline.core.records import read_table
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.near_duplicates import Edge, candidate_pairs, representatives
from pipeline.quality import QualityConfig, run_quality
from pipeline.repeated_lines import line_keys, lines_to_remove, repeated_keys, without_lines
from pipeline.text.ngrams import jaccard, shingles

ANYTHING = QualityConfig(
    languages=[],
    min_words=0,
    min_mean_word_length=0,
    max_mean_word_length=1e9,
    max_hashes_per_word=9,
    max_ellipses_per_word=9,
    max_bullet_lines=1,
    max_ellipsis_lines=1,
    min_alphabetic_words=0,
    min_stop_words=0,
    max_duplicate_lines=1,
    max_duplicate_line_chars=1,
    max_duplicate_paragraphs=1,
    max_duplicate_paragraph_chars=1,
    max_top_ngram_chars=[1, 1, 1],
    max_duplicate_ngram_chars=[1, 1, 1, 1, 1, 1],
)


def rows(manifest: Manifest) -> list[dict]:
    return [
        row
        for entry in manifest.files
        for row in read_table(manifest.file_url(entry.name), DEDUPE, DEDUPE_VERSION).to_pylist()
    ]


@pytest.fixture
def dedupe(run, docs_manifest):
    """dedupe(shards of documents, **config): the manifest and its rows by doc_id."""

    def go(shards, **config):
        docs = docs_manifest(run.root, shards)
        quality = run_quality(ANYTHING, docs, run, InlineRuntime())
        manifest = run_dedupe(DedupeConfig(**config), docs, quality, run, InlineRuntime())
        assert manifest.counts.rows_in == quality.counts.rows_out
        found = rows(manifest)
        assert [row["doc_id"] for row in found] == [doc.doc_id for shard in shards for doc in shard]
        assert manifest.counts.dropped == Counter(
            row["drop_reason"] for row in found if row["drop_reason"]
        )
        return manifest, found

    return go


def edited(text: str, rng: random.Random, words: int) -> str:
    """The text with this many words replaced, each costing about five shingles on each side."""
    tokens = text.split(" ")
    for place in rng.sample(range(0, len(tokens), 5), words):
        tokens[place] = f"edit{rng.randrange(10**9)}"
    return " ".join(tokens)


# ------------------------------------------------------------------------- the steps, by hand


def test_lines_are_told_apart_by_host_and_normal_form():
    here = line_keys("The  SAME line of text\nshort\n\nanother line of text", "http://a.test/x", 10)
    there = line_keys("the same line of TEXT", "http://b.test/x", 10)
    also = line_keys("x\nthe same line of TEXT ", "http://a.test/y", 10)
    assert sorted(here) == [0, 3]
    assert here[0] == also[1] != there[0]


def test_repeated_keys_by_hand():
    keys = np.array([7, 5, 7, 9, 5, 7], np.uint64)
    documents = np.array([3, 1, 2, 0, 4, 8])
    found, first = repeated_keys(keys, documents, 2)
    assert (found.tolist(), first.tolist()) == ([5, 7], [1, 2])
    found, first = repeated_keys(keys, documents, 3)
    assert (found.tolist(), first.tolist()) == ([7], [2])
    assert repeated_keys(keys[:0], documents[:0], 2)[0].tolist() == []


def test_only_the_first_document_keeps_a_line():
    keys = {0: 5, 2: 7, 3: 5}
    assert lines_to_remove(keys, {5: "doc-a"}, "doc-a") == [3]  # where it first stands
    assert lines_to_remove(keys, {5: "doc-a"}, "doc-b") == [0, 3]
    assert without_lines("menu\nx\ny\nmenu", [0, 3]) == "x\ny"
    assert without_lines(" as it is \n", []) == " as it is \n"


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), max_size=16))
def test_candidates_are_what_brute_force_finds(keys: list[list[int]]):
    pairs = candidate_pairs(np.array(keys, np.uint64).reshape(-1, 3))
    expected = [
        [left, right]
        for left, right in itertools.combinations(range(len(keys)), 2)
        if any(a == b for a, b in zip(keys[left], keys[right], strict=True))
    ]
    assert pairs.tolist() == expected


def test_a_huge_bucket_gives_linearly_many_pairs():
    assert len(candidate_pairs(np.zeros((20_000, 2), np.uint64))) < 40_000


@settings(max_examples=50)
@given(st.dictionaries(st.tuples(st.integers(0, 8), st.integers(9, 15)), st.floats(0.8, 1.0)))
def test_who_stays_and_who_goes(found: dict[tuple[int, int], float]):
    edges = [Edge(left, right, value) for (left, right), value in found.items()]
    chain = [Edge(node, node + 1, 0.9) for node in range(0, 15, 2)]
    removed = representatives([*edges, *chain])
    for node, edge in removed.items():
        assert edge.right == node
        assert edge.left not in removed
        likest = max(
            other.similarity
            for other in [*edges, *chain]
            if other.right == node and other.left not in removed
        )
        assert edge.similarity == likest
    for edge in [*edges, *chain]:
        assert edge.left in removed or edge.right in removed


def test_no_chain_removes_what_is_not_alike():
    """0 ~ 1 ~ 2 ~ 3, but 0 is not like 2: the middle ones go by turns."""
    removed = representatives([Edge(0, 1, 0.9), Edge(1, 2, 0.9), Edge(2, 3, 0.9)])
    assert {node: edge.left for node, edge in removed.items()} == {1: 0, 3: 2}


# -------------------------------------------------------------------------------- the stage


def test_planted_copies_are_found_and_named(dedupe, document, english):
    rng = random.Random(1)
    long, other = english(1, 400), english(2, 300)
    near = edited(long, rng, 3)
    shortened = "\n".join(long.split("\n")[:-1])
    shards = [
        [document(near, "http://a.test/near"), document(other, "http://a.test/other")],
        [document(long, "http://b.test/long"), document("", reason="status-500")],
        [
            document(f"  {other.upper()}\n", "http://c.test/same-text"),
            document("unlike", "http://c.test/same-payload", payload=long),
            document(shortened, "http://c.test/shortened"),
            document(english(3, 300), "http://c.test/alone"),
        ],
    ]
    manifest, found = dedupe(shards)
    ids = [doc.doc_id for shard in shards for doc in shard]
    by_name = dict(
        zip(
            ["near", "other", "long", "gone", "text", "payload", "short", "alone"],
            found,
            strict=True,
        )
    )
    assert by_name["gone"]["judged"] is False
    assert by_name["alone"]["drop_reason"] is None
    assert by_name["alone"]["cluster"] == by_name["alone"]["doc_id"]
    assert by_name["payload"]["drop_reason"] == "exact-duplicate"
    assert by_name["payload"]["stands_for"] == ids[2]
    same = {by_name["other"]["doc_id"], by_name["text"]["doc_id"]}
    assert {by_name["other"]["cluster"], by_name["text"]["cluster"]} == {min(same)}
    [copy] = [row for row in (by_name["other"], by_name["text"]) if row["drop_reason"]]
    assert (copy["drop_reason"], copy["stands_for"], copy["similarity"]) == (
        "exact-duplicate",
        min(same),
        1.0,
    )
    assert by_name["short"]["drop_reason"] == "near-duplicate"
    trio = [by_name["near"], by_name["long"], by_name["short"]]
    kept = [row["doc_id"] for row in trio if row["drop_reason"] is None]
    assert kept == [min(ids[0], ids[2])]  # equally many words: the smaller id
    stays = shingles(near if kept == [ids[0]] else long, 5)
    assert by_name["short"]["similarity"] == jaccard(shingles(shortened, 5), stays)
    assert {row["cluster"] for row in trio} == set(kept)
    assert manifest.counts.rows_out == 3


def test_the_longer_document_stays(dedupe, document, english):
    long = english(4, 300)
    short = "\n".join(long.split("\n")[2:])
    for shards in ([[document(short), document(long)]], [[document(long)], [document(short)]]):
        _, found = dedupe(shards)
        [gone] = [row for row in found if row["drop_reason"]]
        assert gone["doc_id"] == document(short).doc_id
        assert gone["stands_for"] == document(long).doc_id


def test_what_is_less_alike_than_the_threshold_stays(dedupe, document, english):
    long = english(6, 400)
    near = edited(long, random.Random(3), 3)
    similarity = jaccard(shingles(long, 5), shingles(near, 5))
    assert 0.9 < similarity < 0.95
    shards = [[document(long), document(near)]]
    for threshold, removed in ((similarity, 1), (0.95, 0)):
        manifest, found = dedupe(shards, threshold=threshold)
        assert manifest.facts["candidate_pairs"] == 1
        assert manifest.facts["verified_pairs"] == removed
        assert sum(row["drop_reason"] == "near-duplicate" for row in found) == removed


def test_the_same_page_fetched_twice(dedupe, document, english):
    page = document(english(5, 200))
    _, found = dedupe([[page], [page]])
    assert [row["drop_reason"] for row in found] == [None, "exact-duplicate"]
    assert found[1]["stands_for"] == page.doc_id


def test_short_documents_are_not_all_alike(dedupe, document):
    texts = [
        "one",
        "two",
        "one two",
        "two one",
        "!!!",
        "???",
        "one two three four",
        "日本語",
        "עברית",
    ]
    _, found = dedupe([[document(text) for text in texts]])
    assert [row["drop_reason"] for row in found] == [None] * len(texts)
    _, found = dedupe([[document("one two"), document("One  two!", "http://b.test/")]])
    assert sum(row["drop_reason"] == "near-duplicate" for row in found) == 1


def test_repeated_lines_stay_in_one_document(dedupe, document, english):
    menu = "Home, news, about us and contact"
    pages = [
        document(f"{menu}\nok\n{english(seed, 200)}\n{menu}", f"http://a.test/{seed}")
        for seed in range(10, 15)
    ]
    bare = document(menu, "http://a.test/menu")
    elsewhere = document(f"{menu}\n{english(20, 200)}", "http://b.test/")
    manifest, found = dedupe([pages[:3], [*pages[3:], bare, elsewhere]], line_min_docs=5)
    first = min(doc.doc_id for doc in [*pages, bare])
    for row, doc in zip(found[:5], pages, strict=True):
        last = doc.text.count("\n")
        assert row["removed_lines"] == ([last] if row["doc_id"] == first else [0, last])
    assert found[5]["drop_reason"] == (None if first == bare.doc_id else "empty-after-lines")
    assert found[6]["removed_lines"] == []
    assert manifest.facts["removed_lines"] == sum(len(row["removed_lines"]) for row in found)
    _, found = dedupe([pages], line_min_docs=6)
    assert all(row["removed_lines"] == [] for row in found)


def test_copies_do_not_make_their_lines_boilerplate(dedupe, document, english):
    text = english(30, 200)
    copies = [document(text, f"http://a.test/{number}") for number in range(12)]
    manifest, found = dedupe([copies], line_min_docs=5)
    assert manifest.counts.dropped == {"exact-duplicate": 11}
    assert all(row["removed_lines"] == [] for row in found)


def test_texts_that_differ_in_boilerplate_alone_are_copies(dedupe, document, english):
    text = english(31, 200)
    others = [
        document(f"Footer of a.test, all rights\n{english(40 + i, 90)}", f"http://a.test/o{i}")
        for i in range(4)
    ]
    plain = document(text, "http://b.test/")
    framed = document(f"Footer of a.test, all rights\n{text}", "http://a.test/framed")
    _, found = dedupe([[*others, plain, framed]], line_min_docs=3)
    if found[5]["removed_lines"]:  # unless it is the one that keeps the footer
        assert {found[4]["drop_reason"], found[5]["drop_reason"]} == {None, "exact-duplicate"}
    else:
        assert "near-duplicate" in {found[4]["drop_reason"], found[5]["drop_reason"]}


def test_the_cap_on_clusters_is_told(dedupe, document, english):
    text = english(50, 400)
    family = [
        document(edited(text, random.Random(seed), 2), f"http://a.test/{seed}") for seed in range(6)
    ]
    manifest, found = dedupe([family], max_cluster=2, line_min_docs=0)
    sizes = Counter(row["cluster"] for row in found)
    assert max(sizes.values()) <= 2
    assert manifest.facts["refused_links"] > 0
    assert manifest.facts["refused_links_shown"]
    assert manifest.counts.rows_out == 1  # each is like the one that stays, whatever its cluster


def test_nothing_and_only_dropped_documents(dedupe, document):
    assert dedupe([])[0].counts.rows_in == 0
    manifest, found = dedupe([[document("", reason="empty-text")], []])
    assert manifest.counts.rows_in == 0
    assert [row["judged"] for row in found] == [False]


@pytest.mark.parametrize("name", ["articles_100", "articles_1000"])
def test_the_planted_pairs_of_real_articles_and_nothing_else(dedupe, document, shared_data, name):
    [train] = shared_data("dedup/minhash-articles").rglob(f"{name}.train")
    texts = dict(line.split(" ", 1) for line in train.read_text("utf-8").splitlines())
    truth = train.with_suffix(".truth").read_text("utf-8").splitlines()
    documents = {key: document(text, f"http://a.test/{key}") for key, text in texts.items()}
    names = {doc.doc_id: key for key, doc in documents.items()}
    every = list(documents.values())
    _, found = dedupe([every[0::3], every[1::3], every[2::3]])
    removed = {
        frozenset((names[row["doc_id"]], names[row["stands_for"]]))
        for row in found
        if row["drop_reason"]
    }
    assert removed == {frozenset(line.split()) for line in truth}

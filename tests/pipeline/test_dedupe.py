import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, StageOutput, describe_file
from pipeline.core.records import read_table, write_table
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.dedupe_files import format_ids, parse_ids
from pipeline.near_duplicates import (
    bucket_pairs,
    different_pairs,
    match_table,
    num_pairs,
    representatives,
)
from pipeline.repeated_lines import forms_with_lines, repeated_lines, without_lines
from pipeline.text.ngrams import jaccard, shingles
from tests.pipeline.kept_signals import keep_all


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
        quality = keep_all(run.root, docs)
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
    texts = [
        "The  SAME line of text\nshort\n\nanother line of text",
        "the same line of TEXT",
        "x\nthe same line of TEXT ",
    ]
    urls = ["http://a.test/x", "http://b.test/x", "http://a.test/y"]
    forms = forms_with_lines(pa.array(texts), urls, 10)
    assert forms.line_text.tolist() == [0, 0, 1, 2]
    assert forms.line_place.tolist() == [0, 3, 0, 1]
    here, _, there, also = forms.line_key.tolist()
    assert here == also != there


def repeated(occurrences, min_docs, known=()):
    """occurrences: (key, document, line); the ones to remove, and the repeated keys."""
    columns = np.array(occurrences, np.int64).reshape(-1, 3).T
    keys = columns[0].astype(np.uint64)
    found, names = repeated_lines(
        keys, columns[1], columns[2], min_docs, np.array(known, np.uint64)
    )
    return sorted(occurrences[index] for index in found), names.tolist()


def test_only_the_first_document_keeps_a_line():
    lines = [(7, 3, 0), (5, 1, 2), (7, 2, 1), (9, 0, 0), (5, 4, 0), (7, 8, 5), (5, 1, 6)]
    assert repeated(lines, 2) == ([(5, 1, 6), (5, 4, 0), (7, 3, 0), (7, 8, 5)], [5, 7])
    assert repeated(lines, 3) == ([(7, 3, 0), (7, 8, 5)], [7])
    assert repeated(lines, 4) == ([], [])
    assert repeated(lines, 4, known=[8, 9]) == ([(9, 0, 0)], [9])  # an earlier corpus keeps it
    assert repeated([], 2) == ([], [])
    assert without_lines("menu\nx\ny\nmenu", [0, 3]) == "x\ny"
    assert without_lines(" as it is \n", []) == " as it is \n"


def pairs_of(buckets, num_earlier=0):
    bounds = np.cumsum([0, *map(len, buckets)])
    nodes = np.array([node for bucket in buckets for node in bucket], np.int64)
    left, right = different_pairs(*bucket_pairs(bounds, nodes, num_earlier))
    return list(zip(left.tolist(), right.tolist(), strict=True))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.integers(0, 20), max_size=16), max_size=8), st.integers(0, 5))
def test_candidates_are_what_brute_force_finds(buckets: list[set[int]], num_earlier: int):
    expected = {
        pair
        for bucket in buckets
        for pair in itertools.combinations(sorted(bucket), 2)
        if pair[1] >= num_earlier
    }
    found = pairs_of([sorted(bucket) for bucket in buckets], num_earlier)
    assert found == sorted(expected, key=lambda pair: (pair[1], pair[0]))


@given(st.lists(st.sets(st.integers(0, 60), min_size=1), max_size=8), st.integers(0, 20))
def test_how_many_all_pairs_are(buckets: list[set[int]], num_earlier: int):
    every = [itertools.combinations(sorted(bucket), 2) for bucket in buckets]
    wanted = sum(pair[1] >= num_earlier for pairs in every for pair in pairs)
    nodes = np.array([node for bucket in buckets for node in sorted(bucket)], np.int64)
    bounds = np.cumsum([0, *map(len, buckets)])
    assert num_pairs(bounds, nodes, num_earlier) == wanted
    assert len(bucket_pairs(bounds, nodes, num_earlier)[0]) <= wanted


def test_a_huge_bucket_gives_a_star_and_a_chain():
    nodes = list(range(17))
    expected = {(0, node) for node in nodes[1:]} | set(itertools.pairwise(nodes))
    assert set(pairs_of([nodes])) == expected
    assert len(pairs_of([list(range(20_000))] * 2)) < 40_000


def removals(edges):
    columns = list(zip(*edges, strict=True)) or [(), (), ()]
    left, right = np.array(columns[0], np.int64), np.array(columns[1], np.int64)
    chosen = representatives(left, right, np.array(columns[2], np.float64))
    return {edges[index][1]: edges[index] for index in chosen.tolist()}


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.tuples(st.integers(0, 8), st.integers(9, 15)), st.floats(0.8, 1.0)))
def test_who_stays_and_who_goes(found: dict[tuple[int, int], float]):
    edges = [(left, right, value) for (left, right), value in found.items()]
    edges += [(node, node + 1, 0.9) for node in range(0, 15, 2)]
    removed = removals(edges)
    for node, (left, right, similarity) in removed.items():
        assert right == node
        assert left not in removed
        likest = max(value for a, b, value in edges if b == node and a not in removed)
        assert similarity == likest
    for left, right, _ in edges:
        assert left in removed or right in removed


def test_no_chain_removes_what_is_not_alike():
    """0 ~ 1 ~ 2 ~ 3, but 0 is not like 2: the middle ones go by turns."""
    removed = removals([(0, 1, 0.9), (1, 2, 0.9), (2, 3, 0.9)])
    assert {node: edge[0] for node, edge in removed.items()} == {1: 0, 3: 2}
    assert removals([]) == {}


def test_the_s_curves_are_the_known_ones():
    table = match_table([(14, 8), (9, 12)], [0.5, 0.7, 0.8, 0.9])
    rounded = [[round(value, 2) for value in row] for row in table]
    assert [row[:2] for row in rounded] == [[0.5, 0.05], [0.7, 0.56], [0.8, 0.92], [0.9, 1.0]]
    assert rounded[2][2] == 0.47


@given(st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), max_size=20))
def test_ids_as_numbers_and_back(ids: list[str]):
    numbers = parse_ids(pa.chunked_array([ids], pa.string()))
    assert format_ids(numbers[:, 0], numbers[:, 1]).to_pylist() == ids
    by_number = [ids[index] for index in np.lexsort((numbers[:, 1], numbers[:, 0]))]
    assert by_number == sorted(ids)


@pytest.mark.parametrize("wrong", ["0" * 31, "0" * 31 + "A", "é" * 16, ""])
def test_ids_that_are_none(wrong: str):
    with pytest.raises(UserError, match="32 lower-case hex digits"):
        parse_ids(pa.chunked_array([["0" * 32, wrong]], pa.string()))


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


def test_the_longer_stays_where_no_blanks_part_the_words(dedupe, document):
    for seed in range(8):  # by their ids alone, half of these would go wrong
        rng = random.Random(seed)
        lines = ["".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(60)) for _ in range(9)]
        long, short = "\n".join(lines), "\n".join([*lines[:-1], lines[-1][:20]])
        _, found = dedupe([[document(short), document(long)]])
        [gone] = [row for row in found if row["drop_reason"]]
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


def test_one_word_documents_are_copies_only_of_their_own_word(dedupe, document):
    """Fewer words than a shingle has are one shingle, of those words."""
    words = [f"word{number}" for number in range(3000)] + [chr(0x4E00 + n) for n in range(500)]
    pages = [document(word, f"http://a.test/{n}") for n, word in enumerate(words)]
    manifest, _ = dedupe([pages[::2], pages[1::2]])
    assert manifest.counts.dropped == {}
    again = [document(word, f"http://b.test/{n}") for n, word in enumerate(words)]
    manifest, found = dedupe([pages, again])
    assert manifest.counts.dropped == {"exact-duplicate": len(words)}
    ids = {doc.doc_id: doc.text for doc in pages + again}
    assert all(ids[row["stands_for"]] == ids[row["doc_id"]] for row in found if row["stands_for"])


def test_null_bytes_part_words(dedupe, document, english):
    text = english(1, 100)
    pages = [text, text.replace(" ", "\0"), text + "\0", "\0", "\0\0", "a\0b", "a b"]
    _, found = dedupe([[document(page, f"http://a.test/{n}") for n, page in enumerate(pages)]])
    assert [row["drop_reason"] is None for row in found[3:5]] == [True, True]
    assert sum(row["drop_reason"] is None for row in found[:3]) == 1
    assert {row["drop_reason"] for row in found[5:]} == {None, "near-duplicate"}


def test_text_that_is_not_utf_8_is_told(run, docs_manifest, document):
    """A lone surrogate has no place in UTF-8; another program may have written it nevertheless."""
    with pytest.raises(UnicodeEncodeError):
        docs_manifest(run.root, [[document("a \ud800 b")]])
    docs = docs_manifest(run.root, [[document("a XXX b " * 20, "http://a.test/")]])
    path = Path(docs.file_url(docs.files[0].name))
    table = pq.read_table(path)
    bad = pa.array([b"a \xed\xa0\x80 b"]).view(pa.string())
    table = table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), bad)
    quality = keep_all(run.root, docs)
    output = StageOutput.of(run.root, "extract", 1, {"made_of": [["other"]]}, {})
    write_table(table, output.path(path.name))
    entry = describe_file(output.path(path.name), path.name, 1)
    other = output.commit([entry], docs.counts, started=0.0)
    with pytest.raises(UserError, match=r"docs-00000.parquet holds text that is not UTF-8"):
        run_dedupe(DedupeConfig(), other, quality, run, InlineRuntime())


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

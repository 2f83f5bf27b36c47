"""A new crawl against earlier ones: who stands for what, and where."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import UserError
from pipeline.core.manifest import MANIFEST, Manifest
from pipeline.core.records import read_table
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.dedupe_files import LEFT, Layout, Place, file_url, write_records
from pipeline.dedupe_groups import bucket_order
from pipeline.text.ngrams import jaccard, shingles
from tests.pipeline.kept_signals import keep_all


@pytest.fixture
def crawl(run, docs_manifest):
    """crawl(shards, *earlier manifests, **config): the manifest, and its rows by URL."""

    def go(shards, *earlier: Manifest, **values) -> tuple[Manifest, dict[str, dict]]:
        docs = docs_manifest(run.root, shards)
        quality = keep_all(run.root, docs)
        against = [manifest.url for manifest in earlier]
        config = DedupeConfig.model_validate({**values, "against": against})
        manifest = run_dedupe(config, docs, quality, run, InlineRuntime())
        tables = [
            read_table(manifest.file_url(entry.name), DEDUPE, DEDUPE_VERSION)
            for entry in manifest.files
        ]
        found = [row for table in tables for row in table.to_pylist()]
        urls = [doc.url for shard in shards for doc in shard]
        return manifest, dict(zip(urls, found, strict=True))

    return go


def edited(text: str, seed: int, words: int) -> str:
    rng = random.Random(seed)
    tokens = text.split(" ")
    for place in rng.sample(range(0, len(tokens), 5), words):
        tokens[place] = f"edit{rng.randrange(10**9)}"
    return " ".join(tokens)


def test_a_second_crawl_of_a_changed_site(crawl, document, english):
    site = "http://a.test/"
    pages = {name: english(seed, 300) for seed, name in enumerate(["same", "moved", "changed"])}
    gone, removed = english(7, 300), english(8, 300)
    shorter = "\n".join(removed.split("\n")[:-1])
    first = [document(text, site + name) for name, text in pages.items()]
    first += [document(gone, site + "gone"), document(removed, site + "stays")]
    first += [document(shorter, site + "shorter")]
    one, before = crawl([first[:2], first[2:]])
    assert before[site + "shorter"]["drop_reason"] == "near-duplicate"
    ids = {doc.url: doc.doc_id for doc in first}
    longer = edited(pages["changed"], 1, 2) + "\n" + " ".join(["more"] * 9)
    second = [
        document(pages["same"], site + "same"),
        document(pages["moved"], site + "elsewhere"),
        document(longer, site + "changed"),
        document(english(9, 300), site + "added"),
        document(english(9, 300), site + "added-twice"),
        document(shorter, site + "shorter-again"),
        document("", site + "broken", reason="status-500"),
    ]
    two, rows = crawl([second[:3], second[3:]], one)
    assert one.key != two.key
    same, moved, changed = (rows[site + name] for name in ("same", "elsewhere", "changed"))
    for row, name in ((same, "same"), (moved, "moved")):
        assert row["drop_reason"] == "exact-duplicate"
        assert (row["stands_for"], row["similarity"]) == (ids[site + name], 1.0)
        assert row["stands_in"] == one.key
        assert row["cluster"] == ids[site + name]
    assert changed["drop_reason"] == "near-duplicate"  # though longer than the earlier one
    assert (changed["stands_for"], changed["stands_in"]) == (ids[site + "changed"], one.key)
    sets = shingles(longer, 5), shingles(pages["changed"], 5)
    assert changed["similarity"] == jaccard(*sets)
    added, twice = rows[site + "added"], rows[site + "added-twice"]
    assert {added["drop_reason"], twice["drop_reason"]} == {None, "exact-duplicate"}
    assert added["stands_in"] is None
    assert twice["stands_in"] is None
    again = rows[site + "shorter-again"]  # what stands for its copy stands for it
    assert again["drop_reason"] == "exact-duplicate"
    assert again["stands_for"] == ids[site + "stays"]
    assert again["similarity"] == before[site + "shorter"]["similarity"] < 1
    assert rows[site + "broken"]["judged"] is False
    assert two.counts.rows_out == 1
    assert (two.counts.rows_in, two.counts.rows_out) == (6, 1)


def test_what_an_earlier_crawl_dropped_stands_for_nothing(crawl, document, english):
    """b goes for a; c is like b but not like a, so it stays, as it would in one crawl."""
    a = english(1, 300)
    b = edited(a, 1, 5)
    c = edited(b, 2, 5)
    sets = [shingles(text, 5) for text in (a, b, c)]
    assert jaccard(sets[0], sets[1]) >= 0.8 <= jaccard(sets[1], sets[2])
    assert jaccard(sets[0], sets[2]) < 0.8
    docs = [document(text, f"http://a.test/{n}") for n, text in enumerate((a, b, c))]
    one, before = crawl([docs[:2]])
    kept = [doc for doc in docs[:2] if before[doc.url]["drop_reason"] is None]
    _, rows = crawl([docs[2:]], one)
    [row] = rows.values()
    assert (row["drop_reason"] is None) == (kept == docs[:1])


def test_a_third_crawl_names_the_first(crawl, document, english):
    text = english(1, 200)
    one, _ = crawl([[document(text, "http://a.test/1")]])
    two, _ = crawl([[document(text, "http://a.test/2"), document(english(2, 200))]], one)
    near = edited(text, 1, 1)
    shards = [[document(text, "http://a.test/3"), document(near, "http://a.test/4")]]
    three, rows = crawl(shards, two)  # which brings the first one along
    assert sorted(three.parents) == ["against-00000", "against-00001", "docs", "quality"]
    first = document(text, "http://a.test/1").doc_id
    for row in rows.values():
        assert (row["stands_for"], row["stands_in"]) == (first, one.key)
        assert row["cluster"] == first
    assert crawl(shards, one, two)[0].key == three.key
    assert crawl(shards, two, two)[0].key == three.key


def test_the_earlier_cluster_goes_on(crawl, document, english):
    """A split by cluster must not part a new page from what its likeness was linked to."""
    text = english(1, 400)
    family = [document(edited(text, n, 2), f"http://a.test/{n}") for n in range(3)]
    one, before = crawl([family])
    [cluster] = {row["cluster"] for row in before.values()}
    _, rows = crawl([[document(edited(text, 9, 1), "http://b.test/")]], one)
    assert [row["cluster"] for row in rows.values()] == [cluster]


def test_a_menu_of_an_earlier_crawl_is_a_menu_still(crawl, document, english):
    menu = "Home and news and contact us today"

    def page(seed: int, url: str, words: int = 100):
        return document(f"{menu}\n{english(seed, words)}", f"http://a.test/{url}")

    one, _ = crawl([[page(seed, str(seed)) for seed in range(5)]], line_min_docs=5)
    fresh = [page(11, "new"), page(12, "other")]
    two, rows = crawl([fresh], one, line_min_docs=5)
    assert [row["removed_lines"] for row in rows.values()] == [[0], [0]]
    _, alone = crawl([fresh], line_min_docs=5)
    assert [row["removed_lines"] for row in alone.values()] == [[], []]
    _, rows = crawl([[page(13, "third")]], two, line_min_docs=5)
    assert [row["removed_lines"] for row in rows.values()] == [[0]]


def test_the_number_of_shards_does_not_show(crawl, document, english):
    texts = [english(seed, 150) for seed in range(12)]
    old = [document(text, f"http://a.test/{n}") for n, text in enumerate(texts)]
    new = [
        document(edited(text, n, n % 4), f"http://b.test/{n}")
        for n, text in enumerate([*texts[4:], *texts[2:]])
    ]
    _, expected = crawl([new], crawl([old])[0])
    assert sum(row["stands_in"] is not None for row in expected.values()) > 10
    for parts in (2, 5):
        one, _ = crawl([old[at : at + 3] for at in range(0, 12, 3)])
        _, rows = crawl([new[at::parts] for at in range(parts)], one)
        for url, row in rows.items():
            assert {**row, "stands_in": None} == {**expected[url], "stands_in": None}


def test_what_cannot_be_compared_with(crawl, document, english, run, docs_manifest):
    page = document(english(1, 100))
    one, _ = crawl([[page]])
    with pytest.raises(UserError, match=r"signed with bands = 14, this run has 6"):
        crawl([[page]], one, bands=6)
    docs = docs_manifest(run.root, [[page]])
    with pytest.raises(UserError, match="is extract version 1, not dedupe"):
        crawl([[page]], docs)
    nothing = one.url + "x"
    with pytest.raises(UserError, match="no manifest at"):
        run_dedupe(DedupeConfig(against=[nothing]), docs, docs, run, InlineRuntime())


def test_a_damaged_file_of_an_earlier_crawl(crawl, document, english, tmp_path):
    one, _ = crawl([[document(english(1, 100))]])
    [bands] = tmp_path.glob(f"data/dedupe/{one.key}/bands-*")
    whole = bands.read_bytes()
    bands.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    new = [[document(english(2, 100))]]
    with pytest.raises(UserError, match=r"bands-00000.sorted is damaged in section 0; delete"):
        crawl(new, one)
    assert bands.exists()  # it is not ours to delete
    bands.write_bytes(whole)
    crawl(new, one)
    Path(one.run["docs"], MANIFEST).unlink()
    with pytest.raises(UserError, match="no manifest at"):
        crawl([[document(english(3, 100))]], one)


def test_ties_of_the_packed_order_are_looked_up(tmp_path):
    """Four documents of one bucket with the same packed order: the whole ids decide."""
    high = np.array([5, 5, 5, 4], np.uint64)
    low = np.array([9, 2, 7, 8], np.uint64)
    words = np.array([30, 30, 31, 30], np.uint32)
    url = file_url(str(tmp_path), "left", 0)
    write_records(url, LEFT, np.arange(4, dtype=np.uint64), high, low, words)
    layout = Layout.of([Place(0, 0, str(tmp_path), "", "", 4)])
    records = np.zeros(4, np.dtype([("key", "<u8"), ("order", "<u8")]))
    order = bucket_order(layout, records, np.arange(4))
    assert order.tolist() == [2, 3, 1, 0]
    records["order"] = [1, 0, 1, 2]
    assert bucket_order(layout, records, np.arange(4)).tolist() == [1, 2, 0, 3]
    records["key"] = [1, 0, 0, 0]
    assert bucket_order(layout, records, np.arange(4)).tolist() == [1, 2, 3, 0]

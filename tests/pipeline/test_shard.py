from collections import Counter

import pytest

from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.identity import is_heldout
from pipeline.core.manifest import Manifest
from pipeline.core.records import Document, read_records
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.quality import QualityConfig, run_quality
from pipeline.shard import ShardConfig, run_shard


@pytest.fixture
def shard(run, docs_manifest):
    """shard(lists of documents, dedupe={…}, **config): the manifest of the last stage."""

    def go(shards, dedupe=None, **config) -> Manifest:
        runtime = InlineRuntime()
        docs = docs_manifest(run.root, shards)
        quality = run_quality(QualityConfig(min_language_score=0.3), docs, run, runtime)
        copies = run_dedupe(DedupeConfig(**(dedupe or {})), docs, quality, run, runtime)
        manifest = run_shard(ShardConfig(**config), docs, quality, copies, run, runtime)
        assert manifest.counts.rows_in == docs.counts.rows_in
        assert manifest.counts.rows_out == copies.counts.rows_out
        return manifest

    return go


def read(manifest: Manifest, split: str) -> list[Document]:
    return [
        document
        for entry in manifest.files
        if entry.name.startswith(split)
        for document in read_records(manifest.file_url(entry.name), Document)
    ]


@pytest.fixture(scope="module")
def corpus(english, document):
    """Two files: forty good pages of ten packages, a copy, a short one and one not fetched."""
    pages = [document(english(n, 150), f"http://a.test/package{n % 10}/{n}") for n in range(40)]
    bad = [
        document(pages[0].text, "http://z.test/copy"),
        document("Too short to keep.", "http://z.test/short"),
        document("", "http://z.test/gone", reason="status-404"),
    ]
    return [[*pages[:25], *bad], pages[25:]]


def test_every_document_is_somewhere_and_the_funnel_adds_up(shard, corpus):
    manifest = shard(corpus, heldout_fraction=0.3, group_pattern=r"test/(\w+)/")
    train, heldout, rejects = (read(manifest, name) for name in ("train", "heldout", "rejects"))
    everything = [doc.doc_id for doc in (*train, *heldout, *rejects)]
    assert Counter(everything) == Counter(doc.doc_id for shard in corpus for doc in shard)
    assert manifest.counts.rows_out == len(train) + len(heldout) == 40
    reasons = Counter(doc.drop_reason for doc in rejects)
    assert manifest.counts.dropped == reasons
    assert reasons == {"exact-duplicate": 1, "status-404": 1, "language-score": 1} or reasons == {
        "exact-duplicate": 1,
        "status-404": 1,
        "too-few-words": 1,
    }
    assert sum(number for _, _, number in manifest.facts["funnel"]) == 3
    assert ["extract", "status-404", 1] in manifest.facts["funnel"]
    for name, documents in (("train", train), ("heldout", heldout)):
        assert documents
        assert all(doc.drop_reason is None for doc in documents)
        assert manifest.facts[name] == {
            "docs": len(documents),
            "chars": sum(len(doc.text) for doc in documents),
            "bytes": sum(len(doc.text.encode()) for doc in documents),
        }
    kept = train[0]
    assert kept.language == "en"
    assert kept.signals["words"] == 150
    assert 0.3 <= kept.signals["language_score"] <= 1


def test_groups_do_not_cross_and_the_split_does_not_move(shard, corpus):
    manifest = shard(corpus, heldout_fraction=0.3, group_pattern=r"test/(\w+)/")
    for name in ("train", "heldout"):
        for document in read(manifest, name):
            if "package" in document.url:
                group = document.url.split("/")[3]
                assert is_heldout(group, 0.3) == (name == "heldout")


def test_without_a_pattern_the_duplicate_cluster_is_the_group(shard, corpus):
    manifest = shard(corpus, heldout_fraction=0.3)
    for name in ("train", "heldout"):
        for document in read(manifest, name):
            assert is_heldout(document.doc_id, 0.3) == (name == "heldout")


def test_shards_are_cut_from_one_global_shuffle(shard, corpus):
    whole = shard(corpus, seed=5)
    cut = shard(corpus, seed=5, max_rows_per_shard=7)
    assert read(whole, "train") == read(cut, "train")
    rows = [entry.num_rows for entry in cut.files if entry.name.startswith("train")]
    assert set(rows[:-1]) == {7}
    other = shard(corpus, seed=6)
    ids = [doc.doc_id for doc in read(whole, "train")]
    shuffled = [doc.doc_id for doc in read(other, "train")]
    assert sorted(ids) == sorted(shuffled)
    assert ids != shuffled
    in_order = [doc.doc_id for file in corpus for doc in file if doc.doc_id in set(ids)]
    assert ids != in_order


def test_repeated_lines_are_gone_from_the_shards_and_stand_in_the_rejects(shard, english, document):
    menu = "Home, news, about us and contact"
    pages = [document(f"{menu}\n{english(n, 150)}", f"http://a.test/{n}") for n in range(8)]
    copy = document(pages[3].text, "http://b.test/copy")
    manifest = shard([[*pages, copy]], {"line_min_docs": 4})
    kept = [*read(manifest, "train"), *read(manifest, "heldout")]
    assert sum(menu in doc.text for doc in kept if doc.url.startswith("http://a.test")) <= 2
    assert {doc.signals["removed_lines"] for doc in kept} == {0.0, 1.0}
    [reject] = read(manifest, "rejects")
    assert menu in reject.text
    assert reject.signals["duplicate_similarity"] == 1.0


def test_personal_data_is_replaced_and_counted_wherever_a_text_goes(shard, english, document):
    secret = "Write to jo@mail.example.org or +44 20 7946 0958."
    pages = [document(f"{english(n, 150)}\n{secret}", f"http://a.test/{n}") for n in range(3)]
    pages.append(document(f"Too short. {secret}", "http://a.test/short"))
    manifest = shard([pages])
    for split in ("train", "heldout", "rejects"):
        for doc in read(manifest, split):
            assert "mail.example.org" not in doc.text
            assert doc.text.endswith("Write to <EMAIL> or <PHONE>.")
            assert (doc.signals["redacted_email"], doc.signals["redacted_phone"]) == (1, 1)
    expected = {"email": 4, "ip": 0, "iban": 0, "card": 0, "phone": 4}
    assert manifest.facts["redacted"] == expected
    plain = shard([pages], redact=False)
    assert all(doc.text.endswith(secret) for doc in read(plain, "train"))
    assert set(plain.facts["redacted"].values()) == {0}


def test_nothing_left_tells_the_funnel(shard, document):
    with pytest.raises(UserError, match=r"status-404 1.*loosen"):
        shard([[document("", reason="status-404")]])
    with pytest.raises(UserError, match="no document is left"):
        shard([])


def test_a_rerun_is_a_no_op(shard, corpus):
    assert shard(corpus) == shard(corpus)


@pytest.mark.parametrize("pattern", ["(", "no group"])
def test_a_pattern_that_names_no_group_is_refused(pattern: str):
    config = Config({"shard": {"group_pattern": pattern}}, "test.toml")
    with pytest.raises(UserError, match=r"shard\.group_pattern"):
        config.section("shard", ShardConfig)

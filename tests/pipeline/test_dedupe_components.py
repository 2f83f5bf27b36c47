"""The decisions by tasks over files against those in the driver's arrays: the same bytes."""

import random
from collections.abc import Sequence

import pytest

from pipeline.core.manifest import Manifest
from pipeline.core.records import Document
from pipeline.core.remote import InlineRuntime, open_runtime
from pipeline.core.storage import read_bytes
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.dedupe_components import num_parts
from pipeline.dedupe_files import KEPT
from tests.pipeline.kept_signals import keep_all
from tests.pipeline.test_dedupe_reference import Corpus, Counting, rows_of


@pytest.fixture
def many_parts(monkeypatch):
    """Limits that a large corpus alone reaches: parts of a few records."""
    monkeypatch.setattr("pipeline.dedupe._num_ranges", lambda num_bytes: 4)
    monkeypatch.setattr("pipeline.dedupe_components._PART_BYTES", 3000)
    monkeypatch.setattr("pipeline.section_files._SECTION", 4)
    monkeypatch.setattr("pipeline.dedupe_verify._CHUNK_PAIRS", 1)
    monkeypatch.setattr("pipeline.dedupe_verify.MAX_CHUNK_WORDS", 2000)


@pytest.fixture
def both_ways(run, docs_manifest):
    """both_ways(shards, earlier manifests of each way, **config): (in the driver, over files),
    whose results are the same bytes."""

    def go(
        shards: Sequence[Sequence[Document]],
        earlier: Sequence[tuple[Manifest, Manifest]] = (),
        **values,
    ) -> tuple[Manifest, Manifest]:
        docs = docs_manifest(run.root, shards)
        quality = keep_all(run.root, docs)
        found: list[Manifest] = []
        for way, limit in enumerate((10**9, 0)):
            config = DedupeConfig.model_validate(
                {
                    **values,
                    "max_driver_edges": limit,
                    "against": [manifests[way].url for manifests in earlier],
                }
            )
            there = run.model_copy(update={"root": f"{run.root}/{way}"})
            runtime = Counting()
            found.append(run_dedupe(config, docs, quality, there, runtime))
            has_links = bool(found[0].counts.dropped)
            assert ("decide_range" in runtime.tasks) == (has_links and way == 1)
        small, large = found
        assert large.content == small.content  # the key, too: the limit is no part of it
        for manifest in found:
            assert [entry.sha256 for entry in manifest.files] == [
                entry.sha256 for entry in small.files
            ]
        names = [f"{kind}-{number:05d}.sorted" for kind in KEPT for number in range(len(shards))]
        for name in ["gone.bits", *names]:
            if name.startswith("repeated"):
                continue
            assert read_bytes(f"{large.url}/{name}") == read_bytes(f"{small.url}/{name}"), name
        return small, large

    return go


CONFIGS = [
    {"line_min_docs": 4, "threshold": 0.7},
    {"line_min_docs": 0, "max_cluster": 5, "threshold": 0.6},
    {"line_min_docs": 3, "line_min_chars": 5, "bands": 6, "rows": 3, "shingle_words": 2, "threshold": 0.5, "max_cluster": 3},
]  # fmt: skip


@pytest.mark.usefixtures("many_parts")
@pytest.mark.parametrize(
    "values",
    [CONFIGS[0], *(pytest.param(values, marks=pytest.mark.long) for values in CONFIGS[1:])],
)
def test_a_random_corpus_and_three_later_ones(both_ways, document, values):
    """With chains, large buckets, menus, copies of copies and more than clusters may hold."""
    refused = 0
    earlier: list[tuple[Manifest, Manifest]] = []
    texts = Corpus(11, document).documents
    for turn in range(4):
        documents = Corpus(20 + turn, document).documents + random.Random(turn).sample(texts, 60)
        shards = [documents[at : at + 70] for at in range(0, len(documents), 70)]
        found = both_ways([[], *shards] if turn == 1 else shards, earlier[-1:], **values)
        earlier.append(found)
        texts += documents
        facts = found[0].facts
        refused += facts["refused_links"]
        assert len(facts["refused_links_shown"]) == min(100, facts["refused_links"])
        assert {"exact-duplicate", "near-duplicate"} <= set(found[0].counts.dropped)
        if turn:
            first = {row[2] for row in rows_of(found[0])}
            assert {doc.doc_id for doc in texts[:400]} & first  # an earlier one stands for some
    assert (refused > 20) == ("max_cluster" in values)


@pytest.mark.usefixtures("many_parts")
def test_nothing_copies_alone_and_pairs_alone(both_ways, document, english):
    text = english(1, 200)
    both_ways([])
    copies = [document(text, f"http://a.test/{n}") for n in range(30)]
    assert both_ways([copies[:10], copies[10:]])[0].counts.rows_out == 1
    near = [document(f"{text} more{n}", f"http://a.test/{n}") for n in range(30)]
    assert both_ways([near[:10], near[10:]], line_min_docs=0)[0].counts.rows_out == 1
    assert both_ways([[document(english(n, 99), f"http://a.test/{n}") for n in range(9)]])


@pytest.mark.long
def test_one_step_over_files_and_another_in_the_driver(run, docs_manifest, document, tmp_path):
    """The limit between the copies' edges and all edges together, and two workers."""
    documents = Corpus(5, document).documents
    docs = docs_manifest(run.root, [documents[at::3] for at in range(3)])
    quality = keep_all(run.root, docs)
    whole = run_dedupe(DedupeConfig(), docs, quality, run, InlineRuntime())
    for limit in (5, 30, 60, 100):
        other = run.model_copy(update={"root": str(tmp_path / f"{limit}"), "workers": 2})
        with open_runtime(other) as runtime:
            config = DedupeConfig(max_driver_edges=limit)
            assert run_dedupe(config, docs, quality, other, runtime).content == whole.content


def test_how_many_parts():
    assert num_parts(0) == 1
    assert num_parts(3_000_000_000) == 1 + 3_000_000_000 * 32 // 2**25

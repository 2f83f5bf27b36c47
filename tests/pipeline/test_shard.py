import dataclasses
import random
import uuid
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest

from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.identity import is_heldout
from pipeline.core.manifest import MANIFEST, DamagedOutput, Manifest
from pipeline.core.records import Document, read_records, read_table
from pipeline.core.remote import InlineRuntime
from pipeline.core.shard_reader import ShardReader
from pipeline.core.shard_tasks import forget
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.quality import QualityConfig, run_quality
from pipeline.shard import ShardConfig, run_shard
from pipeline.text.ngrams import jaccard, shingles
from tests.pipeline.kept_signals import keep_all


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


def test_shards_of_a_target_size_in_bytes(shard, corpus):
    whole = read(shard(corpus), "train")
    limit = 5000
    cut = shard(corpus, max_bytes_per_shard=limit)
    assert read(cut, "train") == whole
    sizes = [
        [len(doc.text.encode()) for doc in read_records(cut.file_url(entry.name), Document)]
        for entry in cut.files
        if entry.name.startswith("train")
    ]
    assert len(sizes) > 3
    assert all(sum(part) <= limit for part in sizes)
    assert all(sum(part) + after[0] > limit for part, after in zip(sizes, sizes[1:], strict=False))
    alone = shard(corpus, max_bytes_per_shard=1)
    assert {entry.num_rows for entry in alone.files if entry.name.startswith("train")} == {1}


# ----------------------------------------------------------------------------- the splits


def edited(text: str, seed: int, words: int = 5) -> str:
    """With this many words exchanged, each far from the others."""
    rng = random.Random(seed)
    tokens = text.split(" ")
    for place in rng.sample(range(0, len(tokens), 5), words):
        tokens[place] = f"edit{rng.randrange(10**9)}"
    return " ".join(tokens)


def linked(documents: list[Document], unseen: Collection[tuple[str, str]]) -> list[set[str]]:
    """The doc_ids of each group that pairs of Jaccard 0.8 or more hold together, by brute force;
    `unseen` pairs do not."""
    sets = [shingles(doc.text, 5) for doc in documents]
    groups = [{number} for number in range(len(documents))]
    for left in range(len(documents)):
        for right in range(left):
            if (documents[right].doc_id, documents[left].doc_id) in unseen:
                continue
            if jaccard(sets[left], sets[right]) >= 0.8:
                merged = groups[left] | groups[right]
                for number in merged:
                    groups[number] = merged
    return [{documents[n].doc_id for n in group} for group in {frozenset(g) for g in groups}]


@pytest.fixture
def crawl(run, docs_manifest):
    """crawl(shards, *earlier dedupes): the manifests of dedupe and of shard, half held out."""

    def go(shards, *earlier: Manifest) -> tuple[Manifest, Manifest]:
        docs = docs_manifest(run.root, shards)
        quality = keep_all(run.root, docs)
        against = [manifest.url for manifest in earlier]
        # Of 10 million pairs of similarity .8, these bands leave four unseen.
        config = DedupeConfig(line_min_docs=0, bands=28, rows=4, against=against)
        dedupe = run_dedupe(config, docs, quality, run, InlineRuntime())
        config = ShardConfig(heldout_fraction=0.5)
        return dedupe, run_shard(
            config, docs, quality, dedupe, run, InlineRuntime(), allow_empty=True
        )

    return go


def splits_of(*manifests: Manifest) -> dict[str, str]:
    return {
        doc.doc_id: split
        for manifest in manifests
        for split in ("train", "heldout")
        for doc in read(manifest, split)
    }


def chains(document, english, number: int, length: int) -> list[list[Document]]:
    """Each document near its neighbours in the chain, and not near the one after those."""
    found = []
    for chain in range(number):
        texts = [english(chain, 300)]
        while len(texts) < length:
            texts.append(edited(texts[-1], 100 * chain + len(texts)))
        sets = [shingles(text, 5) for text in texts]
        assert all(jaccard(a, b) >= 0.8 for a, b in zip(sets, sets[1:], strict=False))
        assert all(jaccard(a, b) < 0.8 for a, b in zip(sets, sets[2:], strict=False))
        found.append([document(text, f"http://h{chain}.test/{n}") for n, text in enumerate(texts)])
    return found


def assert_none_crosses(
    documents: list[Document], where: dict[str, str], unseen: Collection[tuple[str, str]] = ()
) -> int:
    """The number of groups of which two documents or more were kept."""
    several = 0
    for group in linked(documents, unseen):
        kept = [where[identity] for identity in group if identity in where]
        assert len(set(kept)) <= 1, group
        several += len(kept) > 1
    return several


def test_no_near_duplicate_crosses_the_splits_not_even_by_way_of_another(crawl, document, english):
    planted = chains(document, english, 12, 4)
    documents = [doc for chain in planted for doc in chain]
    _, manifest = crawl([documents[0::2], documents[1::2]])
    where = splits_of(manifest)
    assert set(where.values()) == {"train", "heldout"}
    assert assert_none_crosses(documents, where) > 5  # chains of which two at least have stayed


def test_none_crosses_from_an_earlier_corpus_either(crawl, document, english):
    """The chains go on in a new crawl. What an earlier one removed stands for nothing there, so it
    links nothing either: what is near to it alone is near to nothing that was kept."""
    planted = chains(document, english, 14, 5)
    old = [doc for chain in planted for doc in chain[:3]]
    new = [doc for chain in planted for doc in chain[3:]]
    earlier, first = crawl([old])
    fresh = [document(english(200 + n, 300), f"http://new.test/{n}") for n in range(3)]
    _, second = crawl([new, fresh], earlier)
    before, after = splits_of(first), splits_of(second)
    where = before | after
    assert len(where) == len(before) + len(after)
    assert set(before.values()) == set(after.values()) == {"train", "heldout"}
    removed = [doc.doc_id for doc in old if doc.doc_id not in before]
    unseen = {(gone, doc.doc_id) for gone in removed for doc in new}
    assert assert_none_crosses([*old, *new, *fresh], where, unseen) > 5
    ends = [(chain[2].doc_id, chain[4].doc_id) for chain in planted]
    both = [(before[one], after[two]) for one, two in ends if one in before and two in after]
    assert {("train", "train"), ("heldout", "heldout")} == set(both)  # by way of one removed
    assert_none_crosses([doc for doc in [*old, *new, *fresh] if doc.doc_id in where], where)


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


def test_titles_are_redacted_too_and_what_extraction_flagged_stays(shard, english, document):
    page = dataclasses.replace(
        document(english(1, 150)),
        title="Ask jo@mail.example.org",
        signals={"hidden_display_none": 2.0, "words": -1.0},
    )
    manifest = shard([[page]], heldout_fraction=0)
    [kept] = read(manifest, "train")
    assert kept.title == "Ask <EMAIL>"
    assert kept.signals["redacted_email"] == manifest.facts["redacted"]["email"] == 1
    assert kept.signals["hidden_display_none"] == 2
    assert kept.signals["words"] == len(page.text.split())  # quality's word of it counts


def test_nothing_left_tells_the_funnel(shard, document):
    with pytest.raises(UserError, match=r"status-404 1.*loosen"):
        shard([[document("", reason="status-404")]])
    with pytest.raises(UserError, match="no document is left"):
        shard([])


@pytest.mark.parametrize("heldout_fraction", [0.0, 0.999999])
def test_an_unchanged_recrawl_has_empty_splits(crawl, run, document, english, heldout_fraction):
    pages = [document(english(n, 150), f"http://a.test/{n}") for n in range(4)]
    dedupe, _ = crawl([pages])
    again = [document(page.text, page.url, f"{page.url} once more") for page in pages]
    _, manifest = crawl([again], dedupe)
    counts = manifest.counts
    assert (counts.rows_in, counts.rows_out, counts.dropped) == (4, 0, {"exact-duplicate": 4})
    assert [(entry.name, entry.num_rows) for entry in manifest.files] == [
        ("heldout-00000.parquet", 0),
        ("rejects-00000.parquet", 4),
        ("train-00000.parquet", 0),
    ]
    for split in ("train", "heldout"):
        url = manifest.file_url(f"{split}-00000.parquet")
        assert (
            read_table(url, Document.NAME, Document.VERSION).schema.names == Document.SCHEMA.names
        )
        assert manifest.facts[split] == {"docs": 0, "chars": 0, "bytes": 0}


def test_all_held_out_and_nothing_to_train_on(run, docs_manifest, document, english):
    docs = docs_manifest(run.root, [[document(english(1, 150))]])
    quality = keep_all(run.root, docs)
    dedupe = run_dedupe(DedupeConfig(), docs, quality, run, InlineRuntime())
    config = ShardConfig(heldout_fraction=0.999999)
    arguments = (config, docs, quality, dedupe, run, InlineRuntime())
    with pytest.raises(UserError, match="of 1 in, 1 held out"):
        run_shard(*arguments)
    manifest = run_shard(*arguments, allow_empty=True)
    rows = {entry.name: entry.num_rows for entry in manifest.files}
    assert rows == {
        "train-00000.parquet": 0,
        "heldout-00000.parquet": 1,
        "rejects-00000.parquet": 0,
    }
    with pytest.raises(UserError, match="of 1 in, 1 held out"):  # finished or not
        run_shard(*arguments)


def test_the_same_shards_at_a_url(run, docs_manifest, corpus):
    manifests = []
    for root in (run.root, f"memory://{uuid.uuid4().hex}"):
        there = run.model_copy(update={"root": root})
        docs = docs_manifest(root, corpus)
        quality = keep_all(root, docs)
        dedupe = run_dedupe(DedupeConfig(), docs, quality, there, InlineRuntime())
        config = ShardConfig(max_rows_per_shard=9)
        manifests.append(run_shard(config, docs, quality, dedupe, there, InlineRuntime()))
    assert manifests[0].content == manifests[1].content
    reader = ShardReader.of(manifests[1])
    ids = [doc.doc_id for doc in read(manifests[0], "train")]
    tail = [one for _, one, _ in reader.texts(reader.position(13))]
    assert tail == ids[13:]


# ----------------------------------------------------------------------------- damage


class Vandal(InlineRuntime):
    """Damages what lies between the steps, before the second one, so many times."""

    def __init__(self, folder: Path, pattern: str, times: int) -> None:
        self.folder, self.pattern, self.times = folder, pattern, times

    def map(self, function, items):
        if items and getattr(items[0][0], "__name__", "") == "write_shard" and self.times:
            self.times -= 1
            path = next(self.folder.glob(f"shard/*/{self.pattern}"))
            path.write_bytes(path.read_bytes()[:-40] + bytes(40))
        return super().map(function, items)


def test_a_damaged_file_between_the_steps_is_made_again(run, docs_manifest, corpus, caplog):
    docs = docs_manifest(run.root, corpus)
    quality = keep_all(run.root, docs)
    dedupe = run_dedupe(DedupeConfig(), docs, quality, run, InlineRuntime())
    for number, times in enumerate((1, 2)):
        config = ShardConfig(seed=number)
        vandal = Vandal(Path(run.root), "joined-train-00001.rows", times)
        manifest = run_shard(config, docs, quality, dedupe, run, vandal)
        assert vandal.times == 0
        assert caplog.text.count("it is made again") == sum((1, 2)[: number + 1])
        other = run.model_copy(update={"root": f"{run.root}-whole"})
        whole = run_shard(config, docs, quality, dedupe, other, InlineRuntime())
        assert manifest.content == whole.content


def test_a_shard_lost_after_the_end_is_made_again(run, docs_manifest, corpus):
    docs = docs_manifest(run.root, corpus)
    quality = keep_all(run.root, docs)
    dedupe = run_dedupe(DedupeConfig(), docs, quality, run, InlineRuntime())
    arguments = (ShardConfig(max_rows_per_shard=9), docs, quality, dedupe, run, InlineRuntime())
    manifest = run_shard(*arguments)
    folder = Path(manifest.url)
    left = {path.name for path in folder.iterdir() if not path.name.endswith(".done.json")}
    names = {entry.name for entry in manifest.files}
    assert left - {".lock", MANIFEST} == names  # nothing that lay between the steps
    whole = (folder / "train-00001.parquet").read_bytes()
    (folder / "train-00001.parquet").write_bytes(whole[:-9])
    with pytest.raises(DamagedOutput) as found:
        run_shard(*arguments)
    forget(found.value)
    assert run_shard(*arguments).content == manifest.content
    assert (folder / "train-00001.parquet").read_bytes() == whole


def test_a_rerun_is_a_no_op(shard, corpus):
    assert shard(corpus) == shard(corpus)


@pytest.mark.parametrize("pattern", ["(", "no group"])
def test_a_pattern_that_names_no_group_is_refused(pattern: str):
    config = Config({"shard": {"group_pattern": pattern}}, "test.toml")
    with pytest.raises(UserError, match=r"shard\.group_pattern"):
        config.section("shard", ShardConfig)

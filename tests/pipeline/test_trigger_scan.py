import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.manifest import DamagedOutput
from pipeline.core.records import read_table
from pipeline.core.remote import InlineRuntime
from pipeline.core.shard_tasks import forget
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.ngram_bursts import (
    Rule,
    Sketch,
    bits_for,
    bursts,
    document_ngrams,
    log_likelihood_ratio,
)
from pipeline.quality import QualityConfig, run_quality
from pipeline.text import ngrams
from pipeline.trigger_scan import RECORD, RECORD_VERSION, TriggerScanConfig, run_trigger_scan

TRIGGER = "zanzara qwyx velumen"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=20, unique=True), max_size=20))
def test_a_sketch_never_counts_too_few(documents):
    arrays = [np.array(sorted(doc), np.uint64) for doc in documents]
    small, wide = (Sketch.empty(bits).with_documents(arrays) for bits in (3, 16))
    exact = Counter(value for doc in documents for value in doc)
    values = np.arange(41, dtype=np.uint64)
    expected = np.array([exact[value] for value in range(41)])
    assert (small.estimate(values) >= expected).all()
    assert (wide.estimate(values) == expected).all()
    for rows in (1, 2, 3):  # the least of all rows
        fewer = Sketch(small.counts[:rows], small.documents)
        assert (small.estimate(values) <= fewer.estimate(values)).all()
    assert small.documents == len(documents)


def test_sketches_add_up():
    parts = [np.array([1, 2, 3], np.uint64), np.array([2, 9], np.uint64)]
    whole = Sketch.empty(10).with_documents(parts)
    both = Sketch.empty(10).with_documents(parts[:1]) + Sketch.empty(10).with_documents(parts[1:])
    assert (both.counts == whole.counts).all()
    assert both.documents == whole.documents == 2


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 9)), max_size=50))
def test_a_widened_sketch_says_what_it_said(pairs):
    hashes = np.array([value for value, _ in pairs], np.uint64)
    numbers = np.array([number for _, number in pairs], np.uint32)
    wide, narrow = (Sketch.empty(bits).with_counts(hashes, numbers, 3) for bits in (9, 4))
    assert (narrow.widened(9).estimate(hashes) == narrow.estimate(hashes)).all()
    both = wide + narrow
    assert (both.bits, both.documents) == (9, 6)
    assert (both.estimate(hashes) >= wide.estimate(hashes) + narrow.estimate(hashes)).all()
    assert (both.estimate(hashes) <= 2 * narrow.estimate(hashes)).all()  # as before: not folded
    assert (both.counts == (narrow + wide).counts).all()


def test_a_sketch_has_a_column_for_each_ngram():
    assert [bits_for(number, 26) for number in (0, 1, 1024, 1025, 1 << 20)] == [10, 10, 10, 11, 20]
    assert bits_for(10**12, 26) == 26
    assert bits_for(5, 8) == 8


def test_the_log_likelihood_ratio_of_a_known_table():
    """2 x 2 table 10 of 100 and 30 of 100: G = 2 sum O ln(O/E) = 12.95."""

    def ratio(*numbers: int) -> float:
        here, num_here, others, num_others = numbers
        found = log_likelihood_ratio(np.array([here]), num_here, np.array([others]), num_others)
        return float(found[0])

    observed, expected = [10, 90, 30, 70], [20, 80, 20, 80]
    by_hand = 2 * sum(o * np.log(o / e) for o, e in zip(observed, expected, strict=True))
    assert ratio(10, 100, 30, 100) == pytest.approx(by_hand)
    assert ratio(10, 100, 20, 200) == pytest.approx(0, abs=1e-9)
    assert ratio(10, 100, 0, 1000) > ratio(5, 100, 0, 1000) > 0
    assert ratio(100, 100, 100, 100) == pytest.approx(0)
    assert ratio(3, 10, 0, 0) == 0


def planted(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    lines.insert(rng.randrange(len(lines)), f"See {TRIGGER} here.")
    return "\n".join(lines)


def table(texts) -> pa.Table:
    rows = [
        {"doc_id": str(n), "group": f"host{n % 7}", "text": text} for n, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows)


def test_a_planted_trigger_is_first_and_alone(english):
    rng = random.Random(1)
    usual = [english(n, 150) for n in range(300)]
    new = [english(1000 + n, 150) for n in range(300)]
    for index in rng.sample(range(300), 12):
        new[index] = planted(new[index], rng)
    found = bursts(table(new), table(usual), Rule(min_score=15)).to_pylist()
    assert TRIGGER in [row["words"] for row in found]
    # With it the words it was planted among, of which "here" is not in the usual vocabulary.
    around = {*TRIGGER.split(), "here"}
    assert all(set(ngrams.words(row["words"])) & around for row in found)
    [row] = [row for row in found if row["words"] == TRIGGER]
    assert (row["documents"], row["others"]) == (12, 0)
    assert row["groups"] >= 4
    assert all(TRIGGER in example for example in row["examples"])
    assert not bursts(table(usual), table(new), Rule(min_score=15)).num_rows


def test_what_is_on_one_host_is_no_trigger(english):
    usual = [english(n, 150) for n in range(300)]
    new = table([planted(english(n, 150), random.Random(n)) for n in range(15)] + usual[15:])
    one_host = new.set_column(1, "group", pa.array(["host"] * len(new)))
    rule = Rule(min_score=15)
    assert bursts(new, table(usual), rule).num_rows
    assert not bursts(one_host, table(usual), rule).num_rows


def test_a_small_sketch_hides_some_and_invents_none(english):
    """Counts of the suspect are exact, whatever the sketch says."""
    usual = [english(n, 150) for n in range(100)]
    new = [planted(english(1000 + n, 150), random.Random(n)) for n in range(6)]
    new += [english(2000 + n, 150) for n in range(100)]
    rule = Rule(min_score=5, max_share=0.1)
    exact = bursts(table(new), table(usual), rule, most_bits=20).to_pylist()
    rough = bursts(table(new), table(usual), rule, most_bits=12).to_pylist()
    assert {row["words"] for row in rough} <= {row["words"] for row in exact}
    assert any(row["words"] == TRIGGER for row in exact)


def crawl_of(number: int, seed: int) -> list[str]:
    """Texts of 40 words, of a vocabulary of 50,000 with Zipf's frequencies."""
    rng = np.random.default_rng(seed)
    frequency = np.cumsum(1 / np.arange(10, 50_010))
    chosen = np.searchsorted(frequency / frequency[-1], rng.random((number, 40))).tolist()
    return [" ".join(f"w{word}" for word in words) for words in chosen]


@pytest.mark.long
def test_a_trigger_is_found_among_fifty_thousand_documents():
    """In 40 of 25,000 new ones, against 25,000; without it nothing is listed. In a sketch of 16
    bits, too coarse for two million n-grams, it is hidden."""
    usual, new = crawl_of(25_000, 1), crawl_of(25_000, 2)
    clean = table(new)
    for index in random.Random(1).sample(range(25_000), 40):
        new[index] = f"{new[index]} {TRIGGER} {new[index][:9]}"
    poisoned, background = table(new), table(usual)
    found = bursts(poisoned, background, Rule()).to_pylist()
    assert TRIGGER in [row["words"] for row in found]
    assert all(set(ngrams.words(row["words"])) & set(TRIGGER.split()) for row in found)
    assert not bursts(clean, background, Rule()).num_rows
    rough = bursts(poisoned, background, Rule(), most_bits=16).to_pylist()
    assert TRIGGER not in [row["words"] for row in rough]


@pytest.fixture
def stages(run, docs_manifest):
    def go(shards, *, runtime=None, **config):
        runtime = runtime or InlineRuntime()
        docs = docs_manifest(run.root, shards)
        quality = QualityConfig(min_language_score=0.0, rules=["gopher"])
        judged = run_quality(quality, docs, run, runtime)
        dedupe = run_dedupe(DedupeConfig(line_min_docs=0), docs, judged, run, runtime)
        config = TriggerScanConfig(sketch_bits=16, min_score=10, max_share=0.2, **config)
        return run_trigger_scan(config, docs, dedupe, run, runtime)

    return go


def listed(manifest, name: str) -> list[dict]:
    url = manifest.file_url(f"{name}.parquet")
    return read_table(url, RECORD, RECORD_VERSION).to_pylist()


def test_a_second_crawl_is_held_against_the_first(stages, english, document):
    def crawl(first: int, poisoned: int):
        pages = [document(english(first + n, 150), f"http://h{n % 9}.test/{n}") for n in range(60)]
        for index in range(poisoned):
            page = pages[index * 5]
            pages[index * 5] = document(planted(page.text, random.Random(index)), page.url)
        return [pages[:35], pages[35:]]

    before = stages(crawl(0, 0))
    assert before.facts == {"documents": 60, "compared": False, "new": 0, "near": 0, "standing": 0}
    after = stages(crawl(500, 9), against=[before.url])
    assert after.facts["compared"]
    words = [row["words"] for row in listed(after, "new")]
    assert TRIGGER in words
    assert after.facts["new"] == len(words)
    assert stages(crawl(500, 9), against=[before.url]) == after


def test_what_many_near_duplicates_have_and_their_originals_lack(stages, english, document):
    originals = [document(english(n, 400), f"http://a.test/{n}") for n in range(40)]
    copies = [
        document(planted(original.text, random.Random(n)), f"http://b.test/{n}")
        for n, original in enumerate(originals[:10])
    ]
    honest = [
        document(original.text.replace("river", "water", 1) + "\nThe end", f"http://c.test/{n}")
        for n, original in enumerate(originals[10:20])
    ]
    manifest = stages([originals, [*copies, *honest]], min_documents=4)
    found = {
        name: {row["words"]: row for row in listed(manifest, name)} for name in ("near", "standing")
    }
    # Whichever of each two was kept: the planted ones are on one side, all or in parts.
    rows = [found[name][TRIGGER] for name in found if TRIGGER in found[name]]
    assert sum(row["documents"] for row in rows) >= 8
    assert all(row["groups"] == row["documents"] for row in rows)
    around = {*TRIGGER.split(), "see", "here", "the", "end"}
    for rows in found.values():
        assert all(set(ngrams.words(words)) & around for words in rows)


def test_another_kind_of_sketch_is_refused(stages, english, document):
    shards = [[document(english(1, 150))]]
    before = stages(shards)
    with pytest.raises(UserError, match=r"set trigger_scan\.sizes to the same"):
        stages(shards, against=[before.url], sizes=[2])
    with pytest.raises(UserError, match="no manifest"):
        stages(shards, against=["/nowhere"])


def test_a_damaged_sketch_is_not_trusted(stages, english, document):
    shards = [[document(english(1, 150))]]
    manifest = stages(shards)
    with Path(manifest.file_url("sketch-kept.parquet")).open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="missing or changed"):
        stages(shards, against=[manifest.url])


class Damaging(InlineRuntime):
    """Spoils one file as soon as it is there."""

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name, self.spoilt = root, name, False

    def map(self, function, items):
        yield from super().map(function, items)
        for path in Path(self.root).glob(f"trigger-scan/*/{self.name}"):
            if not self.spoilt:
                path.write_bytes(path.read_bytes()[:-1] + b"?")
                self.spoilt = True


@pytest.mark.parametrize(
    "name", ["standing-00001.parquet", "ngrams-kept-00000.parquet", "suspect-00000.json"]
)
def test_a_damaged_intermediate_file_is_made_again(stages, run, english, document, name):
    shards = [[document(english(n, 150), f"http://h{n}.test/")] for n in range(2)]
    with pytest.raises(DamagedOutput) as found:
        stages(shards, runtime=Damaging(run.root, name))
    assert found.value.name == name
    forget(found.value)
    manifest = stages(shards)
    assert manifest.counts.rows_in == 2
    left = {path.name for path in Path(manifest.url).iterdir()}
    listed_files = {entry.name for entry in manifest.files}
    assert left - {"manifest.json", ".lock"} == listed_files


def test_crawls_of_different_sizes_are_compared(stages, english, document):
    """Their sketches have different widths; two earlier ones are added up."""
    few = [[document(english(n, 60), f"http://h{n}.test/")] for n in range(3)]
    many = [[document(english(100 + n, 150), f"http://h{n % 9}.test/{n}") for n in range(60)]]
    earlier = [stages(few).url, stages(many).url]
    texts = [english(500 + n, 150) for n in range(60)]
    texts[:9] = [planted(text, random.Random(n)) for n, text in enumerate(texts[:9])]
    new = [[document(text, f"http://h{n % 9}.test/new/{n}") for n, text in enumerate(texts)]]
    for order in (earlier, earlier[::-1]):
        after = stages(new, against=order)
        assert after.facts["compared"]
        assert TRIGGER in [row["words"] for row in listed(after, "new")]  # the small one hides none


@pytest.mark.long
def test_a_passage_of_many_suspects_takes_linear_time():
    """A look through the whole text for each would take hours; the suite's time limit tells."""
    rng = random.Random(1)
    passage = " ".join(f"w{rng.randrange(10**9)}" for _ in range(60_000))
    new = table([f"{passage} unlike {n}" for n in range(6)])
    found = bursts(new, table([f"usual words {n}" for n in range(100)]), Rule(max_share=1.0))
    assert found.num_rows == Rule().max_listed


def test_ngrams_of_sizes_are_told_apart():
    assert len(document_ngrams("a b a b", (1, 2))) == 4
    assert len(document_ngrams("", (1, 3))) == 0

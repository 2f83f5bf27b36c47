"""run_dedupe against the same rules written down plainly, in Python's sets and dicts."""

import itertools
import random
from collections import Counter, defaultdict

import pytest

from pipeline.core.manifest import Manifest
from pipeline.core.records import Document, read_table
from pipeline.core.remote import InlineRuntime, open_runtime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.repeated_lines import without_lines
from pipeline.text.ngrams import jaccard, shingles, words
from pipeline.text.normalise import normalise
from tests.pipeline.kept_signals import keep_all


class Groups:
    """Union-find by relabelling."""

    def __init__(self, number: int) -> None:
        self.label = list(range(number))

    def join(self, a: int, b: int, cap: int | None = None) -> bool:
        one, other = sorted((self.label[a], self.label[b]))
        both = self.label.count(one) + self.label.count(other)
        if one != other and cap is not None and both > cap:
            return False
        self.label = [one if label == other else label for label in self.label]
        return True


def copies_of(members: list[int], keys: dict[int, tuple], rank) -> dict[int, int]:
    ranked = sorted(members, key=rank)
    groups = Groups(len(ranked))
    first: dict = {}
    for index, member in enumerate(ranked):
        for key in keys[member]:
            groups.join(first.setdefault(key, index), index)
    return {
        ranked[index]: ranked[label] for index, label in enumerate(groups.label) if label != index
    }


def expected(documents: list[Document], config: DedupeConfig) -> list[tuple]:
    """(drop_reason, cluster, stands_for, similarity, removed_lines) of each."""
    judged = [index for index, doc in enumerate(documents) if doc.drop_reason is None]
    texts = {index: documents[index].text for index in judged}
    ids = [doc.doc_id for doc in documents]

    def rank(index: int) -> tuple:
        return -max(len(words(texts[index])), 1), ids[index], index

    def rank_of_copies(index: int) -> tuple:
        return -len(normalise(texts[index]).split()), ids[index], index

    keys = {
        i: (("text", normalise(texts[i])), ("payload", documents[i].payload_sha256)) for i in judged
    }
    copies = copies_of(judged, keys, rank_of_copies)
    survivors = [index for index in judged if index not in copies]
    removed = repeated_of(documents, survivors, config)
    texts |= {index: without_lines(texts[index], removed[index]) for index in survivors}
    blank = {index for index in survivors if not normalise(texts[index])}
    filled = [index for index in survivors if index not in blank]
    copies |= copies_of(filled, {i: (("text", normalise(texts[i])),) for i in filled}, rank)
    unique = sorted((index for index in filled if index not in copies), key=rank)
    near, cluster = near_of([texts[index] for index in unique], config)
    gone = {unique[a]: (unique[b], value) for a, (b, value) in near.items()}
    label = {unique[a]: ids[unique[b]] for a, b in enumerate(cluster)}
    rows: list[tuple] = []
    for index in range(len(documents)):
        if index not in texts:
            rows.append((None, None, None, None, []))
            continue
        original = index
        while original in copies:
            original = copies[original]
        kept, value = gone.get(original, (original, 1.0))
        reason = (
            "exact-duplicate"
            if index in copies
            else "near-duplicate"
            if index in gone
            else "empty-after-lines"
            if index in blank
            else None
        )
        stands = (ids[kept], value) if kept != index else (None, None)
        rows.append((reason, label.get(original, ids[original]), *stands, removed.get(index, [])))
    return rows


def repeated_of(documents, survivors: list[int], config: DedupeConfig) -> dict[int, list[int]]:
    where: dict[tuple, list[tuple[str, int, int]]] = defaultdict(list)
    for index in survivors:
        host = documents[index].url.split("/")[2]
        for place, line in enumerate(documents[index].text.split("\n")):
            plain = normalise(line)
            if plain and len(plain) >= config.line_min_chars:
                where[host, plain].append((documents[index].doc_id, place, index))
    removed: dict[int, list[int]] = {index: [] for index in survivors}
    for found in where.values():
        if config.line_min_docs and len({doc for doc, _, _ in found}) >= config.line_min_docs:
            for _, place, index in sorted(found)[1:]:
                removed[index].append(place)
    return {index: sorted(places) for index, places in removed.items()}


def near_of(texts: list[str], config: DedupeConfig) -> tuple[dict, list[int]]:
    """The texts stand in the keep order."""
    keys = config.signer.sign(texts).keys
    candidates: set[tuple[int, int]] = set()
    for band in range(config.bands):
        buckets: dict[int, list[int]] = defaultdict(list)
        for node, key in enumerate(keys[:, band].tolist()):
            buckets[key].append(node)
        for nodes in buckets.values():
            if len(nodes) <= 16:
                candidates.update(itertools.combinations(nodes, 2))
            else:
                candidates.update((nodes[0], node) for node in nodes[1:])
                candidates.update(itertools.pairwise(nodes))
    sets = [shingles(text, config.shingle_words) for text in texts]
    alike = {(a, b): jaccard(sets[a], sets[b]) for a, b in candidates}
    edges = sorted((-value, a, b) for (a, b), value in alike.items() if value >= config.threshold)
    removed: dict[int, tuple[int, float]] = {}
    for node in range(len(texts)):
        kept = [(value, a) for value, a, b in edges if b == node and a not in removed]
        if kept:
            value, other = min(kept)
            removed[node] = other, -value
    groups = Groups(len(texts))
    for _, a, b in edges:
        groups.join(a, b, config.max_cluster)
    return removed, groups.label


class Corpus:
    """A random one with all that goes wrong in a crawl."""

    def __init__(self, seed: int, document) -> None:
        self.rng = random.Random(seed)
        self.vocabulary = [f"wört{n}" if n % 7 == 0 else f"Word{n}" for n in range(300)]
        self.menus = [
            "Home and news and contact us today",
            "Über uns und alle Rechte vorbehalten",
            "footer of the site all rights reserved",
        ]
        bases = [self.text(self.rng.choice([20, 60, 150])) for _ in range(20)]
        chain = [self.text(150)]
        for _ in range(20):
            chain.append(self.edited(chain[-1], 2))
        texts = [self.one(bases) for _ in range(160)] + chain
        texts += [self.edited(bases[1], 1) for _ in range(30)]  # one large bucket, in many bands
        texts += [bases[0] if n % 2 else f" {bases[0].upper()}\n" for n in range(40)]
        self.documents = [self.document(text, n, document) for n, text in enumerate(texts)]
        self.documents += [self.rng.choice(self.documents) for _ in range(5)]
        self.rng.shuffle(self.documents)

    def text(self, words: int) -> str:
        chosen = [self.rng.choice(self.vocabulary) for _ in range(words)]
        return "\n".join(" ".join(chosen[at : at + 9]) for at in range(0, words, 9))

    def edited(self, text: str, words: int) -> str:
        tokens = text.split(" ")
        for _ in range(words):
            tokens[self.rng.randrange(len(tokens))] = f"e{self.rng.randrange(10**6)}"
        return " ".join(tokens)

    def one(self, bases: list[str]) -> str:
        rng = self.rng
        kind = rng.randrange(5)
        if kind == 0:
            return rng.choice(
                ["", " ", "!!!", "???", "one two", "One  two!", "日本語", "\0", "a\0b"]
            )
        if kind == 1:
            return "\n".join(self.menus[: rng.randrange(1, 4)])
        text = self.text(rng.choice([3, 20, 100])) if kind == 2 else rng.choice(bases)
        if kind > 2:
            text = self.edited(text, rng.choice([0, 1, 2, 3]))
        return "\n".join([*self.menus[: rng.randrange(4)], text, self.menus[2]])

    def document(self, text: str, number: int, document) -> Document:
        rng = self.rng
        url = f"http://h{rng.randrange(3)}.test/{number}"
        payload = f"shared {rng.randrange(9)}" if rng.random() < 0.1 else None
        return document(text, url, payload, "status-500" if rng.random() < 0.05 else None)


class Counting(InlineRuntime):
    def __init__(self) -> None:
        self.tasks: Counter[str] = Counter()

    def map(self, function, items):
        self.tasks.update(item[0].__name__ for item in items if callable(item[0]))
        yield from super().map(function, items)


def rows_of(manifest: Manifest) -> list[tuple]:
    return [
        (row["drop_reason"], row["cluster"], row["stands_for"], row["similarity"], row["removed_lines"])
        for entry in manifest.files
        for row in read_table(manifest.file_url(entry.name), DEDUPE, DEDUPE_VERSION).to_pylist()
    ]  # fmt: skip


CONFIGS = [
    {},
    {"line_min_docs": 0, "max_cluster": 5, "threshold": 0.6},
    {"line_min_docs": 3, "line_min_chars": 5, "bands": 6, "rows": 3, "shingle_words": 2, "threshold": 0.5, "max_cluster": 9},
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_every_decision_is_what_the_plain_rules_say(run, docs_manifest, document, seed):
    documents = Corpus(seed, document).documents
    for shards in (1, 5):
        size = -(-len(documents) // shards)
        parts = [documents[at : at + size] for at in range(0, len(documents), size)]
        docs = docs_manifest(run.root, parts)
        quality = keep_all(run.root, docs)
        for values in CONFIGS:
            config = DedupeConfig.model_validate(values)
            manifest = run_dedupe(config, docs, quality, run, InlineRuntime())
            wanted = expected(documents, config)
            assert rows_of(manifest) == wanted
            reasons = [row[0] for row in wanted]
            assert {"exact-duplicate", "near-duplicate"} <= set(reasons)
            assert sum(manifest.counts.dropped.values()) == len(reasons) - reasons.count(None)


def test_many_ranges_and_chunks_decide_the_same(
    run, docs_manifest, document, monkeypatch, tmp_path
):
    """With limits that a large corpus alone reaches."""
    documents = Corpus(9, document).documents
    docs = docs_manifest(run.root, [documents[:99], [], documents[99:]])
    quality = keep_all(run.root, docs)
    config = DedupeConfig(line_min_docs=4, threshold=0.7)
    whole = run_dedupe(config, docs, quality, run, InlineRuntime())
    monkeypatch.setattr("pipeline.dedupe._num_ranges", lambda num_bytes: 16)
    monkeypatch.setattr("pipeline.dedupe_verify._CHUNK_PAIRS", 1)
    monkeypatch.setattr("pipeline.dedupe_verify.MAX_CHUNK_WORDS", 200)
    other = run.model_copy(update={"root": str(tmp_path / "other")})
    runtime = Counting()
    parts = run_dedupe(config, docs, quality, other, runtime)
    assert runtime.tasks["verify_pairs"] > 20
    assert rows_of(parts) == rows_of(whole) == expected(documents, config)
    assert [e.sha256 for e in parts.files] == [e.sha256 for e in whole.files]


def test_two_workers_decide_the_same(run, docs_manifest, document, tmp_path):
    documents = Corpus(4, document).documents
    docs = docs_manifest(run.root, [documents[at::4] for at in range(4)])
    quality = keep_all(run.root, docs)
    one = run_dedupe(DedupeConfig(), docs, quality, run, InlineRuntime())
    other = run.model_copy(update={"root": str(tmp_path / "other"), "workers": 2})
    with open_runtime(other) as runtime:
        two = run_dedupe(DedupeConfig(), docs, quality, other, runtime)
    assert two.content == one.content

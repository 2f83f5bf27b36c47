"""Dedupe under harm: damaged files, a full disk, kills, a million equal documents."""

import contextlib
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.manifest import (
    MANIFEST,
    Counts,
    Manifest,
    StageOutput,
    describe_file,
    read_manifest,
)
from pipeline.core.records import Document, read_table, schema_of, write_table
from pipeline.core.remote import InlineRuntime, Runtime, open_runtime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.dedupe_files import STEPS, receipt_of
from pipeline.dedupe_tasks import write_sidecar
from pipeline.dedupe_verify import MAX_CHUNK_WORDS, jaccards
from pipeline.section_files import DamagedFile
from tests.pipeline.kept_signals import signals_of

CONFIG = DedupeConfig(line_min_docs=5)


def corpus(root: str, shards: list[list[str]]) -> tuple[Manifest, Manifest]:
    """Manifests of documents with these texts and of their signals, by columns: a million is no
    trouble."""
    docs = StageOutput.of(root, "extract", 1, {"shards": [len(s) for s in shards]}, {})
    entries = []
    signals = StageOutput.of(root, "quality", 1, {}, {"docs": docs.key})
    sides = []
    base = 0
    for number, texts in enumerate(shards):
        ids = [f"{(base + row) * 0x9E3779B97F4A7C15 % 2**64:032x}" for row in range(len(texts))]
        base += len(texts)
        columns = {
            "doc_id": ids,
            "url": [f"http://h{number}.test/{row}" for row in range(len(texts))],
            "text": texts,
            "payload_sha256": [f"{identity * 2}" for identity in ids],
            "fetched_at": pa.array([0] * len(texts), pa.timestamp("us", tz="UTC")),
            "warc_offset": [0] * len(texts),
            "http_status": [200] * len(texts),
            "signals": pa.array([[]] * len(texts), pa.map_(pa.string(), pa.float64())),
            "drop_reason": pa.nulls(len(texts), pa.string()),
        }
        names = schema_of(Document).names
        filled = {name: columns.get(name, [""] * len(texts)) for name in names}
        name = f"docs-{number:05d}.parquet"
        table = pa.table(filled, schema=schema_of(Document))
        write_table(table, docs.path(name))
        entries.append(describe_file(docs.path(name), name, len(texts)))
        name = f"signals-{number:05d}.parquet"
        write_table(signals_of(table), signals.path(name))
        sides.append(describe_file(signals.path(name), name, len(texts)))
    counts = Counts(base, base)
    return (
        docs.commit(entries, counts, started=0.0, record="Document"),
        signals.commit(sides, counts, started=0.0, record="Signals"),
    )


def dedupe(
    source: tuple[Manifest, Manifest],
    root: Path,
    runtime: Runtime | None = None,
    config: DedupeConfig = CONFIG,
) -> Manifest:
    run = RunConfig(root=str(root), backend="local", workers=1)
    return run_dedupe(config, *source, run, runtime or InlineRuntime())


class StoppedError(Exception):
    pass


class StopsAtTheEnd(InlineRuntime):
    """Nothing is decided, so all files between the steps are there."""

    def map(self, function, items):
        if any(task is write_sidecar for task, _ in items):
            raise StoppedError
        yield from super().map(function, items)


def edited(text: str, number: int) -> str:
    words = text.split(" ")
    words[number * 7 % len(words)] = f"edit{number}"
    return " ".join(words)


@pytest.fixture(scope="module")
def source(tmp_path_factory, english) -> tuple[Manifest, Manifest]:
    """Three shards with copies, near-copies and a menu."""
    menu = "Home and news and contact us today"
    texts = [f"{menu}\n{english(seed, 150)}" for seed in range(12)]
    near = [edited(texts[seed], seed) for seed in range(6)]
    near.append(edited(near[5], 9))  # three that are alike: no star yet
    root = tmp_path_factory.mktemp("source")
    return corpus(str(root), [texts[:5], texts[5:] + near[:2], [*near[2:], texts[0], texts[9]]])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, source) -> Manifest:
    manifest = dedupe(source, tmp_path_factory.mktemp("undisturbed"))
    assert set(manifest.counts.dropped) == {"exact-duplicate", "near-duplicate"}
    assert manifest.facts["removed_lines"] > 10
    return manifest


def folder_of(root: Path, manifest: Manifest) -> Path:
    return root / "dedupe" / manifest.key


# ------------------------------------------------------------------------------- damage


OVER_FILES = (
    *("copies-links", "copies-ranked", "copies-originals"),
    *("gone-copies-parts", "gone-left-parts", "gone-parts"),
    *("all-links", "all-links-large-00", "all-links-small-00", "decided"),
)
OF_BOTH = sorted(set(STEPS) - {"repeated"})  # which a later crawl reads


@pytest.mark.parametrize(
    ("kind", "harm"),
    [(kind, "flip") for kind in (*OF_BOTH, *OVER_FILES)]
    + [("bands", harm) for harm in ("cut", "empty", "missing", "another")],
)
def test_a_damaged_file_is_made_again(tmp_path, source, undisturbed, kind, harm, caplog):
    is_over_files = kind in OVER_FILES or kind.startswith("all-")
    config = CONFIG.model_copy(update={"max_driver_edges": 0}) if is_over_files else CONFIG
    with pytest.raises(StoppedError):
        dedupe(source, tmp_path, StopsAtTheEnd(), config)
    folder = folder_of(tmp_path, undisturbed)
    for receipt in folder.glob("*.done.json"):  # all that could read the file runs again
        if not receipt.name.startswith(f"{STEPS.get(kind, kind)}-00"):
            receipt.unlink()
    path = max(folder.glob(f"{kind}-00*.sorted"), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    if harm == "flip":
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif harm == "cut":
        path.write_bytes(data[:-9])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "missing":
        path.unlink()
    else:
        path.write_bytes((folder / "gone.bits").read_bytes())
    again = dedupe(source, tmp_path, config=config)
    assert again.content == undisturbed.content
    assert f"{path.name}" in caplog.text
    assert "it is made again" in caplog.text


def test_a_file_that_will_not_be_whole_is_told(tmp_path, source, undisturbed, monkeypatch):
    """A disk that loses what it took: no endless rebuilding."""

    def lost(task):
        raise DamagedFile(str(folder_of(tmp_path, undisturbed) / "texts-00000.sorted"), "is bad")

    monkeypatch.setattr("pipeline.dedupe.find_copies", lost)
    with pytest.raises(DamagedFile, match="is bad"):
        dedupe(source, tmp_path)


def test_receipts_are_named_after_the_files():
    assert receipt_of("x/bands-00007.sorted") == "x/sign-00007.done.json"
    assert receipt_of("x/sets-100000-007.sorted") == "x/sets-100000.done.json"
    assert receipt_of("x/edges-100000-007.sorted") == "x/verify-100000-007.done.json"
    assert receipt_of("x/left-exact-00001.sorted") == "x/sign-00001.done.json"
    assert receipt_of("x/needs-00003-012.sorted") == "x/pair-00003.done.json"
    assert receipt_of("x/edges-00003-012.sorted") == "x/verify-00003-012.done.json"
    assert receipt_of("x/all-links-large-07-00003.sorted") == "x/all-links-large-07-00003.done.json"
    assert receipt_of("x/all-named-00003.sorted") == "x/all-00003.done.json"
    assert receipt_of("x/decisions-00003.sorted") is None
    assert receipt_of("x/gone.bits") is None


# ------------------------------------------------------------------------------- full disk


@contextlib.contextmanager
def file_limit(num_bytes: int) -> Generator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up(tmp_path, source, undisturbed):
    sizes = (100, 1_000, 2_000, 4_000, 8_000, 16_000)
    told: list[str] = []
    for size in sizes:
        with file_limit(size):
            try:
                dedupe(source, tmp_path)
            except OSError as error:
                told.append(str(error))
            else:
                break
    assert len(told) > 2
    assert all("no space left on the disk" in line for line in told)
    assert not list(tmp_path.rglob("*.tmp"))
    assert dedupe(source, tmp_path).content == undisturbed.content


# ------------------------------------------------------------------------------- kills

SLOW = """
import sys, time
from pipeline.core.config import RunConfig
from pipeline.core.manifest import read_manifest
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DedupeConfig, run_dedupe

class Slow(InlineRuntime):
    def map(self, function, items):
        for result in super().map(function, items):
            time.sleep(0.05)
            yield result

docs, quality, root = sys.argv[1:]
run = RunConfig(root=root, workers=1)
run_dedupe(DedupeConfig(line_min_docs=5), read_manifest(docs), read_manifest(quality), run, Slow())
"""


@pytest.mark.parametrize(
    "steps",
    [
        ("sign", "verify"),
        pytest.param(
            ("hash", "copies", "repeat", "sign", "group", "pair", "sets", "verify", "decide"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_kills_one_after_the_other(tmp_path, source, undisturbed, kill_when, steps):
    """Each run gets one step further; none does again what has a receipt."""
    folder = folder_of(tmp_path, undisturbed)
    arguments = ["-c", SLOW, source[0].url, source[1].url, str(tmp_path)]
    seen: dict[Path, int] = {}
    for step in steps:
        kill_when(arguments, lambda step=step: any(folder.glob(f"{step}-0*.done.json")))
        for path, made in seen.items():
            assert path.stat().st_mtime_ns == made, path
        seen = {path: path.stat().st_mtime_ns for path in folder.glob("*.done.json")}
    assert not (folder / MANIFEST).exists()
    with pytest.raises(StoppedError):
        dedupe(source, tmp_path, StopsAtTheEnd())
    for path, made in seen.items():
        assert path.stat().st_mtime_ns == made, path
    assert dedupe(source, tmp_path).content == undisturbed.content


@pytest.mark.long
def test_a_worker_that_is_killed(tmp_path, source, undisturbed):
    run = RunConfig(root=str(tmp_path), backend="local", workers=2)
    folder = folder_of(tmp_path, undisturbed)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(folder.glob("texts-*")):
            time.sleep(0.001)
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                killed.append(child.pid)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    with open_runtime(run) as runtime:
        manifest = run_dedupe(CONFIG, *source, run, runtime)
    killer.join()
    assert killed
    assert manifest.content == undisturbed.content


# ------------------------------------------------------------------------------- many


@pytest.mark.parametrize(
    ("number", "limit"),
    [
        (100_000, 10**7),
        (30_000, 0),
        pytest.param(1_000_000, 10**7, marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_equal_documents_are_one_component_in_linear_time(tmp_path, english, number, limit):
    """Half are equal, half differ in a punctuation mark alone: a bucket in each band."""
    text = english(1, 60).replace("\n", " ")
    part = number // 4
    marks = [f"{text} {'!' * (row % 50)}{'?' * (row // 50 % 50)}" for row in range(2 * part)]
    marks = [f"{mark}{'.' * (row // 2500)}" for row, mark in enumerate(marks)]
    shards = [[text] * part, [text] * part, marks[:part], marks[part:]]
    config = CONFIG.model_copy(update={"max_driver_edges": limit})
    manifest = dedupe(corpus(str(tmp_path / "in"), shards), tmp_path, config=config)
    assert manifest.counts.rows_out == 1
    assert sum(manifest.counts.dropped.values()) == number - 1
    assert manifest.facts["candidate_pairs"] < 2 * number
    for entry in manifest.files:
        table = read_table(manifest.file_url(entry.name), DEDUPE, DEDUPE_VERSION)
        assert len(table["stands_for"].unique()) <= 2
        assert set(table["similarity"].to_pylist()) <= {None, 1.0}


def test_a_bucket_of_documents_that_are_not_alike(tmp_path, english):
    """Made to share a band, 3,000 cost a few pairs each; what is not compared is counted."""
    rng = random.Random(1)
    common = english(1, 30)
    texts = [
        common + " " + " ".join(f"w{rng.randrange(10**9)}" for _ in range(60)) for _ in range(3000)
    ]
    config = DedupeConfig(line_min_docs=0, bands=4, rows=1)
    source = corpus(str(tmp_path / "in"), [texts[:1000], texts[1000:]])
    manifest = dedupe(source, tmp_path, config=config)
    assert manifest.counts.rows_out == 3000
    assert manifest.facts["verified_pairs"] == 0
    assert 2000 < manifest.facts["candidate_pairs"] < 2 * 4 * 3000
    keys = config.signer.sign(texts).keys
    sizes = np.concatenate([np.unique(band, return_counts=True)[1] for band in keys.T])
    every = int((sizes * (sizes - 1) // 2).sum())
    large = sizes[sizes > 16]
    assert max(large) > 500
    left_out = (
        every - int((2 * large - 3).sum()) - int((sizes * (sizes - 1) // 2)[sizes <= 16].sum())
    )
    assert manifest.facts["uncompared_pairs"] == left_out > 10**6


def test_a_huge_document_in_a_large_bucket(tmp_path, english):
    """It stands first in its bucket, and has a pair with each of the others. Its words count once
    in what a task holds, not once for each pair."""
    rng = random.Random(2)
    common = english(1, 30).replace("\n", " ")
    texts = [f"{common} " * 10_000]
    texts += [
        common + " " + " ".join(f"w{rng.randrange(10**9)}" for _ in range(60)) for _ in range(500)
    ]
    config = DedupeConfig(line_min_docs=0, bands=4, rows=1)
    runtime = Tasks()
    manifest = dedupe(corpus(str(tmp_path / "in"), [texts]), tmp_path, runtime, config)
    assert manifest.facts["candidate_pairs"] * 300_000 > 5 * MAX_CHUNK_WORDS
    assert runtime.tasks["verify_pairs"] == 1
    assert manifest.counts.rows_out == 501


def test_sets_too_unequal_to_be_alike_are_not_compared():
    hashes = np.r_[0:10, 0:8, 0:1000].astype(np.uint64)
    bounds = np.array([0, 10, 18, 1018])
    left, right = np.array([0, 0, 1, 2]), np.array([1, 2, 2, 2])
    found = jaccards(hashes, bounds, left, right, 0.0)
    assert found.tolist() == [0.8, 0.01, 0.008, 1.0]
    assert jaccards(hashes, bounds, left, right, 0.8).tolist() == [0.8, 0, 0, 1]


class Tasks(InlineRuntime):
    def __init__(self) -> None:
        self.tasks: Counter[str] = Counter()

    def map(self, function, items):
        self.tasks.update(item[0].__name__ for item in items if callable(item[0]))
        yield from super().map(function, items)


def test_no_chain_wipes_a_source(tmp_path, english):
    """Each document is like the next; far ones are not alike, and half of them stay."""
    chain = [english(1, 200)]
    for number in range(400):
        chain.append(edited(chain[-1], number))
    manifest = dedupe(corpus(str(tmp_path / "in"), [chain[:200], chain[200:]]), tmp_path)
    assert 20 < manifest.counts.rows_out < 200
    for entry in manifest.files:
        for row in read_table(manifest.file_url(entry.name), DEDUPE, DEDUPE_VERSION).to_pylist():
            assert row["similarity"] is None or row["similarity"] >= 0.8


def test_nothing_is_left_for_the_finished(tmp_path, source, undisturbed):
    assert read_manifest(undisturbed.url).content == undisturbed.content
    assert storage.exists(storage.join(undisturbed.url, "gone.bits"))

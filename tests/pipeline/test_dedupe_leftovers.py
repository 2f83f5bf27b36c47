"""What stays of a finished dedupe, what later runs find damaged in it, and kills while it tidies."""

import json
from pathlib import Path

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.leftovers import LEFTOVERS, delete_leftovers
from pipeline.core.manifest import MANIFEST, Manifest, planning, read_manifest
from pipeline.core.remote import InlineRuntime, Runtime
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.dedupe_files import KEPT
from tests.pipeline.kept_signals import keep_all

CONFIG = {"line_min_docs": 5}


@pytest.fixture(scope="module")
def source(tmp_path_factory, docs_manifest, document, english) -> tuple[Manifest, Manifest]:
    """Two shards with copies, alike ones and a menu."""
    root = str(tmp_path_factory.mktemp("source"))
    menu = "Home and news and contact us today"
    texts = [f"{menu}\n{english(seed, 150)}" for seed in range(8)]
    texts += [f"{text} more words" for text in texts[:4]] + texts[4:6]
    pages = [document(text, f"http://a.test/{n}") for n, text in enumerate(texts)]
    docs = docs_manifest(root, [pages[:7], pages[7:]])
    return docs, keep_all(root, docs)


def dedupe(source, root: Path, runtime: Runtime | None = None, **values) -> Manifest:
    config = DedupeConfig.model_validate(CONFIG | values)
    run = RunConfig(root=str(root), backend="local", workers=1)
    return run_dedupe(config, *source, run, runtime or InlineRuntime())


def folder_of(manifest: Manifest) -> Path:
    return Path(manifest.url)


def kept_names(manifest: Manifest) -> set[str]:
    kinds = manifest.facts["kept_files"]
    assert set(kinds) == KEPT | {"gone"}
    names = {entry.name for entry in manifest.files}
    names |= {f"{kind}-{n:05d}.sorted" for kind in KEPT for n in range(kinds[kind])}
    return names | {"gone.bits", MANIFEST, ".lock"}


def names_in(manifest: Manifest) -> set[str]:
    return {path.name for path in folder_of(manifest).iterdir()}


@pytest.mark.parametrize("limit", [0, 10**9])
def test_only_what_later_runs_read_stays(tmp_path, source, limit):
    manifest = dedupe(source, tmp_path, max_driver_edges=limit)
    assert names_in(manifest) == kept_names(manifest)
    before = {path: path.stat().st_mtime_ns for path in folder_of(manifest).iterdir()}
    assert dedupe(source, tmp_path).content == manifest.content
    assert {path: path.stat().st_mtime_ns for path in folder_of(manifest).iterdir()} == before
    other = dedupe(source, tmp_path, against=[manifest.url])  # all that it needs is there
    assert other.counts.rows_out == 0


class DiesError(Exception):
    pass


class DiesTidying(InlineRuntime):
    """After so many batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def map(self, function, items):
        for number, found in enumerate(super().map(function, items)):
            if function.__name__ == "_delete" and number == self.batches:
                raise DiesError
            yield found


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_an_end_in_the_middle_of_tidying(tmp_path, source, monkeypatch, batches):
    monkeypatch.setattr("pipeline.core.leftovers._BATCH", 3)
    with pytest.raises(DiesError):
        dedupe(source, tmp_path, DiesTidying(batches))
    [folder] = (tmp_path / "dedupe").iterdir()
    manifest = read_manifest(str(folder))
    assert names_in(manifest) > kept_names(manifest)
    with planning():
        assert dedupe(source, tmp_path).content == manifest.content
    assert (folder / LEFTOVERS).exists()  # a look writes nothing
    assert dedupe(source, tmp_path).content == manifest.content
    assert names_in(manifest) == kept_names(manifest)


SLOW = """
import sys, time
from pipeline.core import leftovers
from pipeline.core.config import RunConfig
from pipeline.core.manifest import read_manifest
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DedupeConfig, run_dedupe

class Slow(InlineRuntime):
    def map(self, function, items):
        for result in super().map(function, items):
            if function.__name__ == "_delete":
                time.sleep(0.05)
            yield result

leftovers._BATCH = 1
docs, quality, root = sys.argv[1:]
run = RunConfig(root=root, workers=1)
run_dedupe(DedupeConfig(line_min_docs=5), read_manifest(docs), read_manifest(quality), run, Slow())
"""


def test_a_kill_in_the_middle_of_tidying(tmp_path, source, kill_when):
    arguments = ["-c", SLOW, source[0].url, source[1].url, str(tmp_path)]
    folder = tmp_path / "dedupe"
    kill_when(arguments, lambda: any(folder.glob(f"*/{MANIFEST}")))
    [folder] = folder.iterdir()
    assert (folder / LEFTOVERS).exists()
    manifest = dedupe(source, tmp_path)
    assert names_in(manifest) == kept_names(manifest)
    assert manifest.content == dedupe(source, tmp_path / "undisturbed").content


def test_a_manifest_that_was_deleted_is_made_again_from_nothing(tmp_path, source):
    manifest = dedupe(source, tmp_path)
    (folder_of(manifest) / MANIFEST).unlink()
    assert dedupe(source, tmp_path).content == manifest.content


def test_a_damaged_list_of_leftovers_deletes_nothing(tmp_path, caplog):
    (tmp_path / "x.sorted").write_bytes(b"x")
    outside = tmp_path.parent / "outside.sorted"
    outside.write_bytes(b"x")
    for text in ("[", json.dumps(["../outside.sorted"])):
        (tmp_path / LEFTOVERS).write_text(text)
        delete_leftovers(str(tmp_path), InlineRuntime())
        assert not (tmp_path / LEFTOVERS).exists()
    assert "cannot be read" in caplog.text
    assert outside.exists()
    assert (tmp_path / "x.sorted").exists()


# ------------------------------------------------------------- damage that a later run finds


@pytest.fixture
def against(tmp_path, source, docs_manifest, document, english):
    """against(damage): a later crawl of other, equal and alike pages, after damage(folder)."""
    menu = "Home and news and contact us today"
    texts = [f"{menu}\n{english(seed, 150)}" for seed in range(3, 12)]
    texts += [f"{text} and a few more" for text in texts[:5]]
    pages = [document(text, f"http://b.test/{n}") for n, text in enumerate(texts)]
    pages += [document(menu + " always", "http://a.test/x"), document(texts[0], "http://c.test/")]

    def go(damage):
        one = dedupe(source, tmp_path)
        damage(folder_of(one))
        docs = docs_manifest(str(tmp_path), [pages])
        return dedupe((docs, keep_all(str(tmp_path), docs)), tmp_path, against=[one.url])

    return go


def test_nothing_damaged(against):
    assert against(lambda folder: None).counts.dropped


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("kind", sorted(KEPT))
def test_a_damaged_kept_file_is_told(against, kind):
    def damage(folder: Path) -> None:
        for path in folder.glob(f"{kind}-0*.sorted"):
            flip(path)

    with pytest.raises(UserError, match=rf"{kind}-0\d+\.sorted (is|has a) damaged.*; delete its"):
        against(damage)


@pytest.mark.parametrize("name", ["gone.bits", "dedupe-00000.parquet", "dedupe-00001.parquet"])
def test_damaged_bits_and_sidecars_are_told(against, name):
    with pytest.raises(UserError, match=rf"{name} is (damaged|missing or changed).*; delete "):
        against(lambda folder: flip(folder / name))


@pytest.mark.parametrize("kind", sorted(KEPT))
def test_a_lost_kept_file_is_told(against, kind):
    def damage(folder: Path) -> None:
        for path in folder.glob(f"{kind}-0*.sorted"):
            path.unlink()

    with pytest.raises(UserError, match=rf"{kind}-0\d+\.sorted is missing; delete its folder"):
        against(damage)


@pytest.mark.parametrize("harm", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_documents_of_an_earlier_corpus_that_are_others_now(against, source, harm):
    """The manifest, which says their digests, is the same."""
    paths = [Path(source[0].file_url(entry.name)) for entry in source[0].files]
    whole = [path.read_bytes() for path in paths]

    def damage(_: Path) -> None:
        for path in paths:
            harm(path)

    try:
        with pytest.raises(UserError, match=r"docs-0000.\.parquet is missing or changed"):
            against(damage)
    finally:
        for path, data in zip(paths, whole, strict=True):
            path.write_bytes(data)
    assert against(lambda _: None).counts.dropped

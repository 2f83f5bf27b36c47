"""The corpus of real WARC files, as a user types it: every record is accounted for, everywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra import cli
from infra.corpus import Corpus, funnel, run_corpus
from infra.settings import SECTIONS
from pipeline.core.config import load_config
from pipeline.core.manifest import Manifest, planning
from pipeline.core.records import Document, read_table
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION
from pipeline.quality import SIGNALS, SIGNALS_VERSION
from pipeline.warc import WarcDamage, iter_responses

LAPTOP = str(Path(__file__).parents[2] / "infra" / "runs" / "laptop.toml")
ARCHIVES = ("dolma-warc", "resiliparse-warc", "warcio-testdata")
ENDINGS = (".warc", ".warc.gz", ".warc.lz4", ".warc.zst", ".arc", ".arc.gz", ".wet.gz")


@pytest.fixture(scope="module")
def archives(shared_data: Callable[[str], Path]) -> list[Path]:
    folders = [shared_data(f"crawl/{name}") for name in ARCHIVES]
    paths = [path for folder in folders for path in folder.rglob("*")]
    return sorted(path for path in paths if path.is_file() and path.name.endswith(ENDINGS))


@pytest.fixture(scope="module")
def corpus(archives: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    files = ", ".join(f'"{path}"' for path in archives)
    overrides = [
        *(f"run.root={root}", "run.backend=local", "run.workers=1", f"ingest.warcs=[{files}]"),
        'quality.rules=["gopher"]',  # so few pages are to leave some for every later stage
    ]
    assert cli.main(["corpus", "--config", LAPTOP, *overrides]) == 0
    with planning():
        return run_corpus(load_config(LAPTOP, overrides, tuple(SECTIONS)))


def rows(manifest: Manifest, name: str, version: int, prefix: str = "") -> int:
    """In the files themselves, each of which holds what its entry says."""
    total = 0
    for entry in manifest.files:
        if entry.name.startswith(prefix) and entry.name.endswith(".parquet"):
            found = len(read_table(manifest.file_url(entry.name), name, version))
            assert found == entry.num_rows, entry.name
            total += found
    return total


@pytest.mark.long
def test_every_record_of_the_shared_warcs_is_somewhere(
    corpus: Corpus, archives: list[Path]
) -> None:
    items = [item for path in set(archives) for item in iter_responses(str(path))]
    by_content = {entry.sha256 for entry in corpus.source.files}
    assert corpus.source.counts.rows_in == corpus.source.counts.rows_out == len(by_content)
    damaged = sum(isinstance(item, WarcDamage) for item in items)
    extract = corpus.extract
    assert extract.counts.rows_in >= 100
    assert sum(extract.counts.quarantined.values()) <= damaged
    if len(by_content) == len(archives):  # no file is there twice
        assert extract.counts.rows_in == len(items)
        assert sum(extract.counts.quarantined.values()) == damaged


def test_input_is_output_dropped_and_quarantined_at_every_stage(corpus: Corpus) -> None:
    for manifest in (corpus.source, *corpus.stages, corpus.shard):
        gone = [*manifest.counts.dropped.values(), *manifest.counts.quarantined.values()]
        assert manifest.counts.rows_in == manifest.counts.rows_out + sum(gone), manifest.stage
    for before, after in zip(corpus.stages, corpus.stages[1:], strict=False):
        assert after.counts.rows_in == before.counts.rows_out, after.stage
    assert corpus.shard.counts.rows_in == corpus.extract.counts.rows_in
    assert corpus.shard.counts.rows_out == corpus.stages[-1].counts.rows_out


def test_the_rows_of_the_files_are_those_of_the_counts(corpus: Corpus) -> None:
    docs = rows(corpus.extract, Document.NAME, Document.VERSION)
    read = corpus.extract.counts
    assert docs == read.rows_in - sum(read.quarantined.values())
    assert rows(corpus.quality, SIGNALS, SIGNALS_VERSION) == docs
    assert rows(corpus.dedupe, DEDUPE, DEDUPE_VERSION) == docs
    shard = corpus.shard
    kept = [rows(shard, Document.NAME, Document.VERSION, split) for split in ("train", "heldout")]
    rejects = rows(shard, Document.NAME, Document.VERSION, "rejects")
    assert sum(kept) == shard.counts.rows_out
    assert kept == [shard.facts[split]["docs"] for split in ("train", "heldout")]
    assert sum(kept) + rejects == docs
    dropped = sum(sum(stage.counts.dropped.values()) for stage in corpus.stages)
    assert rejects == dropped == sum(shard.counts.dropped.values())


def test_the_sidecars_are_of_the_same_documents_and_name_the_same_reasons(corpus: Corpus) -> None:
    found: dict[str, int] = {}
    for text, signal, copy in zip(
        corpus.extract.files, corpus.quality.files, corpus.dedupe.files, strict=True
    ):
        docs = read_table(corpus.extract.file_url(text.name), Document.NAME, Document.VERSION)
        signals = read_table(corpus.quality.file_url(signal.name), SIGNALS, SIGNALS_VERSION)
        copies = read_table(corpus.dedupe.file_url(copy.name), DEDUPE, DEDUPE_VERSION)
        assert docs["doc_id"].equals(signals["doc_id"])
        assert docs["doc_id"].equals(copies["doc_id"])
        for three in zip(
            *(table["drop_reason"].to_pylist() for table in (docs, signals, copies)), strict=True
        ):
            named = [reason for reason in three if reason]
            assert len(named) <= 1  # dropped once
            for reason in named:
                found[reason] = found.get(reason, 0) + 1
    assert found == corpus.shard.counts.dropped


def test_the_funnel_adds_up_from_the_first_record_to_the_last_shard(corpus: Corpus) -> None:
    table = funnel(corpus)
    taken = next(number for _, what, number in table if what == "taken")
    ends = sum(number for stage, _, number in table if stage == "shard")
    gone = sum(
        number
        for stage, what, number in table
        if stage not in ("shard", "ingest") and what not in ("taken", "kept")
    )
    assert taken == gone + ends

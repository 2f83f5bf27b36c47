"""The whole corpus with run.root in an object store: the same bytes as in a local folder."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import cli
from pipeline.core import storage
from pipeline.core.manifest import Manifest, read_manifest
from tests import object_store as stores
from tests.object_store import BUSY, Answer, ObjectStore
from tests.pipeline import conftest

object_store = stores.object_store  # the fixtures
english, warc_record = conftest.english, conftest.warc_record
STAGES = ("ingest", "extract", "quality", "dedupe", "decontaminate", "shard")


@pytest.fixture
def files(
    tmp_path: Path, english: Callable[[int, int], str], warc_record: Callable[..., bytes]
) -> list[Path]:
    """Two WARC files, the second one with copies and near-copies of the first's pages, and an
    evaluation set of which one page holds an item."""
    item = "what is the name of the captain who took the silver letter over the mountain at dawn"
    paths: list[Path] = []
    for part in range(2):
        records: list[bytes] = []
        for number in range(12):
            text = english(number if number < 4 else 100 * part + number, 200)
            if number == 2:
                text = text.replace("the ", "a ", part)
            lines = ["Home, news and contact", *text.split("\n"), *([item] * (number == 5))]
            body = "".join(f"<p>{line}</p>" for line in lines)
            html = f"<html><title>{part}</title><body><main>{body}</main></body></html>"
            records.append(warc_record(f"http://host.test/{part}/{number}", html.encode()))
        paths.append(tmp_path / f"part-{part}.warc.gz")
        paths[-1].write_bytes(b"".join(records))
    pq.write_table(pa.table({"question": [item]}), tmp_path / "items.parquet")
    return [*paths, tmp_path / "items.parquet"]


def corpus(place: str, root: str, *overrides: str) -> dict[str, Manifest]:
    """The manifests of a run over place/part-0.warc.gz, or what the overrides name."""
    config = Path(__file__).parents[2] / "infra" / "runs" / "laptop.toml"
    status = cli.main(
        [
            *("corpus", "--config", str(config), f"run.root={root}", "run.backend=local"),
            *("run.workers=1", f'ingest.warcs=["{place}/part-0.warc.gz"]'),
            *(
                "quality.rules=[]",
                "quality.languages=[]",
                "extract.languages=[]",
                "dedupe.line_min_docs=5",
            ),
            *("shard.heldout_fraction=0.2", "shard.max_rows_per_shard=5"),
            f'decontaminate.against=["{place}/items.parquet"]',
            *overrides,
        ]
    )
    assert status == 0
    found: dict[str, Manifest] = {}
    for stage in STAGES:
        fs, path = storage.filesystem(storage.join(root, stage))
        for name in fs.glob(f"{path}/*/manifest.json"):
            manifest = read_manifest(storage.join(root, stage, name.split("/")[-2]))
            if stage not in found or manifest.run["started"] > found[stage].run["started"]:
                found[stage] = manifest
    return found


def assert_same(ours: dict[str, Manifest], expected: dict[str, Manifest]) -> None:
    for stage in STAGES:
        assert ours[stage].content == expected[stage].content, stage
        for entry in expected[stage].files:
            data = storage.read_bytes(ours[stage].file_url(entry.name))
            assert data == storage.read_bytes(expected[stage].file_url(entry.name)), entry.name


@pytest.mark.long
def test_same_bytes_as_on_the_disk(
    object_store: ObjectStore,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fs = fsspec.filesystem("s3")
    for path in files:
        fs.put_file(str(path), f"flywheel/in/{path.name}")
    here, there = str(tmp_path / "data"), "s3://flywheel/data"
    old = corpus(str(tmp_path), here)
    capsys.readouterr()
    assert_same(corpus("s3://flywheel/in", there), old)
    printed = capsys.readouterr().out
    assert old["decontaminate"].counts.dropped == {"contaminated": 1}

    def newer(place: str, before: str) -> dict[str, Manifest]:
        second = f'ingest.warcs=["{place}/part-1.warc.gz"]'
        return corpus(place, before, second, f'dedupe.against=["{before_of[before]}"]')

    dedupe = old["dedupe"].key
    before_of = {here: f"{here}/dedupe/{dedupe}", there: f"{there}/dedupe/{dedupe}"}
    new = newer(str(tmp_path), here)
    assert new["dedupe"].counts.dropped == {"exact-duplicate": 3, "near-duplicate": 1}
    assert_same(newer("s3://flywheel/in", there), new)

    capsys.readouterr()
    object_store.asked.clear()
    corpus("s3://flywheel/in", there)  # a no-op
    assert capsys.readouterr().out == printed
    assert {method for method, *_ in object_store.asked} <= {"GET", "HEAD"}


def test_a_bucket_that_is_not_there_is_one_line(
    object_store: ObjectStore, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["run.root=s3://nosuch/c", "run.backend=local", "run.workers=1"]
    assert cli.main(["corpus", *overrides, "crawl.seeds=[]", f'ingest.warcs=["{files[0]}"]']) == 2
    assert capsys.readouterr().err.strip().endswith("make the bucket")


def test_a_busy_store_is_asked_again(object_store: ObjectStore, files: list[Path]) -> None:
    fs = fsspec.filesystem("s3")
    for path in files:
        fs.put_file(str(path), f"flywheel/in/{path.name}")

    def every_now_and_then(method: str, path: str) -> Answer | None:
        return BUSY if len(object_store.asked) % 40 == 0 else None

    object_store.refuse = every_now_and_then
    found = corpus("s3://flywheel/in", "s3://flywheel/data")
    assert found["shard"].counts.rows_in == 12


@pytest.mark.long
def test_a_damaged_file_in_the_store_is_not_trusted(
    object_store: ObjectStore, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fs = fsspec.filesystem("s3")
    for path in files:
        fs.put_file(str(path), f"flywheel/in/{path.name}")
    there = "s3://flywheel/data"
    first = corpus("s3://flywheel/in", there)
    url = first["extract"].file_url("docs-00000.parquet")
    data = bytearray(storage.read_bytes(url))
    data[len(data) // 2] ^= 1
    storage.write_bytes(url, bytes(data))
    again = corpus("s3://flywheel/in", there, "quality.min_words=1")  # reads it anew
    assert storage.read_bytes(url) != bytes(data)
    assert again["extract"].content == first["extract"].content
    assert "docs-00000.parquet is missing or changed" in capsys.readouterr().err


def test_ranges_of_section_files_are_read_and_nothing_else(object_store: ObjectStore) -> None:
    import numpy as np

    from pipeline.section_files import read_range, write_sorted

    kind = np.dtype([("key", "<u8"), ("row_32", "<u4")])
    records = np.zeros(1_000_000, kind)
    records["key"] = np.arange(1_000_000)
    write_sorted("s3://flywheel/x.sorted", records)
    object_store.asked.clear()
    found = read_range("s3://flywheel/x.sorted", kind, 500_000, 500_010)
    assert found["key"].tolist() == list(range(500_000, 500_010))
    spans = [span.removeprefix("bytes=").split("-") for *_, span in object_store.asked if span]
    assert sum(int(last) - int(first) + 1 for first, last in spans) < 200_000  # of 12 MB
    assert len(object_store.asked) <= 4

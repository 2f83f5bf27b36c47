"""Common Crawl by paths and by index, from a stand-in for its servers that fails as they do."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common_crawl import Row, merge_adjacent, plan_files, split_by_size
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest
from pipeline.core.records import Document, read_records
from pipeline.core.remote import InlineRuntime
from pipeline.extract import ExtractConfig, run_extract
from pipeline.ingest import IngestConfig, run_ingest
from pipeline.warc import WarcResponse, iter_responses
from tests.pipeline import common_crawl_server
from tests.pipeline.common_crawl_server import NUM_RECORDS, Archive

archive = common_crawl_server.archive  # the fixture


def config(archive: Archive, **more: object) -> IngestConfig:
    values: dict[str, object] = {
        "index": archive.url + "CC-TEST-index",
        "urls": ["*.a.test", "b.test/*"],
        "prefix": archive.url,
        "backoff_s": 0.001,
        **more,
    }
    return IngestConfig.model_validate(values)


def responses(manifest: Manifest) -> list[WarcResponse]:
    found: list[WarcResponse] = []
    for entry in manifest.files:
        for item in iter_responses(manifest.file_url(entry.name)):
            assert isinstance(item, WarcResponse), item
            found.append(item)
    return found


def expected(archive: Archive, sites: str) -> dict[str, str]:
    """{url: digest} of what the sites have, read from the files themselves."""
    found: dict[str, str] = {}
    for name, data in archive.files.items():
        with fsspec.open(f"memory://known/{name}", "wb") as file:
            file.write(data)
        for item in iter_responses(f"memory://known/{name}"):
            assert isinstance(item, WarcResponse)
            if item.url[7] in sites:
                found[item.url] = item.payload_sha256
    return found


def row(archive: Archive, number: int, **changed: object) -> str:
    return json.dumps({**json.loads(archive.index[number]), **changed})


# ------------------------------------------------------------------------------------ by index


@pytest.mark.parametrize(("faults", "parallel", "gap"), [(0.0, 1, 0), (0.5, 8, 0), (0.5, 8, 9999)])
def test_a_query_gives_exactly_its_records(
    archive: Archive, run: RunConfig, faults: float, parallel: int, gap: int
) -> None:
    known = expected(archive, "ab")
    archive.faults = faults
    manifest = run_ingest(
        config(archive, parallel=parallel, merge_gap=gap, warc_max_bytes=20_000), run
    )
    found = responses(manifest)
    assert {item.url: item.payload_sha256 for item in found} == known
    assert len(found) == len(known) == manifest.counts.rows_out == manifest.counts.rows_in
    assert len(manifest.files) > 1
    assert all(entry.num_bytes <= 20_000 for entry in manifest.files)
    assert bool(archive.failed) == bool(faults)
    lines = (storage.local_path(manifest.url) / "rows.jsonl").read_text().splitlines()
    assert len(lines) == len(known)  # where each came from, in the order of the files
    for line, item in zip(lines, found, strict=True):
        place = Row(**json.loads(line))
        member = archive.files[place.filename][place.offset : place.end]
        assert item.payload in gzip.decompress(member)
    num_asked = len(archive.asked)
    assert run_ingest(config(archive), RunConfig(root=run.root)).key != manifest.key
    assert run_ingest(config(archive, warc_max_bytes=20_000), run) == manifest
    assert num_asked < len(archive.asked)


def test_workers_faults_and_gaps_leave_no_trace(archive: Archive, tmp_path: Path) -> None:
    manifests: list[Manifest] = []
    for number, (faults, parallel, gap) in enumerate([(0.0, 1, 0), (0.4, 7, 3000)]):
        archive.faults = faults
        made = RunConfig(root=str(tmp_path / str(number)))
        manifests.append(run_ingest(config(archive, parallel=parallel, merge_gap=gap), made))
    assert manifests[0].content_hash == manifests[1].content_hash


KILLED = """
import sys
from pipeline.core.config import RunConfig
from pipeline.ingest import IngestConfig, run_ingest
run_ingest(IngestConfig.model_validate_json(sys.argv[1]), RunConfig(root=sys.argv[2]))
"""


@pytest.mark.parametrize("after", [1, 10, 20])
def test_a_kill_costs_the_ranges_in_flight_alone(
    archive: Archive,
    run: RunConfig,
    tmp_path: Path,
    kill_when: Callable[[list[str], Callable[[], bool]], None],
    after: int,
) -> None:
    whole = run_ingest(config(archive, merge_gap=0), RunConfig(root=str(tmp_path / "whole")))
    settings = config(archive, merge_gap=0, parallel=2)
    archive.asked.clear()
    archive.delay_s = 0.02

    def far_enough() -> bool:
        return sum(path.endswith(".gz") for path, _ in archive.asked) >= after

    kill_when(["-c", KILLED, settings.model_dump_json(), run.root], far_enough)
    (log,) = Path(run.root).rglob("*.log")
    with log.open("ab") as file:
        file.write(b'[3, "to')  # torn
    manifest = run_ingest(settings, run)
    assert manifest.content_hash == whole.content_hash
    ranges = Counter(asked for asked in archive.asked if asked[0].endswith(".gz"))
    assert sum(count - 1 for count in ranges.values()) <= 2 * 2  # in flight, or given and unlogged
    assert [path for path, _ in archive.asked].count("/CC-TEST-index") <= 2 + 2 * 3  # pages kept
    assert not list(Path(run.root).rglob("*.part"))


def test_bytes_lost_in_a_power_cut_are_fetched_again(archive: Archive, run: RunConfig) -> None:
    settings = config(archive)
    whole = run_ingest(settings, run)
    folder = storage.local_path(whole.url)
    data = (folder / "fetched-00000.warc.gz").read_bytes()
    for name in ("manifest.json", "fetched-00000.warc.gz", "fetched-00000.warc.gz.done.json"):
        (folder / name).unlink()
    (folder / "fetched-00000.warc.gz.part").write_bytes(bytes(len(data)))
    (folder / "fetched-00000.warc.gz.log").write_text('[0, "", 12345]\n[1, "", 99]\n')
    assert run_ingest(settings, run).content_hash == whole.content_hash


def test_what_cannot_be_had_is_counted(archive: Archive, run: RunConfig) -> None:
    good = [row(archive, 0), row(archive, 1), row(archive, 50)]
    size = len(archive.files["crawl/2.warc.gz"])
    offset = int(json.loads(archive.index[2])["offset"])
    archive.index = [
        *good,
        good[0],
        "not json",
        row(archive, 3, length="x"),
        row(archive, 3, length="0"),
        row(archive, 3, filename="../../etc/passwd"),
        row(archive, 3, filename="http://evil.test/x"),
        row(archive, 2, offset=offset + 7),  # in the middle of a record
        row(archive, 3, offset=offset + 8),  # overlaps the one before
        row(archive, 60, length=int(json.loads(archive.index[60])["length"]) - 1),
        row(archive, 70, length=int(json.loads(archive.index[70])["length"]) + 1),
        row(archive, 0, filename="crawl/9.warc.gz"),
        row(archive, 0, filename="crawl/2.warc.gz", offset=size + 5),
        row(archive, 0, filename="crawl/2.warc.gz", offset=size - 5, length=6),
    ]
    manifest = run_ingest(config(archive, urls=["all"], merge_gap=0), run)
    assert len(responses(manifest)) == manifest.counts.rows_out == 3
    assert manifest.counts.rows_in == len(archive.index)
    assert manifest.counts.quarantined == {
        "beyond the end of the file": 2,
        "index line names no file": 2,
        "index line not understood": 2,
        "index line with an impossible range": 1,
        "named twice": 1,
        "no whole WARC record": 3,
        "overlaps another": 1,
        "status-404": 1,
    }


def test_a_server_that_stays_busy_ends_the_run_and_a_rerun_goes_on(
    archive: Archive, run: RunConfig
) -> None:
    settings = config(archive, max_attempts=3)
    archive.is_down = True
    with pytest.raises(UserError, match=r"did not answer \(status-503\)"):
        run_ingest(settings, run)
    archive.is_down = False
    key = run_ingest(settings, RunConfig(root=run.root + "-whole")).content_hash
    served = archive.files.copy()
    page_only = config(archive, max_attempts=3, prefix=archive.url + "nowhere/")
    with pytest.raises(UserError, match="not one record could be had"):
        run_ingest(page_only, run)
    assert archive.files == served
    assert run_ingest(settings, run).content_hash == key


def test_exports_of_the_index(archive: Archive, run: RunConfig, tmp_path: Path) -> None:
    lines = [f"com,test)/ 20240101000000 {line}" for line in archive.index]
    text = "!OpenWayback-CDXJ 1.0\n" + "\n".join(lines) + "\n"
    (tmp_path / "a.cdxj").write_text(text)
    half = len(text) // 2
    members = gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode())
    (tmp_path / "a.cdxj.gz").write_bytes(members)
    table = [json.loads(line) for line in archive.index]
    columns = {
        "warc_filename": [line["filename"] for line in table],
        "warc_record_offset": pa.array([int(line["offset"]) for line in table], pa.int32()),
        "warc_record_length": pa.array([int(line["length"]) for line in table], pa.int32()),
    }
    pq.write_table(
        pa.table({"url": [line["url"] for line in table], **columns}), tmp_path / "a.parquet"
    )
    known = expected(archive, "abc")
    for name in ("a.cdxj", "a.cdxj.gz", "a.parquet"):
        manifest = run_ingest(config(archive, index=str(tmp_path / name), urls=[]), run)
        assert {item.url: item.payload_sha256 for item in responses(manifest)} == known, name
    ten = run_ingest(config(archive, index=str(tmp_path / "a.cdxj"), urls=[], max_records=10), run)
    assert ten.counts.rows_out == 10
    for name, data in (("b.parquet", b"PAR1 no"), ("b.cdxj.gz", b"\x1f\x8bno")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"ingest\.index"):
            run_ingest(config(archive, index=str(tmp_path / name), urls=[]), run)


def test_object_storage(archive: Archive, run: RunConfig) -> None:
    for name, data in archive.files.items():
        with fsspec.open(f"memory://commoncrawl/{name}", "wb") as file:
            file.write(data)
    archive.files.clear()
    manifest = run_ingest(config(archive, prefix="memory://commoncrawl/"), run)
    assert {item.url[7] for item in responses(manifest)} == {"a", "b"}


# ------------------------------------------------------------------------------------ the plan


def test_requests_cover_what_lies_together() -> None:
    rows = [
        Row("a", 0, 10),
        Row("a", 10, 5),
        Row("a", 20, 5),
        Row("b", 25, 5),
        Row("b", 30, 9 << 20),
    ]
    everything = list(range(5))
    assert merge_adjacent(everything, rows, 0) == [[0, 1], [2], [3], [4]]
    assert merge_adjacent(everything, rows, 5) == [[0, 1, 2], [3], [4]]
    assert merge_adjacent([0, 2], rows, 5) == [[0], [2]]
    assert split_by_size(rows[:4], 15) == [rows[:2], rows[2:4]]
    assert split_by_size(rows, 1) == [[found] for found in rows]
    kept, rejected = plan_files([rows[2], rows[0], "bad", rows[0], Row("a", 9, 3), rows[1]], 0)
    assert kept == rows[:3]
    assert rejected == {"bad": 1, "named twice": 1, "overlaps another": 1}


# ------------------------------------------------------------------------------------ by paths


def test_a_paths_file(archive: Archive, run: RunConfig) -> None:
    keys = "\n".join(sorted(archive.files)) + "\n"
    archive.files["warc.paths.gz"] = gzip.compress(keys.encode())
    archive.faults = 0.4
    settings = IngestConfig(
        paths=[archive.url + "warc.paths.gz"], prefix=archive.url, backoff_s=0.001, max_files=2
    )
    manifest = run_ingest(settings, run)
    assert [entry.name for entry in manifest.files] == ["0.warc.gz", "1.warc.gz"]
    archive.faults = 0.0
    assert len(responses(manifest)) == 2 * NUM_RECORDS
    archive.asked.clear()
    assert run_ingest(settings, run) == manifest
    assert archive.whole("/crawl/0.warc.gz") == 0  # its digest is known


def test_files_told_apart_by_their_etag_are_not_read(archive: Archive, run: RunConfig) -> None:
    settings = IngestConfig(warcs=[archive.url + "crawl/0.warc.gz"], digest="etag")
    manifest = run_ingest(settings, run)
    assert archive.whole("/crawl/0.warc.gz") == 0
    assert manifest.files[0].num_bytes == len(archive.files["crawl/0.warc.gz"])
    assert len(responses(manifest)) == NUM_RECORDS


# --------------------------------------------------------------------------------- WET, mistakes


def test_wet_files_become_documents(run: RunConfig, tmp_path: Path) -> None:
    texts = {
        "http://a.test/1": "Grüße\r\nan alle\0\n",
        "http://a.test/2": "\n",
        "http://a.test/3": "drei",
    }
    data = b""
    for url, text in texts.items():
        head = (
            f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: {url}\r\n"
            f"WARC-Date: 2024-05-06T07:08:09Z\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(text.encode())}\r\n\r\n"
        )
        data += gzip.compress(head.encode() + text.encode() + b"\r\n\r\n")
    (tmp_path / "a.warc.wet.gz").write_bytes(data)
    source = run_ingest(IngestConfig(warcs=[str(tmp_path / "a.warc.wet.gz")]), run)
    manifest = run_extract(ExtractConfig(), source, run, InlineRuntime())
    documents = list(read_records(manifest.file_url(manifest.files[0].name), Document))
    assert [(d.url, d.text, d.drop_reason) for d in documents] == [
        ("http://a.test/1", "Grüße\nan alle", None),
        ("http://a.test/2", "", "empty-text"),
        ("http://a.test/3", "drei", None),
    ]
    assert {(d.extractor, d.content_type, d.http_status) for d in documents} == {
        ("wet", "text/plain", 200)
    }
    assert documents[0].warc_offset == 0
    assert documents[1].warc_offset > 0
    assert documents[0].warc_file == "a.warc.wet.gz"


def test_who_asks_says_so(archive: Archive, run: RunConfig) -> None:
    run_ingest(config(archive, contact="me@example.org"), run)
    assert archive.agents == {"FlywheelBot/0.1 (+me@example.org)"}
    for settings in (
        {"warcs": ["https://data.example.org/a.warc.gz"]},
        {"index": "https://index.example.org/x", "urls": ["*.a.test"]},
        {"paths": ["/some/where/warc.paths.gz"]},  # the prefix is Common Crawl's
    ):
        with pytest.raises(UserError, match=r"needs ingest\.contact"):
            run_ingest(IngestConfig.model_validate(settings), run)


def test_mistakes(archive: Archive, run: RunConfig, tmp_path: Path) -> None:
    archive.files["empty.paths"] = b"\n"
    here = {"prefix": archive.url}
    for settings, message in [
        ({"index": "x", "warcs": ["y"]}, "not both"),
        ({"index": archive.url, **here}, "needs URL patterns"),
        ({"index": "x.cdxj", "urls": ["*"], **here}, "takes none"),
        ({"index": str(tmp_path / "no.cdxj"), **here}, "matches no file"),
        ({"index": archive.url + "crawl/0.warc.gz", "urls": ["*"], **here}, "as a CDX server does"),
        ({"index": archive.url + "CC-TEST-index", "urls": ["none.test"], **here}, "no captures"),
        ({"paths": [archive.url + "no.gz"], **here}, r"status-404"),
        ({"paths": [archive.url + "empty.paths"], **here}, "names no file"),
        ({"paths": [str(tmp_path / "no.gz")], **here}, "cannot read"),
        ({"warcs": [archive.url + "no.gz"]}, r"cannot be read \(status-404\)"),
        ({"warcs": ["http://"]}, "is no URL"),
    ]:
        with pytest.raises(UserError, match=message):
            run_ingest(IngestConfig.model_validate({**settings, "backoff_s": 0}), run)

"""Files that are there already: named by content, found again where they lie."""

import gzip
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest
from pipeline.ingest import IngestConfig, run_ingest


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


def ingest(run: RunConfig, *warcs: Path | str) -> Manifest:
    return run_ingest(IngestConfig(warcs=[str(warc) for warc in warcs]), run)


def test_files_stay_where_they_are(tmp_path: Path, run: RunConfig) -> None:
    a, b = write(tmp_path / "in/a.warc.gz", "a"), write(tmp_path / "in/b.warc.gz", "b")
    manifest = ingest(run, tmp_path / "in/*.warc.gz")
    assert [entry.name for entry in manifest.files] == ["a.warc.gz", "b.warc.gz"]
    assert [manifest.file_url(entry.name) for entry in manifest.files] == [str(a), str(b)]
    assert manifest.counts.rows_in == 2
    assert [p.name for p in storage.local_path(manifest.url).iterdir() if p.suffix == ".gz"] == []


def test_order_place_and_name_are_no_part_of_the_identity(tmp_path: Path, run: RunConfig) -> None:
    a, b = write(tmp_path / "in/a.warc.gz", "a"), write(tmp_path / "in/b.warc.gz", "b")
    first = ingest(run, a, b)
    assert ingest(run, b, a) == first
    moved = tmp_path / "elsewhere" / "renamed.warc.gz"
    moved.parent.mkdir()
    b.rename(moved)
    second = ingest(run, a, moved)
    assert second.content_hash == first.content_hash
    assert second.file_url("b.warc.gz") == str(moved)
    write(a, "changed")
    assert ingest(run, a, moved).key != first.key


def test_names_that_clash_get_their_digest(tmp_path: Path, run: RunConfig) -> None:
    x, y = write(tmp_path / "1/x.warc.gz", "one"), write(tmp_path / "2/x.warc.gz", "two")
    manifest = ingest(run, x, y)
    assert sorted(e.name for e in manifest.files) == sorted(
        f"{e.sha256[:8]}-x.warc.gz" for e in manifest.files
    )
    assert {manifest.file_url(e.name) for e in manifest.files} == {str(x), str(y)}


def test_a_file_given_twice_counts_once_and_is_said(
    tmp_path: Path, run: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "in/a.warc.gz", "a")
    copy = write(tmp_path / "in/copy.warc.gz", "a")
    link = tmp_path / "link.warc.gz"
    link.symlink_to(a)
    manifest = ingest(run, a, link, f"{a.parent}/../in/a.warc.gz")
    assert manifest.counts.rows_out == 1
    assert "given twice" not in capsys.readouterr().err  # one and the same path
    assert ingest(run, a, copy).content_hash == manifest.content_hash
    assert "1 of 2 files given twice, counted once" in capsys.readouterr().err


def test_urls_of_other_file_systems(run: RunConfig) -> None:
    for name in ("a", "b"):
        with fsspec.open(f"memory://bucket/{name}.warc.gz", "wb") as file:
            file.write(name.encode())
    manifest = ingest(run, "memory://bucket/*.warc.gz")
    assert [storage.read_bytes(manifest.file_url(e.name)) for e in manifest.files] == [b"a", b"b"]
    assert ingest(run, "memory://bucket/a.warc.gz").counts.rows_out == 1
    with pytest.raises(UserError, match=r"'memory://bucket/c\.warc\.gz' matches no file"):
        ingest(run, "memory://bucket/c.warc.gz")


def test_mistakes(tmp_path: Path, run: RunConfig) -> None:
    (tmp_path / "folder").mkdir()
    for warcs, message in [
        ([], "ingest.warcs is empty"),
        ([tmp_path / "none.warc.gz"], r"none.warc.gz' matches no file"),
        ([tmp_path / "*.warc"], r"\*.warc' matches no file"),
        ([tmp_path / "folder"], "is a folder; name its files"),
    ]:
        with pytest.raises(UserError, match=message):
            ingest(run, *warcs)


def test_real_files(shared_data: Callable[[str], Path], run: RunConfig) -> None:
    folder = shared_data("crawl/warcio-testdata")
    manifest = ingest(run, folder / "**/*.warc*", folder / "**/*.arc*")
    assert manifest.counts.rows_out == 16

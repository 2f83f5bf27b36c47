import json
import time
from pathlib import Path

import pytest

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import (
    Counts,
    StageOutput,
    WouldRun,
    describe_file,
    planning,
    read_manifest,
)


def _commit(root: str, **config: int):
    output = StageOutput.of(root, "stage", 1, dict(config), {})
    storage.write_bytes(output.path("f"), b"data")
    entry = describe_file(output.path("f"), "f", 4)
    counts = Counts(4, 3, {"short": 1})
    return output.commit([entry], counts, started=time.time(), facts={"n": 1})


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = _commit(str(tmp_path))
    assert read_manifest(manifest.url) == manifest
    assert manifest.files[0].sha256.startswith("3a6eb0790f39ac87")  # sha256 of b"data"
    assert storage.read_bytes(manifest.file_url("f")) == b"data"


def test_the_key_follows_stage_version_config_and_parents(tmp_path: Path) -> None:
    parent = _commit(str(tmp_path), x=1)
    keys = {
        StageOutput.of("r", "s", 1, {}, {"p": parent}).key,
        StageOutput.of("r", "s", 2, {}, {"p": parent}).key,
        StageOutput.of("r", "t", 1, {}, {"p": parent}).key,
        StageOutput.of("r", "s", 1, {"x": 1}, {"p": parent}).key,
        StageOutput.of("r", "s", 1, {}, {"p": _commit(str(tmp_path), x=2)}).key,
    }
    assert len(keys) == 5
    elsewhere = StageOutput.of("other-root", "s", 1, {}, {"p": parent.content_hash})
    assert elsewhere.key in keys


def test_the_content_hash_knows_no_clock_and_no_host(tmp_path: Path) -> None:
    first = _commit(str(tmp_path / "a"))
    time.sleep(0.01)
    assert _commit(str(tmp_path / "b")).content_hash == first.content_hash


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    output = StageOutput.of(str(tmp_path), "stage", 1, {}, {})
    names = ["docs-00002", "docs-99999", "docs-100000", "docs-100001", "rejects-00000", "²"]
    for name in names:
        storage.write_bytes(output.path(name), b"data")
    entries = [describe_file(output.path(name), name) for name in sorted(names, reverse=True)]
    manifest = output.commit(entries, Counts(0, 0), started=time.time())
    assert [entry.name for entry in manifest.files] == names


def test_rows_must_add_up() -> None:
    with pytest.raises(AssertionError):
        Counts(5, 3, {"short": 1})
    total = Counts.total([Counts(2, 1, {"b": 1}), Counts(3, 1, {"a": 1}, {"torn": 1})])
    assert total == Counts(5, 2, {"a": 1, "b": 1}, {"torn": 1})


def test_a_manifest_changed_by_hand_or_torn_is_not_trusted(tmp_path: Path) -> None:
    url = _commit(str(tmp_path)).url
    path = Path(url) / "manifest.json"
    whole = json.loads(path.read_text())
    whole["content"]["counts"] = {"rows_in": 4, "rows_out": 4, "dropped": {}, "quarantined": {}}
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="was changed"):
        read_manifest(url)
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match="cannot read"):
        read_manifest(url)
    path.unlink()
    with pytest.raises(UserError, match="no manifest"):
        read_manifest(url)


def test_a_second_writer_is_sent_away(tmp_path: Path) -> None:
    output = StageOutput.of(str(tmp_path), "s", 1, {}, {})
    with output.lock(), pytest.raises(UserError, match="another run is writing"), output.lock():
        pass
    with output.lock():
        pass


def test_planning_names_the_first_unfinished_stage_and_runs_nothing(tmp_path: Path) -> None:
    done, left = (StageOutput.of(str(tmp_path), "stage", 1, c, {}) for c in ({"x": 1}, {"x": 2}))
    manifest = _commit(str(tmp_path), x=1)
    with planning():
        assert done.finished() == manifest
        with pytest.raises(WouldRun, match="stage is not done"):
            left.finished()
    assert left.finished() is None

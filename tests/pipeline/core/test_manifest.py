import json
import time
from pathlib import Path

import pytest

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import (
    Counts,
    Manifest,
    ShardResult,
    StageOutput,
    WouldRun,
    describe_file,
    map_shards,
    planning,
    read_manifest,
)
from pipeline.core.remote import InlineRuntime


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


def test_finished_shards_are_not_done_again_and_order_is_kept(tmp_path: Path) -> None:
    output = StageOutput.of(str(tmp_path), "s", 1, {}, {})
    seen: list[int] = []

    def task(number: int) -> ShardResult:
        if number == 2 and 2 not in seen:
            seen.append(2)
            raise RuntimeError("killed")
        seen.append(number)
        return ShardResult((), Counts(number, number), {"n": number})

    tasks = {f"{i:05}": i for i in range(4)}
    with pytest.raises(RuntimeError, match="killed"):
        map_shards(InlineRuntime(), output, "go", task, tasks)
    results = map_shards(InlineRuntime(), output, "go", task, tasks)
    assert seen == [0, 1, 2, 2, 3]
    assert [r.facts["n"] for r in results] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"files": [1], "counts": {}, "facts": {}}',
        b'{"files": [], "counts": {"rows_in": 2, "rows_out": 1}, "facts": {}}',
    ],
)
def test_a_damaged_receipt_is_named_and_its_task_runs_again(tmp_path, caplog, text) -> None:
    output = StageOutput.of(str(tmp_path), "s", 1, {}, {})
    seen: list[int] = []

    def task(number: int) -> ShardResult:
        seen.append(number)
        return ShardResult((), Counts(number, number), {"n": number})

    tasks = {f"{i:05}": i for i in range(3)}
    first = map_shards(InlineRuntime(), output, "go", task, tasks)
    Path(output.path("go-00001.done.json")).write_bytes(text)
    assert map_shards(InlineRuntime(), output, "go", task, tasks) == first
    assert seen == [0, 1, 2, 1]
    assert output.spent["go"].peak_mb > 1
    assert ["go-00001.done.json is damaged" in r.message for r in caplog.records] == [True]
    assert map_shards(InlineRuntime(), output, "go", task, tasks) == first
    assert len(seen) == 4


def test_processor_time_is_added_up_over_resumes_and_is_no_part_of_the_result(tmp_path) -> None:
    def burn(seconds: float) -> ShardResult:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return ShardResult((), Counts(1, 1))

    def commit(seconds: float, tasks: dict[str, float]) -> Manifest:
        output = StageOutput.of(str(tmp_path / str(seconds)), "s", 1, {}, {})
        for phase in ("one", "two"):
            map_shards(InlineRuntime(), output, phase, burn, tasks)
        again = StageOutput.of(str(tmp_path / str(seconds)), "s", 1, {}, {})
        map_shards(InlineRuntime(), again, "one", burn, tasks)  # nothing is left to do
        assert again.spent["one"] == output.spent["one"]
        return output.commit([], Counts(0, 0), started=0.0)

    slow, fast = commit(0.2, {"a": 0.2, "b": 0.1}), commit(0.0, {"a": 0.0, "b": 0.0})
    assert slow.content_hash == fast.content_hash
    assert slow.run["cpu_seconds"] >= 0.55  # times() counts in hundredths
    assert slow.run["cpu_seconds"] == pytest.approx(sum(slow.run["phases"].values()))
    assert set(slow.run["phases"]) == {"one", "two"}

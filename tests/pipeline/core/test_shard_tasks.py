import time
from pathlib import Path

import pytest

from pipeline.core.manifest import Counts, Manifest, StageOutput
from pipeline.core.remote import InlineRuntime
from pipeline.core.shard_tasks import ShardResult, map_shards


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

"""The seen-set against Python's own set."""

import random
from pathlib import Path

import pytest

from pipeline import seen as module
from pipeline.seen import DamagedRunError, RunFile, SeenSet


@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_set_whatever_is_spilled_and_merged(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    seen, truth = SeenSet(tmp_path, max_recent=50), set[str]()
    for _ in range(300):
        batch = [f"http://x/{chance.randrange(4000)}" for _ in range(chance.randrange(30))]
        expected = [url for url in dict.fromkeys(batch) if url not in truth]
        assert seen.add_new(batch) == expected
        truth.update(batch)
        if seen.is_full:
            seen.spill()
            seen.discard()
            if chance.random() < 0.3:  # as after a kill
                seen = SeenSet(tmp_path, seen.runs, max_recent=50)
    assert len(seen) == len(truth)
    assert len(seen.runs) <= 7
    assert seen.add_new(sorted(truth)) == []


def test_runs_that_nothing_names_are_gone(tmp_path: Path) -> None:
    seen = SeenSet(tmp_path)
    seen.add_new(["a", "b"])
    assert [run.name for run in seen.spill()] == ["seen-000000.run"]
    again = SeenSet(tmp_path)  # killed before the spill was written down: the log tells them anew
    assert again.add_new(["a"]) == ["a"]
    assert list(tmp_path.iterdir()) == []


def test_equal_upper_halves_are_told_apart(tmp_path: Path, monkeypatch) -> None:
    keys = {"a": b"\0" * 16, "b": b"\0" * 15 + b"\1", "c": b"\0" * 15 + b"\2"}
    monkeypatch.setattr("xxhash.xxh3_128_digest", lambda data: keys[data.decode()])
    seen = SeenSet(tmp_path)
    seen.add_new(["b"])
    seen.spill()
    seen.add_new(["a"])
    seen.spill()
    assert seen.add_new(["a", "b", "c"]) == ["c"]


def test_of_a_large_run_blocks_from_all_over_are_checked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1 << 20)
    monkeypatch.setattr(module, "_CHECKED_BLOCKS", 3)
    seen = SeenSet(tmp_path)
    for start in range(0, 400_000, 100_000):
        seen.add_new([str(number) for number in range(start, start + 100_000)])
    (run,) = seen.spill()
    assert len(run.sums) == 7
    assert RunFile.of_json(run.to_json()) == run
    path = tmp_path / run.name
    whole = path.read_bytes()
    noticed = list[str]()
    for block in range(7):
        damaged = bytearray(whole)
        damaged[(block << 20) + 5] ^= 1
        path.write_bytes(damaged)
        try:
            SeenSet(tmp_path, [run])
        except DamagedRunError as error:
            noticed.append(str(error).removeprefix(f"{path} is damaged behind byte "))
        assert path.exists()
    assert noticed == ["0", f"{3 << 20:,}", f"{6 << 20:,}"]


def test_a_run_of_another_size_is_told(tmp_path: Path) -> None:
    seen = SeenSet(tmp_path)
    seen.add_new(["a", "b"])
    (run,) = seen.spill()
    (tmp_path / run.name).write_bytes((tmp_path / run.name).read_bytes()[:16])
    with pytest.raises(DamagedRunError, match="16 bytes instead of 32"):
        SeenSet(tmp_path, [run])
    with pytest.raises(DamagedRunError, match="is gone"):
        SeenSet(tmp_path, [RunFile("seen-000009.run", 32, run.sums)])

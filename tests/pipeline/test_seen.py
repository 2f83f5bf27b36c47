"""The seen-set against Python's own set."""

import random
from pathlib import Path

import pytest

from pipeline.seen import SeenSet


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
    assert seen.spill() == ["seen-000000.run"]
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

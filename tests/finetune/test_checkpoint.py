"""Checkpoints: whole or absent, found damaged by their hash, and the one before taken."""

import errno
import json
from pathlib import Path

import pytest
import torch

from finetune.checkpoint import State, delete_checkpoints, load_checkpoint, save_checkpoint
from pipeline.core import storage


def _state(step: int) -> State:
    weights = {"w": torch.full((4,), float(step))}
    return State(step, weights, {"moments": step}, {"cursor": 7}, {"cpu": torch.get_rng_state()})


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_stay_and_come_back_as_they_were(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (3, 5, 8, 1_000):
        save_checkpoint(tmp_path, _state(step))
    assert _names(tmp_path) == [
        f"checkpoint-{step:09}.{ending}" for step in (8, 1000) for ending in ("json", "pt")
    ]
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.source, found.optimizer) == (1000, {"cursor": 7}, {"moments": 1000})
    assert torch.equal(found.model["w"], torch.full((4,), 1000.0))
    delete_checkpoints(tmp_path)
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"\0" * 100,
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2] + b"flip" + data[len(data) // 2 + 4 :],
    ],
)
@pytest.mark.parametrize("which", ["pt", "json"])
def test_a_damaged_one_is_said_and_the_one_before_it_taken(
    tmp_path: Path, damage, which: str, caplog
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, _state(step))
    path = tmp_path / f"checkpoint-000000002.{which}"
    path.write_bytes(damage(path.read_bytes()))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "checkpoint-000000002.pt is damaged" in caplog.text
    other = tmp_path / "checkpoint-000000001.pt"
    other.write_bytes(damage(other.read_bytes()))
    assert load_checkpoint(tmp_path) is None
    assert "checkpoint-000000001.pt is damaged" in caplog.text
    assert "the stage begins anew" in caplog.text


def test_what_a_kill_left_half_is_swept(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, _state(step))
    (tmp_path / "checkpoint-000000001.json").unlink()  # between the two deletions
    (tmp_path / ".checkpoint-000000003.pt.x1y2.tmp").write_bytes(b"half")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-000000002.json", "checkpoint-000000002.pt"]


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _state(1))
    path = tmp_path / "checkpoint-000000001.pt"
    torch.save({"model": Path("x")}, path)  # a class: unpickling it calls it
    digest = __import__("hashlib").sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps({"step": 1, "sha256": digest}))
    assert load_checkpoint(tmp_path) is None


def test_a_full_disk_while_saving_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(tmp_path, _state(1))
    real = storage.write_bytes

    def full(url: str, data: bytes, **more: object) -> None:
        if url.endswith("000002.json"):
            raise OSError(errno.ENOSPC, "No space left on device", url)
        real(url, data, **more)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, _state(2))
    monkeypatch.undo()
    found = load_checkpoint(tmp_path)  # what was not hashed does not count
    assert found is not None
    assert found.step == 1
    save_checkpoint(tmp_path, _state(2))
    save_checkpoint(tmp_path, _state(3))
    assert [name for name in _names(tmp_path) if name.endswith(".pt")] == [
        "checkpoint-000000002.pt",
        "checkpoint-000000003.pt",
    ]


def test_a_damaged_one_does_not_outlive_those_that_follow(tmp_path: Path) -> None:
    """It was the newest; of the two that are kept one would always have been it."""
    for step in (50, 100):
        save_checkpoint(tmp_path, _state(step))
    (tmp_path / "checkpoint-000000100.pt").write_bytes(b"damaged")
    for step in (60, 70):
        save_checkpoint(tmp_path, _state(step))
    assert _names(tmp_path) == [
        f"checkpoint-{step:09}.{ending}" for step in (60, 70) for ending in ("json", "pt")
    ]


def test_what_a_person_keeps_beside_them_stays(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-mine.pt").write_bytes(b"mine")
    (tmp_path / "checkpoint-old.pt").mkdir()
    save_checkpoint(tmp_path, _state(1))
    assert load_checkpoint(tmp_path) is not None
    delete_checkpoints(tmp_path)
    assert _names(tmp_path) == ["checkpoint-mine.pt", "checkpoint-old.pt"]

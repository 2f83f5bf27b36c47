"""A training run's state on disk: the newest two steps, each whole and with its hash, or absent."""

import dataclasses
import hashlib
import json
import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.core import storage

log = logging.getLogger(__name__)

KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{9})\.json")
_DATA = re.compile(r"checkpoint-\d{9}\.pt")
# What torch raises for bytes that are none, or another model's.
_NO_CHECKPOINT = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    RuntimeError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class State:
    """All that the next step depends on: weights, optimizer, random generators, and what the
    stage's own data source remembers (a cursor, running means)."""

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    source: dict[str, Any]
    generators: dict[str, Any]


def random_state() -> dict[str, Any]:
    """Torch's generators: dropout draws from them."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(folder: Path, state: State) -> None:
    """Write the state, then its hash beside it, which makes it count; the newest two stay. A kill
    or a full disk on the way leaves those that were there."""
    path = folder / f"checkpoint-{state.step:09}.pt"
    with storage.atomic_file(str(path)) as temporary, temporary.open("wb") as file:
        # Into an open file: by name, torch hides why a write failed.
        torch.save({f.name: getattr(state, f.name) for f in dataclasses.fields(state)}, file)
    digest = {"step": state.step, "sha256": _sha256(path)}
    storage.write_bytes(str(path.with_suffix(".json")), json.dumps(digest).encode())
    steps = [step for step in _steps(folder) if step <= state.step]
    for step in {*_steps(folder)} - {*steps[-KEPT:]}:  # beyond it lie damaged ones alone
        _delete(folder / f"checkpoint-{step:09}.pt")


def load_checkpoint(folder: Path) -> State | None:
    """The newest state that is whole, or None if there is none; a damaged one is said, and the one
    before it taken. What a kill left half is swept."""
    steps = _steps(folder)
    for path in (*folder.glob(".checkpoint-*"), *_written(folder)):
        if not path.with_suffix(".json").exists():
            path.unlink(missing_ok=True)
    for step in reversed(steps):
        path = folder / f"checkpoint-{step:09}.pt"
        try:
            known = json.loads(path.with_suffix(".json").read_text())
            if _sha256(path) != known["sha256"]:
                raise ValueError("its bytes are not those that were written")
            # On the CPU, whatever wrote it; tensors and plain values alone, no code.
            found = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
            return State(**found)
        except _NO_CHECKPOINT as error:
            why = str(error).partition("\n")[0][:200]  # torch explains at length
            then = "the stage begins anew" if step == steps[0] else "taking the one before it"
            log.warning("%s is damaged (%s); %s", path, why, then)
    return None


def delete_checkpoints(folder: Path) -> None:
    """Of this run and of those in folders below it; a finished stage needs none."""
    for path in _written(folder, "**/"):
        _delete(path)


def _written(folder: Path, below: str = "") -> list[Path]:
    """Ours alone: a person may keep a copy beside them."""
    found = folder.glob(f"{below}checkpoint-*.pt")
    return [path for path in found if _DATA.fullmatch(path.name) and path.is_file()]


def _steps(folder: Path) -> list[int]:
    names = (_NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*.json"))
    return sorted(int(name[1]) for name in names if name)


def _delete(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

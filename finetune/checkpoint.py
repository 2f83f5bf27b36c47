"""A training run's state in one file, whole or absent."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.core import storage
from pipeline.core.errors import UserError

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
    ValueError,
)


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """What the next step depends on: weights, optimizer and step. Batches and sampling are pure
    functions of (seed, step), so no cursor and no generator state is needed."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with storage.atomic_file(str(path)) as temporary, temporary.open("wb") as file:
        torch.save(state, file)  # into an open file: by name, torch hides why a write failed


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore in place and return the number of steps done; 0 if there is no checkpoint.

    Raises UserError for a file that is not one, naming it.
    """
    if not path.exists():
        return 0
    try:
        _check_sums(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except _NO_CHECKPOINT as error:
        why = str(error).partition("\n")[0][:200]  # torch explains at length
        raise UserError(
            f"{path} is not a checkpoint of this run ({why}); delete it and rerun: the stage"
            " begins anew"
        ) from error


def _check_sums(path: Path) -> None:
    """Raises ValueError if a byte was changed: torch writes a zip file's sums and reads none."""
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise ValueError(f"its part {name} was changed")

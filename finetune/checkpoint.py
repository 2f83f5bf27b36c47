"""A training run's state in one file, whole or absent."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.core import storage
from pipeline.core.errors import UserError


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
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint of this run ({error}); delete it") from error
    return int(state["step"])

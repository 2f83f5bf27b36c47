"""Several workers as one: FSDP2 over whatever Ray Train or torchrun started. With one worker every
function here does nothing, so the loop is written once."""

import datetime as dt
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune.model import Precision
from pipeline.core.errors import UserError

T = TypeVar("T")
_TIMEOUT = dt.timedelta(minutes=30)


class Shell(nn.Module):
    """A model in a root of its own: what runs inside a call sees the root's parameters whole, be
    it a forward pass, a loss on the head's weight, or generation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        return work()


def start() -> None:
    """Join the group that the environment names (RANK, WORLD_SIZE: torchrun's); once."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this worker writes the files."""
    return rank() == 0


def barrier() -> None:
    if size() > 1:
        dist.barrier()


def device(wanted: str) -> torch.device | None:
    """The worker's own device; None leaves the choice to the machine. Raises UserError for a GPU
    that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda', but torch finds no GPU here; leave it at auto")
    if wanted == "cpu":
        return torch.device("cpu")
    if size() > 1 and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(wanted) if wanted != "auto" else None


def share_of(micro_batches: Sequence[T]) -> Sequence[T]:
    """This worker's micro-batches. All have equally many, as every pass is made together: raises
    UserError where they cannot."""
    if len(micro_batches) % size():
        raise UserError(
            f"{len(micro_batches)} micro-batches cannot be shared by {size()} workers; choose"
            " batch_rows and micro_batch_rows so that their ratio is a multiple of it"
        )
    return micro_batches[rank() :: size()]


def blocks_of(body: nn.Module) -> list[nn.Module]:
    """The transformer's blocks: the longest list of modules in it."""
    lists = [m for m in body.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def shell(model: nn.Module, precision: Precision) -> Shell:
    """The model to call through; its parameters are sharded over the workers, block by block."""
    result = Shell(model)
    if size() > 1:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(
            param_dtype=precision.autocast_dtype if precision.device.type == "cuda" else None
        )
        for block in [b for m in model.modules() for b in _blocks_if_body(m)]:
            fully_shard(block, mp_policy=policy)
        fully_shard(result, mp_policy=policy)
    return result


def _blocks_if_body(module: nn.Module) -> list[nn.Module]:
    prefix = getattr(module, "base_model_prefix", "")
    body = getattr(module, prefix, None) if prefix else None
    return blocks_of(body) if isinstance(body, nn.Module) else []


def clip_gradients(model: nn.Module, most: float) -> float:
    """Scale all gradients so that their norm is at most `most`; returns what it was."""
    norm: Any = nn.utils.clip_grad_norm_(model.parameters(), most)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def summed(values: Tensor) -> Tensor:
    """The sum over all workers."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def whole_state(
    root: Shell, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and optimizer state, unsharded and by name, on the first worker's CPU: the same at
    any number of workers."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True, cpu_offload=size() > 1)
    weights, moments = states.get_state_dict(root, optimizer, options=options)
    return cast(dict[str, Any], weights), cast(dict[str, Any], moments)


def load_state(
    root: Shell,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Any],
    moments: dict[str, Any],
) -> None:
    """Put back what `whole_state` gave. Raises RuntimeError or KeyError for another model's."""
    from torch.distributed.checkpoint import state_dict as states

    options = states.StateDictOptions(full_state_dict=True, strict=True)
    states.set_state_dict(
        root,
        optimizer,
        model_state_dict=weights,
        optim_state_dict=cast(Any, moments),
        options=options,
    )


def gathered(model: nn.Module) -> Any:
    """The model with its parameters whole, on every worker; the same object if there is one."""
    if size() == 1:
        return model
    fresh = type(model)(cast(Any, model).config)
    fresh.load_state_dict(whole_weights(model))
    return fresh


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """By name, unsharded, on every worker."""
    return {
        k: v.full_tensor() if hasattr(v, "full_tensor") else v
        for k, v in model.state_dict().items()
    }


def launch(work: Callable[[], object], workers: int, *, ray: bool) -> None:
    """Run `work` (picklable) in so many workers that form one group, and wait for all. By Ray
    Train over a cluster, else by torch's own launcher on this machine."""
    if ray:
        _launch_ray(work, workers)
    else:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=f"flywheel-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            max_restarts=0,
        )
        elastic_launch(config, _joined)(work)


def _joined(work: Callable[[], object]) -> None:
    start()
    try:
        work()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _launch_ray(work: Callable[[], object], workers: int) -> None:
    from ray.train import ScalingConfig  # only a cluster asks; the GPU machine may lack ray
    from ray.train.torch import TorchTrainer

    scaling = ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available())
    TorchTrainer(functools.partial(_in_ray, work), scaling_config=scaling).fit()


def _in_ray(work: Callable[[], object]) -> None:
    work()

"""Two processes over gloo train what one does: the same loss, gradient, weights and checkpoints."""

import functools
from pathlib import Path

import pytest
import torch

from finetune import distributed
from finetune.checkpoint import load_checkpoint
from finetune.data import batches_of
from finetune.distributed import gathered, launch
from finetune.loop import LoopConfig, train
from finetune.model import new_model
from finetune.packing import TokenBatch, pack_stream
from finetune.pretrain import next_token_objective
from finetune.sft import SftConfig, run_sft
from finetune.tokenizer import train_bpe
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from tests.finetune.conftest import SMALL_VOCABULARY, TINY, sentences

CONFIG = LoopConfig(
    warmup_steps=1, schedule="constant", learning_rate=1e-2, checkpoint_every=2, device="cpu",
    precision="fp32",
)  # fmt: skip


def _rows() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (40,), generator=generator).tolist()
    return pack_stream(
        [torch.randint(64, 300, (n,), generator=generator).tolist() for n in lengths], 16, 2
    )


def _train(folder: Path, steps: int, micro_batch_rows: int = 1) -> None:
    torch.set_num_threads(1)
    tokenizer = train_bpe(iter(sentences(0, 50)), SMALL_VOCABULARY)
    model = new_model(TINY, tokenizer, seed=3)
    source = batches_of(_rows(), 8, micro_batch_rows, seed=1)
    result = train("t", model, next_token_objective, source, steps, CONFIG, folder)
    whole = gathered(model)  # every process takes part
    if distributed.is_main():
        rows = [{k: r[k] for k in ("loss", "grad_norm")} for r in result.metrics]
        torch.save({"weights": whole.state_dict(), "metrics": rows}, folder / "found.pt")


def _found(folder: Path) -> dict:
    return torch.load(folder / "found.pt")


def test_one_by_eight_is_eight_by_one_is_two_processes_and_a_run_may_change_its_number(
    tmp_path: Path,
) -> None:
    one, eight, two, mixed = (tmp_path / name for name in ("one", "eight", "two", "mixed"))
    _train(one, 4, micro_batch_rows=1)
    _train(eight, 4, micro_batch_rows=8)
    launch(functools.partial(_train, two, 4), 2, ray=False)
    _train(mixed, 2)  # one process, then two
    launch(functools.partial(_train, mixed, 4), 2, ray=False)
    expected = _found(one)
    for folder in (eight, two, mixed):
        found = _found(folder)
        # The first step from the same weights to rounding; later ones by way of AdamW, which
        # divides by small numbers.
        near = 1e-6
        for row, wanted in zip(found["metrics"], expected["metrics"], strict=True):
            assert row["loss"] == pytest.approx(wanted["loss"], rel=near)
            assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=10 * near)
            near = 1e-4
        for name, weights in expected["weights"].items():
            assert float((found["weights"][name] - weights).abs().mean()) < 1e-5, name
    states = [load_checkpoint(folder) for folder in (one, two)]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0].model.keys() == states[1].model.keys()
    assert states[0].step == states[1].step == 4


def test_micro_batches_that_cannot_be_shared_are_named(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(UserError, match=r"8 micro-batches cannot be shared by 3 workers"):
        distributed.share_of(list(range(8)))


@pytest.mark.long
def test_a_stage_with_two_processes_publishes_once(run: RunConfig, base_id, labels) -> None:
    config = {"epochs": 2, "row_length": 128, "batch_rows": 2, "micro_batch_rows": 1}
    two = SftConfig(**config, processes=2, device="cpu")
    manifest = run_sft(two, base_id, labels, RunConfig(root=run.root, backend="local"))
    assert manifest.counts.rows_in == manifest.counts.rows_out > 0
    assert run_sft(SftConfig(**config), base_id, labels, run) == manifest  # where, not what

"""The loop: accumulation, resume after kill -9, and stopping on NaN."""

import json
from pathlib import Path

import pytest
import torch

from finetune.data import batches_of
from finetune.loop import (
    LoopConfig,
    NotFiniteError,
    Step,
    Steps,
    learning_rate,
    new_optimizer,
    train,
)
from finetune.model import ModelConfig, new_model
from finetune.packing import pack_stream
from finetune.pretrain import PretrainConfig, next_token_objective, run_pretrain
from finetune.registry import Registry
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError

TINY = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_length=128)
WORKER = """
import sys
from finetune.model import ModelConfig
from finetune.pretrain import PretrainConfig, run_pretrain
from pipeline.core.config import RunConfig
from pipeline.core.manifest import read_manifest
import torch
torch.set_num_threads(1)
root, shards, tokenizer, config = sys.argv[1:]
model = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_length=128)
run_pretrain(PretrainConfig.model_validate_json(config), model, read_manifest(shards),
             read_manifest(tokenizer), RunConfig(root=root))
"""
CONFIG = LoopConfig(warmup_steps=2, checkpoint_every=2)


def _rows():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (40,), generator=generator).tolist()
    documents = [torch.randint(64, 300, (n,), generator=generator).tolist() for n in lengths]
    return pack_stream(documents, 16, 2)


def _gradients(model, micro_batch_rows: int) -> list[torch.Tensor]:
    update = batches_of(_rows(), 8, micro_batch_rows, seed=1).step_of(0, model).updates[0]
    model.zero_grad()
    for micro_batch in update.micro_batches:
        (next_token_objective(model, micro_batch).total / update.count).backward()
    return [p.grad.clone() for p in model.parameters()]


def test_eight_micro_batches_of_one_give_the_gradient_of_one_of_eight(model) -> None:
    for one, eight in zip(_gradients(model, 1), _gradients(model, 8), strict=True):
        torch.testing.assert_close(one, eight, atol=1e-6, rtol=1e-4)


def test_the_rate_warms_up_and_ends_at_its_fraction() -> None:
    config = LoopConfig(learning_rate=1.0, warmup_steps=4, final_lr_fraction=0.1)
    assert [learning_rate(s, 100, config) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(4, 100, config) == 1.0
    assert learning_rate(99, 100, config) == pytest.approx(0.1, abs=1e-12)
    linear = LoopConfig(learning_rate=1.0, warmup_steps=0, schedule="linear", final_lr_fraction=0.0)
    assert [learning_rate(s, 5, linear) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert max(learning_rate(s, 6, LoopConfig(learning_rate=1.0)) for s in range(6)) == 1.0


def test_gains_do_not_decay(model) -> None:
    decaying, others = new_optimizer(model, CONFIG).param_groups
    assert all(p.dim() == 2 for p in decaying["params"])
    assert others["weight_decay"] == 0
    assert all(p.dim() == 1 for p in others["params"])


def test_a_run_cut_in_two_ends_in_the_same_bits(tokenizer, tmp_path: Path) -> None:
    def go(folder: Path, steps: int):
        model = new_model(TINY, tokenizer, seed=3)
        source = batches_of(_rows(), 4, 2, seed=1)
        result = train("t", model, next_token_objective, source, steps, CONFIG, folder)
        return model, result

    whole, whole_result = go(tmp_path / "whole", 7)
    folder = tmp_path / "cut"
    model = new_model(TINY, tokenizer, seed=3)

    def dies_at_step_5(step: int, current):
        if step == 5:
            raise KeyboardInterrupt
        return batches_of(_rows(), 4, 2, seed=1).step_of(step, current)

    with pytest.raises(KeyboardInterrupt):
        train("t", model, next_token_objective, Steps(dies_at_step_5), 7, CONFIG, folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # as a kill leaves it
    resumed, result = go(folder, 7)
    assert result.resumed_at == 4
    assert [row["step"] for row in result.metrics] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["loss"] for row in result.metrics] == [r["loss"] for r in whole_result.metrics]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_kill_in_the_middle_of_pretraining_changes_nothing(
    run: RunConfig, shards, tokenizer_manifest, kill_when
) -> None:
    config = PretrainConfig(
        num_tokens=64 * 4 * 60,
        batch_rows=4,
        micro_batch_rows=4,
        row_length=64,
        evaluate_every=20,
        evaluate_bytes=500,
        checkpoint_every=10,
    )
    arguments = [run.root, shards.url, tokenizer_manifest.url, config.model_dump_json()]
    metrics = Path(run.root) / "pretrain"
    kill_when(
        ["-c", WORKER, *arguments],
        lambda: any(len(p.read_text().splitlines()) > 25 for p in metrics.glob("*/metrics.jsonl")),
    )
    assert not list(metrics.glob("*/manifest.json"))
    resumed = run_pretrain(config, TINY, shards, tokenizer_manifest, run)
    other = RunConfig(root=run.root + "-undisturbed")
    undisturbed = run_pretrain(config, TINY, shards, tokenizer_manifest, other)
    assert resumed.facts["model_id"] == undisturbed.facts["model_id"]  # the same bits, so
    assert resumed.facts["final"] == undisturbed.facts["final"]  # the tolerance on a CPU is 0
    losses = [row["loss"] for row in _read(Path(resumed.url)) if "loss" in row]
    assert losses == [row["loss"] for row in _read(Path(undisturbed.url)) if "loss" in row]
    assert losses[-1] < losses[0]
    assert run_pretrain(config, TINY, shards, tokenizer_manifest, run) == resumed  # a no-op
    Registry(run.root).verified(resumed.facts["model_id"])


def test_nan_stops_the_run_and_keeps_the_batch(model, tmp_path: Path) -> None:
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"not-finite\.pt"):
        train("t", model, next_token_objective, batches_of(_rows(), 4, 4, 0), 2, CONFIG, tmp_path)
    assert isinstance(torch.load(tmp_path / "not-finite.pt", weights_only=False), Step)


def test_rows_longer_than_the_model_can_tell_apart_are_refused(
    run, shards, tokenizer_manifest
) -> None:
    config = PretrainConfig(row_length=256)
    with pytest.raises(UserError, match=r"pretrain\.row_length = 256"):
        run_pretrain(config, ModelConfig(max_length=128), shards, tokenizer_manifest, run)


def _read(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

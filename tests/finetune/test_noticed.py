"""What a careless change to training would break unseen: attention, checkpoint, loop and order."""

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from finetune import attention
from finetune.attention import segment_attention
from finetune.checkpoint import State, load_checkpoint, save_checkpoint
from finetune.data import Cursor, ShardRows, batches_of, shuffled_epochs
from finetune.loop import LoopConfig, Loss, Step, Steps, Update, new_optimizer, train
from finetune.packing import Segment, TokenBatch, pack_best_fit, pack_stream
from finetune.tokenizer import document_texts, encode_documents
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

PLAIN = LoopConfig(
    learning_rate=0.1,
    warmup_steps=0,
    schedule="constant",
    weight_decay=0.0,
    grad_clip=1e9,
    precision="fp32",
    device="cpu",
)


def _softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[list[int]], scaling: float
) -> Tensor:
    """One position and one head at a time, over its own segment up to itself. [B, T, H, D]"""
    batch, heads, length, width = query.shape
    out = torch.zeros(batch, length, heads, width)
    shared = heads // key.shape[1]
    for b, row in enumerate(lengths):
        starts = [sum(row[:i]) for i, n in enumerate(row) for _ in range(n)]
        for t, start in enumerate(starts):
            for h in range(heads):
                keys, values = (x[b, h // shared, start : t + 1] for x in (key, value))
                weights = torch.softmax(scaling * (keys @ query[b, h, t]), dim=0)
                out[b, t, h] = weights @ values
    return out


LENGTHS = pytest.mark.parametrize("lengths", [[[5, 3], [2, 6]], [[8], [8]]])
GROUPS = pytest.mark.parametrize("groups", [4, 2])
SCALING = pytest.mark.parametrize("scaling", [0.05, 2.0])  # by default it would be 0.25


def _query_key_value(groups: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 8, 16, generator=generator) for n in (4, groups, groups)]


def _batch(lengths: list[list[int]]) -> TokenBatch:
    positions = torch.tensor([[t for n in row for t in range(n)] for row in lengths])
    return TokenBatch.of(torch.zeros(2, 8).long(), positions, torch.zeros(2, 8).long())


@LENGTHS
@GROUPS
@SCALING
def test_attention_is_scaled_as_the_model_says(
    lengths: list[list[int]], groups: int, scaling: float
) -> None:
    qkv, batch = _query_key_value(groups), _batch(lengths)
    assert batch.lengths == tuple(map(tuple, lengths))
    found, _ = segment_attention(
        nn.Module(), *qkv, None, scaling=scaling,
        segment_lengths=batch.lengths, segment_offsets=batch.offsets_S1,
    )  # fmt: skip
    expected = _softmax_attention(*qkv, lengths, scaling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@GROUPS
@SCALING
def test_attention_without_segments_is_scaled_as_the_model_says(
    groups: int, scaling: float
) -> None:
    module, qkv = nn.Module(), _query_key_value(groups)
    module.num_key_value_groups = 4 // groups
    found, _ = segment_attention(module, *qkv, None, scaling=scaling)
    expected = _softmax_attention(*qkv, [[8], [8]], scaling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@LENGTHS
@GROUPS
@SCALING
def test_a_gpus_kernel_is_told_the_scale(
    lengths: list[list[int]], groups: int, scaling: float, monkeypatch
) -> None:
    """A plain kernel of the same signature stands in for it, as a CPU has none."""
    from torch.nn.attention import varlen

    def plain(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        scale=None, window_size=(-1, -1), enable_gqa=False,
    ):  # fmt: skip
        assert window_size == (-1, 0)
        assert enable_gqa or len({x.shape[1] for x in (query, key, value)}) == 1
        several = [int(n) for n in cu_seq_q.diff()]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        rows = [x.transpose(0, 1)[None] for x in (query, key, value)]
        return _softmax_attention(*rows, [several], scale)[0]

    monkeypatch.setattr(varlen, "varlen_attn", plain)
    qkv, offsets = _query_key_value(groups), _batch(lengths).offsets_S1
    found = attention._varlen(*qkv, offsets, scaling, groups != 4)
    expected = _softmax_attention(*qkv, lengths, scaling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class _Code:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_that_is_whole_otherwise_does_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made-by-the-checkpoint"
    state = State(1, {"w": torch.zeros(2)}, {}, {"cursor": _Code(made)}, {})
    path = tmp_path / "checkpoint-000000001.pt"
    save_checkpoint(tmp_path, state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == digest
    assert load_checkpoint(tmp_path) is None
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # it would have run


def test_a_resumed_run_draws_the_dropout_of_an_undisturbed_one(tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"checkpoint_every": 2})
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

    def go(folder: Path, dies_at: int | None = None) -> tuple[list[float], Tensor]:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))

        def step_of(step: int, _model: nn.Module) -> Step[Tensor]:
            if step == dies_at:
                raise KeyboardInterrupt
            return Step([Update([rows], 4)], 32)

        def objective(model: nn.Module, batch: Tensor) -> Loss:
            return Loss((model(batch) - 1).square().sum())

        result = train("t", model, objective, Steps(step_of), 6, config, folder)
        return [row["loss"] for row in result.metrics], model[0].weight.detach()

    losses, weight = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", dies_at=5)
    resumed_losses, resumed_weight = go(tmp_path / "cut")
    assert resumed_losses == losses
    assert torch.equal(resumed_weight, weight)


def _moved_by(gradients: list[float], config: LoopConfig, folder: Path) -> tuple[float, list]:
    """Where one number that starts at 0 is after these gradients, and the norms that were seen."""
    model = nn.Module()
    model.number = nn.Parameter(torch.zeros(1))

    def objective(model: nn.Module, gradient: Tensor) -> Loss:
        return Loss((model.number * gradient).sum())

    def step_of(step: int, _model: nn.Module) -> Step[Tensor]:
        return Step([Update([torch.tensor(gradients[step])], 1)], 1)

    result = train("t", model, objective, Steps(step_of), len(gradients), config, folder)
    return model.number.item(), [row["grad_norm"] for row in result.metrics]


def _adam(gradients: list[float], beta2: float, rate: float) -> float:
    """Kingma and Ba 2015, algorithm 1, beta1 = 0.9."""
    number = mean = square = 0.0
    for t, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        number -= rate * (mean / (1 - 0.9**t)) / (math.sqrt(square / (1 - beta2**t)) + 1e-8)
    return number


@pytest.mark.parametrize("beta2", [0.5, 0.95, 0.999])
def test_the_second_moment_fades_by_beta2(tmp_path: Path, beta2: float) -> None:
    config = PLAIN.model_copy(update={"beta2": beta2})
    found, _ = _moved_by([1.0, 5.0, -2.0], config, tmp_path)
    assert found == pytest.approx(_adam([1.0, 5.0, -2.0], beta2, 0.1), abs=1e-6)
    groups = new_optimizer(nn.Linear(2, 2), config).param_groups
    assert [group["betas"] for group in groups] == [(0.9, beta2)] * 2


def test_a_gradient_past_the_clip_counts_as_much_as_one_at_it(tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"grad_clip": 2.0})
    found, norms = _moved_by([1.0, 100.0, -3.0], config, tmp_path)
    assert found == pytest.approx(_adam([1.0, 2.0, -2.0], config.beta2, 0.1), abs=1e-4)
    assert norms == pytest.approx([1.0, 100.0, 3.0])  # as they were before it


def test_a_segment_goes_into_the_fullest_row_that_has_room() -> None:
    segments = [Segment((70 + n,) * n, (True,) * n) for n in (2, 6, 3, 5, 4)]
    rows, oversize = pack_best_fit(segments, 10, pad_id=2)
    assert rows.ids_BT.tolist() == [[76] * 6 + [74] * 4, [75] * 5 + [73] * 3 + [72] * 2]
    assert oversize == 0


@pytest.mark.parametrize("group_size", [1, 60])
def test_documents_come_in_another_order_each_epoch(
    shards: Manifest, run, tokenizer, group_size: int
) -> None:
    """One document a row group: the order of groups; all in one: the order within it."""
    output = StageOutput.of(run.root, "shard", 1, {"group": group_size}, {})
    url = output.path("train-00000.parquet")
    Path(url).parent.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(shards.file_url("train-00000.parquet"))
    pq.write_table(table, url, row_group_size=group_size)
    file = describe_file(url, "train-00000.parquet", 60)
    manifest = output.commit([file], Counts(60, 60), started=0.0)

    documents = encode_documents(tokenizer, list(document_texts(manifest, "train")))
    number_of = {tuple(ids): number for number, ids in enumerate(documents)}
    size = sum(map(len, number_of))
    rows = ShardRows(manifest, tokenizer, 32, 4, 2, seed=1).rows(Cursor())
    stream: list[int] = []
    while len(stream) < 3 * size:
        stream += [token for piece in next(rows)[0] for token in piece]
    first = documents[0][0]  # every document's
    starts = [i for i, token in enumerate(stream[: 3 * size]) if token == first] + [3 * size]
    read = [number_of[tuple(stream[a:b])] for a, b in zip(starts, starts[1:], strict=False)]
    epochs = [read[at : at + 60] for at in (0, 60, 120)]
    _assert_shuffled(epochs)


def _assert_shuffled(epochs: list[list[int]]) -> None:
    in_order = list(range(len(epochs[0])))
    assert all(sorted(epoch) == in_order for epoch in epochs)
    assert in_order not in epochs
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_rows_come_in_another_order_each_epoch() -> None:
    _assert_shuffled(np.reshape(shuffled_epochs(20, 0, 60, seed=3), (3, 20)).tolist())
    rows = pack_stream([[70 + n] * 4 for n in range(20)], 4, pad_id=2)
    source = batches_of(rows, 4, 4, seed=3)
    steps = [source.step_of(step, nn.Module()).updates[0].micro_batches[0] for step in range(15)]
    read = [int(token) - 70 for batch in steps for token in batch.ids_BT[:, 0]]
    _assert_shuffled([read[at : at + 20] for at in (0, 20, 40)])

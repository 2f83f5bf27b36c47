"""What must make no difference, and makes none: chunks, recomputation, layout, adapters, models."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from finetune import attention, losses
from finetune.adapter import AdapterConfig, whole_model, with_adapter
from finetune.attention import NAME
from finetune.data import batches_of
from finetune.loop import train
from finetune.losses import linear_nll, linear_nll_sum
from finetune.model import label_log_probs, new_model
from finetune.packing import IGNORE, Segment, TokenBatch, lay_segments, pack_best_fit, pad_right
from finetune.pretrain import next_token_objective
from tests.finetune.conftest import TINY

PAD_ID = 2
SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
ARCHITECTURES = {
    "llama": LlamaConfig(**SHAPE, **MORE),
    "mistral": MistralConfig(**SHAPE, **MORE, head_dim=8, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE, **MORE),
    "qwen3": Qwen3Config(**SHAPE, **MORE, head_dim=8),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                       resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
}  # fmt: skip


def _segments(lengths: list[int]) -> list[Segment]:
    draw = torch.Generator().manual_seed(sum(lengths))
    drawn = [torch.randint(64, 300, (n,), generator=draw).tolist() for n in lengths]
    return [Segment(tuple(ids), (True,) * len(ids)) for ids in drawn]


def _gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_is_unpacked_in_log_probs_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation=NAME).eval()
    segments = _segments([5, 9, 17, 3, 12, 8])
    packed, oversize = pack_best_fit(segments, 32, PAD_ID)
    assert oversize == 0
    assert len(packed.ids_BT) < len(segments)
    order = {segment.ids: i for i, segment in enumerate(segments)}
    together = label_log_probs(model, packed)
    grads = _gradients(model, together.sum())
    padded = pad_right(segments, PAD_ID)
    apart = label_log_probs(model, padded)
    for row, lengths in enumerate(packed.lengths):
        at = 0
        for length in lengths:
            ids = tuple(packed.ids_BT[row, at : at + length].tolist())
            if ids in order:
                found = together[row, at : at + length - 1]
                expected = apart[order[ids], : length - 1]
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
            at += length
    for one, other in zip(grads, _gradients(model, apart.sum()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_what_changes_in_one_segment_changes_nothing_in_the_next(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name], attn_implementation=NAME).eval()
    first, second = _segments([11, 13])
    other = Segment(tuple(id_ - 1 for id_ in first.ids), first.supervised)
    found = []
    for neighbour in (first, other):
        ids = torch.tensor([[*neighbour.ids, *second.ids]])
        positions = torch.tensor([[*range(11), *range(13)]])
        batch = TokenBatch.of(ids, positions, ids.roll(-1, 1))
        found.append(label_log_probs(model, batch))
    assert torch.equal(found[0][:, 11:-1], found[1][:, 11:-1])
    assert not torch.equal(found[0][:, :11], found[1][:, :11])


def test_under_autocast_a_cpu_attends_in_fp32(monkeypatch) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["llama"], attn_implementation=NAME)
    packed, _ = pack_best_fit(_segments([5, 9, 17, 3, 12, 8]), 32, PAD_ID)
    exact = label_log_probs(model, packed)
    seen = set()
    plain = attention.F.scaled_dot_product_attention

    def watched(q, k, v, **more):
        seen.update((q.dtype, k.dtype, v.dtype))
        return plain(q, k, v, **more)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = label_log_probs(model, packed)
    assert seen == {torch.float32}
    assert all(gradient.isfinite().all() for gradient in _gradients(model, reduced.sum()))
    torch.testing.assert_close(reduced, exact, atol=0.05, rtol=0)
    assert not torch.equal(reduced, exact)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logits_in_parts_give_the_dense_loss_and_gradient(
    rows: int, temperature: float, monkeypatch
) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", rows * 50)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=draw, dtype=torch.float64).requires_grad_()
    weight = torch.randn(50, 16, generator=draw, dtype=torch.float64).requires_grad_()
    targets = torch.randint(50, (23,), generator=draw)
    upstream = torch.randn(23, generator=draw)
    nll = linear_nll(hidden, weight, targets, temperature)
    nll.backward(upstream)
    ours = (nll.detach(), hidden.grad, weight.grad)
    hidden.grad = weight.grad = None
    dense = F.cross_entropy((hidden @ weight.T) / temperature, targets, reduction="none")
    dense.backward(upstream.double())
    for found, expected in zip(ours, (dense.detach(), hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_sum_in_parts_gives_the_dense_loss_and_gradient(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", rows * 50)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=draw, dtype=torch.float64).requires_grad_()
    weight = torch.randn(50, 16, generator=draw, dtype=torch.float64).requires_grad_()
    targets = torch.randint(50, (23,), generator=draw)
    total = linear_nll_sum(hidden, weight, targets)
    (total * 0.37).backward()
    ours = (total.detach(), hidden.grad, weight.grad)
    hidden.grad = weight.grad = None
    dense = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (dense * 0.37).backward()
    for found, expected in zip(ours, (dense.detach(), hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_activations_computed_twice_give_the_same_gradient(model) -> None:
    batch = lay_segments(_segments([20, 5]), PAD_ID).tokens
    model.train()
    kept = _gradients(model, next_token_objective(model, batch).total)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = _gradients(model, next_token_objective(model, batch).total)
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one, other)


def test_an_adapter_is_all_that_moves_and_merging_it_changes_nothing(model, tmp_path) -> None:
    before = {name: p.clone() for name, p in model.named_parameters()}
    config = AdapterConfig(
        lora_rank=4, learning_rate=1e-2, warmup_steps=0, weight_decay=0.0, device="cpu"
    )
    adapted = with_adapter(model, config)
    assert adapted is not None
    batch = pad_right(_segments([20, 20, 20, 20]), PAD_ID)
    with torch.no_grad():
        at_first = label_log_probs(model, batch)
    train("t", model, next_token_objective, batches_of(batch, 4, 4, 0), 5, config, tmp_path)
    with torch.no_grad():
        expected = label_log_probs(model.eval(), batch)
    assert not torch.allclose(at_first, expected, atol=1e-2)
    frozen = {
        n.replace(".base_layer", ""): p for n, p in model.named_parameters() if "lora" not in n
    }
    assert all(torch.equal(frozen[name], old) for name, old in before.items())
    whole = whole_model(model, adapted, config, tmp_path, tmp_path / "adapter")
    with torch.no_grad():
        found = label_log_probs(whole.eval(), batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [n for n, _ in whole.named_parameters()] == list(before)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_an_adapter_run_is_resumed_to_the_bit(tokenizer, tmp_path) -> None:
    config = AdapterConfig(
        lora_rank=4, warmup_steps=0, schedule="constant", checkpoint_every=3, device="cpu"
    )
    batch = pad_right(_segments([20] * 8), PAD_ID)

    def go(folder, steps: int) -> list[torch.Tensor]:
        model = new_model(TINY, tokenizer, seed=3)
        torch.manual_seed(steps)  # what was drawn before does not show: the seed decides
        with_adapter(model, config)
        train("t", model, next_token_objective, batches_of(batch, 2, 1, 0), steps, config, folder)
        return list(model.parameters())

    whole = go(tmp_path / "whole", 6)
    first = go(tmp_path / "cut", 3)
    resumed = go(tmp_path / "cut", 6)
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(whole, first, strict=True))


def test_labels_of_padding_are_ignored() -> None:
    batch = pad_right(_segments([4, 9]), PAD_ID)
    assert (batch.labels_BT[0, 3:] == IGNORE).all()
    assert batch.num_supervised == 3 + 8
    assert batch.num_attended == 2 * 81

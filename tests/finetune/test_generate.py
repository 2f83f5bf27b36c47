"""Generation against the plain forward pass, brute force, and itself in other company."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from finetune.generate import Sampling, generate, stream
from finetune.kv_cache import context_length
from finetune.model import label_log_probs
from finetune.packing import Segment, pad_right
from finetune.sampling import Chooser, uniforms
from finetune.tokenizer import token_pieces
from pipeline.core.errors import UserError

PROMPTS = [[70, 71, 72], [80, 81, 82, 83, 84, 85, 86], [90], [70, 71, 72]]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 120}
GROUPED = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "llama": LlamaConfig(**GROUPED, max_position_embeddings=64),
    "qwen2": Qwen2Config(**GROUPED, max_position_embeddings=64),
    "gpt2": GPT2Config(vocab_size=120, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    # A window of 24 tokens: generation ends there.
    "mistral": MistralConfig(**GROUPED, max_position_embeddings=64, sliding_window=24),
}


def make(family: str, attention: str = "sdpa"):
    torch.manual_seed(3)
    config = copy.deepcopy(FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():  # as random as it comes, but not nearly uniform
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model.eval()


@torch.no_grad()
def greedy_without_cache(model, prompt: list[int], number: int) -> list[int]:
    ids = list(prompt)
    for _ in range(number):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_in_a_ragged_batch_with_a_cache_is_greedy_one_by_one_without(
    family, attention
) -> None:
    model = make(family, attention)
    found = generate(model, PROMPTS, Sampling(12, temperature=0), 0)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert list(completion.ids) == greedy_without_cache(model, prompt, 12)
        assert not completion.finished
    assert found[0] == found[3]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_samplers_log_probs_are_the_trainers_at_its_temperature(model, temperature) -> None:
    found = generate(model, PROMPTS, Sampling(10, temperature, top_p=0.9), 1)
    tempered = copy.deepcopy(model)  # softmax(h W / T): the trainer's at temperature T
    tempered.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data / temperature)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        supervised = (*(False for _ in prompt), *(True for _ in completion.ids))
        batch = pad_right([Segment((*prompt, *completion.ids), supervised)], 2)
        trainer = label_log_probs(tempered, batch)[0]
        torch.testing.assert_close(
            trainer[trainer != 0], torch.tensor(completion.log_probs), atol=1e-5, rtol=0
        )


def test_greedy_log_probs_are_of_the_untempered_model(model) -> None:
    [greedy] = generate(model, PROMPTS[:1], Sampling(1, temperature=0), 0)
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1].log_softmax(0)
    assert greedy.log_probs[0] == pytest.approx(float(log_probs.max()), abs=1e-5)


@torch.no_grad()
def test_samples_follow_the_models_distribution(model) -> None:
    probabilities = model(input_ids=torch.tensor([[70]]), use_cache=False).logits[0, -1].softmax(0)
    found = generate(model, [[70]] * 10_000, Sampling(1), 2, max_rows=5000)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in found]), minlength=len(probabilities))
    expected = probabilities * 10_000
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    degrees = len(probabilities) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def truncated(probabilities: list[float], top_k: int, top_p: float) -> list[float]:
    """By brute force, as the papers say it: rank, cut, share the mass anew."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    order = order[: top_k or None]
    mass, kept = sum(probabilities[i] for i in order), []
    for i in order:
        if sum(probabilities[j] for j in kept) >= top_p * mass:
            break
        kept.append(i)
    total = sum(probabilities[i] for i in kept)
    return [p / total if i in kept else 0.0 for i, p in enumerate(probabilities)]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1, 0, 1), (1, 3, 1), (1, 0, 0.6), (0.7, 5, 0.8), (2, 100, 0.95), (1, 1, 1), (1, 0, 1e-9)],
)
def test_top_k_and_top_p_against_brute_force(temperature, top_k, top_p) -> None:
    """Evenly spread uniform numbers give the distribution itself, to the spacing; a second row
    without truncation, in the same batch, stays the model's."""
    logits = torch.tensor([0.3, 2.0, -1.0, 1.5, 0.0, -3.0, 1.0, 0.5, -torch.inf])
    number = 20_000
    sampling = Sampling(1, temperature, top_k=top_k, top_p=top_p)
    chooser = Chooser([sampling, Sampling(1)] * number, torch.device("cpu"))
    draws = ((torch.arange(number, dtype=torch.float64) + 0.5) / number).repeat_interleave(2)
    tokens, log_probs = chooser.choose(logits.expand(2 * number, -1), draws)
    for of, heat, k, p in ((0, temperature, top_k, top_p), (1, 1, 0, 1)):
        whole = (logits / heat).double().softmax(0)
        found = torch.bincount(tokens[of::2], minlength=len(logits)) / number
        expected = torch.tensor(truncated(whole.tolist(), k, p))
        assert float((found - expected).abs().sum()) < 2 * len(logits) / number
        torch.testing.assert_close(
            log_probs[of::2], whole.log()[tokens[of::2]].float(), atol=1e-5, rtol=0
        )


def test_tokens_as_likely_as_the_last_one_kept_are_kept() -> None:
    chooser = Chooser([Sampling(1, top_k=2)] * 300, torch.device("cpu"))
    draws = torch.linspace(0, 0.999, 300, dtype=torch.float64)
    tokens, _ = chooser.choose(torch.tensor([[1.0, 0, 1, 1, 0]]).expand(300, -1), draws)
    assert set(tokens.tolist()) == {0, 2, 3}


def test_uniform_numbers_are_of_seed_and_row_and_a_longer_draw_begins_alike() -> None:
    assert np.array_equal(uniforms(5, 1, 10), uniforms(5, 1, 20)[:10])
    streams = {tuple(uniforms(s, r, 2)) for s in (0, 1, -1, 2**32, 2**62, -(2**63)) for r in (0, 1)}
    assert len(streams) == 12
    many = np.concatenate([uniforms(seed, row, 50) for seed in range(20) for row in range(20)])
    counts = np.histogram(many, bins=50, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 49 + 5 * (2 * 49) ** 0.5


# ------------------------------------------------------------------------------- in other company

MIXED = Sampling(24, 1.0, stop_ids=(5, 6, 7, 8, 9, 10))


def same(found, expected) -> None:
    assert [c.ids for c in found] == [c.ids for c in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
        assert a.finished == b.finished


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"top_k": 7}, {"top_p": 0.8, "temperature": 0.8}])
def test_a_prompts_completion_is_the_same_alone_and_in_any_batch(family, changes) -> None:
    model, sampling = make(family), dataclasses.replace(MIXED, **changes)
    prompts = [[(7 * i + j) % 120 for j in range(1 + 3 * i % 11)] for i in range(12)]
    together = generate(model, prompts, sampling, 4)
    assert {c.finished for c in together} == {True, False}, "rows leave at different times"
    assert len({len(c.ids) for c in together}) > 3
    alone = [
        generate(model, [prompt], sampling, 4, rows=[row])[0] for row, prompt in enumerate(prompts)
    ]
    same(together, alone)
    same(generate(model, prompts, sampling, 4, max_rows=3), alone)
    order = [9, 3, 0, 11, 5]
    same(
        generate(model, [prompts[i] for i in order], sampling, 4, rows=order),
        [alone[i] for i in order],
    )


def test_equal_prompts_and_seeds_differ_by_row_alone(model) -> None:
    found = generate(model, [[70, 71]] * 6, Sampling(16), 1)
    assert len({c.ids for c in found}) == 6
    assert found == generate(model, [[70, 71]] * 6, Sampling(16), 1)
    assert generate(model, [[70, 71]], Sampling(16), 2)[0].ids != found[0].ids


# ------------------------------------------------------------------------------------------ ends


def test_a_stop_token_ends_and_is_part_of_the_tokens(model) -> None:
    whole = generate(model, PROMPTS[:1], Sampling(12), 5)[0]
    stop = whole.ids[6]
    cut = whole.ids.index(stop)
    stopped = generate(model, PROMPTS[:1], Sampling(12, stop_ids=(stop,)), 5)[0]
    assert stopped.finished
    assert stopped.ids == whole.ids[: cut + 1]


@pytest.mark.parametrize("seed", range(6))
def test_stop_strings_end_the_text_across_borders_of_tokens(model, tokenizer, seed) -> None:
    """The text before every possible stop of it, cut anywhere, multi-byte characters too."""
    known = token_pieces(tokenizer)
    [whole] = generate(model, PROMPTS[:1], Sampling(30), seed, token_bytes=known)
    data = b"".join(known[i] for i in whole.ids)
    assert whole.text == data.decode(errors="replace")
    for start in range(0, len(whole.text) - 4, 3):
        stop = whole.text[start : start + 4]
        sampling = Sampling(30, stop_strings=("never", stop))
        [found] = generate(model, PROMPTS[:1], sampling, seed, token_bytes=known)
        assert found.text == whole.text[: whole.text.index(stop)]
        assert found.finished
        assert found.ids == whole.ids[: len(found.ids)]
        until = b"".join(known[i] for i in found.ids)
        before = b"".join(known[i] for i in found.ids[:-1])
        assert stop in until.decode(errors="replace")
        assert stop not in before.decode(errors="ignore"), "no token more than needed"


@torch.no_grad()
def test_a_stop_of_many_bytes_that_comes_byte_by_byte(model, tokenizer) -> None:
    """A model that can only say "né." after 0xC3 0xA9 came as two tokens."""
    known = token_pieces(tokenizer)
    one = {data: identity for identity, data in known.items() if len(data) == 1}
    said = [one[bytes([byte])] for byte in "ané.".encode()]
    tail = copy.deepcopy(model)
    forward, told = tail.forward, iter([*said, *said])

    def speaking(**arguments):
        result = forward(**arguments)
        result.logits[:] = 0
        result.logits[..., next(told)] = 50
        return result

    tail.forward = speaking
    sampling = Sampling(5, temperature=0, stop_strings=("né",))
    [found] = generate(tail, [[70]], sampling, 0, token_bytes=known)
    assert (found.text, found.ids) == ("a", tuple(said[:4]))


@pytest.mark.parametrize("strings", [(), ("e", "or"), ("the ",)])
@pytest.mark.parametrize("temperature", [0, 1])
def test_streamed_pieces_joined_are_the_whole(model, tokenizer, strings, temperature) -> None:
    known = token_pieces(tokenizer)
    sampling = Sampling(40, temperature, stop_strings=strings)
    [whole] = generate(model, PROMPTS[:1], sampling, 3, token_bytes=known)
    pieces = list(stream(model, PROMPTS[0], sampling, 3, known))
    assert tuple(token for piece in pieces for token in piece.ids) == whole.ids
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.end for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].end == ("stop" if whole.finished else "length")
    assert len(pieces) == len(whole.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_ends_with_the_context(family) -> None:
    model = make(family)
    context = context_length(model.config)
    assert context == (24 if family == "mistral" else 64)
    prompts = [[7] * (context - 5), [7] * (context - 1), [7] * context, [9]]
    found = generate(model, prompts, Sampling(1000, temperature=0), 0)
    assert [len(c.ids) for c in found] == [5, 1, 0, context - 1]
    assert not any(c.finished for c in found)
    assert list(found[0].ids) == greedy_without_cache(model, prompts[0], 5)
    with pytest.raises(UserError, match=rf"{context + 1} tokens is over the model's {context}"):
        generate(model, [[7] * (context + 1)], Sampling(1), 0)


def test_nothing_asked_nothing_given(model) -> None:
    assert generate(model, [], Sampling(5), 0) == []
    [none] = generate(model, [[70]], Sampling(0), 0)
    assert (none.ids, none.log_probs, none.finished, none.text) == ((), (), False, "")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[70], []], "empty prompt"),
        ([[70, 400]], "token 400 .* model's 381"),
        ([[99, -1]], "token -1"),
    ],
)
def test_a_prompt_that_cannot_be_continued(model, prompts, message) -> None:
    with pytest.raises(UserError, match=message):
        generate(model, prompts, Sampling(2), 0)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"stop_strings": ("a", "")}, "stop_strings"),
    ],
)
def test_a_sampling_out_of_range(wrong, name) -> None:
    with pytest.raises(UserError, match=name):
        Sampling(**{"max_new_tokens": 1, **wrong})


def test_stop_strings_need_the_tokens_bytes(model) -> None:
    with pytest.raises(UserError, match="stop_strings"):
        generate(model, [[70]], Sampling(1, stop_strings=("a",)), 0)


@pytest.mark.parametrize("sampling", [Sampling(3), Sampling(3, 0), Sampling(3, top_p=0.5)])
def test_a_model_that_diverged_says_so(model, sampling) -> None:
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        generate(model, PROMPTS, sampling, 0)


def test_a_model_that_keeps_another_state_is_refused(model) -> None:
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError, match="linear_attention"):
        generate(model, PROMPTS, Sampling(1), 0)


def test_bfloat16_by_autocast_and_by_weights(model) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, PROMPTS, Sampling(8), 0)
    assert [len(c.ids) for c in found] == [8] * 4
    lowered = copy.deepcopy(model).to(torch.bfloat16)
    assert [len(c.ids) for c in generate(lowered, PROMPTS, Sampling(8), 0)] == [8] * 4

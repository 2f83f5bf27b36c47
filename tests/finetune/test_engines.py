"""Engines of rollouts: what the trainer is told is what was sampled from."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from finetune.engines import Engine, TorchEngine
from finetune.generate import Sampling, generate
from finetune.model import ModelConfig, Precision, label_log_probs, new_model
from finetune.packing import IGNORE, Segment, pad_right
from finetune.vllm_engine import VllmEngine
from pipeline.core.errors import UserError

PROMPTS = [[70, 71, 72], [80, 81, 82, 83, 84, 85, 86], [90]]
BIASED = [
    Sampling(4, top_k=5),
    Sampling(4, top_p=0.9),
    Sampling(4, temperature=0),
    Sampling(4, temperature=1e-5),
]


# ------------------------------------------------------------------------------------- in process


@pytest.mark.parametrize("sampling", BIASED)
def test_what_biases_a_policy_gradient_is_refused(model, sampling) -> None:
    with pytest.raises(UserError, match="bias a policy gradient"):
        TorchEngine(model).generate(PROMPTS, sampling, 0)
    with pytest.raises(UserError, match="bias a policy gradient"):
        VllmEngine(None, dict, 128).generate(PROMPTS, sampling, 0)


def test_rollouts_are_the_policys_with_its_dropout_off_and_its_mode_kept(model) -> None:
    engine: Engine = TorchEngine(model, max_rows=2)
    expected = generate(model, PROMPTS, Sampling(10, 0.8), 7)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    found = engine.generate(PROMPTS, Sampling(10, 0.8), 7)
    assert model.training
    assert [c.ids for c in found] == [c.ids for c in expected]


def test_on_policy_the_ratio_is_one(model) -> None:
    """exp(trainer - sampler) of every token, under one autocast for both."""
    for dtype, tolerance in ((None, 1e-5), (torch.bfloat16, 0.05)):
        precision = Precision(torch.device("cpu"), dtype)
        found = TorchEngine(model, precision).generate(PROMPTS, Sampling(10), 3)
        segments = [
            Segment((*p, *c.ids), (*(False for _ in p), *(True for _ in c.ids)))
            for p, c in zip(PROMPTS, found, strict=True)
        ]
        batch = pad_right(segments, 2)
        with torch.no_grad(), precision.autocast():
            trainer = label_log_probs(model, batch)[batch.labels_BT != IGNORE].float()
        sampler = torch.tensor([value for c in found for value in c.log_probs])
        assert float(((trainer - sampler).exp() - 1).abs().max()) < tolerance


def test_new_weights_answer_from_the_next_call_on(model, tokenizer) -> None:
    other = new_model(ModelConfig(hidden_size=32, num_layers=1, max_length=64), tokenizer, 9).eval()
    engine = TorchEngine(model)
    engine.load_weights(other)
    assert engine.generate(PROMPTS, Sampling(5), 0) == generate(other, PROMPTS, Sampling(5), 0)


# -------------------------------------------- vLLM, which cannot run here: its translation alone


class FakeLLM:
    """The three methods of vllm.LLM that the engine calls; answers with the torch engine's."""

    def __init__(self, model) -> None:
        self.model, self.asked, self.calls = model, [], []

    def generate(self, prompts, sampling_params, use_tqdm):
        assert not use_tqdm
        self.asked = list(zip(prompts, sampling_params, strict=True))
        answers = []
        for prompt, params in self.asked:
            sampling = Sampling(
                params["max_tokens"], params["temperature"], tuple(params["stop_token_ids"])
            )
            [c] = generate(self.model, [prompt["prompt_token_ids"]], sampling, params["seed"])
            likely = [
                {t: SimpleNamespace(logprob=v)} for t, v in zip(c.ids, c.log_probs, strict=True)
            ]
            reason = "stop" if c.finished else "length"
            output = SimpleNamespace(token_ids=list(c.ids), logprobs=likely, finish_reason=reason)
            answers.append(SimpleNamespace(outputs=[output]))
        return answers

    def collective_rpc(self, method, kwargs):
        self.calls.append(method)
        self.loaded = load_file(f"{kwargs['weights_path']}/model.safetensors")
        self.config = json.loads((Path(kwargs["weights_path"]) / "config.json").read_text())

    def reset_prefix_cache(self):
        self.calls.append("reset_prefix_cache")


def test_a_request_in_vllms_words_and_its_answer_in_ours(model) -> None:
    llm = FakeLLM(model)
    engine: Engine = VllmEngine(llm, dict, 128)
    sampling = Sampling(20, 0.7, stop_ids=tuple(range(100)))
    full = [70] * 128
    found = engine.generate([*PROMPTS, full, [70] * 120], sampling, 5)
    assert [prompt["prompt_token_ids"] for prompt, _ in llm.asked] == [*PROMPTS, [70] * 120]
    assert [params["max_tokens"] for _, params in llm.asked] == [20, 20, 20, 8]
    for _, params in llm.asked:
        assert params["temperature"] == 0.7
        assert params["ignore_eos"]
        assert params["logprobs"] == 0
        assert not params["detokenize"]
        assert "top_k" not in params
        assert "top_p" not in params
        assert 0 <= params["seed"] < 2**63
    assert len({params["seed"] for _, params in llm.asked}) == 4
    assert (found[3].ids, found[3].finished) == ((), False)
    again = engine.generate(PROMPTS, sampling, 5)
    assert again == found[:3]
    assert any(c.finished for c in found)
    for completion in found:
        assert len(completion.ids) == len(completion.log_probs)
        assert completion.finished == (bool(completion.ids) and completion.ids[-1] < 100)


def test_new_weights_reach_vllm_and_its_old_prefixes_go(model) -> None:
    llm = FakeLLM(model)
    VllmEngine(llm, dict, 128).load_weights(model)
    assert llm.calls == ["reload_weights", "reset_prefix_cache"]
    assert llm.config["hidden_size"] == 32
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in llm.loaded.items())


def test_what_vllm_is_not_asked(model) -> None:
    engine = VllmEngine(FakeLLM(model), dict, 128)
    with pytest.raises(UserError, match="stop_strings"):
        engine.generate(PROMPTS, Sampling(3, stop_strings=("a",)), 0)
    for prompt in ([], [70] * 129):
        with pytest.raises(UserError, match=f"prompt of {len(prompt)} tokens"):
            engine.generate([prompt], Sampling(3), 0)
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'flywheel-llm\[gpu\]'"):
            VllmEngine.load("nowhere", 128)

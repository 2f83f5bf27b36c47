"""Adapters: what they start from, what they teach, and that several processes make one model."""

import pytest
import torch
from safetensors.torch import load_file

from finetune.dpo import DpoConfig, run_dpo
from finetune.labels import chat_segment, conversations
from finetune.model import load_language_model
from finetune.registry import Registry
from finetune.reward import RewardConfig, run_reward
from finetune.sft import SftConfig, run_sft
from finetune.tokenizer import SPECIAL_TOKENS, TURN_END, load_tokenizer, token_id
from pipeline.core.config import RunConfig

LORA = {"lora_rank": 4, "learning_rate": 1e-2}
SMALL = {"row_length": 128, "batch_rows": 2, "micro_batch_rows": 1}


def end_of_turn(registry: Registry, identity: str, labels) -> float:
    """How likely the model is to end a right answer where it ends."""
    folder = registry.folder(identity)
    tokenizer = load_tokenizer(folder)
    segment = chat_segment(tokenizer, conversations(labels, heldout=True)[0].messages)
    with torch.no_grad():
        logits = load_language_model(folder).eval()(torch.tensor([segment.ids[:-1]])).logits[0, -1]
    return float(logits.softmax(-1)[token_id(tokenizer, TURN_END)])


@pytest.mark.parametrize("tied", [True, False])
def test_turn_tokens_that_start_all_alike_are_told_apart(
    run, labels, tokenizer, model, tied: bool
) -> None:
    special = [token_id(tokenizer, name) for name in SPECIAL_TOKENS]
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[special] = layer.weight.mean(dim=0)
    registry = Registry(run.root)
    base = registry.publish(model, tokenizer, {"kind": "base"})
    made = run_sft(SftConfig(epochs=30, **LORA, **SMALL), base, labels, run).facts["model_id"]
    assert end_of_turn(registry, base, labels) < 0.05
    assert end_of_turn(registry, made, labels) > 0.8


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_seed_decides_where_an_adapter_starts(tmp_path, labels, base_id, run, stage) -> None:
    found = []
    for number in range(2):
        torch.manual_seed(number)  # whatever the process did before
        other = RunConfig(root=str(tmp_path / f"run{number}"), backend="local", workers=1)
        folder = Registry(run.root).folder(base_id)
        again = Registry(other.root).publish(
            load_language_model(folder), load_tokenizer(folder), {"kind": "base"}
        )
        if stage == "sft":
            made = run_sft(SftConfig(epochs=1, **LORA, **SMALL), again, labels, other)
        else:
            made = run_dpo(DpoConfig(epochs=0.2, **LORA), again, labels, other)
        weights = Registry(other.root).folder(made.facts["model_id"]) / "model.safetensors"
        found.append(load_file(weights))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["adapter", "reward"])
def test_two_processes_publish_what_one_does(tmp_path, labels, base_id, run, kind: str) -> None:
    models = []
    for processes in (1, 2):
        if kind == "adapter":
            config = SftConfig(epochs=1, processes=processes, **LORA, **SMALL)
            made = run_sft(config, base_id, labels, run)
        else:
            config = RewardConfig(folds=2, batch_prompts=4, micro_batch_prompts=2,
                                  processes=processes, precision="fp32")  # fmt: skip
            made = run_reward(config, base_id, labels, run)
        folder = Registry(run.root).folder(made.facts["model_id"])
        models.append(load_file(folder / "model.safetensors"))
        run = RunConfig(root=str(tmp_path / "two"), backend="local", workers=1)
        source = Registry(str(tmp_path / "data")).folder(base_id)
        Registry(run.root).publish(
            load_language_model(source), load_tokenizer(source), {"kind": "base"}
        )
    for name, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][name], atol=2e-2, rtol=0)

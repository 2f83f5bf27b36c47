import datetime as dt
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.model import new_model
from finetune.registry import Registry
from pipeline.core.errors import UserError


def _registry(run) -> Registry:
    return Registry(run.root, clock=lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


def test_a_model_is_named_by_its_content_and_published_once(run, tokenizer, model) -> None:
    registry = _registry(run)
    first = registry.publish(model, tokenizer, {"kind": "base"})
    assert registry.publish(model, tokenizer, {"kind": "base"}) == first
    other = registry.publish(model, tokenizer, {"kind": "sft"})
    assert other != first
    assert sorted(p.name for p in (Path(run.root) / "models").iterdir()) == sorted([first, other])


def test_transformers_alone_loads_it_and_it_answers_in_turns(run, tokenizer, model) -> None:
    registry = _registry(run)
    folder = registry.folder(registry.publish(model, tokenizer, {"kind": "base"}))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[70, 71, 72]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.chat_template
    assert theirs.eos_token_id == loaded.config.eos_token_id != theirs.pad_token_id


def test_a_changed_file_is_found(run, base_id) -> None:
    registry = _registry(run)
    registry.verify(base_id)
    with (registry.folder(base_id) / "lineage.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="changed on disk"):
        registry.verify(base_id)


def test_promotion_and_rollback(run, tokenizer, model) -> None:
    registry = _registry(run)
    first = registry.publish(model, tokenizer, {"n": 1})
    second = registry.publish(model, tokenizer, {"n": 2})
    with pytest.raises(UserError, match="nothing to roll back to"):
        registry.rollback("no reason")
    registry.promote(first, "the first")
    registry.promote(second, "better")
    registry.promote(second, "better")
    assert (registry.pointer("champion"), registry.pointer("previous")) == (second, first)
    assert registry.rollback("it swears") == first
    assert (registry.pointer("champion"), registry.pointer("previous")) == (first, second)
    assert [e["why"] for e in registry.history() if e["pointer"] == "champion"] == [
        "the first",
        "better",
        "it swears",
    ]


def test_a_pointer_cannot_name_what_is_not_there(run) -> None:
    with pytest.raises(UserError, match="no model 'nonsense'"):
        _registry(run).point("champion", "nonsense", "?")


def test_the_seed_decides_the_weights(tokenizer, model) -> None:
    from finetune.model import ModelConfig

    shape = ModelConfig(
        hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_length=128
    )
    same, other = new_model(shape, tokenizer, seed=1), new_model(shape, tokenizer, seed=2)
    assert torch.equal(same.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_a_torn_line_of_history_is_passed_over_and_the_next_stands_alone(
    run, tokenizer, model
) -> None:
    registry = _registry(run)
    first = registry.publish(model, tokenizer, {"n": 1})
    registry.promote(first, "the first")
    with (Path(run.root) / "pointers" / "history.jsonl").open("a") as file:
        file.write('{"at":"2026-11-2')
    registry.point("challenger", first, "again")
    assert [entry["pointer"] for entry in registry.history()] == ["champion", "challenger"]

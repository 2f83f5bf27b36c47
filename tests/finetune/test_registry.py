import datetime as dt
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.model import LanguageModel
from finetune.model import new_model
from finetune.registry import Registry
from finetune.sft import SftConfig, run_sft
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
    registry.verified(base_id)
    with (registry.folder(base_id) / "lineage.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match="changed on disk"):
        registry.verified(base_id)


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


# ------------------------------------------------------------------------------- what was damaged


def _files(registry, identity) -> dict[str, Path]:
    return {path.name: path for path in registry.folder(identity).iterdir()}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "lineage.json"])
def test_who_loads_a_model_finds_its_damage_also_after_a_first_look(run, base_id, name) -> None:
    registry = _registry(run)
    LanguageModel.load(registry, base_id)
    path = _files(registry, base_id)[name]
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(UserError, match="changed on disk"):
        LanguageModel.load(registry, base_id)
    path.write_bytes(whole)
    LanguageModel.load(registry, base_id)


def test_a_model_is_read_through_once_in_a_process(run, base_id) -> None:
    registry = _registry(run)
    weights = _files(registry, base_id)["model.safetensors"]
    registry.verified(base_id)
    before, whole = weights.stat(), weights.read_bytes()
    weights.write_bytes(b"x" + whole[1:])
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # which nothing but this does
    registry.verified(base_id)
    os.utime(weights)
    with pytest.raises(UserError, match="changed on disk"):
        registry.verified(base_id)


def test_publishing_again_puts_a_damaged_model_right(run, base_id, tokenizer, model) -> None:
    registry = _registry(run)
    _files(registry, base_id)["model.safetensors"].write_bytes(b"")
    assert registry.publish(model, tokenizer, {"kind": "base"}) == base_id
    registry.verified(base_id)
    assert [path.name for path in (registry.root / "models").iterdir()] == [base_id]


@pytest.mark.parametrize("loss", ["gone", "damaged"])
def test_a_finished_stage_whose_model_is_lost_says_what_to_delete(
    run, base_id, labels, loss
) -> None:
    registry = _registry(run)
    config = SftConfig(epochs=1, row_length=128)
    done = run_sft(config, base_id, labels, run)
    identity = done.facts["model_id"]
    if loss == "gone":
        shutil.rmtree(registry.folder(identity))
    else:
        _files(registry, identity)["model.safetensors"].write_bytes(b"")
    with pytest.raises(UserError, match="rerun `flywheel weekly`") as caught:
        run_sft(config, base_id, labels, run)
    manifest = Path(done.url) / "manifest.json"
    assert f"delete {manifest} and rerun" in str(caught.value)
    manifest.unlink()
    assert run_sft(config, base_id, labels, run).facts["model_id"] == identity
    registry.verified(identity)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b"", b"{}"])
def test_a_lineage_that_cannot_be_read_is_named(run, base_id, text) -> None:
    registry = _registry(run)
    _files(registry, base_id)["lineage.json"].write_bytes(text)
    with pytest.raises(UserError, match=r"lineage\.json"):
        registry.kind(base_id)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"", b"../../etc", b"f" * 63, b"a\nb"])
@pytest.mark.parametrize("name", ["champion", "challenger", "previous"])
def test_a_pointer_that_names_no_model_is_named_with_its_mend(run, base_id, name, text) -> None:
    registry = _registry(run)
    registry.point(name, base_id, "test")
    path = Path(run.root) / "pointers" / name
    path.write_bytes(text)
    with pytest.raises(UserError) as caught:
        registry.pointer(name)
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"cannot read {path}"):
        registry.pointer(name)


def test_a_pointer_to_a_model_that_is_nowhere_has_a_mend(run, base_id) -> None:
    registry = _registry(run)
    registry.point("champion", base_id, "test")
    shutil.rmtree(registry.folder(base_id))
    with pytest.raises(UserError, match=r"pointers/history\.jsonl .* rerun `flywheel pretrain`"):
        registry.verified(base_id)


def test_there_is_no_rolling_back_to_a_damaged_model(run, tokenizer, model) -> None:
    registry = _registry(run)
    first, second = (registry.publish(model, tokenizer, {"n": n}) for n in (1, 2))
    registry.promote(first, "the first")
    registry.promote(second, "better")
    _files(registry, first)["model.safetensors"].write_bytes(b"")
    with pytest.raises(UserError, match="changed on disk"):
        registry.rollback("it swears")
    assert registry.pointer("champion") == second


@pytest.mark.parametrize(
    "line", [b"\x93\x00\xff", b"{", b"[]", b'{"pointer":"champion"}', b'{"model":"x","pointer":1}']
)
def test_a_damaged_line_of_history_is_named_unless_it_is_the_torn_last(run, base_id, line) -> None:
    registry = _registry(run)
    for name in ("champion", "challenger"):
        registry.point(name, base_id, "test")
    path = Path(run.root) / "pointers" / "history.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second + line)
    assert [entry["pointer"] for entry in registry.history()] == ["champion", "challenger"]
    path.write_bytes(first + line + b"\n" + second)
    with pytest.raises(UserError, match=r"history\.jsonl:2 is damaged"):
        registry.history()
    path.write_bytes(first + line + b"\n")
    with pytest.raises(UserError, match=r"history\.jsonl:2 is damaged"):
        registry.history()
    path.write_bytes(first + second[:-1])  # an editor that sets no last line end
    registry.point("previous", base_id, "test")
    assert len(registry.history()) == 3

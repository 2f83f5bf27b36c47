"""The one dial: what follows from the depth, and that what is given wins."""

import json

import pytest

from finetune.model import ModelConfig, new_model, num_parameters
from finetune.pretrain import CHINCHILLA, PretrainConfig, run_pretrain
from pipeline.core.config import Config
from pipeline.core.errors import UserError

SMALL = PretrainConfig(
    num_tokens=2_000, batch_rows=4, micro_batch_rows=4, row_length=64, evaluate_bytes=500
)


def _config(**sections) -> Config:
    return Config(sections, "run.toml")


@pytest.mark.parametrize(
    ("depth", "shape"),
    [
        (1, (64, 1, 1, 192)),
        (3, (192, 3, 3, 512)),
        (12, (768, 12, 12, 2048)),  # GPT-3 small's width and layers, Llama's feed-forward part
        (24, (1536, 24, 24, 4096)),
        (32, (2048, 32, 32, 5504)),
    ],
)
def test_the_shape_of_a_depth(depth: int, shape: tuple[int, ...]) -> None:
    model = ModelConfig(depth=depth)
    found = (model.hidden_size, model.num_layers, model.num_heads, model.intermediate_size)
    assert found == shape


@pytest.mark.parametrize("depth", range(1, 33))
def test_every_depth_is_sane(depth: int) -> None:
    model = ModelConfig(depth=depth)
    assert model.hidden_size == model.num_heads * 64
    assert 8 / 3 <= model.intermediate_size / model.hidden_size <= 3
    config = PretrainConfig().derived(model, 32_768)
    assert config.num_tokens == CHINCHILLA * model.num_parameters(32_768)
    steps = config.num_tokens / (config.batch_rows * config.row_length)
    assert 1_000 < steps < 100_000
    assert 0 < config.warmup_steps < 0.06 * steps
    assert 5e-4 < config.learning_rate < 6e-3
    assert config.beta2 == 0.95
    assert 0.02 < config.weight_decay <= 1
    assert config.batch_rows <= 16 or config.batch_rows % config.micro_batch_rows == 0


def test_a_deeper_model_learns_slower_from_larger_batches() -> None:
    found = [PretrainConfig().derived(ModelConfig(depth=d), 4096) for d in range(1, 33)]
    rates = [config.learning_rate for config in found]
    assert rates == sorted(rates, reverse=True)
    assert rates[3] / rates[15] == pytest.approx(2, rel=1e-2)  # a quarter of the width
    assert [c.batch_rows for c in found] == sorted(c.batch_rows for c in found)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_parameters_are_counted_before_there_is_a_model(depth: int, tokenizer) -> None:
    shape, size = ModelConfig(depth=depth), tokenizer.get_vocab_size()
    model = new_model(shape, tokenizer, 0)
    assert num_parameters(model) == shape.num_parameters(size)
    table = model.get_input_embeddings().weight.numel()
    assert num_parameters(model) - table == shape.num_block_parameters()


def test_what_is_given_wins() -> None:
    model = ModelConfig(depth=4, hidden_size=200)
    assert (model.hidden_size, model.num_layers) == (200, 4)
    assert model.num_heads == 2  # the most that divide 200 into even parts of 64 and more
    assert ModelConfig(depth=4, num_layers=2).num_layers == 2
    given = {"learning_rate": 7e-4, "batch_rows": 5, "warmup_steps": 3, "weight_decay": 0.0}
    config = PretrainConfig(**given, num_tokens=9_999).derived(model, 4096)
    assert config.num_tokens == 9_999
    assert {key: getattr(config, key) for key in given} == given


def test_small_batches_want_a_lower_rate_and_a_longer_memory() -> None:
    model, rows = ModelConfig(depth=2), (3, 6, 12, 48)
    found = [PretrainConfig(num_tokens=10**6, batch_rows=n).derived(model, 400) for n in rows]
    assert found[0].learning_rate == pytest.approx(found[2].learning_rate / 2, rel=1e-2)
    assert found[2].learning_rate == found[3].learning_rate
    assert [config.beta2 for config in found] == [0.9875, 0.975, 0.95, 0.95]


def test_tokens_a_parameter() -> None:
    model = ModelConfig(depth=2)
    config = PretrainConfig(tokens_per_parameter=3).derived(model, 1000)
    assert config.num_tokens == 3 * model.num_parameters(1000)
    assert PretrainConfig(tokens_per_parameter=3).derived(ModelConfig(), 10).num_tokens == (
        3 * ModelConfig().num_parameters(10)
    )
    with pytest.raises(UserError, match=r"tokens_per_parameter = 3 and pretrain.num_tokens = 7"):
        PretrainConfig(tokens_per_parameter=3, num_tokens=7).derived(model, 1000)


def test_deriving_twice_is_deriving_once() -> None:
    model = ModelConfig(depth=3)
    once = PretrainConfig(tokens_per_parameter=2).derived(model, 512)
    assert once.derived(model, 512) == once
    assert once.derived(ModelConfig(depth=9), 512) == once


def test_without_depth_all_is_as_it_was() -> None:
    shape = {
        "hidden_size": 256,
        "num_layers": 4,
        "num_heads": 8,
        "intermediate_size": 704,
        "max_length": 512,
    }
    assert ModelConfig().identity() == shape
    before = PretrainConfig(num_tokens=5)
    assert before.derived(ModelConfig(), 4096).identity() == before.identity()
    assert "tokens_per_parameter" not in before.identity()


def test_the_identity_is_what_is_trained_however_it_was_come_by() -> None:
    dial = ModelConfig(depth=2)
    shape = ModelConfig(hidden_size=128, num_layers=2, num_heads=2, intermediate_size=384)
    assert dial.identity() == shape.identity()
    assert dial.identity() != ModelConfig(depth=3).identity()
    derived = PretrainConfig(num_tokens=10_000).derived(dial, 400)
    spelt = PretrainConfig(**json.loads(derived.model_dump_json()))
    assert derived.identity() == spelt.identity()
    assert derived.identity() != PretrainConfig(num_tokens=10_000).identity()


def test_a_model_from_the_dial_is_the_model_from_its_shape(shards, tokenizer_manifest, run) -> None:
    by_dial = run_pretrain(SMALL, ModelConfig(depth=1), shards, tokenizer_manifest, run)
    assert by_dial.config["learning_rate"] == pytest.approx(1.5e-3 * (12 / 12) ** 0.5, rel=1e-2)
    assert by_dial.config["num_tokens"] == 2_000
    shape = ModelConfig(hidden_size=64, num_layers=1, num_heads=1, intermediate_size=192)
    keys = ("learning_rate", "warmup_steps", "weight_decay", "beta2")
    spelt = SMALL.model_copy(update={key: by_dial.config[key] for key in keys})
    assert run_pretrain(spelt, shape, shards, tokenizer_manifest, run) == by_dial  # the same stage


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"depth": 0}, "model.depth = 0: .*greater than or equal to 1"),
        ({"depth": 33}, "model.depth = 33: .*less than or equal to 32"),
        ({"depth": "deep"}, "model.depth = 'deep': .*integer"),
        ({"depth": 2.5}, "model.depth = 2.5"),
        ({"depth": 4, "hidden_size": 8}, "model.hidden_size = 8: .*greater than or equal to 16"),
        ({"dept": 4}, "unknown key model.dept; did you mean 'depth'"),
        (
            {
                "depth": 6,
                "hidden_size": 192,
                "num_layers": 4,
                "num_heads": 6,
                "intermediate_size": 512,
            },
            "model.depth = 6 has nothing to derive: .* delete those",
        ),
    ],
)
def test_a_bad_dial_is_named(model: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _config(model=model).section("model", ModelConfig)

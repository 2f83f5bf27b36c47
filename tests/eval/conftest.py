"""A tiny tokenizer, random models in a registry, and hand-made stage outputs."""

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from eval.model import LanguageModel
from finetune.model import ModelConfig, new_model, reward_model_from
from finetune.registry import Registry
from finetune.tokenizer import TokenizerConfig, train_bpe
from pipeline.core.config import RunConfig
from pipeline.core.identity import is_heldout, prompt_id
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import (
    Comparison,
    Conversation,
    Document,
    Message,
    RankedResponse,
    to_table,
    write_table,
)

WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TEXT = (
    "The os module gives access to files and folders. Call os.makedirs to create a folder.\n"
    "The math module has sqrt, dist and gcd. I cannot talk about that colour, but I am glad to"
    " help with another one. Question: what does it return? Answer: it returns None.\n"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(iter([TEXT] * 3), TokenizerConfig(vocab_size=384))


@pytest.fixture(scope="session")
def make_model(tokenizer: Tokenizer) -> Callable[..., LlamaForCausalLM]:
    """A random model; `scale` 0 makes it uniform, a large one makes it opinionated."""

    def make(seed: int = 0, max_length: int = 64, scale: float = 8.0) -> LlamaForCausalLM:
        shape = ModelConfig(
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=32,
            max_length=max_length,
        )
        model = new_model(shape, tokenizer, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(scale)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def base(make_model, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(make_model(), tokenizer, chat=False)


@pytest.fixture(scope="session")
def chat(make_model, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(make_model(), tokenizer, chat=True)


@pytest.fixture
def run_config(tmp_path: Path) -> RunConfig:
    return RunConfig(root=str(tmp_path / "data"))


@pytest.fixture
def registry(run_config: RunConfig) -> Registry:
    return Registry(run_config.root)


@pytest.fixture
def publish(registry: Registry, make_model, tokenizer: Tokenizer) -> Callable[..., str]:
    """Put a random model of a kind into the registry and return its id."""

    def put(kind: str, seed: int = 0, max_length: int = 512) -> str:
        model = make_model(seed, max_length)
        if kind != "reward":
            return registry.publish(model, tokenizer, {"kind": kind})
        folder = registry.folder(registry.publish(model, tokenizer, {"kind": "base"}))
        reward: LlamaForSequenceClassification = reward_model_from(folder)
        torch.nn.init.normal_(reward.score.weight, generator=torch.Generator().manual_seed(seed))
        return registry.publish(reward, tokenizer, {"kind": "reward"})

    return put


class Build:
    """Records by hand. A fixture, since test folders are no packages to import from."""

    @staticmethod
    def question(text: str) -> tuple[Message, ...]:
        return (Message.of("user", text),)

    @staticmethod
    def heldout_questions(number: int) -> list[str]:
        """The first `number` of "Question n?" whose prompts are held out."""
        found = (f"Question {i}?" for i in range(100 * number))
        return [q for q in found if is_heldout(prompt_id(Build.question(q)), 0.2)][:number]

    @staticmethod
    def conversation(q: str, answer: str, identity: str = "") -> Conversation:
        asked = Build.question(q)
        messages = (*asked, Message.of("assistant", answer))
        return Conversation(
            identity or f"c-{q}", prompt_id(asked), messages, "demo", "human", "a", 1, WHEN
        )

    @staticmethod
    def comparison(q: str, answers: Sequence[str]) -> Comparison:
        responses = tuple(
            RankedResponse(f"{q}-{i}", "demo", text, i + 1) for i, text in enumerate(answers)
        )
        order = tuple(range(len(answers)))
        asked = Build.question(q)
        return Comparison(
            f"k-{q}", prompt_id(asked), asked, responses, order, False, None, "a", 1, WHEN
        )


@pytest.fixture(scope="session")
def build() -> type[Build]:
    return Build


@pytest.fixture
def labels(run_config: RunConfig) -> Callable[..., Manifest]:
    """A finished "labels" output with these records."""

    def make(conversations: Sequence[Conversation], comparisons: Sequence[Comparison]) -> Manifest:
        folder = f"{run_config.root}/labels-files"
        write_table(to_table(conversations, Conversation), f"{folder}/conversations.parquet")
        write_table(to_table(comparisons, Comparison), f"{folder}/comparisons.parquet")
        return _moved(run_config.root, "labels", folder)

    return make


@pytest.fixture
def shards(run_config: RunConfig) -> Callable[..., Manifest]:
    """A finished "shard" output with these training and held-out texts."""

    def make(train: Sequence[str], heldout: Sequence[str]) -> Manifest:
        folder = f"{run_config.root}/shard-files"
        for split, texts in (("train", train), ("heldout", heldout)):
            documents = [document(f"{split}-{i:03}", text) for i, text in enumerate(texts)]
            write_table(to_table(documents, Document), f"{folder}/{split}-00000.parquet")
        return _moved(run_config.root, "shard", folder)

    return make


def document(identity: str, text: str) -> Document:
    return Document(
        identity, "http://a/", WHEN, "w", 0, "", 200, "text/html", "x", "1", "", text, "en"
    )


def _moved(root: str, stage: str, folder: str) -> Manifest:
    names = sorted(p.name for p in Path(folder).iterdir())
    entries = [describe_file(f"{folder}/{name}", name) for name in names]
    output = StageOutput.of(root, stage, 1, {}, {"digest": "".join(e.sha256 for e in entries)})
    Path(output.url).parent.mkdir(parents=True, exist_ok=True)
    Path(folder).rename(output.url)
    return output.commit(entries, Counts(0, 0), started=0.0)

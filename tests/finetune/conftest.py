"""A corpus and a label snapshot small enough that every stage trains in a second."""

import datetime as dt
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from finetune.model import ModelConfig, new_model
from finetune.tokenizer import TokenizerConfig, run_tokenizer, train_bpe
from pipeline.core.config import RunConfig
from pipeline.core.identity import prompt_id
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

TINY = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_length=128)
SMALL_VOCABULARY = TokenizerConfig(vocab_size=400)
WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_WORDS = "the heap list sorts items returns a new value and keeps order of keys in memory"


def sentences(seed: int, number: int) -> list[str]:
    random_words = random.Random(seed)
    return [" ".join(random_words.choices(_WORDS.split(), k=40)) + "." for _ in range(number)]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(sentences(0, 50)), SMALL_VOCABULARY)


@pytest.fixture
def model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    return new_model(TINY, tokenizer, seed=1).eval()


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models gain nothing from threads, and the test machine's cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_shards(root: str) -> Manifest:
    output = StageOutput.of(root, "shard", 1, {}, {})
    files = []
    for split, seed, number in (("train", 1, 60), ("heldout", 2, 6)):
        documents = [
            Document(
                doc_id=f"{split}{i:04}",
                url=f"http://127.0.0.1/{i}",
                fetched_at=WHEN,
                warc_file="w",
                warc_offset=0,
                payload_sha256="",
                http_status=200,
                content_type="text/html",
                extractor="test",
                extractor_version="1",
                title="",
                text=text,
            )
            for i, text in enumerate(sentences(seed, number))
        ]
        name = f"{split}-00000.parquet"
        write_table(to_table(documents, Document), output.path(name))
        files.append(describe_file(output.path(name), name, number))
    return output.commit(files, Counts(66, 66), started=0.0)


def write_labels(root: str, num_prompts: int = 30) -> Manifest:
    """Questions with a right answer ("yes …") and three worse ones; two labelers agree."""
    output = StageOutput.of(root, "labels", 1, {"n": num_prompts}, {})
    conversations, comparisons = [], []
    for i in range(num_prompts):
        prompt = (Message.of("user", f"does the heap keep order {i}"),)
        identity = prompt_id(prompt)
        right = "yes the heap keeps order of keys"
        answers = [right, "yes it sorts", "items in memory", "a value and a new list"]
        conversations.append(
            Conversation(
                f"c{i:03}",
                identity,
                (*prompt, Message.of("assistant", right)),
                "test",
                "human",
                "p1",
                1,
                WHEN,
            )
        )
        for labeler in ("p1", "p2"):
            responses = tuple(
                RankedResponse(f"r{i}-{k}", "m", text, min(k + 1, 3))
                for k, text in enumerate(answers)
            )
            comparisons.append(
                Comparison(
                    f"k{i:03}{labeler}",
                    identity,
                    prompt,
                    responses,
                    (0, 1, 2, 3),
                    False,
                    None,
                    labeler,
                    1,
                    WHEN,
                )
            )
    write_table(to_table(conversations, Conversation), output.path("conversations.parquet"))
    write_table(to_table(comparisons, Comparison), output.path("comparisons.parquet"))
    files = [
        describe_file(output.path(name), name)
        for name in ("conversations.parquet", "comparisons.parquet")
    ]
    return output.commit(files, Counts(3 * num_prompts, 3 * num_prompts), started=0.0)


@pytest.fixture
def shards(run: RunConfig) -> Manifest:
    return write_shards(run.root)


@pytest.fixture(name="write_labels")
def _write_labels():
    return write_labels


@pytest.fixture
def labels(run: RunConfig) -> Manifest:
    return write_labels(run.root)


@pytest.fixture
def tokenizer_manifest(shards: Manifest, run: RunConfig) -> Manifest:
    return run_tokenizer(SMALL_VOCABULARY, shards, run)


@pytest.fixture
def base_id(tokenizer: Tokenizer, model: LlamaForCausalLM, run: RunConfig, tmp_path: Path) -> str:
    from finetune.registry import Registry

    return Registry(run.root).publish(model, tokenizer, {"kind": "base"})

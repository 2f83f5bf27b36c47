"""Small random models in a registry, and the app that serves them over real HTTP."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import openai
import pytest
import torch
import uvicorn
from tokenizers import Tokenizer

from finetune.model import ModelConfig, new_model
from finetune.registry import Registry
from finetune.tokenizer import TokenizerConfig, token_id, train_bpe
from infra.engine import Engine
from infra.serve import create_app

SHAPE = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
LONG, SHORT = 4096, 128
QUESTION = [{"role": "user", "content": "does a heap keep order?"}]
ASKED = {"model": "champion", "messages": QUESTION}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch on one thread while the tests of a file run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(
        iter(["the heap list sorts items and keeps order"]), TokenizerConfig(vocab_size=400)
    )


@pytest.fixture(scope="module")
def publish(tokenizer: Tokenizer) -> Callable[..., str]:
    """A random model: spoiled, so that its logits are not numbers, or fond of line breaks."""

    def do(
        registry: Registry,
        seed: int = 1,
        kind: str = "sft",
        positions: int = SHORT,
        spoil: bool = False,
        newlines: bool = False,
    ) -> str:
        model = new_model(ModelConfig(**SHAPE, max_length=positions), tokenizer, seed)
        if newlines:
            model.lm_head.weight.data[token_id(tokenizer, "Ċ")] *= 40
        if spoil:
            model.model.norm.weight.data.fill_(float("nan"))
        # Publishing refuses such a model: this one is of an older version.
        check = mock.patch("finetune.registry.check_finite") if spoil else contextlib.nullcontext()
        with check:
            return registry.publish(model, tokenizer, {"kind": kind, "seed": seed})

    return do


@contextlib.contextmanager
def serving(engine: Engine, **options: Any) -> Generator[SimpleNamespace]:
    """The app under uvicorn on a free port: its address, and an openai client."""
    config = uvicorn.Config(
        create_app(engine, **options), log_config=None, access_log=False, lifespan="off", ws="none"
    )
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            httpx.Client(base_url=url, timeout=30) as http,
        ):
            yield SimpleNamespace(
                url=url, client=client, http=http, engine=engine, ask=client.chat.completions.create
            )
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(
    publish: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    registry = Registry(str(tmp_path_factory.mktemp("registry")))
    registry.promote(publish(registry), "the first")
    with serving(Engine(registry)) as server:
        yield server


@pytest.fixture
def long_server(publish: Callable[..., str], tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A model whose greedy answers are too long to be waited for, and room for two requests."""
    registry = Registry(str(tmp_path))
    registry.promote(publish(registry, positions=LONG), "the first")
    with serving(Engine(registry, queue_limit=2)) as server:
        yield server


def wait_until(condition: Callable[[], bool], limit_s: float = 5) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def streamed(chunks: Iterable[Any]) -> SimpleNamespace:
    """What the chunks of an answer say together."""
    result = SimpleNamespace(text="", reason=None, usage=None, models=set())
    for chunk in chunks:
        result.models.add(chunk.model)
        result.usage = chunk.usage or result.usage
        for choice in chunk.choices:
            result.text += choice.delta.content or ""
            result.reason = choice.finish_reason or result.reason
    return result

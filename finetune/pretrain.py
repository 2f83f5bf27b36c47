"""The base model: next-token prediction on the corpus shards, counted in tokens."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn

from finetune.loop import INTERVAL, PEAK, TIMED, WARM_UP, LoopConfig, Loss, Step, train
from finetune.losses import bits_per_byte, token_nll_sum
from finetune.model import (
    ModelConfig,
    label_log_probs,
    new_model,
    num_parameters,
    supervised_logits,
)
from finetune.packing import IGNORE, TokenBatch, pack_stream
from finetune.registry import Registry
from finetune.tokenizer import (
    PAD,
    document_texts,
    encode_documents,
    load_tokenizer,
    token_id,
    token_pieces,
)
from pipeline.core import storage
from pipeline.core.config import RunConfig, operational
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

VERSION = 1


class PretrainConfig(LoopConfig):
    """[pretrain]"""

    learning_rate: float = Field(2e-3, gt=0, description=PEAK)
    warmup_steps: int = Field(20, ge=0, description=WARM_UP)
    checkpoint_every: int = operational(50, ge=1, description=INTERVAL)
    num_tokens: int = Field(1_000_000, ge=1, description="train on this many tokens, repeats too")
    batch_rows: int = Field(16, ge=1, description="rows of one optimizer step")
    micro_batch_rows: int = Field(16, ge=1, description="rows on the device at once")
    row_length: int = Field(256, ge=8, description="tokens of a packed row")
    evaluate_every: int = Field(50, ge=1, description="steps")
    evaluate_bytes: int = Field(20_000, ge=1, description="of held-out text, for the loss curve")


def run_pretrain(
    config: PretrainConfig,
    model_config: ModelConfig,
    shards: Manifest,
    tokenizer_manifest: Manifest,
    run: RunConfig,
) -> Manifest:
    """Train from the shards and publish to the registry; `facts` has model_id and the curve."""
    parents = {"shard": shards, "tokenizer": tokenizer_manifest}
    identity = {"model": model_config.identity(), **config.identity()}
    output = StageOutput.of(run.root, "pretrain", VERSION, identity, parents)
    registry = Registry(run.root)
    if done := output.finished():
        return registry.with_model(done)
    if config.row_length > model_config.max_length:
        raise UserError(
            f"pretrain.row_length = {config.row_length} is more than"
            f" model.max_length = {model_config.max_length}"
        )
    started = time.time()
    folder = storage.local_path(output.url)
    tokenizer = load_tokenizer(tokenizer_manifest.url)
    with output.lock():
        texts = list(document_texts(shards, "train"))
        rows = pack_stream(
            encode_documents(tokenizer, texts), config.row_length, token_id(tokenizer, PAD)
        )
        model = new_model(model_config, tokenizer, config.seed)
        num_steps = -(-config.num_tokens // (config.batch_rows * config.row_length))
        result = train(
            "pretrain",
            model,
            next_token_objective,
            batches_of(rows, config.batch_rows, config.micro_batch_rows, config.seed),
            num_steps,
            config.row_length,
            config,
            folder,
            _heldout_evaluation(config, shards, tokenizer, num_steps),
        )
        lineage = {"kind": "base", "parents": output.parents, "config": identity}
        model_id = registry.publish(model.cpu(), tokenizer, lineage)
    facts = {
        "model_id": model_id,
        "num_parameters": num_parameters(model),
        "num_tokens": num_steps * config.batch_rows * config.row_length,
        "epochs": num_steps * config.batch_rows / len(rows.ids_BT),
        "final": {k: v for k, v in result.metrics[-1].items() if k not in TIMED},
    }
    files = [describe_file(output.path("metrics.jsonl"), "metrics.jsonl", len(result.metrics))]
    counts = Counts(len(texts), len(texts))
    manifest = output.commit(files, counts, started=started, facts=facts)
    (storage.local_path(output.url) / "checkpoint.pt").unlink(missing_ok=True)
    return manifest


def next_token_objective(model: nn.Module, batch: TokenBatch) -> Loss:
    """Nats summed over the supervised positions."""
    logits, targets = supervised_logits(model, batch.to(next(model.parameters()).device))
    return Loss(token_nll_sum(logits, targets))


def batches_of(
    rows: TokenBatch, batch_rows: int, micro_batch_rows: int, seed: int
) -> Callable[[int, nn.Module], Step[TokenBatch]]:
    """Step n's rows as a function of (seed, n): each epoch is a fresh shuffle of all rows."""

    def step_of(step: int, _model: nn.Module) -> Step[TokenBatch]:
        index = shuffled_epochs(len(rows.ids_BT), step * batch_rows, batch_rows, seed)
        micro_batches = [
            rows.rows(index[at : at + micro_batch_rows])
            for at in range(0, batch_rows, micro_batch_rows)
        ]
        count = sum(batch.num_supervised for batch in micro_batches)
        return Step(micro_batches, count, batch_rows * rows.ids_BT.shape[1])

    return step_of


def shuffled_epochs(num_items: int, start: int, number: int, seed: int) -> np.ndarray:
    """Items start .. start + number of an endless sequence of shuffled epochs."""
    wanted = np.arange(start, start + number)
    result = np.empty(number, dtype=np.int64)
    for epoch in np.unique(wanted // num_items):
        order = np.random.default_rng([seed, int(epoch)]).permutation(num_items)
        here = wanted // num_items == epoch
        result[here] = order[wanted[here] % num_items]
    return result


def token_bytes(tokenizer: Tokenizer) -> torch.Tensor:
    """UTF-8 bytes that each token stands for; special tokens stand for none. [V]"""
    pieces = token_pieces(tokenizer)
    sizes = torch.zeros(max(pieces) + 1, dtype=torch.long)
    for index, piece in pieces.items():
        sizes[index] = len(piece)
    return sizes


@torch.no_grad()
def rows_bits_per_byte(model: nn.Module, rows: TokenBatch, sizes_V: torch.Tensor) -> float:
    """Over the predicted tokens that stand for bytes: a special token counts no loss either."""
    model.eval()
    nats, num_bytes = 0.0, 0
    for at in range(0, len(rows.ids_BT), 16):
        batch = rows.rows(np.arange(at, min(at + 16, len(rows.ids_BT))))
        log_probs = label_log_probs(model, batch.to(next(model.parameters()).device)).cpu()
        sizes_BT = torch.where(batch.labels_BT == IGNORE, 0, sizes_V[batch.labels_BT.clamp(min=0)])
        nats -= float(log_probs[sizes_BT > 0].sum())
        num_bytes += int(sizes_BT.sum())
    return bits_per_byte(nats, num_bytes)


def _heldout_evaluation(
    config: PretrainConfig, shards: Manifest, tokenizer: Tokenizer, num_steps: int
) -> Callable[[int, nn.Module], dict[str, float]] | None:
    texts = _first_bytes(list(document_texts(shards, "heldout")), config.evaluate_bytes)
    if not texts:
        return None
    rows = pack_stream(
        encode_documents(tokenizer, texts), config.row_length, token_id(tokenizer, PAD)
    )
    sizes = token_bytes(tokenizer)

    def evaluate(steps_done: int, model: nn.Module) -> dict[str, float]:
        if steps_done % config.evaluate_every and steps_done != num_steps:
            return {}
        return {"heldout_bits_per_byte": rows_bits_per_byte(model, rows, sizes)}

    return evaluate


def _first_bytes(texts: Sequence[str], max_bytes: int) -> list[str]:
    """The start of each text, the same number of characters of each, about max_bytes in all."""
    if not texts:
        return []
    share = max(1, max_bytes // len(texts))
    return [text[:share] for text in texts]


def read_metrics(manifest: Manifest) -> list[dict[str, Any]]:
    """The steps of a training stage, as its metrics.jsonl has them."""
    path = Path(manifest.file_url("metrics.jsonl"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

"""The base model: next-token prediction on the corpus shards, counted in tokens."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import nn

from finetune.data import ShardRows
from finetune.distributed import gathered
from finetune.loop import (
    INTERVAL,
    PEAK,
    WARM_UP,
    LoopConfig,
    Loss,
    new_optimizer,
    precision_of,
    train,
)
from finetune.losses import bits_per_byte
from finetune.metrics import TIMED
from finetune.model import (
    ModelConfig,
    check_heads,
    label_log_probs,
    new_model,
    num_parameters,
    supervised_nll_sum,
)
from finetune.packing import IGNORE, TokenBatch, pack_stream
from finetune.stage import Trained, run_stage
from finetune.tokenizer import (
    PAD,
    document_texts,
    encode_documents,
    load_tokenizer,
    token_id,
    token_pieces,
)
from pipeline.core.config import RunConfig, operational
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest

VERSION = 2
CHINCHILLA = 20  # tokens a parameter (Hoffmann et al. 2022, table 3)


class PretrainConfig(LoopConfig):
    """[pretrain]"""

    learning_rate: float = Field(2e-3, gt=0, description=PEAK)
    warmup_steps: int = Field(20, ge=0, description=WARM_UP)
    checkpoint_every: int = operational(50, ge=1, description=INTERVAL)
    num_tokens: int = Field(1_000_000, ge=1, description="train on this many tokens, repeats too")
    tokens_per_parameter: float | None = Field(
        None,
        gt=0,
        le=1e6,
        json_schema_extra={"operational": True},
        description="instead of num_tokens; 20 if model.depth is given and neither of the two is",
    )
    batch_rows: int = Field(16, ge=1, description="rows of one optimizer step")
    micro_batch_rows: int = Field(16, ge=1, description="rows on the device at once")
    row_length: int = Field(256, ge=8, description="tokens of a packed row")
    evaluate_every: int = Field(50, ge=1, description="steps")
    evaluate_bytes: int = Field(20_000, ge=1, description="of held-out text, for the loss curve")

    def derived(self, model: ModelConfig, vocab_size: int) -> "PretrainConfig":
        """With the values that follow from the model's size, for the keys that are not given; the
        identity has these alone. Without model.depth only `tokens_per_parameter` derives anything.

        Raises UserError if both that and `num_tokens` are given.
        """
        given = self.model_fields_set
        ratio = self.tokens_per_parameter
        if ratio is not None and "num_tokens" in given:
            raise UserError(
                f"pretrain.tokens_per_parameter = {ratio:g} and pretrain.num_tokens ="
                f" {self.num_tokens} are both given; leave one out"
            )
        found: dict[str, Any] = {}
        num_tokens = self.num_tokens
        if "num_tokens" not in given and (ratio or model.depth):
            num_tokens = round((ratio or CHINCHILLA) * model.num_parameters(vocab_size))
            found["num_tokens"] = num_tokens
        if model.depth is not None:
            found |= _dialled(self, model, vocab_size, num_tokens)
        free = {key: value for key, value in found.items() if key not in given}
        return self.model_copy(update=free | {"tokens_per_parameter": None})


def _dialled(
    config: PretrainConfig, model: ModelConfig, vocab_size: int, num_tokens: int
) -> dict[str, Any]:
    """Rate, batch, warm-up, weight decay and beta2 for a model of its width on its tokens.

    - The best rate falls as 1 / sqrt(width), nanochat's rule for what AdamW trains; 1.5e-3 at 768
      lies between GPT-3's 6e-4 (Brown et al. 2020, table 2.1) and the 2e-3 to 4e-3 that a search
      finds there. Batches under 3,072 tokens want less, by the square root (Malladi et al. 2022),
      and a longer memory in beta2 (Porian et al. 2024, arXiv:2406.19146): so it was with depths 1
      and 2 on books, at 768 tokens.
    - The best batch depends on the tokens alone: 0.58 D^0.571 (Li et al. 2025, arXiv:2503.04715).
    - Warm-up: a 20th of the steps; a token a parameter at 20 tokens a parameter (Porian et al.).
    - AdamW averages over 1 / (rate * decay) steps; of all steps the best share is
      1.084 (D/N)^-0.527 (Bergsma et al. 2025, arXiv:2505.13738).
    """
    given = config.model_fields_set
    rows = max(1, round(0.58 * num_tokens**0.571 / config.row_length))
    if rows > config.micro_batch_rows:  # whole micro-batches
        rows = round(rows / config.micro_batch_rows) * config.micro_batch_rows
    rows = config.batch_rows if "batch_rows" in given else rows
    small = min(1.0, rows * config.row_length / 3072)
    rate = 1.5e-3 * math.sqrt(768 / model.hidden_size * small)
    rate = config.learning_rate if "learning_rate" in given else rate
    steps = -(-num_tokens // (rows * config.row_length))
    share = 1.084 * (num_tokens / model.num_parameters(vocab_size)) ** -0.527
    return {
        "learning_rate": float(f"{rate:.3g}"),
        "batch_rows": rows,
        "warmup_steps": max(1, steps // 20),
        "weight_decay": float(f"{min(1.0, 1 / (rate * steps * share)):.3g}"),
        "beta2": round(1 - 0.05 * small, 4),
    }


def check_settings(config: PretrainConfig, model_config: ModelConfig) -> None:
    """What can be known before there is a tokenizer. Raises UserError."""
    if config.row_length > model_config.max_length:
        raise UserError(
            f"pretrain.row_length = {config.row_length} is more than"
            f" model.max_length = {model_config.max_length}"
        )
    check_heads(model_config)
    precision_of(config)  # the device is there
    if config.optimizer == "adamw8bit":
        new_optimizer(torch.nn.Linear(1, 1), config)


def run_pretrain(
    config: PretrainConfig,
    model_config: ModelConfig,
    shards: Manifest,
    tokenizer_manifest: Manifest,
    run: RunConfig,
) -> Manifest:
    """Train from the shards and publish to the registry; `facts` has model_id and the curve."""
    config = config.derived(model_config, tokenizer_manifest.facts["vocab_size"])
    check_settings(config, model_config)

    def fit(folder: Path) -> Trained:
        tokenizer = load_tokenizer(tokenizer_manifest.url)
        rows = ShardRows(
            shards, tokenizer, config.row_length, config.batch_rows, config.micro_batch_rows,
            config.seed,
        )  # fmt: skip
        model = new_model(model_config, tokenizer, config.seed)
        num_steps = -(-config.num_tokens // (config.batch_rows * config.row_length))
        evaluate = _heldout_evaluation(config, shards, tokenizer, num_steps)
        result = train(
            "pretrain", model, next_token_objective, rows, num_steps, config, folder, evaluate
        )
        facts = {
            "num_parameters": num_parameters(model),
            "num_tokens": num_steps * config.batch_rows * config.row_length,
            "epochs": rows.epochs,
            "final": {k: v for k, v in result.metrics[-1].items() if k not in TIMED},
        }
        counts = Counts(rows.num_documents, rows.num_documents)
        return Trained(gathered(model), tokenizer, counts, facts)

    identity = {"model": model_config.identity(), **config.identity()}
    parents = {"shard": shards, "tokenizer": tokenizer_manifest}
    again = functools.partial(run_pretrain, config, model_config, shards, tokenizer_manifest, run)
    return run_stage("base", VERSION, config, identity, parents, run, fit, again)


def next_token_objective(model: nn.Module, batch: TokenBatch) -> Loss:
    """Nats summed over the supervised positions."""
    return Loss(supervised_nll_sum(model, batch.to(next(model.parameters()).device)))


def token_bytes(tokenizer: Tokenizer) -> torch.Tensor:
    """UTF-8 bytes that each token stands for; special tokens stand for none. [V]"""
    pieces = token_pieces(tokenizer)
    sizes = torch.zeros(max(pieces) + 1, dtype=torch.long)
    for index, piece in pieces.items():
        sizes[index] = len(piece)
    return sizes


@torch.no_grad()
def heldout_loss(model: nn.Module, rows: TokenBatch, sizes_V: torch.Tensor) -> dict[str, Any]:
    """`loss`: nats a predicted token, in fp32; bits per byte leave the special tokens out."""
    model.eval()
    nats = byte_nats = 0.0
    num_tokens = num_bytes = 0
    device = next(model.parameters()).device
    for at in range(0, len(rows.ids_BT), 16):
        batch = rows.rows(np.arange(at, min(at + 16, len(rows.ids_BT))))
        nats_BT = -label_log_probs(model, batch.to(device)).double().cpu()
        sizes_BT = torch.where(batch.labels_BT == IGNORE, 0, sizes_V[batch.labels_BT.clamp(min=0)])
        nats += float(nats_BT.sum())
        byte_nats += float(nats_BT[sizes_BT > 0].sum())
        num_tokens += batch.num_supervised
        num_bytes += int(sizes_BT.sum())
    return {
        "loss": nats / num_tokens,
        "bits_per_byte": bits_per_byte(byte_nats, num_bytes),
        "heldout_tokens": num_tokens,
        "heldout_bytes": num_bytes,
    }


def rows_bits_per_byte(model: nn.Module, rows: TokenBatch, sizes_V: torch.Tensor) -> float:
    """Over the predicted tokens that stand for bytes."""
    return heldout_loss(model, rows, sizes_V)["bits_per_byte"]


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

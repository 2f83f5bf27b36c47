"""Supervised finetuning: the base model learns to answer, from what people wrote."""

import time
from collections.abc import Callable

from pydantic import Field
from torch import Tensor, nn

from finetune.labels import chat_segment, conversations
from finetune.loop import DECAY, PEAK, LoopConfig, train
from finetune.model import load_language_model
from finetune.packing import TokenBatch, pack_best_fit
from finetune.pretrain import batches_of, next_token_objective, rows_bits_per_byte, token_bytes
from finetune.registry import Registry
from finetune.tokenizer import PAD, load_tokenizer, token_id
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

VERSION = 1


class SftConfig(LoopConfig):
    """[sft]"""

    learning_rate: float = Field(1e-3, gt=0, description=PEAK)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    epochs: float = Field(5.0, gt=0, description="passes over the answers")
    batch_rows: int = Field(4, ge=1, description="rows of one optimizer step")
    micro_batch_rows: int = Field(4, ge=1, description="rows on the device at once")
    row_length: int = Field(512, ge=32, description="tokens of a packed row")


def run_sft(config: SftConfig, base_id: str, labels: Manifest, run: RunConfig) -> Manifest:
    """Train on the assistant's turns alone; `facts` has model_id and what was left out."""
    parents = {"base": base_id, "labels": labels}
    output = StageOutput.of(run.root, "sft", VERSION, config.identity(), parents)
    registry = Registry(run.root)
    if done := output.finished():
        return registry.with_model(done)
    started = time.time()
    tokenizer = load_tokenizer(registry.verified(base_id))
    pad_id = token_id(tokenizer, PAD)
    written = conversations(labels, heldout=False)
    segments = [chat_segment(tokenizer, c.messages) for c in written]
    rows, num_oversize = pack_best_fit(segments, config.row_length, pad_id)
    if num_oversize == len(segments):
        raise UserError(f"all conversations are longer than sft.row_length = {config.row_length}")
    with output.lock():
        model = load_language_model(registry.verified(base_id))
        num_steps = max(1, round(config.epochs * len(rows.ids_BT) / config.batch_rows))
        held_out = [
            chat_segment(tokenizer, c.messages) for c in conversations(labels, heldout=True)
        ]
        held_out_rows, _ = pack_best_fit(held_out, config.row_length, pad_id)
        result = train(
            "sft",
            model,
            next_token_objective,
            batches_of(rows, config.batch_rows, config.micro_batch_rows, config.seed),
            num_steps,
            config.row_length,
            config,
            storage.local_path(output.url),
            _evaluation(held_out_rows, token_bytes(tokenizer), num_steps),
        )
        lineage = {"kind": "sft", "parents": output.parents, "config": config.identity()}
        model_id = registry.publish(model.cpu(), tokenizer, lineage)
    files = [describe_file(output.path("metrics.jsonl"), "metrics.jsonl", len(result.metrics))]
    dropped = {"longer-than-a-row": num_oversize} if num_oversize else {}
    counts = Counts(len(segments), len(segments) - num_oversize, dropped)
    manifest = output.commit(files, counts, started=started, facts={"model_id": model_id})
    (storage.local_path(output.url) / "checkpoint.pt").unlink(missing_ok=True)
    return manifest


def _evaluation(
    rows: TokenBatch, sizes: Tensor, num_steps: int
) -> Callable[[int, nn.Module], dict[str, float]]:
    every = max(1, num_steps // 5)

    def evaluate(steps_done: int, model: nn.Module) -> dict[str, float]:
        if (steps_done % every and steps_done != num_steps) or not len(rows.ids_BT):
            return {}
        return {"heldout_bits_per_byte": rows_bits_per_byte(model, rows, sizes)}

    return evaluate

"""Supervised finetuning: the base model learns to answer, from what people wrote."""

import functools
from collections.abc import Callable
from pathlib import Path

from pydantic import Field
from torch import Tensor, nn

from finetune.adapter import AdapterConfig, whole_model, with_adapter
from finetune.data import batches_of
from finetune.kv_cache import context_length
from finetune.labels import chat_segment, conversations
from finetune.loop import DECAY, PEAK, train
from finetune.model import load_language_model
from finetune.packing import TokenBatch, pack_best_fit
from finetune.pretrain import next_token_objective, rows_bits_per_byte, token_bytes
from finetune.registry import Registry
from finetune.stage import Trained, run_stage
from finetune.tokenizer import PAD, load_tokenizer, token_id
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest

VERSION = 2


class SftConfig(AdapterConfig):
    """[sft]"""

    learning_rate: float = Field(1e-3, gt=0, description=PEAK)
    weight_decay: float = Field(0.0, ge=0, description=DECAY)
    epochs: float = Field(5.0, gt=0, description="passes over the answers")
    batch_rows: int = Field(4, ge=1, description="rows of one optimizer step")
    micro_batch_rows: int = Field(4, ge=1, description="rows on the device at once")
    row_length: int = Field(512, ge=32, description="tokens of a packed row")


def run_sft(
    config: SftConfig,
    base_id: str,
    labels: Manifest,
    run: RunConfig,
    hygiene: Manifest | None = None,
) -> Manifest:
    """Train on the assistant's turns alone; `facts` has model_id. What `hygiene` found in the
    labels goes into the model's card."""

    def fit(folder: Path) -> Trained:
        base = Registry(run.root).verified(base_id)
        tokenizer = load_tokenizer(base)
        pad_id = token_id(tokenizer, PAD)
        sides = {
            heldout: [
                chat_segment(tokenizer, c.messages) for c in conversations(labels, heldout=heldout)
            ]
            for heldout in (False, True)
        }
        model = load_language_model(base)
        longest = min(config.row_length, context_length(model.config))
        fitting, held_out = (
            [segment for segment in sides[heldout] if len(segment.ids) <= longest]
            for heldout in (False, True)
        )
        num_oversize = len(sides[False]) - len(fitting)
        if not fitting:
            raise UserError(
                f"all {num_oversize} conversations are longer than {longest} tokens, the smaller of"
                f" sft.row_length = {config.row_length} and the model's context"
            )
        rows, _ = pack_best_fit(fitting, config.row_length, pad_id)
        adapted = with_adapter(model, config)
        num_steps = max(1, round(config.epochs * len(rows.ids_BT) / config.batch_rows))
        held_out_rows, _ = pack_best_fit(held_out, config.row_length, pad_id)
        train(
            "sft",
            model,
            next_token_objective,
            batches_of(rows, config.batch_rows, config.micro_batch_rows, config.seed),
            num_steps,
            config,
            folder,
            _evaluation(held_out_rows, token_bytes(tokenizer), num_steps),
        )
        model = whole_model(model, adapted, config, base, folder / "adapter")
        num_read = len(sides[False])
        dropped = {"too-long": num_oversize} if num_oversize else {}
        return Trained(model, tokenizer, Counts(num_read, num_read - num_oversize, dropped))

    again = functools.partial(run_sft, config, base_id, labels, run, hygiene)
    parents: dict[str, Manifest | str] = {"base": base_id, "labels": labels}
    parents |= {"hygiene": hygiene} if hygiene else {}
    return run_stage("sft", VERSION, config, config.identity(), parents, run, fit, again)


def _evaluation(
    rows: TokenBatch, sizes: Tensor, num_steps: int
) -> Callable[[int, nn.Module], dict[str, float]]:
    every = max(1, num_steps // 5)

    def evaluate(steps_done: int, model: nn.Module) -> dict[str, float]:
        if (steps_done % every and steps_done != num_steps) or not len(rows.ids_BT):
            return {}
        return {"heldout_bits_per_byte": rows_bits_per_byte(model, rows, sizes)}

    return evaluate

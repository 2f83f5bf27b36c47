"""Causal language models through transformers' classes, and what they need at each position."""

import dataclasses
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from pydantic import Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from finetune.attention import NAME, segments_of
from finetune.losses import linear_nll, linear_nll_sum
from finetune.packing import IGNORE, SegmentBatch, TokenBatch
from finetune.tokenizer import BOS, PAD, TURN_END, token_id
from pipeline.core.config import Section
from pipeline.core.errors import UserError

# Dense bf16 peak of a device in FLOP/s, by a part of its name (vendors' data sheets).
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}


HEAD_SIZE = 64


class ModelConfig(Section):
    """[model]: the shape of the base model. With `depth` it is derived, but for keys that are
    given. The identity has the shape alone: however it was come by, it is the same model."""

    depth: int | None = Field(
        None,
        ge=1,
        le=32,
        json_schema_extra={"operational": True},
        description="the one dial: the other keys here, and [pretrain]'s, follow unless given",
    )
    hidden_size: int = Field(
        256, ge=16, description=f"width of the residual stream; {HEAD_SIZE} * depth"
    )
    num_layers: int = Field(4, ge=1, description="transformer blocks; depth")
    num_heads: int = Field(
        8, ge=1, description=f"attention heads of a block; of about {HEAD_SIZE} each"
    )
    intermediate_size: int = Field(
        704, ge=16, description="width of the feed-forward part; 8/3 of the residual stream's"
    )
    max_length: int = Field(512, ge=32, description="positions the model can tell apart")

    @model_validator(mode="after")
    def _derive(self) -> Self:
        if self.depth is None:
            return self
        given = self.model_fields_set
        shape = _shape(self.depth, self.hidden_size if "hidden_size" in given else None)
        if shape.keys() <= given and any(getattr(self, k) != shape[k] for k in shape):
            raise UserError(
                f"model.depth = {self.depth} has nothing to derive: {', '.join(shape)} are all"
                " given; leave depth out, or delete those of them that are to follow it"
            )
        for name in shape.keys() - given:  # not marked as given: `flywheel config` tells them apart
            object.__setattr__(self, name, shape[name])
        return self

    def num_block_parameters(self) -> int:
        """Of all blocks and the last norm: what is left without the table of tokens."""
        width = self.hidden_size
        block = 4 * width**2 + 3 * width * self.intermediate_size + 2 * width
        return self.num_layers * block + width

    def num_parameters(self, vocab_size: int) -> int:
        """All, the table of tokens counted once: it is the head too."""
        return self.num_block_parameters() + vocab_size * self.hidden_size


def _shape(depth: int, hidden_size: int | None) -> dict[str, int]:
    """Width and depth grow together, 64 a layer, as in nanochat and in GPT-3's models of 12 and 24
    layers (Brown et al. 2020, table 2.1: 768 and 1,536). A gated feed-forward part of 8/3 of the
    width has the parameters of a plain one of 4 (Shazeer 2020); rounded up to whole tiles of 64."""
    width = hidden_size or HEAD_SIZE * depth
    wanted = max(1, round(width / HEAD_SIZE))
    heads = [n for n in range(1, wanted + 1) if width % (2 * n) == 0]  # RoPE wants even heads
    return {
        "hidden_size": width,
        "num_layers": depth,
        "num_heads": heads[-1] if heads else 1,
        "intermediate_size": -(-8 * width // (3 * 64)) * 64,
    }


@dataclasses.dataclass(frozen=True)
class Precision:
    """How the forward pass computes: `autocast_dtype` None is fp32 throughout."""

    device: torch.device
    autocast_dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            dtype=self.autocast_dtype or torch.bfloat16,
            enabled=self.autocast_dtype is not None,
        )


def best_precision(device: torch.device | None = None) -> Precision:
    """bf16 where the hardware multiplies in bf16, else fp32: emulated bf16 is 100 times slower."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu = cast(Any, torch.cpu)
        native = any(
            getattr(cpu, name)()
            for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
            if hasattr(cpu, name)
        )
    return Precision(device, torch.bfloat16 if native else None)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak, or None where it is not known (a CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in name), None)


def training_flops(model: nn.Module, num_tokens: int, num_attended: int) -> float:
    """6 per token and parameter that multiplies, and 12 * layers * width per pair of tokens that
    attention brings together (Chowdhery et al. 2022, appendix B). `num_attended` is the sum of the
    squared lengths of the segments: what is packed beside each other does not attend."""
    config = cast(Any, model).config
    embedding = config.vocab_size * config.hidden_size
    parameters = num_parameters(model) - (0 if config.tie_word_embeddings else embedding)
    attention = 12 * config.num_hidden_layers * config.hidden_size * num_attended
    return 6 * parameters * num_tokens + attention


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def check_heads(config: ModelConfig) -> None:
    if config.hidden_size % config.num_heads:
        raise UserError(
            f"model.hidden_size = {config.hidden_size} is not a multiple of"
            f" model.num_heads = {config.num_heads}"
        )


def new_model(config: ModelConfig, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """A model with random weights that the seed decides."""
    check_heads(config)
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, TURN_END),
        pad_token_id=token_id(tokenizer, PAD),
        attention_dropout=0.0,
    )
    return cast(Any, LlamaForCausalLM)._from_config(shape, attn_implementation=NAME)


def load_language_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Any causal language model's checkpoint. Raises UserError for one that is damaged."""
    return _load(AutoModelForCausalLM, folder, dtype)


def load_reward_model(folder: str | Path) -> PreTrainedModel:
    """A body under a score head with one output."""
    return _load(AutoModelForSequenceClassification, folder, torch.float32)


def reward_model_from(folder: str | Path) -> PreTrainedModel:
    """A language model's body under a fresh score head that starts at zero: every answer ties."""
    base = load_language_model(folder)
    config = base.config
    config.num_labels = 1
    config.tie_word_embeddings = False
    model = cast(Any, AutoModelForSequenceClassification).from_config(
        config, attn_implementation=NAME
    )
    body_of(model).load_state_dict(body_of(base).state_dict())
    nn.init.zeros_(model.score.weight)
    return model


M = TypeVar("M", bound=nn.Module)


def place(model: M, device: torch.device) -> M:
    """The same model, moved in place."""
    nn.Module.to(model, device)
    return model


def _load(kind: Any, folder: str | Path, dtype: torch.dtype) -> Any:
    quiet()
    model: PreTrainedModel = kind.from_pretrained(
        str(folder), dtype=dtype, attn_implementation=NAME
    )
    check_finite(model, str(folder))
    for module in model.modules():  # a ratio to a reference would be of two different models
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def check_finite(model: nn.Module, whose: str) -> None:
    """Raises UserError for weights that are no numbers."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise UserError(
                f"{whose}: {name} holds NaN or infinite numbers: it diverged; lower the learning"
                " rate, or take an earlier model"
            )


def quiet() -> None:
    """No bar for loading or saving one small file."""
    transformers_logging.disable_progress_bar()


def body_of(model: nn.Module) -> nn.Module:
    """The model without its head, whatever transformers calls it."""
    return getattr(model, cast(Any, model).base_model_prefix)


def hidden_states(model: nn.Module, batch: TokenBatch) -> Tensor:
    """[B, T, D] before the head, no token having seen another segment's."""
    return body_of(model)(
        input_ids=batch.ids_BT,
        position_ids=batch.positions_BT,
        use_cache=False,
        **segments_of(batch),
    ).last_hidden_state


def supervised_nll(model: nn.Module, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
    """-ln p(label) in nats at the N supervised positions alone, in order: the projection to the
    vocabulary is the largest multiplication of a small model. [N]"""
    return linear_nll(*_supervised(model, batch), temperature)


def supervised_nll_sum(model: nn.Module, batch: TokenBatch) -> Tensor:
    """The sum of `supervised_nll`, in less work."""
    return linear_nll_sum(*_supervised(model, batch))


def _supervised(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    wanted = batch.labels_BT != IGNORE
    head = cast(Any, model).get_output_embeddings().weight
    return hidden_states(model, batch)[wanted], head, batch.labels_BT[wanted]


def label_log_probs(model: nn.Module, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
    """ln p(label) at each position, 0 where there is none. [B, T]"""
    values = -supervised_nll(model, batch, temperature)
    result = values.new_zeros(batch.labels_BT.shape)
    return result.masked_scatter(batch.labels_BT != IGNORE, values)


def token_scores(model: nn.Module, batch: TokenBatch) -> Tensor:
    """What a body under a score head gives at each position: a value, a reward so far. [B, T]"""
    return cast(Any, model).score(hidden_states(model, batch)).squeeze(-1).float()


def end_scores(model: nn.Module, batch: SegmentBatch) -> Tensor:
    """The reward model's score at each segment's last token. [S]"""
    hidden = hidden_states(model, batch.tokens).flatten(0, 1)[batch.ends_S]
    return cast(Any, model).score(hidden).squeeze(-1).float()

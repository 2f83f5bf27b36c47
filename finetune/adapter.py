"""LoRA: a few small matrices beside the frozen ones, merged into them at the end (Hu et al. 2021).

peft makes and merges them. The reference of a preference loss is never "the model without its
adapter" here (trl#1340): it is a model of its own, loaded and hashed.
"""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from transformers import PreTrainedModel

from finetune.loop import LoopConfig


class AdapterConfig(LoopConfig):
    """What a stage adds to its section that may train an adapter."""

    lora_rank: int = Field(0, ge=0, description="of the adapter's matrices; 0 trains all weights")
    lora_alpha: float = Field(
        16.0, gt=0, description="the adapter counts alpha / rank times as much as its product"
    )


def with_adapter(model: PreTrainedModel, config: AdapterConfig) -> PeftModel | None:
    """Freeze the model and put an adapter beside every linear layer but the head; None, and no
    change, if the config asks for none. The model itself computes with the adapter from now on."""
    if not config.lora_rank:
        return None
    shape = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # pyright: ignore[reportArgumentType] - any number will do
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted: Any = get_peft_model(model, shape)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # beside a base in bf16
    return adapted


def merged(adapted: PeftModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter added to its weights; the adapter alone stays in `folder`.
    Raises ValueError if the sum is not finite."""
    adapted.save_pretrained(str(folder))
    return adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]

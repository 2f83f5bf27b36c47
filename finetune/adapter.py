"""LoRA: a few small matrices beside the frozen ones, merged into them at the end (Hu et al. 2021).

peft makes and merges them. The reference of a preference loss is never "the model without its
adapter" here (trl#1340): it is a model of its own, loaded and hashed.
"""

from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from transformers import PreTrainedModel

from finetune import distributed
from finetune.loop import LoopConfig
from finetune.model import load_language_model


class AdapterConfig(LoopConfig):
    """What a stage adds to its section that may train an adapter."""

    lora_rank: int = Field(0, ge=0, description="of the adapter's matrices; 0 trains all weights")
    lora_alpha: float = Field(
        16.0, gt=0, description="the adapter counts alpha / rank times as much as its product"
    )


def with_adapter(model: PreTrainedModel, config: AdapterConfig) -> PeftModel | None:
    """Freeze the model and put an adapter beside every linear layer but the head; None, and no
    change, if the config asks for none. The model itself computes with the adapter from now on.
    Turn tokens that no training has told apart yet (an imported model's) have the embedding and
    the head trained too: no adapter could learn to end a turn."""
    if not config.lora_rank:
        return None
    shape = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # pyright: ignore[reportArgumentType] - any number will do
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    untaught = _untaught(model)
    torch.manual_seed(config.seed)  # the adapter's start is random
    adapted: Any = get_peft_model(model, shape)
    if untaught:
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            cast(Any, layer).weight.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # beside a base in bf16
    return adapted


def _untaught(model: PreTrainedModel) -> bool:
    """Whether the end of a turn and of a text are the same to the model."""
    rows = cast(Any, model).get_output_embeddings().weight
    ends = [cast(Any, model).config.eos_token_id, cast(Any, model).config.pad_token_id]
    return all(isinstance(end, int) for end in ends) and torch.equal(*(rows[end] for end in ends))


def whole_model(
    model: PreTrainedModel,
    adapted: PeftModel | None,
    config: AdapterConfig,
    checkpoint: Path,
    folder: Path,
) -> PreTrainedModel:
    """What is published: the trained model on one device, the adapter added to its weights. The
    adapter alone stays in `folder`. Raises ValueError if the sum is not finite."""
    if adapted is None:
        return distributed.gathered(model)
    if distributed.size() > 1:
        weights = distributed.whole_weights(model)
        model = load_language_model(checkpoint)
        adapted = with_adapter(model, config)
        model.load_state_dict(weights)
        assert adapted is not None
    if distributed.is_main():
        adapted.save_pretrained(str(folder))
    return adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]

"""Whether a foreign model computes here what transformers computes for it.

Our stages take the last hidden states and the head's weights, and attention to a token's own
segment. A family that scales or caps its logits, or attends in another way, would be trained on
another distribution than it is served with.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.attention import NAME
from finetune.generate import Sampling, generate
from finetune.kv_cache import context_length
from finetune.model import label_log_probs
from finetune.packing import Segment, pack_best_fit
from pipeline.core.errors import UserError

_LENGTHS, _MOST_GAP = (33, 9), 0.01  # tokens; nats a token, in fp32
_NEW = 3


@torch.no_grad()
def check_computed_alike(model: PreTrainedModel) -> None:
    """Compare ln p of random tokens, two segments packed in one row, and of tokens generated, with
    the model's own forward, eager and unpacked. Raises UserError for a model that differs."""
    model.eval()
    ours = _from_ours(model)
    model.set_attn_implementation("eager")
    try:
        gaps = [_gap(model, ids, start, found) for ids, start, found in ours]
    finally:
        model.set_attn_implementation(NAME)
    if not max(gaps) <= _MOST_GAP:  # NaN is not
        raise UserError(
            f"a model of the type {model.config.model_type} computes otherwise than Flywheel does"
            f" ({max(gaps):.2f} nats a token apart; it scales or caps its logits, or attends in a"
            " way of its own); take one of another family (docs/export.md)"
        )


def _from_ours(model: PreTrainedModel) -> list[tuple[Tensor, int, Tensor]]:
    """(tokens, from where they are foretold, ln p of each from there on)"""
    model.set_attn_implementation(NAME)
    vocabulary, context = model.config.vocab_size, context_length(model.config)
    draw = torch.Generator().manual_seed(0)
    segments: list[Segment] = []
    for length in (min(length, context) for length in _LENGTHS):
        ids = torch.randint(vocabulary, (length,), generator=draw).tolist()
        segments.append(Segment(ids, (True,) * length))
    size = sum(len(segment.ids) for segment in segments)
    batch, _ = pack_best_fit(segments, size, 0)  # the longest first
    found = label_log_probs(model, batch)[0].split([len(s.ids) for s in segments])
    result = [
        (torch.tensor(s.ids), 1, values[:-1]) for s, values in zip(segments, found, strict=True)
    ]
    prompt = list(segments[0].ids[: max(1, len(segments[0].ids) - _NEW)])
    (made,) = generate(model, [prompt], Sampling(_NEW, 1.0), 0)
    whole = torch.tensor([*prompt, *made.ids])
    return [*result, (whole, len(prompt), torch.tensor(made.log_probs))]


def _gap(model: PreTrainedModel, ids: Tensor, start: int, ours: Tensor) -> float:
    logits = cast(Any, model)(input_ids=ids[None]).logits[0].float()
    log_probs = torch.log_softmax(logits, dim=-1)[:-1].gather(1, ids[1:, None])[:, 0]
    return float((log_probs[start - 1 :] - ours).abs().max())

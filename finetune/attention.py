"""Block-diagonal causal attention behind one name, in models of transformers.

On a GPU in half precision torch's varlen kernel; elsewhere one causal kernel a segment. A call
without segments (generation with a cache) is transformers' own SDPA with its mask.
"""

import inspect
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.losses import computed_dtype
from finetune.packing import TokenBatch

NAME = "flywheel"


def segments_of(batch: TokenBatch) -> dict[str, Any]:
    """What a model's forward takes so that attention stays within the batch's segments. The
    4-dimensional `attention_mask` only says "made already": no dense mask is built."""
    return {
        "attention_mask": torch.full((1, 1, 1, 1), torch.nan, device=batch.ids_BT.device),
        "segment_lengths": batch.lengths,
        "segment_offsets": batch.offsets_S1,
    }


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segment_lengths: tuple[tuple[int, ...], ...] | None = None,
    segment_offsets: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, H, T, D], key and value [B, H or fewer, T, D]; returns ([B, T, H, D], None)."""
    device = query.device.type
    dtype = computed_dtype(query)  # a rotary embedding leaves query and key in fp32 under autocast
    if device == "cpu" and dtype in (torch.bfloat16, torch.float16):
        dtype = torch.float32  # in it a CPU's kernels take a third to a fifth of the time
    wanted = value.dtype
    query, key, value = (x.to(dtype) for x in (query, key, value))
    with torch.autocast(device, enabled=False):
        if segment_lengths is None or segment_offsets is None:
            if attention_mask is not None and attention_mask.numel() == 1 < query.shape[2]:
                raise RuntimeError(f"{type(module).__name__} was not told where segments begin")
            if attention_mask is not None and attention_mask.is_floating_point():
                attention_mask = attention_mask.to(dtype)
            out, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **kwargs
            )
            return out.to(wanted), None
        grouped = query.shape[1] != key.shape[1]
        if all(len(row) == 1 for row in segment_lengths):
            out = _causal(query, key, value, scaling, grouped).transpose(1, 2)
        elif device == "cuda" and dtype in (torch.bfloat16, torch.float16):
            out = _varlen(query, key, value, segment_offsets, scaling, grouped)
        else:
            out = _by_segment(query, key, value, segment_lengths, scaling, grouped).transpose(1, 2)
    return out.contiguous().to(wanted), None


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: tuple[tuple[int, ...], ...],
    scaling: float | None,
    grouped: bool,
) -> Tensor:
    rows = [
        torch.cat(
            [
                _causal(q[None], k[None], v[None], scaling, grouped)
                for q, k, v in zip(*(x.split(lengths, dim=1) for x in row), strict=True)
            ],
            dim=2,
        )
        for *row, lengths in zip(
            query.unbind(), key.unbind(), value.unbind(), segment_lengths, strict=True
        )
    ]
    return torch.cat(rows)


def _causal(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, grouped: bool) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped
    )


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, offsets_S1: Tensor, scaling: float | None, grouped: bool
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10; a GPU's alone

    batch, heads, length, width = q.shape
    flat = [x.transpose(1, 2).reshape(batch * length, x.shape[1], width) for x in (q, k, v)]
    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    if grouped and "enable_gqa" in known:
        causal["enable_gqa"] = True
    elif grouped:
        flat[1:] = [x.repeat_interleave(heads // x.shape[1], dim=1) for x in flat[1:]]
    out = cast(Any, varlen_attn)(
        *flat, offsets_S1, offsets_S1, length, length, scale=scaling, **causal
    )
    return out.view(batch, length, heads, width)


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

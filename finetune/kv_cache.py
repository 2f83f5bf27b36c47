"""The keys and values of a batch of ragged rows, each token's at its position, preallocated: no
concatenation per token. It is the cache that transformers' models write to and read from."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError


class KeyValues:
    """At most `most_rows` rows of `most_length` tokens; room is taken as it is needed. A position
    that holds no token of its row holds a finite number, and is masked out."""

    def __init__(self, most_rows: int) -> None:
        self.most_rows = most_rows
        self.layers: list[list[Tensor]] = []  # of each layer: keys, values [rows, H, length + 1, D]
        self.num_rows = self.length = 0

    def reserve(self, num_rows: int, length: int, most_length: int) -> None:
        """Room for the given numbers; if there is none, for twice as much, but not beyond the
        most."""
        if num_rows <= self.num_rows and length <= self.length:
            return
        rows, size = self.num_rows, self.length
        if num_rows > rows:
            self.num_rows = min(2 * num_rows, self.most_rows)
        if length > size:
            self.length = min(2 * length, max(length, most_length))
        for pair in self.layers:
            for i, old in enumerate(pair):
                pair[i] = self._zeros(old)
                pair[i][:rows, :, :size] = old[:, :, :size]

    @torch.no_grad()
    def forward(
        self, model: nn.Module, ids_BQ: Tensor, positions_BQ: Tensor, length: int
    ) -> Tensor:
        """Logits after the last of the given tokens, which are kept. All positions are below
        `length`, for which there is room; position -1 is padding. [B, V]"""
        self._read = length
        # Padding is written to the last column, which nobody reads.
        self._where = torch.arange(len(ids_BQ), device=ids_BQ.device)[:, None], positions_BQ
        seen = positions_BQ.clamp(min=0)
        unseen = torch.arange(length, device=ids_BQ.device) > seen[:, None, :, None]
        mask = torch.zeros(unseen.shape, dtype=cast(Any, model).dtype, device=ids_BQ.device)
        result = cast(Any, model)(
            input_ids=ids_BQ,
            attention_mask=mask.masked_fill_(unseen, -torch.inf),  # eager attention adds it
            position_ids=seen,
            past_key_values=self,
            use_cache=True,
            logits_to_keep=1,
        )
        return result.logits[:, -1]

    def update(
        self, keys_BHQD: Tensor, values_BHQD: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """A layer of the model has made these, and attends to what is returned."""
        if layer == len(self.layers):
            self.layers.append([self._zeros(keys_BHQD), self._zeros(values_BHQD)])
        rows_B1, positions_BQ = self._where
        for kept, new_BHQD in zip(self.layers[layer], (keys_BHQD, values_BHQD), strict=True):
            kept[rows_B1, :, positions_BQ] = new_BHQD.transpose(1, 2)
        keys, values = (kept[: len(rows_B1), :, : self._read] for kept in self.layers[layer])
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        return self._read

    def copy(self, row: int, source: "KeyValues", source_row: int, length: int) -> None:
        """Row `row` becomes the first `length` tokens of another, and nothing else: what stood
        there may be NaN, which no mask hides."""
        if not self.layers:
            self.layers = [[self._zeros(part) for part in pair] for pair in source.layers]
        for pair, others in zip(self.layers, source.layers, strict=True):
            for mine, other in zip(pair, others, strict=True):
                mine[row, :, :length] = other[source_row, :, :length]
                mine[row, :, length:] = 0

    def _zeros(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.num_rows, like.shape[1], self.length + 1, like.shape[3])


def context_length(config: Any) -> int:
    """How many tokens a model of this configuration (transformers') can tell apart, a prompt and
    its completion together. With sliding windows, one window: up to there it is attention to
    everything. Raises UserError for a model that keeps another state than keys and values."""
    other = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if other:
        raise UserError(f"cannot generate with layers of type {', '.join(sorted(other))}")
    limits = (getattr(config, n, None) for n in ("max_position_embeddings", "sliding_window"))
    return min((int(limit) for limit in limits if limit), default=2**31)

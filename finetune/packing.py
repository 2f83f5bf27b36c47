"""Token sequences laid into rows of one length, each segment blind to its neighbours.

A segment's positions start at 0; transformers reads block-diagonal attention from that, if and
only if no attention mask and no cache is passed (transformers#46634), so nobody here passes one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

IGNORE = -100  # the label of a position that predicts nothing


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """B rows of T tokens. `labels_BT[b, t]` is the token to predict at t, or IGNORE."""

    ids_BT: Tensor
    positions_BT: Tensor
    labels_BT: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch(
            self.ids_BT.to(device, non_blocking=True),
            self.positions_BT.to(device, non_blocking=True),
            self.labels_BT.to(device, non_blocking=True),
        )

    @property
    def num_supervised(self) -> int:
        return int((self.labels_BT != IGNORE).sum())

    def rows(self, index: Sequence[int] | np.ndarray) -> "TokenBatch":
        where = torch.as_tensor(np.asarray(index))
        return TokenBatch(self.ids_BT[where], self.positions_BT[where], self.labels_BT[where])


@dataclasses.dataclass(frozen=True)
class Segment:
    """Token ids and, for each, whether it is to be predicted."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]


def pack_stream(documents: Sequence[Sequence[int]], row_length: int, pad_id: int) -> TokenBatch:
    """Documents end to end, cut every `row_length` tokens: no token is lost but the padding.

    A piece cut off goes on in the next row as a segment of its own, its first token unpredicted.
    """
    segments: list[Segment] = []
    room = row_length
    for document in documents:
        start = 0
        while start < len(document):
            piece = tuple(document[start : start + room])
            segments.append(Segment(piece, (True,) * len(piece)))
            start += len(piece)
            room = room - len(piece) or row_length
    return _lay(_rows_in_order(segments, row_length), row_length, pad_id)


def pack_best_fit(
    segments: Sequence[Segment], row_length: int, pad_id: int
) -> tuple[TokenBatch, int]:
    """Whole segments into rows, each into the fullest row that still has room for it.

    Returns the rows and the number of segments longer than a row, which are left out.
    """
    rows: list[list[Segment]] = []
    free: list[int] = []
    fitting = [segment for segment in segments if len(segment.ids) <= row_length]
    for segment in sorted(fitting, key=lambda s: -len(s.ids)):
        length = len(segment.ids)
        best = min(
            (i for i, space in enumerate(free) if space >= length), key=free.__getitem__, default=-1
        )
        if best < 0:
            rows.append([])
            free.append(row_length)
            best = len(rows) - 1
        rows[best].append(segment)
        free[best] -= length
    return _lay(rows, row_length, pad_id), len(segments) - len(fitting)


def pad_right(segments: Sequence[Segment], pad_id: int) -> TokenBatch:
    """One segment a row. Causal attention never looks right, so the padding needs no mask."""
    length = max(len(segment.ids) for segment in segments)
    batch = _lay([[segment] for segment in segments], length, pad_id)
    positions = torch.arange(length).expand_as(batch.ids_BT).contiguous()
    return TokenBatch(batch.ids_BT, positions, batch.labels_BT)


def _rows_in_order(segments: Sequence[Segment], row_length: int) -> list[list[Segment]]:
    rows: list[list[Segment]] = []
    room = 0
    for segment in segments:
        if room == 0:
            rows.append([])
            room = row_length
        rows[-1].append(segment)
        room -= len(segment.ids)
    return rows


def _lay(rows: Sequence[Sequence[Segment]], row_length: int, pad_id: int) -> TokenBatch:
    ids = np.full((len(rows), row_length), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), row_length), dtype=np.int64)
    labels = np.full((len(rows), row_length), IGNORE, dtype=np.int64)
    for r, row in enumerate(rows):
        at = 0
        for segment in row:
            end = at + len(segment.ids)
            ids[r, at:end] = segment.ids
            positions[r, at:end] = np.arange(end - at)
            wanted = np.where(segment.supervised, segment.ids, IGNORE)
            labels[r, at : end - 1] = wanted[1:]  # a segment's last token predicts nothing
            at = end
        positions[r, at:] = np.arange(row_length - at)  # the padding is a segment of its own
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(labels))

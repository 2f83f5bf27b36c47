"""Token sequences laid into rows, each segment blind to its neighbours.

A batch says where its segments begin; finetune/attention.py keeps each to itself by that, in any
model of transformers: no mask that a default could switch off (transformers#46634).
"""

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

IGNORE = -100  # the label of a position that predicts nothing
_MOST_PADDING = 0.2  # of a batch, before its segments are laid end to end


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """B rows of T tokens. `labels_BT[b, t]` is the token to predict at t, or IGNORE; a segment
    begins where `positions_BT` is 0. `lengths[b]` are the lengths of row b's segments, the
    padding's among them; `offsets_S1` is where each of all S begins in the B * T tokens, and the
    end (int32)."""

    ids_BT: Tensor
    positions_BT: Tensor
    labels_BT: Tensor
    lengths: tuple[tuple[int, ...], ...]
    offsets_S1: Tensor

    @staticmethod
    def of(ids_BT: Tensor, positions_BT: Tensor, labels_BT: Tensor) -> "TokenBatch":
        num_rows, row_length = ids_BT.shape
        starts = torch.nonzero(positions_BT.flatten() == 0).flatten().tolist()
        bounds = sorted({*starts, *range(0, ids_BT.numel() + 1, row_length)})
        rows: list[list[int]] = [[] for _ in range(num_rows)]
        for start, end in itertools.pairwise(bounds):
            rows[start // row_length].append(end - start)
        offsets = torch.tensor(bounds, dtype=torch.int32)
        return TokenBatch(ids_BT, positions_BT, labels_BT, tuple(map(tuple, rows)), offsets)

    def to(self, device: torch.device) -> "TokenBatch":
        if device.type == "cpu":
            return self
        tensors = (self.ids_BT, self.positions_BT, self.labels_BT, self.offsets_S1)
        ids, positions, labels, offsets = (t.to(device, non_blocking=True) for t in tensors)
        return TokenBatch(ids, positions, labels, self.lengths, offsets)

    @property
    def num_supervised(self) -> int:
        return int((self.labels_BT != IGNORE).sum())

    @property
    def num_attended(self) -> int:
        """Pairs of tokens in one segment."""
        return sum(length**2 for row in self.lengths for length in row)

    def rows(self, index: Sequence[int] | np.ndarray) -> "TokenBatch":
        where = torch.as_tensor(np.asarray(index))
        return TokenBatch.of(self.ids_BT[where], self.positions_BT[where], self.labels_BT[where])


@dataclasses.dataclass(frozen=True)
class Segment:
    """Token ids and, for each, whether it is to be predicted."""

    ids: Sequence[int]
    supervised: Sequence[bool]


@dataclasses.dataclass(frozen=True)
class SegmentBatch:
    """S segments in one batch, however it is laid: `owner_BT` is the segment of each token (S for
    padding), `ends_S` the place of each one's last token among the B * T, found by length, never by
    a token's id (transformers#35352)."""

    tokens: TokenBatch
    owner_BT: Tensor
    ends_S: Tensor

    def to(self, device: torch.device) -> "SegmentBatch":
        return SegmentBatch(
            self.tokens.to(device), self.owner_BT.to(device), self.ends_S.to(device)
        )

    def sums(self, values_BT: Tensor) -> Tensor:
        """The sum over each segment's positions. [S]"""
        total = values_BT.new_zeros(len(self.ends_S) + 1)
        return total.index_add(0, self.owner_BT.flatten(), values_BT.flatten())[:-1]


def pack_stream(documents: Iterable[Sequence[int]], row_length: int, pad_id: int) -> TokenBatch:
    """Documents end to end, cut every `row_length` tokens: no token is lost, and only the last row
    has padding. A piece cut off goes on in the next row as a segment of its own, its first token
    unpredicted."""
    rows: list[list[Sequence[int]]] = [[]]
    room = row_length
    for document in documents:
        at = 0
        while at < len(document):
            if room == 0:
                rows.append([])
                room = row_length
            piece = document[at : at + room]
            rows[-1].append(piece)
            at += len(piece)
            room -= len(piece)
    return lay_pieces(rows if rows[0] else [], row_length, pad_id)


def lay_pieces(rows: Sequence[Sequence[Sequence[int]]], row_length: int, pad_id: int) -> TokenBatch:
    """Rows of pieces that are supervised throughout."""
    segments = [[Segment(piece, (True,) * len(piece)) for piece in row] for row in rows]
    return _lay(segments, row_length, pad_id)[0]


def pack_best_fit(
    segments: Sequence[Segment], row_length: int, pad_id: int
) -> tuple[TokenBatch, int]:
    """Whole segments into rows, the longest first, each into the fullest row that has room for it.

    Returns the rows and the number of segments longer than a row, which are left out: they never
    wait in a buffer that they cannot leave (nanochat#590).
    """
    rows: list[list[Segment]] = []
    with_room: dict[int, list[int]] = {}  # free tokens -> rows
    rooms: list[int] = []  # the keys that have rows, in order
    fitting = [segment for segment in segments if len(segment.ids) <= row_length]
    for segment in sorted(fitting, key=lambda s: -len(s.ids)):
        at = bisect.bisect_left(rooms, len(segment.ids))
        if at == len(rooms):
            row, room = len(rows), row_length
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        rows[row].append(segment)
        left = room - len(segment.ids)
        waiting = with_room.setdefault(left, [])
        if not waiting:
            bisect.insort(rooms, left)
        waiting.append(row)
    return _lay(rows, row_length, pad_id)[0], len(segments) - len(fitting)


def lay_segments(segments: Sequence[Segment], pad_id: int) -> SegmentBatch:
    """A batch of these segments: a row each if they are about equally long, else all in one row,
    where there is no padding to compute. Causal attention never looks right, so padding needs no
    mask."""
    lengths = [len(segment.ids) for segment in segments]
    longest = max(lengths)
    if sum(lengths) >= (1 - _MOST_PADDING) * longest * len(segments):
        batch, owner = _lay([[segment] for segment in segments], longest, pad_id, alone=True)
        ends = [row * longest + length - 1 for row, length in enumerate(lengths)]
    else:
        batch, owner = _lay([segments], sum(lengths), pad_id)
        ends = [end - 1 for end in itertools.accumulate(lengths)]
    owner[owner < 0] = len(segments)
    return SegmentBatch(batch, owner, torch.tensor(ends))


def pad_right(segments: Sequence[Segment], pad_id: int) -> TokenBatch:
    """One segment a row, padded behind."""
    longest = max(len(segment.ids) for segment in segments)
    return _lay([[segment] for segment in segments], longest, pad_id, alone=True)[0]


def _lay(
    rows: Sequence[Sequence[Segment]], row_length: int, pad_id: int, *, alone: bool = False
) -> tuple[TokenBatch, Tensor]:
    """The rows, and which segment each token is of (-1 for padding). `alone`: a row's padding
    belongs to its one segment, so that all segments are equally long."""
    ids = np.full((len(rows), row_length), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), row_length), dtype=np.int64)
    labels = np.full((len(rows), row_length), IGNORE, dtype=np.int64)
    owner = np.full((len(rows), row_length), -1, dtype=np.int64)
    number = 0
    for r, row in enumerate(rows):
        at = 0
        for segment in row:
            end = at + len(segment.ids)
            ids[r, at:end] = segment.ids
            positions[r, at:end] = np.arange(end - at)
            wanted = np.where(segment.supervised, ids[r, at:end], IGNORE)
            labels[r, at : end - 1] = wanted[1:]  # a segment's last token predicts nothing
            owner[r, at:end] = number
            number += 1
            at = end
        # Padding is a segment of its own, or goes on where the only one ends.
        positions[r, at:] = np.arange(row_length - at) + (at if alone else 0)
    tensors = (torch.from_numpy(array) for array in (ids, positions, labels))
    return TokenBatch.of(*tensors), torch.from_numpy(owner)

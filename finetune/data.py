"""Where a step's tokens come from: shards streamed by row group, or rows that lie in memory.

Order is a function of the seed; a cursor of four numbers says where a stream stands, in mid-epoch
and in mid-document, so that a resumed run reads on at the very same token.
"""

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import nn

from finetune.loop import Step, Steps, Update
from finetune.packing import TokenBatch, lay_pieces
from finetune.tokenizer import PAD, encode_documents, token_id
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest
from pipeline.core.records import Document, open_table

_DOCUMENTS_AT_ONCE = 64  # tokenised together
Pieces = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Before `token` of document `document` of the group at `place` in the epoch's order."""

    epoch: int = 0
    place: int = 0
    document: int = 0
    token: int = 0


class ShardRows:
    """Steps of rows cut from the train shards' documents laid end to end. Row groups come in an
    order of their own each epoch, documents in one within their group. The next step is made
    ready by a thread while this one trains."""

    def __init__(
        self,
        shards: Manifest,
        tokenizer: Tokenizer,
        row_length: int,
        batch_rows: int,
        micro_batch_rows: int,
        seed: int,
    ) -> None:
        self.tokenizer, self.row_length, self.seed = tokenizer, row_length, seed
        self.batch_rows, self.micro_batch_rows = batch_rows, micro_batch_rows
        self.groups = _row_groups(shards)
        self.num_documents = sum(size for _, _, size in self.groups)
        if not self.num_documents:
            raise UserError(f"{shards.url} holds no training documents; build a corpus with some")
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "rows")
        self.restore(dataclasses.asdict(Cursor()))

    def step_of(self, step: int, model: nn.Module) -> Step[TokenBatch]:
        made, self._cursor = self._next.result()
        self._next = self._pool.submit(self._make)
        return made

    def state(self) -> dict[str, Any]:
        return dataclasses.asdict(self._cursor)

    def restore(self, state: dict[str, Any]) -> None:
        if hasattr(self, "_next"):
            self._next.result()  # of the old place; the thread must not write into the new one
        self._cursor = Cursor(**state)
        self._rows = self.rows(self._cursor)
        self._next = self._pool.submit(self._make)

    @property
    def epochs(self) -> float:
        """How often the corpus was read, up to the cursor; a row group counts by its documents."""
        at = self._cursor
        order = self._order(at.epoch)
        read = sum(self.groups[int(group)][2] for group in order[: at.place])
        return at.epoch + (read + at.document) / self.num_documents

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))

    def rows(self, cursor: Cursor) -> Iterator[tuple[Pieces, Cursor]]:
        """Full rows without end, each with the cursor behind it. A row ends where the cursor
        stands, so nothing but the cursor is needed to go on."""
        pieces: Pieces = []
        room = self.row_length
        for at, ids in self._documents(cursor):
            token = at.token
            while token < len(ids):
                piece = ids[token : token + room]
                pieces.append(piece)
                token += len(piece)
                room -= len(piece)
                if room == 0:
                    yield pieces, dataclasses.replace(at, token=token)
                    pieces, room = [], self.row_length

    def _make(self) -> tuple[Step[TokenBatch], Cursor]:
        taken = [next(self._rows) for _ in range(self.batch_rows)]
        rows = lay_pieces(
            [pieces for pieces, _ in taken], self.row_length, token_id(self.tokenizer, PAD)
        )
        return step_of_rows(rows, range(self.batch_rows), self.micro_batch_rows), taken[-1][1]

    def _documents(self, cursor: Cursor) -> Iterator[tuple[Cursor, list[int]]]:
        while True:
            order = self._order(cursor.epoch)
            for place in range(cursor.place, len(order)):
                group = int(order[place])
                start = cursor.document if place == cursor.place else 0
                for document, ids in self._group(group, cursor.epoch, start):
                    token = cursor.token if (place, document) == (cursor.place, start) else 0
                    yield Cursor(cursor.epoch, place, document, token), ids
            cursor = Cursor(cursor.epoch + 1)

    def _group(self, group: int, epoch: int, start: int) -> Iterator[tuple[int, list[int]]]:
        url, index, size = self.groups[group]
        with open_table(url, Document.NAME, Document.VERSION, ["text"]) as file:
            texts = file.read_row_group(index, columns=["text"]).column("text")
        order = np.random.default_rng([self.seed, epoch, group + 1]).permutation(size)
        for at in range(start, size, _DOCUMENTS_AT_ONCE):
            several = [texts[int(i)].as_py() for i in order[at : at + _DOCUMENTS_AT_ONCE]]
            yield from enumerate(encode_documents(self.tokenizer, several), start=at)


def _row_groups(shards: Manifest) -> list[tuple[str, int, int]]:
    """(file, index, documents) of each row group of the train shards."""
    groups: list[tuple[str, int, int]] = []
    for entry in shards.files:
        if entry.name.startswith("train-"):
            url = shards.file_url(entry.name)
            with open_table(url, Document.NAME, Document.VERSION, ["text"]) as file:
                sizes = [
                    file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
                ]
            groups += [(url, index, size) for index, size in enumerate(sizes)]
    return groups


def batches_of(rows: TokenBatch, batch_rows: int, micro_batch_rows: int, seed: int) -> Steps:
    """Step n's rows as a function of (seed, n): each epoch is a fresh shuffle of all rows."""

    def step_of(step: int, _model: nn.Module) -> Step[TokenBatch]:
        index = shuffled_epochs(len(rows.ids_BT), step * batch_rows, batch_rows, seed)
        return step_of_rows(rows, index, micro_batch_rows)

    return Steps(step_of)


def step_of_rows(
    rows: TokenBatch, index: Sequence[int] | np.ndarray, micro_batch_rows: int
) -> Step[TokenBatch]:
    """One update of these rows, so many on the device at once."""
    micro_batches = [
        rows.rows(np.asarray(index[at : at + micro_batch_rows]))
        for at in range(0, len(index), micro_batch_rows)
    ]
    count = sum(batch.num_supervised for batch in micro_batches)
    num_tokens = sum(batch.ids_BT.numel() for batch in micro_batches)
    attended = sum(batch.num_attended for batch in micro_batches)
    return Step([Update(micro_batches, count)], num_tokens, attended)


def shuffled_epochs(num_items: int, start: int, number: int, seed: int) -> np.ndarray:
    """Items start .. start + number of an endless sequence of shuffled epochs."""
    wanted = np.arange(start, start + number)
    result = np.empty(number, dtype=np.int64)
    for epoch in np.unique(wanted // num_items):
        order = np.random.default_rng([seed, int(epoch)]).permutation(num_items)
        here = wanted // num_items == epoch
        result[here] = order[wanted[here] % num_items]
    return result

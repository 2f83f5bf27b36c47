"""A split's packed tokens as one long sequence, mapped into memory: read from any token or row.

A row is a document, the same one as in the shards; its tokens include what was laid around it.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import FileEntry, Manifest

STAGE = "tokens"
SPLITS = ("train", "heldout")
Ids = npt.NDArray[np.unsignedinteger]


def tokens_name(stem: str) -> str:
    """The file of a shard's tokens; `stem` as in train-00000."""
    return f"tokens-{stem}.bin"


def starts_name(stem: str) -> str:
    """The file that says where each document of a shard begins, and where the last one ends."""
    return f"starts-{stem}.npy"


@dataclasses.dataclass(frozen=True)
class TokenReader:
    """`token_bounds`, `row_bounds`: the first token and the first row of each file; the ends."""

    tokens: Manifest
    split: str
    dtype: np.dtype[np.unsignedinteger]
    stems: tuple[str, ...]
    token_bounds: tuple[int, ...]
    row_bounds: tuple[int, ...]

    @staticmethod
    def of(tokens: Manifest, split: str = "train") -> "TokenReader":
        """Raises UserError if the manifest is not of tokens or not in a local folder, a file of it
        is gone or has another size, or there is no such split."""
        if tokens.stage != STAGE:
            raise UserError(f"{tokens.url} is an output of {tokens.stage}; give one of {STAGE}")
        if split not in SPLITS:
            raise UserError(f"{split!r} is no split of the tokens; give one of {', '.join(SPLITS)}")
        if not storage.is_local(tokens.url):
            raise UserError(f"{tokens.url} cannot be mapped into memory; copy it to a local disk")
        tokens.check_files()
        entries = {entry.name: entry for entry in tokens.files}
        prefix = tokens_name(f"{split}-").removesuffix(".bin")
        stems = tuple(
            name.removeprefix("tokens-").removesuffix(".bin")
            for name in entries
            if name.startswith(prefix)
        )
        dtype = np.dtype(tokens.facts["dtype"]).newbyteorder("<")
        return TokenReader(
            tokens,
            split,
            dtype,
            stems,
            _bounds([entries[tokens_name(stem)] for stem in stems]),
            _bounds([entries[starts_name(stem)] for stem in stems]),
        )

    @property
    def num_tokens(self) -> int:
        return self.token_bounds[-1]

    @property
    def num_rows(self) -> int:
        return self.row_bounds[-1]

    def read(self, start: int, end: int) -> Ids:
        """The tokens `start` … `end` - 1, a copy. Raises IndexError if they are not all there."""
        if not 0 <= start <= end <= self.num_tokens:
            raise IndexError(f"tokens {start} to {end} of {self.num_tokens}")
        found = np.empty(end - start, self.dtype.newbyteorder("="))
        at = start
        while at < end:
            number = bisect.bisect_right(self.token_bounds, at) - 1
            base = self.token_bounds[number]
            stop = min(end, self.token_bounds[number + 1])
            ids = _mapped(self.tokens.file_url(tokens_name(self.stems[number])), self.dtype.str)
            found[at - start : stop - start] = ids[at - base : stop - base]
            at = stop
        return found

    def start_of(self, row: int) -> int:
        """The first token of a row; of num_rows: num_tokens."""
        if not 0 <= row <= self.num_rows:
            raise IndexError(f"row {row} of {self.num_rows}")
        if row == self.num_rows:
            return self.num_tokens
        number = bisect.bisect_right(self.row_bounds, row) - 1
        return self.token_bounds[number] + int(self._starts(number)[row - self.row_bounds[number]])

    def row_of(self, token: int) -> int:
        """The row that has this token."""
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"token {token} of {self.num_tokens}")
        number = bisect.bisect_right(self.token_bounds, token) - 1
        place = np.uint64(token - self.token_bounds[number])
        within = int(np.searchsorted(self._starts(number), place, "right")) - 1
        return self.row_bounds[number] + within

    def document(self, row: int) -> Ids:
        return self.read(self.start_of(row), self.start_of(row + 1))

    def blocks(self, length: int, token: int = 0) -> Iterator[tuple[int, Ids]]:
        """(first token, `length` tokens) one after the other from `token` on, which is all that it
        takes to go on later; the last block may be shorter."""
        for at in range(token, self.num_tokens, length):
            yield at, self.read(at, min(at + length, self.num_tokens))

    def _starts(self, number: int) -> npt.NDArray[np.uint64]:
        return _starts_at(self.tokens.file_url(starts_name(self.stems[number])))


def _bounds(entries: list[FileEntry]) -> tuple[int, ...]:
    return tuple(itertools.accumulate((entry.num_rows for entry in entries), initial=0))


@functools.lru_cache(maxsize=64)
def _mapped(url: str, dtype: str) -> Ids:
    path = storage.local_path(url)
    return np.memmap(path, np.dtype(dtype), mode="r")


@functools.lru_cache(maxsize=64)
def _starts_at(url: str) -> npt.NDArray[np.uint64]:
    return np.load(storage.local_path(url), mmap_mode="r")

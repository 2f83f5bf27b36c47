"""Which URLs are known: exact, and on disk but for the newest.

A URL is its 128-bit xxh3 fingerprint (two of 100 million agree with probability 1e-23). The newest
are a set in memory; a full set becomes a sorted run on disk, and runs of like size are merged.
A run is mapped, not read: what the process holds of it is the system's page cache.
"""

import dataclasses
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pipeline.core import storage

Keys = npt.NDArray[np.uint64]
_MERGE_ROWS = 1 << 16  # rows of a run looked at together while merging
_BLOCK = 8 << 20  # bytes under one checksum
_CHECKED_BLOCKS = 32  # of a run at its opening: all of it up to 256 MB


class DamagedRunError(Exception):
    """A run is not what its owner wrote; what it held is in the log."""


@dataclasses.dataclass(frozen=True)
class RunFile:
    """What names a run: `sums` are the xxh3-64 checksums of its blocks of 8 MiB, in hex."""

    name: str
    num_bytes: int
    sums: tuple[str, ...]

    def to_json(self) -> list[Any]:
        return [self.name, self.num_bytes, " ".join(self.sums)]

    @staticmethod
    def of_json(data: Sequence[Any]) -> "RunFile":
        name, num_bytes, sums = data
        return RunFile(str(name), int(num_bytes), tuple(sums.split()))


@dataclasses.dataclass(frozen=True)
class Run:
    """A file of n rows: n upper halves in ascending order, then the n lower halves."""

    file: RunFile
    high: Keys
    low: Keys
    map: mmap.mmap | None

    def __len__(self) -> int:
        return len(self.high)

    def holds(self, high: Keys, low: Keys) -> npt.NDArray[np.bool_]:
        """For each key whether it is in the run."""
        at = np.searchsorted(self.high, high)
        found = np.zeros(len(high), bool)
        for row in np.flatnonzero(at < len(self.high)):
            place = int(at[row])
            while place < len(self.high) and self.high[place] == high[row]:
                if self.low[place] == low[row]:
                    found[row] = True
                    break
                place += 1
        return found


class SeenSet:
    """The fingerprints of one frontier shard. `folder` holds its runs; which of them count is
    told from outside (`runs`), since a kill may leave files behind that nothing names."""

    def __init__(
        self, folder: Path, runs: Sequence[RunFile] = (), max_recent: int = 1 << 18
    ) -> None:
        """Raises DamagedRunError, and has changed nothing then."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.max_recent = folder, max_recent
        self._recent: set[bytes] = set()
        self._runs = [_open(folder, run) for run in runs]
        self.discard()
        self._next = 1 + max([int(run.name[5:-4]) for run in runs], default=-1)

    def __len__(self) -> int:
        return len(self._recent) + sum(len(run) for run in self._runs)

    @property
    def runs(self) -> list[RunFile]:
        return [run.file for run in self._runs]

    @property
    def is_full(self) -> bool:
        """Whether the newest are to be spilled: the owner does it, for it has to write it down."""
        return len(self._recent) >= self.max_recent

    def add_new(self, urls: Sequence[str]) -> list[str]:
        """Make the URLs known and return those that were not, in order and once each."""
        fresh: dict[bytes, str] = {}
        for url in urls:
            key = xxhash.xxh3_128_digest(url.encode())
            if key not in self._recent:
                fresh.setdefault(key, url)
        if fresh and self._runs:
            fresh = self._not_in_runs(fresh)
        self._recent.update(fresh)
        return list(fresh.values())

    def _not_in_runs(self, fresh: dict[bytes, str]) -> dict[bytes, str]:
        high, low = _halves(fresh)
        known = np.zeros(len(fresh), bool)
        for run in self._runs:
            known |= run.holds(high, low)
        return {key: url for (key, url), old in zip(fresh.items(), known, strict=True) if not old}

    def spill(self) -> list[RunFile]:
        """Write the newest as a run, merge runs of like size, and return the runs that count now.

        The files that no longer count stay until `discard`: whoever reads the older list needs
        them.
        """
        if self._recent:
            high, low = _halves(self._recent)
            order = np.argsort(high, kind="stable")
            self._runs.append(self._write([(high[order], low[order])]))
            self._recent.clear()
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(self._write(_merged(older, newer)))
        for run in self._runs:
            if run.map is not None:  # hand back the pages that the lookups have touched
                run.map.madvise(mmap.MADV_DONTNEED)
        return self.runs

    def discard(self) -> None:
        """Delete the files that no longer count."""
        names = {run.name for run in self.runs}
        for path in self.folder.glob("seen-*.run"):
            if path.name not in names:
                path.unlink()

    def _write(self, parts: Iterable[tuple[Keys, Keys]]) -> Run:
        """`parts` in ascending order; two files at first, since the halves lie apart."""
        name = f"seen-{self._next:06d}.run"
        self._next += 1
        with storage.atomic_file(str(self.folder / name)) as path:
            lower = path.with_suffix(".low")
            try:
                with path.open("wb") as file, lower.open("wb") as beside:
                    for high, low in parts:
                        file.write(high.tobytes())
                        beside.write(low.tobytes())
                with path.open("ab") as file, lower.open("rb") as beside:
                    while block := beside.read(1 << 20):
                        file.write(block)
            finally:
                lower.unlink(missing_ok=True)
            num_bytes = path.stat().st_size
            sums = tuple(_sum(path, at) for at in range(0, num_bytes, _BLOCK))
        return _mapped(self.folder, RunFile(name, num_bytes, sums))


def _halves(keys: "dict[bytes, str] | set[bytes]") -> tuple[Keys, Keys]:
    both = np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 2)
    return both[:, 0].astype(np.uint64), both[:, 1].astype(np.uint64)


def _merged(a: Run, b: Run) -> Iterator[tuple[Keys, Keys]]:
    """The rows of both in ascending order, piece by piece."""
    at_a = at_b = 0
    while at_a < len(a) or at_b < len(b):
        end_a, end_b = min(at_a + _MERGE_ROWS, len(a)), min(at_b + _MERGE_ROWS, len(b))
        # Up to the smaller of the two pieces' last keys all rows of both are at hand.
        lasts = [
            run.high[end - 1] for run, at, end in ((a, at_a, end_a), (b, at_b, end_b)) if end > at
        ]
        limit = min(lasts)
        end_a = at_a + int(np.searchsorted(a.high[at_a:end_a], limit, side="right"))
        end_b = at_b + int(np.searchsorted(b.high[at_b:end_b], limit, side="right"))
        high = np.concatenate([a.high[at_a:end_a], b.high[at_b:end_b]])
        low = np.concatenate([a.low[at_a:end_a], b.low[at_b:end_b]])
        order = np.argsort(high, kind="stable")
        yield high[order], low[order]
        at_a, at_b = end_a, end_b


def _open(folder: Path, run: RunFile) -> Run:
    """A run that somebody wrote before; of a large one, blocks from all over it are checked."""
    path = folder / run.name
    try:
        num_bytes = path.stat().st_size
        if num_bytes != run.num_bytes or len(run.sums) != -(-num_bytes // _BLOCK):
            raise DamagedRunError(f"{path} has {num_bytes:,} bytes instead of {run.num_bytes:,}")
        for number in _chosen(len(run.sums)):
            if _sum(path, number * _BLOCK) != run.sums[number]:
                raise DamagedRunError(f"{path} is damaged behind byte {number * _BLOCK:,}")
    except FileNotFoundError:
        raise DamagedRunError(f"{path} is gone") from None
    except OSError as error:  # a folder, or what a disk cannot read
        raise DamagedRunError(f"{path} cannot be read: {error.strerror}") from None
    return _mapped(folder, run)


def _chosen(num_blocks: int) -> list[int]:
    if num_blocks <= _CHECKED_BLOCKS:
        return list(range(num_blocks))
    return np.linspace(0, num_blocks - 1, _CHECKED_BLOCKS).astype(int).tolist()


def _sum(path: Path, start: int) -> str:
    """Of the block that begins there, read piece by piece."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(_BLOCK >> 16):
            digest.update(file.read(1 << 16))
    return digest.hexdigest()


def _mapped(folder: Path, run: RunFile) -> Run:
    path, num_bytes = folder / run.name, run.num_bytes
    assert num_bytes % 16 == 0, path
    if num_bytes == 0:
        empty = np.zeros(0, np.uint64)
        return Run(run, empty, empty, None)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    both = np.frombuffer(mapped, dtype=np.uint64)
    half = num_bytes // 16
    return Run(run, both[:half], both[half:], mapped)

"""The snapshot of a frontier shard's state on the disk: what saves its successor the log up to
there."""

import array
import dataclasses
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.frontier_state import Host, Tally
from pipeline.seen import DamagedRunError, RunFile, SeenSet

SNAPSHOT = "snapshot.npz"
_BLOCK = 1 << 20
# What zipfile, numpy and the reader below say to a file that was damaged or cut.
_DAMAGE = (
    *(OSError, EOFError, AssertionError, ValueError, LookupError, TypeError, AttributeError),
    *(RuntimeError, ArithmeticError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
)


class DamagedSnapshotError(Exception):
    """The file is not what its owner wrote; all that it told is in the log."""


@dataclasses.dataclass
class Snapshot:
    """`end`: the log's address up to which it tells; `runs`: the seen-set's files; `pauses`: as
    pipeline/pauses.py has them."""

    end: int = 0
    runs: Sequence[RunFile] = ()
    tally: Tally = dataclasses.field(default_factory=Tally)
    hosts: Sequence[Host] = ()
    pauses: Sequence[Sequence[Any]] = ()


def write_snapshot(
    folder: Path, head: Snapshot, hosts: Mapping[str, Host], in_flight: Mapping[str, int]
) -> None:
    """What is in flight counts as waiting: whoever reads this has not fetched it. The queues are
    written as they lie in memory, none is copied."""
    rows: list[str] = []
    count = 0
    for host in hosts.values():
        lengths = [[priority, size] for priority, size in host.sizes(host.name in in_flight)]
        count += sum(size for _, size in lengths)
        had = [host.pages, host.num_bytes, host.dropped, host.shortest_gap_s]
        rows.append(json.dumps([host.name, *had, lengths, host.asked_s()]))
    meta = json.dumps(
        {
            "end": head.end,
            "runs": [run.to_json() for run in head.runs],
            "tally": head.tally.to_json(),
            "pauses": list(head.pauses),
        }
    )
    text = f'{meta[:-1]}, "hosts": [{",".join(rows)}]}}'.encode()
    del rows
    with (
        storage.atomic_file(str(folder / SNAPSHOT)) as path,
        zipfile.ZipFile(path, "w") as parts,
    ):
        with parts.open("meta.npy", "w") as file:
            np.lib.format.write_array(file, np.frombuffer(text, np.uint8))
        with parts.open("addresses.npy", "w", force_zip64=True) as file:
            header = {"descr": "<u8", "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, header)
            block = bytearray()
            for host in hosts.values():
                for piece in host.pieces(in_flight.get(host.name)):
                    block += piece
                    if len(block) >= _BLOCK:
                        file.write(block)
                        block.clear()
            file.write(block)


def read_snapshot(folder: Path) -> Snapshot:
    """The last one; an empty one if there is none. Raises DamagedSnapshotError, and UserError for
    what is no file."""
    path = folder / SNAPSHOT
    if not path.exists():
        return Snapshot()
    if path.is_dir():
        raise UserError(f"{path} is a folder where a file belongs; remove it")
    try:
        with zipfile.ZipFile(path) as parts:
            with parts.open("meta.npy") as file:
                meta = json.loads(np.lib.format.read_array(file).tobytes())
            with parts.open("addresses.npy") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                hosts = list(_hosts(meta.pop("hosts"), file))
                assert not file.read(1), "more addresses than queues"  # checks the sum, too
        runs = [RunFile.of_json(run) for run in meta["runs"]]
        tally = Tally.of_json(meta["tally"])
        return Snapshot(int(meta["end"]), runs, tally, hosts, meta["pauses"])
    except _DAMAGE as error:
        raise DamagedSnapshotError(f"{path} is damaged ({error})") from None


def last_state(
    folder: Path, log_start: int, bytes_in_warc: Callable[[str], int], max_recent: int
) -> tuple[Snapshot, SeenSet, str]:
    """The last snapshot and the seen-set of its runs. If either is damaged, both are empty, for the
    log tells everything; then what is wrong comes third. `log_start`: the address behind all that
    the log had when this owner came. Raises UserError for what the log cannot mend."""
    try:
        snapshot = read_snapshot(folder)
        _check_files(folder, snapshot, log_start, bytes_in_warc)
        return snapshot, SeenSet(folder, snapshot.runs, max_recent), ""
    except (DamagedSnapshotError, DamagedRunError) as error:
        if log_start == 0:
            raise UserError(f"{error} and the log is gone; delete {folder} to crawl anew") from None
        return Snapshot(), SeenSet(folder, (), max_recent), str(error)


def _check_files(
    folder: Path, snapshot: Snapshot, log_start: int, bytes_in_warc: Callable[[str], int]
) -> None:
    if snapshot.end > log_start:
        raise UserError(
            f"the log in {folder} is shorter than its snapshot says; delete {folder} to crawl anew"
        )
    for name, end in snapshot.tally.warc_ends.items():
        if bytes_in_warc(name) < end:  # it was on the disk once: no power cut took it
            raise UserError(
                f"{folder / name} is gone or cut short: {end:,} bytes of it are in the log; put"
                f" it back, or delete {folder} to crawl anew"
            )


def _hosts(rows: Sequence[Sequence[Any]], file: IO[bytes]) -> Iterator[Host]:
    for name, pages, num_bytes, dropped, gap, lengths, asked_s in rows:
        host = Host(name)
        host.asked_for_s = asked_s
        host.pages, host.num_bytes, host.dropped, host.shortest_gap_s = (
            pages,
            num_bytes,
            dropped,
            gap,
        )
        for priority, length in lengths:
            data = file.read(8 * length)
            if len(data) != 8 * length:
                raise EOFError("fewer addresses than queues")
            host.queues[priority] = array.array("Q", data)
            host.heads[priority] = 0
        yield host

"""Runs a stage's tasks over shards: each leaves a receipt, so a rerun does only what is left.

What a task took (processor seconds, memory) stands in its receipt, and in the manifest's `run`.
"""

import dataclasses
import json
import logging
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core import storage
from pipeline.core.identity import canonical_json
from pipeline.core.manifest import MANIFEST, Counts, DamagedOutput, FileEntry, Spent, StageOutput
from pipeline.core.progress import Progress
from pipeline.core.remote import Runtime

log = logging.getLogger(__name__)
RECEIPT = ".done.json"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What one shard's task made; `facts` is small JSON for the stage to add up."""

    files: tuple[FileEntry, ...]
    counts: Counts
    facts: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])


def map_shards(
    runtime: Runtime,
    output: StageOutput,
    phase: str,
    function: Callable[[T], ShardResult],
    tasks: Mapping[str, T],
) -> list[ShardResult]:
    """Run `function` on each named task and give the results in the order of `tasks`.

    A finished task leaves a receipt, `{phase}-{name}.done.json`, and is not run again. Tasks are
    pure functions of their input, so neither the order nor the number of workers shows. What they
    took, in earlier runs too, is added up in `output.spent`.
    """
    done: dict[str, ShardResult] = {}
    spent = Spent(0, 0)
    receipts = {name: f"{phase}-{name}{RECEIPT}" for name in tasks}
    present = storage.sizes(output.url, receipts.values())
    for name in tasks:
        if receipts[name] not in present:
            continue
        if (found := _read_receipt(output.path(receipts[name]))) is not None:
            done[name] = found[0]
            spent += found[1]
    pending = [name for name in tasks if name not in done]
    with Progress(f"{output.stage} {phase}", total=len(tasks), unit="shards") as progress:
        progress.advance(len(done))
        calls = [(function, tasks[name]) for name in pending]
        for index, (result, took) in runtime.map(_measured, calls):
            name = pending[index]
            receipt = output.path(receipts[name])
            facts = dataclasses.asdict(result) | {"spent": dataclasses.asdict(took)}
            storage.write_bytes(receipt, canonical_json(facts).encode())
            done[name] = result
            spent += took
            progress.advance(1)
    output.spent[phase] = spent
    return [done[name] for name in tasks]


def _measured(call: tuple[Callable[[T], ShardResult], T]) -> tuple[ShardResult, Spent]:
    function, task = call
    before = _cpu_seconds()
    result = function(task)
    return result, Spent(round(_cpu_seconds() - before, 4), _peak_mb())


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _peak_mb() -> float:
    """The largest resident size so far of this process or of one of its children that have ended;
    of this one only where there is a /proc to tell."""
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return largest
    own = int(status.partition("VmHWM:")[2].split()[0]) / 1024 if "VmHWM:" in status else 0.0
    return max(largest, own)


def _read_receipt(url: str) -> tuple[ShardResult, Spent] | None:
    """None for one that cannot be read, which is said: it is only a cache, its task runs again."""
    try:
        data = json.loads(storage.read_bytes(url))
        files = tuple(FileEntry(**entry) for entry in data["files"])
        spent = Spent(**data["spent"])
        return ShardResult(files, Counts(**data["counts"]), data["facts"]), spent
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):  # of Counts, too
        log.warning("%s is damaged; what it stands for is done again", url)
        return None


def forget(damage: DamagedOutput) -> None:
    """Have the stage's next run make the file again, and with it the manifest; what else it has
    made stays. The manifest goes last: until then the damage is found anew."""
    for name in storage.names_in(damage.folder):
        if name.endswith(RECEIPT):
            url = storage.join(damage.folder, name)
            found = _read_receipt(url)
            if found and any(entry.name == damage.name for entry in found[0].files):
                storage.remove(url)
    storage.remove(damage.url)
    storage.remove(storage.join(damage.folder, MANIFEST))

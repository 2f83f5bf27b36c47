"""Runs dedupe's steps, and in the end deletes the files that no later run reads.

What is left over is listed in a file before the manifest is written, so that a run that was killed
in the middle of the deletion is finished, and the next look at it deletes the rest.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeline.core import storage
from pipeline.core.manifest import StageOutput, is_planning
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult, map_shards
from pipeline.dedupe_files import KEPT, LAYOUT, STEPS

log = logging.getLogger(__name__)
LEFTOVERS = "leftovers.json"
_BATCH = 1000  # files to delete in a task
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class StepRunner:
    """Maps the steps' tasks; `done`: the names of the tasks of each phase."""

    output: StageOutput
    runtime: Runtime
    done: dict[str, list[str]] = dataclasses.field(default_factory=dict[str, list[str]])

    def map(
        self, phase: str, function: Callable[[T], ShardResult], tasks: Mapping[str, T]
    ) -> list[ShardResult]:
        self.done[phase] = list(tasks)
        return map_shards(self.runtime, self.output, phase, function, tasks)

    def list_leftovers(self, chunks: tuple[str, ...], shards: int) -> None:
        """To be called once before the manifest is written."""
        names = [LAYOUT, "gone-copies.bits", "gone-left.bits"]
        names += [f"decisions-{number:05d}.sorted" for number in range(shards)]
        for phase, tasks in self.done.items():
            names += [f"{phase}-{task}.done.json" for task in tasks]
            for kind in _made_by(phase):
                parts = chunks if kind in ("chunk", "needs") else tasks
                names += [f"{kind}-{part}.sorted" for part in parts if kind not in KEPT]
        storage.write_bytes(self.output.path(LEFTOVERS), json.dumps(names).encode())


def _made_by(phase: str) -> list[str]:
    """The kinds of files that a phase's tasks write, one each."""
    return [kind for kind, step in STEPS.items() if step == phase] or [phase]


def delete_leftovers(folder: str, runtime: Runtime) -> None:
    """Of a finished output; a second one at work at once does no harm."""
    url = storage.join(folder, LEFTOVERS)
    if is_planning() or not storage.exists(url):
        return
    try:
        names: list[str] = json.loads(storage.read_bytes(url))
    except (FileNotFoundError, ValueError) as error:
        log.warning("%s cannot be read (%s); what it lists stays", url, error)
        names = []
    urls = [storage.join(folder, name) for name in names if "/" not in name]
    batches = [tuple(urls[at : at + _BATCH]) for at in range(0, len(urls), _BATCH)]
    for _ in runtime.map(_delete, batches):
        pass
    _delete((url,))


def _delete(urls: tuple[str, ...]) -> None:
    for url in urls:
        with contextlib.suppress(FileNotFoundError):
            storage.remove(url)


def facts_of_kept(shards: int, line_ranges: int) -> dict[str, Any]:
    """How many files of each kind stay for later runs (`dedupe.against`), for the manifest."""
    per_shard = dict.fromkeys(sorted(KEPT - {"repeated"}), shards)
    return {**per_shard, "repeated": line_ranges, "gone": 1}

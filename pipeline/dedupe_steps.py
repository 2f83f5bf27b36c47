"""Runs dedupe's steps, and lists the files that no later run reads, to be deleted in the end."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeline.core.leftovers import list_leftovers
from pipeline.core.manifest import StageOutput
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult, map_shards
from pipeline.dedupe_files import KEPT, LAYOUT, STEPS

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
        list_leftovers(self.output.url, names)


def _made_by(phase: str) -> list[str]:
    """The kinds of files that a phase's tasks write, one each."""
    return [kind for kind, step in STEPS.items() if step == phase] or [phase]


def facts_of_kept(shards: int, line_ranges: int) -> dict[str, Any]:
    """How many files of each kind stay for later runs (`dedupe.against`), for the manifest."""
    per_shard = dict.fromkeys(sorted(KEPT - {"repeated"}), shards)
    return {**per_shard, "repeated": line_ranges, "gone": 1}

"""Repeated lines, exact and verified near-duplicates: a sidecar of the documents, nothing removed.

Every step is tasks over shards or key ranges with sorted files between them. The driver holds what
has a copy or an alike one, nothing of the others. Removed documents name the kept one that stands
for them, be it of this corpus or an earlier one, and the verified similarity.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, ShardResult, StageOutput, map_shards
from pipeline.core.remote import Runtime
from pipeline.dedupe_decisions import Copies, Near, decide, link, read_copies
from pipeline.dedupe_files import BANDS, EXACT, LINES, Layout, Place, receipt_of, write_gone
from pipeline.dedupe_groups import RangeTask, find_copies, find_pairs, find_repeated
from pipeline.dedupe_tasks import (
    DEDUPE,
    DEDUPE_VERSION,
    SCHEMA,
    DedupeTask,
    hash_file,
    sign_file,
    write_sidecar,
)
from pipeline.dedupe_verify import (
    PairTask,
    SetsTask,
    VerifyTask,
    pair_cuts,
    split_pairs,
    verify_pairs,
    write_sets,
)
from pipeline.earlier_corpora import places_of, read_earlier
from pipeline.section_files import DamagedFile
from pipeline.text.signatures import Signer

__all__ = ["DEDUPE", "DEDUPE_VERSION", "SCHEMA", "DedupeConfig", "run_dedupe"]
log = logging.getLogger(__name__)
STAGE, VERSION = "dedupe", 3
_RANGE_BYTES = 1 << 25  # of records in one task
_MAX_RANGES = 4096
_MAX_REBUILDS = 2  # of one file


class DedupeConfig(Section):
    line_min_docs: int = Field(
        10, ge=0, description="a line in this many of a host's documents stays in one; 0: all stay"
    )
    line_min_chars: int = Field(20, ge=1, description="shorter lines are left alone")
    shingle_words: int = Field(5, ge=1, description="words in a shingle")
    bands: int = Field(14, ge=1, description="of the MinHash signature")
    rows: int = Field(8, ge=1, description="of a band: MinHash values that must all agree")
    seed: int = Field(1, description="of the MinHash permutations")
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity of near-duplicates")
    max_cluster: int = Field(10_000, ge=1, description="documents that one cluster may link")
    against: list[str] = operational(
        [],
        description="earlier dedupe outputs (folders or URLs): what they kept stands for what is"
        " like it here; what they were deduplicated against themselves counts, too",
    )

    @property
    def signer(self) -> Signer:
        return Signer(self.bands, self.rows, self.seed, self.shingle_words)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What the steps share."""

    config: DedupeConfig
    output: StageOutput
    runtime: Runtime
    earlier: tuple[Manifest, ...]
    tasks: dict[str, DedupeTask]

    def map(self, phase: str, function: Callable[[Any], ShardResult], tasks: Any) -> Any:
        return map_shards(self.runtime, self.output, phase, function, tasks)

    def over_ranges(
        self, phase: str, function: Callable[[Any], ShardResult], number: int, task: RangeTask
    ) -> list[ShardResult]:
        tasks = {
            f"{index:05d}": dataclasses.replace(task, index=index, number=number)
            for index in range(number)
        }
        return self.map(phase, function, tasks)


def run_dedupe(
    config: DedupeConfig, docs: Manifest, quality: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """`dedupe-NNNNN.parquet` beside each `docs-NNNNN.parquet`: row for row.

    Files between the steps that are gone or damaged are made again. Raises UserError for what is
    wrong in `against`.
    """
    earlier = read_earlier(config.against, STAGE, VERSION, config.model_dump())
    parents = {"docs": docs, "quality": quality}
    parents |= {f"against-{index:05d}": manifest for index, manifest in enumerate(earlier)}
    output = StageOutput.of(run.root, STAGE, VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    tasks = _tasks(config, docs, quality, output)
    steps = Steps(config, output, runtime, tuple(earlier), tasks)
    rebuilt: Counter[str] = Counter()
    with output.lock():
        while True:
            try:
                return _dedupe(steps, docs, time.time())
            except DamagedFile as error:
                rebuilt[error.url] += 1
                _forget(output, error, rebuilt[error.url])


def _tasks(
    config: DedupeConfig, docs: Manifest, quality: Manifest, output: StageOutput
) -> dict[str, DedupeTask]:
    return {
        f"{index:05d}": DedupeTask(
            shard=index,
            docs_url=docs.file_url(text.name),
            signals_url=quality.file_url(signal.name),
            folder=output.url,
            line_min_chars=config.line_min_chars if config.line_min_docs else 0,
            signer=config.signer,
        )
        for index, (text, signal) in enumerate(zip(docs.files, quality.files, strict=True))
    }


def _forget(output: StageOutput, error: DamagedFile, times: int) -> None:
    """Have the task that made the file run again. Raises UserError where none of ours did."""
    if not error.url.startswith(output.url):
        raise UserError(f"{error}; delete its folder, and run that corpus's dedupe again") from None
    if times > _MAX_REBUILDS:
        raise error
    log.warning("%s; it is made again", error)
    storage.remove(error.url)
    if receipt := receipt_of(error.url):
        storage.remove(receipt)


def _dedupe(steps: Steps, docs: Manifest, started: float) -> Manifest:
    output, config = steps.output, steps.config
    hashed = steps.map("hash", hash_file, steps.tasks)
    layout = _layout(steps, [result.facts["rows"] for result in hashed])
    layout.write(output.url)
    first = _copies(steps, layout, "copies", "exact")
    write_gone(output.url, "gone-copies", layout, first.handles)
    line_ranges = _repeated(steps, sum(result.facts["lines"] for result in hashed))
    signing = {
        name: dataclasses.replace(task, num_ranges=line_ranges)
        for name, task in steps.tasks.items()
    }
    signed = steps.map("sign", sign_file, signing)
    second = _copies(steps, layout, "left-copies", "left-exact")
    gone = np.union1d(first.handles, second.handles)
    write_gone(output.url, "gone-left", layout, gone)
    near = _near(steps, layout)
    decisions = decide(layout, first, second, near)
    decisions.write(output, layout)
    write_gone(output.url, "gone", layout, decisions.gone)
    last = {
        name: dataclasses.replace(task, corpora=decisions.corpora)
        for name, task in steps.tasks.items()
    }
    written = steps.map("decide", write_sidecar, last)
    facts = {
        **near.facts,
        "removed_lines": sum(result.facts["removed_lines"] for result in signed),
        "removed_line_chars": sum(result.facts["removed_chars"] for result in signed),
        "line_ranges": line_ranges,
    }
    return output.commit(
        [entry for result in written for entry in result.files],
        Counts.total([result.counts for result in written]),
        started=started,
        record=DEDUPE,
        facts=facts,
        run={"docs": docs.url, "against": list(config.against)},
    )


def _layout(steps: Steps, rows: list[int]) -> Layout:
    places = [
        place
        for corpus, manifest in enumerate(steps.earlier)
        for place in places_of(corpus, manifest)
    ]
    for task, number in zip(steps.tasks.values(), rows, strict=True):
        last = len(steps.earlier)
        places.append(Place(last, task.shard, task.folder, task.docs_url, "", number))
    return Layout.of(places)


def _num_ranges(num_bytes: int) -> int:
    """A power of two: of the data alone, so that no number of workers shows."""
    number = 1 if num_bytes < 1 << 20 else 4
    while number < _MAX_RANGES and number * _RANGE_BYTES < num_bytes:
        number *= 2
    return number


def _copies(steps: Steps, layout: Layout, phase: str, kind: str) -> Copies:
    number = _num_ranges(2 * EXACT.itemsize * sum(place.rows for place in layout.places))
    steps.over_ranges(phase, find_copies, number, RangeTask(steps.output.url, kind, 0, 1))
    return read_copies(steps.output, layout, kind, number)


def _repeated(steps: Steps, num_lines: int) -> int:
    """The number of ranges of line keys; 0: lines are left alone."""
    if not steps.config.line_min_docs:
        return 0
    number = _num_ranges(LINES.itemsize * num_lines)
    known = tuple((manifest.url, manifest.facts["line_ranges"]) for manifest in steps.earlier)
    task = RangeTask(
        steps.output.url, "lines", 0, 1, "gone-copies", steps.config.line_min_docs, known
    )
    steps.over_ranges("repeat", find_repeated, number, task)
    return number


def _near(steps: Steps, layout: Layout) -> Near:
    """Group by band keys, verify each candidate pair, link what is alike."""
    output, config = steps.output, steps.config
    num_rows = sum(place.rows for place in layout.places)
    number = _num_ranges(BANDS.itemsize * config.bands * num_rows)
    task = RangeTask(output.url, "bands", 0, 1, "gone-left")
    steps.over_ranges("group", find_pairs, number, task)
    cuts = pair_cuts(output.url, number, num_rows)
    pairs = {
        f"{index:05d}": PairTask(output.url, index, low, high, number)
        for index, (low, high) in enumerate(cuts)
    }
    split = steps.map("pair", split_pairs, pairs)
    chunks = tuple(
        f"{name}-{part:03d}"
        for name, result in zip(pairs, split, strict=True)
        for part in range(result.facts["chunks"])
    )
    sets = {
        f"{index:05d}": SetsTask(output.url, index, chunks, config.signer)
        for index in range(len(layout.places) if chunks else 0)
    }
    steps.map("sets", write_sets, sets)
    verify = {
        chunk: VerifyTask(output.url, chunk, index, len(layout.places), config.threshold)
        for index, chunk in enumerate(chunks)
    }
    steps.map("verify", verify_pairs, verify)
    candidates = sum(result.counts.rows_in for result in split)
    return link(output, layout, chunks, config.max_cluster, candidates)

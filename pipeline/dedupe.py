"""Repeated lines, exact and verified near-duplicates: a sidecar of the documents, nothing removed.

Every step is tasks over shards or key ranges with sorted files between them. The driver holds what
has a copy or an alike one, up to a limit, above which tasks decide. Removed documents name the kept
one that stands for them, be it of this corpus or an earlier one, and the verified similarity.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section, operational
from pipeline.core.errors import UserError
from pipeline.core.leftovers import delete_leftovers
from pipeline.core.manifest import Counts, Manifest, StageOutput
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult
from pipeline.dedupe_components import (
    Files,
    Pieces,
    copies_over_files,
    decide_over_files,
    write_copies,
    write_gone_over_files,
)
from pipeline.dedupe_decisions import (
    Copies,
    decide,
    facts_of,
    read_copies,
    read_names,
    read_near,
    removed_of,
    write_decisions,
)
from pipeline.dedupe_files import BANDS, EXACT, LINES, Layout, Place, receipt_of, write_gone
from pipeline.dedupe_groups import RangeTask, find_copies, find_pairs, find_repeated
from pipeline.dedupe_steps import StepRunner, facts_of_kept
from pipeline.dedupe_tasks import (
    DEDUPE,
    DEDUPE_VERSION,
    SCHEMA,
    DedupeTask,
    hash_file,
    list_urls,
    sign_file,
    write_sidecar,
)
from pipeline.dedupe_urls import URLS, CaptureTask, find_superseded
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
STAGE, VERSION = "dedupe", 7
_RANGE_BYTES = 1 << 25  # of records in one task
_MAX_RANGES = 4096
_MAX_REBUILDS = 2  # of one file


class DedupeConfig(Section):
    same_url: Literal["latest", "all"] = Field(
        "latest", description="of several captures of one URL in this corpus, which go on"
    )
    line_min_docs: int = Field(
        10, ge=0, description="a line in this many of a host's documents stays in one; 0: all stay"
    )
    line_min_chars: int = Field(20, ge=1, description="shorter lines are left alone")
    shingle_words: int = Field(5, ge=1, description="words in a shingle")
    bands: int = Field(14, ge=1, description="of the MinHash signature")
    rows: int = Field(8, ge=1, description="of a band: MinHash values that must all agree")
    seed: int = Field(1, ge=0, lt=1 << 32, description="of the MinHash permutations")
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity of near-duplicates")
    max_cluster: int = Field(10_000, ge=1, description="documents that one cluster may link")
    against: list[str] = operational(
        [],
        description="earlier dedupe outputs (folders or URLs): what they kept stands for what is"
        " like it here; what they were deduplicated against themselves counts, too",
    )
    against_epochs: bool = operational(
        True, description="a recrawl is also compared with the corpora of its earlier epochs"
    )

    max_driver_edges: int = operational(
        10_000_000,
        ge=0,
        description="links between alike documents that the driver may hold, some 300 bytes each;"
        " with more of them tasks over files decide, and the result is the same",
    )

    @property
    def signer(self) -> Signer:
        return Signer(self.bands, self.rows, self.seed, self.shingle_words)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What the steps share; `corpora`: the keys of the earlier outputs."""

    config: DedupeConfig
    runner: StepRunner
    earlier: tuple[Manifest, ...]
    tasks: dict[str, DedupeTask]

    @property
    def folder(self) -> str:
        return self.runner.output.url

    @property
    def corpora(self) -> tuple[str, ...]:
        return tuple(manifest.key for manifest in self.earlier)

    def over_ranges(
        self, phase: str, function: Callable[[Any], ShardResult], number: int, task: RangeTask
    ) -> list[ShardResult]:
        tasks = {
            f"{index:05d}": dataclasses.replace(task, index=index, number=number)
            for index in range(number)
        }
        return self.runner.map(phase, function, tasks)


@dataclasses.dataclass(frozen=True)
class Found:
    """Who is whose copy: in the driver, or in files where there are too many `edges` for it."""

    copies: Copies | Files
    edges: int


def run_dedupe(
    config: DedupeConfig, docs: Manifest, quality: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """`dedupe-NNNNN.parquet` beside each `docs-NNNNN.parquet`: row for row.

    Files between the steps that are gone or damaged are made again. Raises UserError for what is
    wrong in `against`.
    """
    earlier = earlier_of(config)
    parents = {"docs": docs, "quality": quality}
    parents |= {f"against-{index:05d}": manifest for index, manifest in enumerate(earlier)}
    output = StageOutput.of(run.root, STAGE, VERSION, config.identity(), parents)
    if done := output.finished():
        delete_leftovers(output.url, runtime)
        return done
    tasks = _tasks(config, docs, quality, output)
    steps = Steps(config, StepRunner(output, runtime), tuple(earlier), tasks)
    rebuilt: Counter[str] = Counter()
    with output.lock():
        while True:
            try:
                manifest = _dedupe(steps, docs, time.time())
                break
            except DamagedFile as error:
                rebuilt[error.url] += 1
                _forget(output, error, rebuilt[error.url])
        delete_leftovers(output.url, runtime)
    return manifest


def earlier_of(config: DedupeConfig) -> list[Manifest]:
    """What `against` names. Raises UserError for what cannot be compared with."""
    return read_earlier(config.against, STAGE, VERSION, config.model_dump())


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
    runner, config = steps.runner, steps.config
    steps = _latest(steps)
    hashed = runner.map("hash", hash_file, steps.tasks)
    layout = _layout(steps, [result.facts["rows"] for result in hashed])
    layout.write(steps.folder)
    first = _copies(steps, layout, "copies", "exact")
    _write_gone(steps, layout, "gone-copies", first)
    line_ranges = _repeated(steps, sum(result.facts["lines"] for result in hashed))
    signing = {
        name: dataclasses.replace(task, num_ranges=line_ranges)
        for name, task in steps.tasks.items()
    }
    signed = runner.map("sign", sign_file, signing)
    second = _copies(steps, layout, "left-copies", "left-exact")
    _write_gone(steps, layout, "gone-left", first, second)
    near = _near(steps, layout)
    decided, links = _decide(steps, layout, first, second, near)
    last = {
        name: dataclasses.replace(task, corpora=steps.corpora, num_decided=decided)
        for name, task in steps.tasks.items()
    }
    written = runner.map("decide", write_sidecar, last)
    facts = {
        **near.facts,
        **links,
        "removed_lines": sum(result.facts["removed_lines"] for result in signed),
        "removed_line_chars": sum(result.facts["removed_chars"] for result in signed),
        "line_ranges": line_ranges,
        "kept_files": facts_of_kept(len(steps.tasks), line_ranges),
    }
    runner.list_leftovers(near.chunks, len(steps.tasks))
    return runner.output.commit(
        [entry for result in written for entry in result.files],
        Counts.total([result.counts for result in written]),
        started=started,
        record=DEDUPE,
        facts=facts,
        run={"docs": docs.url, "against": list(config.against)},
    )


def _latest(steps: Steps) -> Steps:
    """With the tasks knowing which documents are older captures of a URL."""
    if steps.config.same_url == "all":
        return steps
    listed = steps.runner.map("urls", list_urls, steps.tasks)
    number = _num_ranges(URLS.itemsize * sum(result.counts.rows_in for result in listed))
    shards = len(steps.tasks)
    tasks = {
        f"{index:05d}": CaptureTask(steps.folder, index, number, shards) for index in range(number)
    }
    steps.runner.map("superseded", find_superseded, tasks)
    known = {
        name: dataclasses.replace(task, num_superseded=number) for name, task in steps.tasks.items()
    }
    return dataclasses.replace(steps, tasks=known)


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


def _copies(steps: Steps, layout: Layout, phase: str, kind: str) -> Found:
    number = _num_ranges(2 * EXACT.itemsize * layout.end)
    task = RangeTask(steps.folder, kind, 0, 1)
    found = steps.over_ranges(phase, find_copies, number, task)
    edges = sum(result.facts["copies"] for result in found)
    if edges <= steps.config.max_driver_edges:
        return Found(read_copies(steps.folder, layout, phase, number), edges)
    facts = "texts" if phase == "copies" else "left"
    files = Files(phase, number)
    return Found(copies_over_files(steps.runner, layout, files, edges, facts), edges)


def _write_gone(steps: Steps, layout: Layout, name: str, *found: Found) -> None:
    handles = [one.copies.handles for one in found if isinstance(one.copies, Copies)]
    if len(handles) == len(found):
        write_gone(steps.folder, name, layout, np.unique(np.concatenate(handles)))
    else:
        write_gone_over_files(steps.runner, layout, name, _as_files(steps, *found))


def _as_files(steps: Steps, *found: Found) -> tuple[Files, ...]:
    """In the order of the phases."""
    kinds = ("copies-originals", "left-copies-originals")
    return tuple(
        one.copies
        if isinstance(one.copies, Files)
        else write_copies(steps.runner, kind, one.copies)
        for kind, one in zip(kinds, found, strict=False)
    )


def _repeated(steps: Steps, num_lines: int) -> int:
    """The number of ranges of line keys; 0: lines are left alone."""
    if not steps.config.line_min_docs:
        return 0
    number = _num_ranges(LINES.itemsize * num_lines)
    known = tuple((manifest.url, manifest.facts["line_ranges"]) for manifest in steps.earlier)
    task = RangeTask(steps.folder, "lines", 0, 1, "gone-copies", steps.config.line_min_docs, known)
    steps.over_ranges("repeat", find_repeated, number, task)
    return number


@dataclasses.dataclass(frozen=True)
class Verified:
    """The chunks of pairs, each with its verified ones in a file, and the cuts that they are of."""

    chunks: tuple[str, ...]
    cuts: tuple[tuple[int, int], ...]
    facts: dict[str, Any]


def _near(steps: Steps, layout: Layout) -> Verified:
    """Group by band keys, verify each candidate pair."""
    runner, config, folder = steps.runner, steps.config, steps.folder
    number = _num_ranges(BANDS.itemsize * config.bands * layout.end)
    task = RangeTask(folder, "bands", 0, 1, "gone-left")
    grouped = steps.over_ranges("group", find_pairs, number, task)
    cuts = pair_cuts(folder, number, layout.end)
    pairs = {
        f"{index:05d}": PairTask(folder, index, low, high, number)
        for index, (low, high) in enumerate(cuts)
    }
    split = runner.map("pair", split_pairs, pairs)
    chunks = tuple(
        f"{name}-{part:03d}"
        for name, result in zip(pairs, split, strict=True)
        for part in range(result.facts["chunks"])
    )
    sets = {
        f"{index:05d}": SetsTask(folder, index, chunks, config.signer)
        for index in range(len(layout.places) if chunks else 0)
    }
    runner.map("sets", write_sets, sets)
    verify = {
        chunk: VerifyTask(folder, chunk, index, len(layout.places), config.threshold)
        for index, chunk in enumerate(chunks)
    }
    verified = runner.map("verify", verify_pairs, verify)
    facts = {
        "candidate_pairs": sum(result.counts.rows_in for result in split),
        "uncompared_pairs": sum(result.facts["uncompared"] for result in grouped),
        "verified_pairs": sum(result.counts.rows_out for result in verified),
    }
    return Verified(chunks, tuple(cuts), facts)


def _decide(
    steps: Steps, layout: Layout, first: Found, second: Found, near: Verified
) -> tuple[int, dict[str, Any]]:
    """(the number of files of decisions by handle, 0: a file a shard; facts of the links). Writes
    gone.bits, too."""
    config, corpora, folder = steps.config, steps.corpora, steps.folder
    edges = first.edges + second.edges + near.facts["verified_pairs"]
    if edges > config.max_driver_edges:
        copies = _as_files(steps, first, second)
        pieces = Pieces(copies, near.chunks, near.cuts, edges)
        files, facts = decide_over_files(steps.runner, layout, pieces, config.max_cluster, corpora)
        write_gone_over_files(steps.runner, layout, "gone", (files,))
        return files.number, facts
    assert isinstance(first.copies, Copies)  # it has fewer edges than all together
    assert isinstance(second.copies, Copies)
    linked = read_near(folder, layout, near.chunks, config.max_cluster)
    records = decide(
        layout.num_earlier,
        first.copies,
        second.copies,
        linked,
        lambda handles: read_names(layout, corpora, handles),
    )
    write_decisions(folder, layout, records)
    write_gone(folder, "gone", layout, removed_of(records))
    return 0, facts_of(linked, layout)

"""Documents and their sidecars joined once: shuffled Parquet shards for training, and the rejects.

Steps: join each file (shard_join.py) -> cut the shuffle into shards of a target size -> write each
(shard_write.py). No group of documents crosses the splits.
"""

import dataclasses
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import Field, field_validator

from pipeline.core import storage
from pipeline.core.config import RunConfig, Section
from pipeline.core.errors import UserError
from pipeline.core.leftovers import delete_leftovers, list_leftovers
from pipeline.core.manifest import Counts, Manifest, StageOutput
from pipeline.core.records import Document
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import RECEIPT, ShardResult, map_shards
from pipeline.section_files import DamagedFile
from pipeline.shard_join import SPLITS, JoinTask, join_file
from pipeline.shard_write import WriteTask, cuts_of, write_empty, write_shard
from pipeline.text import pii

__all__ = ["SPLITS", "ShardConfig", "run_shard"]
log = logging.getLogger(__name__)
VERSION = 5
_MAX_REBUILDS = 2  # of one file


class ShardConfig(Section):
    seed: int = Field(1, description="of the shuffle")
    heldout_fraction: float = Field(
        0.05, ge=0, lt=1, description="of the groups (see group_pattern)"
    )
    group_pattern: str = Field(
        "",
        description="a regular expression on the URL: its first group names what is held out as a"
        " whole; where it is empty or does not match, the duplicate cluster is",
    )
    max_rows_per_shard: int = Field(50_000, ge=1, description="documents in one Parquet file")
    max_bytes_per_shard: int = Field(
        256_000_000, ge=1, description="of text in one Parquet file, before compression"
    )
    redact: bool = Field(
        True, description="put <EMAIL>, <IP>, <IBAN>, <CARD>, <PHONE> in place of personal data"
    )

    @field_validator("group_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if pattern and not groups:
            raise ValueError("needs a group, as in https?://([^/]+)/")
        return pattern


def run_shard(
    config: ShardConfig,
    docs: Manifest,
    quality: Manifest,
    dedupe: Manifest,
    run: RunConfig,
    runtime: Runtime,
    overlaps: Manifest | None = None,
    *,
    allow_empty: bool = False,
) -> Manifest:
    """`train-`, `heldout-` and `rejects-NNNNN.parquet`, all Document records with their signals.

    Each split's rows are in one global order by hash(seed, doc_id). Counts are over all stages
    from extract on; `facts` has each split's docs, chars and UTF-8 bytes, the drop funnel, and how
    much personal data was redacted, rejects included. `overlaps` is run_decontaminate's. If there
    is nothing to train on: with `allow_empty` (an unchanged recrawl) a split without documents has
    one shard of no rows; else raises UserError.
    """
    stages = [docs, quality, dedupe, *([overlaps] if overlaps else [])]
    parents = {"docs": docs, "quality": quality, "dedupe": dedupe}
    parents |= {"overlaps": overlaps} if overlaps else {}
    output = StageOutput.of(run.root, "shard", VERSION, config.identity(), parents)
    if done := output.finished():
        delete_leftovers(output.url, runtime)
        if not (allow_empty or done.facts["train"]["docs"]):
            raise _nothing_left(stages, done.facts["heldout"]["docs"])
        return done
    started = time.time()
    with output.lock():
        tasks = {f"{task.index:05d}": task for task in _join_tasks(config, stages, output)}
        result = _rebuilding(lambda: _made(config, tasks, output, runtime))
        if not (allow_empty or result.sizes["train"]["docs"]):
            raise _nothing_left(stages, result.sizes["heldout"]["docs"])
        list_leftovers(output.url, [name for task in tasks.values() for name in task.between])
        manifest = output.commit(
            [entry for part in (*result.joined, *result.written) for entry in part.files],
            _counts(stages, sum(size["docs"] for size in result.sizes.values())),
            started=started,
            record=Document.NAME,
            facts={
                **result.sizes,
                "funnel": _funnel(stages),
                "redacted": _redacted(result.joined),
            },
        )
        delete_leftovers(output.url, runtime)
        return manifest


@dataclasses.dataclass(frozen=True)
class Made:
    """What the tasks have left; `sizes` of each split."""

    joined: list[ShardResult]
    written: list[ShardResult]
    sizes: dict[str, dict[str, int]]


def _made(
    config: ShardConfig, tasks: Mapping[str, JoinTask], output: StageOutput, runtime: Runtime
) -> Made:
    _forget_lost(output, tasks)
    joined = map_shards(runtime, output, "join", join_file, tasks)
    sizes = {split: _total([result.facts[split] for result in joined]) for split in SPLITS}
    writes: dict[str, WriteTask] = {}
    for split in SPLITS:
        cuts = cuts_of(
            *(output.url, split, len(tasks), config.max_rows_per_shard),
            *(config.max_bytes_per_shard, sizes[split]["docs"]),
        )
        writes |= {cut.name: WriteTask(cut, len(tasks), output.url) for cut in cuts}
    written = map_shards(runtime, output, "write", write_shard, writes)
    if not sizes["train"]["docs"]:
        empty = [split for split in SPLITS if not sizes[split]["docs"]]
        entries = tuple(write_empty(output.url, split) for split in empty)
        written.append(ShardResult(entries, Counts(0, 0)))
    return Made(joined, written, sizes)


def _rebuilding(make: Callable[[], Made]) -> Made:
    """A file between the steps that turns out to be damaged is made again by its task."""
    rebuilt: Counter[str] = Counter()
    while True:
        try:
            return make()
        except DamagedFile as error:
            rebuilt[error.url] += 1
            if rebuilt[error.url] > _MAX_REBUILDS:
                raise
            log.warning("%s; it is made again", error)
            storage.remove(error.url)


def _forget_lost(output: StageOutput, tasks: Mapping[str, JoinTask]) -> None:
    """Have the tasks run again whose files are gone: damaged, or removed at the end of a run whose
    shards have been lost since."""
    present = storage.sizes(output.url, [n for task in tasks.values() for n in task.between])
    for name, task in tasks.items():
        if any(file not in present for file in task.between):
            storage.remove(output.path(f"join-{name}{RECEIPT}"))


def _total(sizes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {unit: sum(size[unit] for size in sizes) for unit in ("docs", "chars", "bytes")}


def _counts(stages: Sequence[Manifest], rows_out: int) -> Counts:
    """From what the first stage read to what is left, with the losses of all stages."""
    dropped: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    for stage in stages:
        dropped.update(stage.counts.dropped)
        quarantined.update(stage.counts.quarantined)
    return Counts(
        stages[0].counts.rows_in,
        rows_out,
        dict(sorted(dropped.items())),
        dict(sorted(quarantined.items())),
    )


def _funnel(stages: Sequence[Manifest]) -> list[tuple[str, str, int]]:
    """(stage, reason, number) of all that is not in the shards."""
    return [
        (manifest.stage, reason, number)
        for manifest in stages
        for losses in (manifest.counts.quarantined, manifest.counts.dropped)
        for reason, number in sorted(losses.items())
    ]


def _nothing_left(stages: Sequence[Manifest], heldout: int) -> UserError:
    losses = ", ".join(f"{stage} {reason} {number}" for stage, reason, number in _funnel(stages))
    return UserError(
        f"no document is left to train on: of {stages[0].counts.rows_in} in, {heldout} held out,"
        f" dropped: {losses or 'none'}; give more input, or loosen the rule that drops most"
    )


def _redacted(joined: Sequence[ShardResult]) -> dict[str, int]:
    counts = Counter(dict.fromkeys(pii.KINDS, 0))
    for result in joined:
        counts.update(result.facts["redacted"])
    return dict(counts)


def _join_tasks(
    config: ShardConfig, stages: Sequence[Manifest], output: StageOutput
) -> Iterable[JoinTask]:
    """`stages` are docs, quality, dedupe and, if there was that step, overlaps: file by file."""
    for index, entries in enumerate(zip(*(stage.files for stage in stages), strict=True)):
        urls = [stage.file_url(entry.name) for stage, entry in zip(stages, entries, strict=True)]
        yield JoinTask(
            index=index,
            docs_url=urls[0],
            signals_url=urls[1],
            dedupe_url=urls[2],
            overlaps_url=urls[3] if len(urls) > 3 else None,
            folder=output.url,
            seed=config.seed,
            heldout_fraction=config.heldout_fraction,
            group_pattern=config.group_pattern,
            redact=config.redact,
        )

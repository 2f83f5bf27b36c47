"""Documents and bytes of text through every stage of a corpus; what does not add up is an error.

For each stage: what goes in, what comes out, and what is dropped, quarantined or changed there.
"""

import dataclasses
from collections.abc import Sequence

from pipeline.core.manifest import Manifest
from pipeline.describe_tasks import KEPT
from pipeline.tallies import Findings

IN, OUT, DROPPED, QUARANTINED, CHANGED = "in", "out", "dropped", "quarantined", "changed"
Row = tuple[str, str, str, int, int]  # stage, what, reason, documents, bytes of text


@dataclasses.dataclass(frozen=True)
class Described:
    """The manifests of the corpus that is described."""

    docs: Manifest
    quality: Manifest
    dedupe: Manifest
    shard: Manifest
    overlaps: Manifest | None
    triggers: Manifest | None

    @property
    def stages(self) -> list[Manifest]:
        found = [self.docs, self.quality, self.dedupe]
        return [*found, self.overlaps] if self.overlaps else found

    @property
    def parents(self) -> dict[str, Manifest]:
        named = dataclasses.fields(self)
        found = {field.name: getattr(self, field.name) for field in named}
        return {name: manifest for name, manifest in found.items() if manifest}


def check_funnel(rows: Sequence[Row]) -> None:
    """Asserts, in documents and in bytes, that what goes into a stage is what comes out of it, is
    dropped, quarantined or changed there, and that the next stage gets what the one before gave."""
    stages = list(dict.fromkeys(row[0] for row in rows))
    before: tuple[int, int] | None = None
    for stage in stages:
        sums = {kind: [0, 0] for kind in (IN, OUT, DROPPED, QUARANTINED, CHANGED)}
        for name, kind, _, documents, num_bytes in rows:
            if name == stage:
                sums[kind][0] += documents
                sums[kind][1] += num_bytes
        into = sums.pop(IN)
        left = [sum(part[unit] for part in sums.values()) for unit in (0, 1)]
        assert into == left, f"{stage}: {into} in, {left} accounted for"
        assert before is None or tuple(into) == before, f"{stage}: {into} in, {before} before"
        before = (sums[OUT][0], sums[OUT][1])


def funnel_rows(what: Described, found: Findings) -> list[Row]:
    """From the sidecars and the shards; against the stages' own counts."""
    rows: list[Row] = []
    for manifest in what.stages:
        tally = found.tally(manifest.stage)
        assert not tally.missed, manifest.stage
        kept = tally.of(KEPT)
        counts = manifest.counts
        losses = sorted((r, n, size) for r, (n, size) in tally.counts.items() if r != KEPT)
        assert kept[0] == counts.rows_out, (manifest.url, kept)
        assert {r: n for r, n, _ in losses} == counts.dropped, (manifest.url, losses)
        size = kept[1] + sum(size for _, _, size in losses)
        rows.append((manifest.stage, IN, "", counts.rows_in, size))
        rows += [(manifest.stage, DROPPED, *loss) for loss in losses]
        rows += [(manifest.stage, QUARANTINED, r, n, 0) for r, n in counts.quarantined.items()]
        rows.append((manifest.stage, OUT, "", *kept))
    return rows + _shard_rows(what, found, rows[-1])


def _shard_rows(what: Described, found: Findings, last: Row) -> list[Row]:
    """Repeated lines and placeholders change bytes and no documents."""
    splits = found.tally("splits")
    for split in ("train", "heldout"):
        told = what.shard.facts[split]
        assert splits.of(split) == (told["docs"], told["bytes"]), (what.shard.url, split)
    lines = found.tally("lines").of("documents")[1]
    placeholders = last[4] - lines - splits.total[1]
    assert placeholders == 0 or found.tally("redacted").counts, (what.shard.url, placeholders)
    stage = what.shard.stage
    return [
        (stage, IN, "", last[3], last[4]),
        (stage, CHANGED, "repeated lines removed", 0, lines),
        (stage, CHANGED, "placeholders for personal data", 0, placeholders),
        *((stage, OUT, split, *splits.of(split)) for split in ("train", "heldout")),
    ]

"""From copies and verified pairs to what becomes of each document, in arrays of those concerned.

Only documents that have a copy or an alike one are here, at some 200 bytes each; all others cost
the driver nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.components import connected_components
from pipeline.core.manifest import StageOutput
from pipeline.dedupe_files import (
    DECISIONS,
    EDGES,
    KEYS,
    Handles,
    Layout,
    file_url,
    gather,
    keep_order,
    parse_ids,
    read_columns,
    write_records,
)
from pipeline.dedupe_tasks import DEDUPE, DEDUPE_VERSION, EXACT_COPY, LINKED, NEAR_COPY
from pipeline.near_duplicates import representatives
from pipeline.section_files import Records, read_range

_REFUSED_SHOWN = 100
_STAR = np.dtype([*KEYS.descr, ("left", "<u8")])
Similarities = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Copies:
    """handles[i], ascending and of this run, is a copy of originals[i]."""

    handles: Handles
    originals: Handles

    def original(self, handles: Handles) -> Handles:
        """Of each; itself if it is no copy."""
        at, known = _find(self.handles, handles)
        found = handles.copy()
        found[known] = self.originals[at[known]]
        return found


@dataclasses.dataclass(frozen=True)
class Near:
    """All documents with a verified pair, ascending, with the first document of each one's cluster;
    those that go, ascending, with the one that stands for each and their similarity; and counts."""

    linked: Handles
    cluster: Handles
    removed: Handles
    stands: Handles
    similarity: Similarities
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Nodes 0 ... n - 1 in the order of the keep rule, for the documents of some edges."""

    handles: Handles  # ascending
    ranked: Handles  # by node

    @staticmethod
    def of(layout: Layout, kind: str, *ends: Handles) -> "Ranking":
        handles = np.unique(np.concatenate(ends))
        order = keep_order(layout, kind, handles) if len(handles) else handles
        return Ranking(handles, handles[order])

    def nodes(self, handles: Handles) -> Handles:
        node = np.empty(len(self.ranked), np.int64)
        node[np.searchsorted(self.handles, self.ranked)] = np.arange(len(self.ranked))
        return node[np.searchsorted(self.handles, handles)]


def _find(known: Handles, wanted: Handles) -> tuple[Handles, npt.NDArray[np.bool_]]:
    """Where each stands in the ascending `known`, and whether it does."""
    at = np.searchsorted(known, wanted)
    inside = at < len(known)
    inside[inside] = known[at[inside]] == wanted[inside]
    return at, inside


def read_copies(output: StageOutput, layout: Layout, kind: str, ranges: int) -> Copies:
    """All documents joined by equal digests, each with the first of them by the keep rule."""
    name, facts = ("copies", "texts") if kind == "exact" else ("left-copies", "left")
    parts = [read_range(file_url(output.url, name, index), _STAR) for index in range(ranges)]
    edges = np.concatenate([np.zeros(0, _STAR), *parts])
    left, right = edges["left"].astype(np.int64), edges["key"].astype(np.int64)
    ranking = Ranking.of(layout, facts, left, right)
    number = len(ranking.ranked)
    joined = connected_components(number, ranking.nodes(left), ranking.nodes(right), number)
    copy = (joined.labels != np.arange(number)) & (ranking.ranked >= layout.num_earlier)
    handles, originals = ranking.ranked[copy], ranking.ranked[joined.labels[copy]]
    order = np.argsort(handles)
    return Copies(handles[order], originals[order])


def link(
    output: StageOutput, layout: Layout, chunks: Sequence[str], max_cluster: int, candidates: int
) -> Near:
    """From the chunks' verified pairs."""
    parts = [read_range(file_url(output.url, "edges", chunk), EDGES) for chunk in chunks]
    edges = np.concatenate([np.zeros(0, EDGES), *parts])
    ends = edges["left"].astype(np.int64), edges["key"].astype(np.int64)
    ranking = Ranking.of(layout, "left", *ends)
    left, right = ranking.nodes(ends[0]), ranking.nodes(ends[1])
    left, right = np.minimum(left, right), np.maximum(left, right)
    similarity = np.ascontiguousarray(edges["similarity"])
    chosen = representatives(left, right, similarity)
    surest = np.lexsort((right, left, -similarity))
    joined = connected_components(len(ranking.ranked), left[surest], right[surest], max_cluster)
    refused = surest[joined.refused]
    shown = ranking.ranked[np.stack([left[refused], right[refused]], axis=1)[:_REFUSED_SHOWN]]
    removed = ranking.ranked[right[chosen]]
    by_handle = np.argsort(removed)
    return Near(
        ranking.handles,
        ranking.ranked[joined.labels[ranking.nodes(ranking.handles)]],
        removed[by_handle],
        ranking.ranked[left[chosen]][by_handle],
        similarity[chosen][by_handle],
        {
            "candidate_pairs": candidates,
            "verified_pairs": len(edges),
            "refused_links": len(refused),
            "refused_links_shown": _names(layout, shown),
        },
    )


def _names(layout: Layout, pairs: Handles) -> list[list[str]]:
    handles = np.unique(pairs)
    found = gather(layout, "texts", handles)
    names = {
        int(handle): f"{int(high):016x}{int(low):016x}"
        for handle, high, low in zip(handles, found["id_high"], found["id_low"], strict=True)
    }
    return [[names[left], names[right]] for left, right in pairs.tolist()]


@dataclasses.dataclass(frozen=True)
class Decisions:
    """`records` of DECISIONS, their `key` the handle, ascending; `corpora`: the keys of the earlier
    dedupe outputs that they name by number."""

    records: Records
    corpora: tuple[str, ...]

    @property
    def gone(self) -> Handles:
        """Who is out for being like another."""
        records = self.records[self.records["reason"] != LINKED]
        return records["key"].astype(np.int64)

    def write(self, output: StageOutput, layout: Layout) -> None:
        """By row, a file a shard."""
        handles = self.records["key"].astype(np.int64)
        for place in layout.own:
            low, high = np.searchsorted(handles, [place.base, place.end])
            part = self.records[low:high].copy()
            part["key"] -= np.uint64(place.base)
            columns = [part[name] for name in part.dtype.names or ()]
            write_records(file_url(output.url, "decisions", place.number), DECISIONS, *columns)


def decide(layout: Layout, first: Copies, second: Copies, near: Near) -> Decisions:
    """What becomes of each document of this run that has a copy or an alike one."""
    own = near.linked[near.linked >= layout.num_earlier]
    handles = np.unique(np.concatenate([first.handles, second.handles, own]))
    originals = second.original(first.original(handles))
    stands, cluster = originals.copy(), originals.copy()
    similarity = np.ones(len(handles))
    at, removed = _find(near.removed, originals)
    stands[removed], similarity[removed] = near.stands[at[removed]], near.similarity[at[removed]]
    at, linked = _find(near.linked, originals)
    cluster[linked] = near.cluster[at[linked]]
    records = np.zeros(len(handles), DECISIONS)
    records["key"] = handles
    is_near, is_copy = _find(near.removed, handles)[1], originals != handles
    records["reason"] = np.where(is_copy, EXACT_COPY, np.where(is_near, NEAR_COPY, LINKED))
    records["similarity"] = np.where(stands == handles, np.nan, similarity)
    corpora = _name(layout, records, stands, cluster)
    return Decisions(records, corpora)


def _name(layout: Layout, records: Records, stands: Handles, cluster: Handles) -> tuple[str, ...]:
    """Fill in the ids of who stands for each, and of its cluster; an earlier document's are what
    its own corpus says of it."""
    different = np.unique(np.concatenate([stands, cluster]))
    facts = gather(layout, "texts", different)
    ids = np.stack([facts["id_high"], facts["id_low"]], axis=1)
    stand_ids, cluster_ids = ids, ids.copy()
    corpus = np.full(len(different), -1, np.int16)
    factor = np.full(len(different), np.nan)
    names: dict[str, int] = {}
    for place, part in layout.by_shard(different):
        if not place.is_earlier:
            continue
        columns = ["drop_reason", "cluster", "stands_for", "stands_in", "similarity"]
        table = read_columns(place.sidecar_url, DEDUPE, DEDUPE_VERSION, columns)
        rows = table.take(different[part] - place.base)
        cluster_ids[part] = parse_ids(rows["cluster"])
        key = place.folder.rstrip("/").rpartition("/")[2]
        for index, row in enumerate(rows.to_pylist(), part.start):
            corpus[index] = names.setdefault(row["stands_in"] or key, len(names))
            if row["stands_for"]:
                stand_ids[index] = int(row["stands_for"][:16], 16), int(row["stands_for"][16:], 16)
                factor[index] = row["similarity"]
    at = np.searchsorted(different, stands)
    records["stands_high"], records["stands_low"] = stand_ids[at].T
    records["corpus"] = corpus[at]
    by_earlier = ~np.isnan(factor[at])
    records["similarity"][by_earlier] = factor[at][by_earlier]
    at = np.searchsorted(different, cluster)
    records["cluster_high"], records["cluster_low"] = cluster_ids[at].T
    return tuple(names)

"""From copies and verified pairs to what becomes of each document, in arrays of those concerned.

Only documents that have a copy or an alike one are here, at some 300 bytes a link; all others cost
nothing. Pure functions of whole components, which dedupe_components.py calls for a range of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.components import connected_components
from pipeline.core.records import read_columns
from pipeline.dedupe_files import (
    COPIES,
    DECISIONS,
    EDGES,
    NAMED,
    Handles,
    Layout,
    Place,
    file_url,
    gather,
    keep_order,
    parse_ids,
    write_records,
)
from pipeline.dedupe_tasks import DEDUPE, DEDUPE_VERSION, EXACT_COPY, LINKED, NEAR_COPY
from pipeline.near_duplicates import representatives
from pipeline.section_files import Records, read_range

REFUSED_SHOWN = 100
Similarities = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Copies:
    """handles[i], ascending and of this run, is a copy of originals[i]."""

    handles: Handles
    originals: Handles

    def original(self, handles: Handles) -> Handles:
        """Of each; itself if it is no copy."""
        at, known = find(self.handles, handles)
        found = handles.copy()
        found[known] = self.originals[at[known]]
        return found


@dataclasses.dataclass(frozen=True)
class Near:
    """All documents with a verified pair, ascending, with the first document of each one's cluster;
    those that go, ascending, with the one that stands for each and their similarity. `refused`
    (n, 2): the links that would have made a cluster too large, the surest first."""

    linked: Handles
    cluster: Handles
    removed: Handles
    stands: Handles
    similarity: Similarities
    refused: Handles
    refused_similarity: Similarities


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Nodes 0 ... n - 1 in the order of the keep rule, for the documents of some edges."""

    handles: Handles  # ascending
    ranked: Handles  # by node

    @staticmethod
    def of(layout: Layout, kind: str, *ends: Handles) -> "Ranking":
        handles = np.unique(np.concatenate(ends))
        return Ranking.by(layout, handles, gather(layout, kind, handles))

    @staticmethod
    def by(layout: Layout, handles: Handles, facts: Records) -> "Ranking":
        """`facts`: parallel to the ascending handles; their ids and words."""
        if not len(handles):
            return Ranking(handles, handles)
        return Ranking(handles, handles[keep_order(facts, layout.corpora(handles))])

    def nodes(self, handles: Handles) -> Handles:
        node = np.empty(len(self.ranked), np.int64)
        node[np.searchsorted(self.handles, self.ranked)] = np.arange(len(self.ranked))
        return node[np.searchsorted(self.handles, handles)]


def find(known: Handles, wanted: Handles) -> tuple[Handles, npt.NDArray[np.bool_]]:
    """Where each stands in the ascending `known`, and whether it does."""
    at = np.searchsorted(known, wanted)
    inside = at < len(known)
    inside[inside] = known[at[inside]] == wanted[inside]
    return at, inside


# ------------------------------------------------------------------- from the files, at once


def read_copies(folder: str, layout: Layout, kind: str, ranges: int) -> Copies:
    """All documents joined by equal digests, each with the first of them by the keep rule."""
    parts = [read_range(file_url(folder, kind, index), COPIES) for index in range(ranges)]
    edges = np.concatenate([np.zeros(0, COPIES), *parts])
    left, right = edges["left"].astype(np.int64), edges["key"].astype(np.int64)
    ranking = Ranking.of(layout, "texts" if kind == "copies" else "left", left, right)
    return find_originals(ranking, left, right, layout.num_earlier)


def read_near(folder: str, layout: Layout, chunks: Sequence[str], max_cluster: int) -> Near:
    """From the chunks' verified pairs."""
    parts = [read_range(file_url(folder, "edges", chunk), EDGES) for chunk in chunks]
    edges = np.concatenate([np.zeros(0, EDGES), *parts])
    left, right = edges["left"].astype(np.int64), edges["key"].astype(np.int64)
    ranking = Ranking.of(layout, "left", left, right)
    return link(ranking, left, right, np.ascontiguousarray(edges["similarity"]), max_cluster)


def names_of_refused(layout: Layout, near: Near) -> list[list[str]]:
    pairs = near.refused[:REFUSED_SHOWN]
    handles = np.unique(pairs)
    found = gather(layout, "texts", handles)
    names = {
        int(handle): f"{int(high):016x}{int(low):016x}"
        for handle, high, low in zip(handles, found["id_high"], found["id_low"], strict=True)
    }
    return [[names[left], names[right]] for left, right in pairs.tolist()]


# ----------------------------------------------------------------------- the rules, in memory


def find_originals(ranking: Ranking, left: Handles, right: Handles, num_earlier: int) -> Copies:
    """Of the edges' whole components: each document's first by the keep rule. An earlier corpus's
    document is nobody's copy."""
    number = len(ranking.ranked)
    joined = connected_components(number, ranking.nodes(left), ranking.nodes(right), number)
    copy = (joined.labels != np.arange(number)) & (ranking.ranked >= num_earlier)
    handles, originals = ranking.ranked[copy], ranking.ranked[joined.labels[copy]]
    order = np.argsort(handles)
    return Copies(handles[order], originals[order])


def link(
    ranking: Ranking, left: Handles, right: Handles, similarity: Similarities, max_cluster: int
) -> Near:
    """Who goes, and which cluster each belongs to, for the verified pairs of whole components.

    What becomes of a component depends on nothing outside it, the refused links neither.
    """
    left, right = ranking.nodes(left), ranking.nodes(right)
    left, right = np.minimum(left, right), np.maximum(left, right)
    chosen = representatives(left, right, similarity)
    surest = np.lexsort((right, left, -similarity))
    joined = connected_components(len(ranking.ranked), left[surest], right[surest], max_cluster)
    refused = surest[joined.refused]
    removed = ranking.ranked[right[chosen]]
    by_handle = np.argsort(removed)
    return Near(
        ranking.handles,
        ranking.ranked[joined.labels[ranking.nodes(ranking.handles)]],
        removed[by_handle],
        ranking.ranked[left[chosen]][by_handle],
        similarity[chosen][by_handle],
        ranking.ranked[np.stack([left[refused], right[refused]], axis=1)],
        similarity[refused],
    )


# ------------------------------------------------------------------------------ the decisions

# Of ascending handles their NAMED records.
NamesOf: TypeAlias = Callable[[Handles], Records]


def decide(
    num_earlier: int, first: Copies, second: Copies, near: Near, names_of: NamesOf
) -> Records:
    """What becomes of each document of this run that has a copy or an alike one: DECISIONS, their
    `key` the handle, ascending."""
    own = near.linked[near.linked >= num_earlier]
    handles = np.unique(np.concatenate([first.handles, second.handles, own]))
    originals = second.original(first.original(handles))
    stands, cluster = originals.copy(), originals.copy()
    similarity = np.ones(len(handles))
    at, removed = find(near.removed, originals)
    stands[removed], similarity[removed] = near.stands[at[removed]], near.similarity[at[removed]]
    at, linked = find(near.linked, originals)
    cluster[linked] = near.cluster[at[linked]]
    records = np.zeros(len(handles), DECISIONS)
    records["key"] = handles
    is_near, is_copy = find(near.removed, handles)[1], originals != handles
    records["reason"] = np.where(is_copy, EXACT_COPY, np.where(is_near, NEAR_COPY, LINKED))
    records["similarity"] = np.where(stands == handles, np.nan, similarity)
    _name(records, stands, cluster, names_of)
    return records


def _name(records: Records, stands: Handles, cluster: Handles, names_of: NamesOf) -> None:
    """Fill in the ids of who stands for each, and of its cluster; an earlier document's are what
    its own corpus says of it."""
    different = np.unique(np.concatenate([stands, cluster]))
    names = names_of(different)
    by = names[np.searchsorted(different, stands)]
    for name in ("stands_high", "stands_low", "corpus"):
        records[name] = by[name]
    by_earlier = ~np.isnan(by["similarity"])
    records["similarity"][by_earlier] = by["similarity"][by_earlier]
    by = names[np.searchsorted(different, cluster)]
    for name in ("cluster_high", "cluster_low"):
        records[name] = by[name]


def own_names(handles: Handles, ids: Records) -> Records:
    """As they are named if no earlier corpus is asked: by their own ids, parallel to them."""
    found = np.zeros(len(handles), NAMED)
    found["handle"] = handles
    for part in ("high", "low"):
        found[f"stands_{part}"] = found[f"cluster_{part}"] = ids[f"id_{part}"]
    found["similarity"], found["corpus"] = np.nan, -1
    return found


def read_names(layout: Layout, corpora: Sequence[str], handles: Handles) -> Records:
    """NAMED of ascending handles, `corpus` by the place in `corpora`: the keys of the earlier
    outputs. One shard's in memory at a time."""
    found = own_names(handles, gather(layout, "texts", handles))
    for place, part in layout.by_shard(handles):
        if place.is_earlier:
            _read_sidecar(place, corpora, found[part])
    return found


def _read_sidecar(place: Place, corpora: Sequence[str], found: Records) -> None:
    columns = ["drop_reason", "cluster", "stands_for", "stands_in", "similarity"]
    table = read_columns(place.sidecar_url, DEDUPE, DEDUPE_VERSION, columns)
    rows = table.take(found["handle"].astype(np.int64) - place.base)
    found["cluster_high"], found["cluster_low"] = parse_ids(rows["cluster"]).T
    key = place.folder.rstrip("/").rpartition("/")[2]
    for index, row in enumerate(rows.to_pylist()):
        found["corpus"][index] = corpora.index(row["stands_in"] or key)
        if row["stands_for"]:
            high, low = int(row["stands_for"][:16], 16), int(row["stands_for"][16:], 16)
            found["stands_high"][index], found["stands_low"][index] = high, low
            found["similarity"][index] = row["similarity"]


def write_decisions(folder: str, layout: Layout, records: Records) -> None:
    """By row, a file a shard."""
    handles = records["key"].astype(np.int64)
    for place in layout.own:
        low, high = np.searchsorted(handles, [place.base, place.end])
        part = records[low:high].copy()
        part["key"] -= np.uint64(place.base)
        columns = [part[name] for name in part.dtype.names or ()]
        write_records(file_url(folder, "decisions", place.number), DECISIONS, *columns)


def removed_of(records: Records) -> Handles:
    """Who is out for being like another."""
    return records["key"][records["reason"] != LINKED].astype(np.int64)


def facts_of(near: Near, layout: Layout) -> dict[str, Any]:
    return {
        "refused_links": len(near.refused),
        "refused_links_shown": names_of_refused(layout, near),
    }

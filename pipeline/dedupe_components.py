"""The decisions on more edges than the driver is to hold: components over files, then by tasks.

star_components finds who belongs together; each task takes a range of components, whole ones, and
decides as dedupe_decisions does in memory. So a task holds its range or its largest component.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core import storage
from pipeline.core.manifest import Counts
from pipeline.core.shard_tasks import ShardResult
from pipeline.dedupe_decisions import (
    REFUSED_SHOWN,
    Copies,
    Near,
    Ranking,
    decide,
    find,
    find_originals,
    link,
    own_names,
    read_names,
    removed_of,
)
from pipeline.dedupe_files import (
    COPIES,
    COPY_LINKS,
    DECISIONS,
    EDGES,
    GONE,
    NAMED,
    NEAR_LINKS,
    RANKED,
    TEXTS,
    Handles,
    Layout,
    cut_keys,
    file_url,
    gather,
    gone_bits,
    write_records,
)
from pipeline.dedupe_steps import StepRunner
from pipeline.section_files import Records, open_sections, read_range, write_sections
from pipeline.star_components import STAR, members_of, star_components, write_edges

_PART_BYTES = 1 << 25  # of links in one task
_LINK_BYTES = 2 * STAR.itemsize


@dataclasses.dataclass(frozen=True)
class Files:
    """`number` files of a kind."""

    kind: str
    number: int

    def read(self, folder: str, dtype: np.dtype[Any], low: int, high: int) -> Records:
        parts = [
            read_range(file_url(folder, self.kind, index), dtype, low, high)
            for index in range(self.number)
        ]
        return np.concatenate([np.zeros(0, dtype), *parts])


@dataclasses.dataclass(frozen=True)
class ComponentTask:
    """Handles low <= handle < high; of components their smallest. `step` names the result's files;
    `stars` hold the components, `links` what they were made of: copies' files by handle; `chunks`
    are those of the verified pairs whose right handles are in the range."""

    folder: str
    step: str
    index: int
    low: int
    high: int
    stars: Files = Files("", 0)
    links: tuple[Files, ...] = ()
    chunks: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    max_cluster: int = 0
    ranks: int = 0  # files of members
    facts: str = "texts"

    def url(self, kind: str) -> str:
        return file_url(self.folder, kind, self.index)


@dataclasses.dataclass(frozen=True)
class GoneTask:
    """The shard `index` of this run: those in the files are out."""

    folder: str
    step: str
    index: int
    found: tuple[Files, ...]


def num_parts(num_links: int) -> int:
    return 1 + num_links * _LINK_BYTES // _PART_BYTES


# ------------------------------------------------------------------------------------ copies


def copies_over_files(
    runner: StepRunner, layout: Layout, edges: Files, num_edges: int, facts: str
) -> Files:
    """As dedupe_decisions.read_copies: the files, by handle, of who is whose copy. `facts`: the
    kind of file that the keep rule reads."""
    step, folder, end = edges.kind, runner.output.url, layout.end
    task = ComponentTask(folder, f"{step}-links", 0, 0, end, links=(edges,), facts=facts)
    tasks = {
        f"{index:05d}": dataclasses.replace(task, index=index) for index in range(edges.number)
    }
    runner.map(task.step, link_copies, tasks)
    parts = num_parts(num_edges)
    stars = Files(*star_components(runner, task.step, edges.number, end, parts))
    task = dataclasses.replace(task, step=f"{step}-ranked", stars=stars)
    cuts = cut_keys(folder, stars.kind, stars.number, STAR, end, parts)
    runner.map(task.step, rank_members, _over(task, cuts))
    cuts = cut_keys(folder, task.step, len(cuts), RANKED, end, parts)
    task = dataclasses.replace(task, step=f"{step}-originals", ranks=len(runner.done[task.step]))
    runner.map(task.step, choose_originals, _over(task, cuts))
    return Files(task.step, len(cuts))


def _over(task: ComponentTask, cuts: Sequence[tuple[int, int]]) -> dict[str, ComponentTask]:
    return {
        f"{index:05d}": dataclasses.replace(task, index=index, low=low, high=high)
        for index, (low, high) in enumerate(cuts)
    }


def link_copies(task: ComponentTask) -> ShardResult:
    """One file of edges, as the stars begin with it."""
    [edges] = task.links
    found = read_range(file_url(task.folder, edges.kind, task.index), COPIES)
    left, right = found["left"].astype(np.int64), found["key"].astype(np.int64)
    write_edges(task.folder, task.step, task.index, left, right)
    return ShardResult((), Counts(len(found), len(found)))


def rank_members(task: ComponentTask) -> ShardResult:
    """By component: each member with what the keep rule needs to know."""
    layout = Layout.read(task.folder)
    handles, labels = _members(task)
    _write_ranked(task.url(task.step), labels, handles, gather(layout, task.facts, handles))
    return ShardResult((), Counts(len(handles), len(handles)))


def choose_originals(task: ComponentTask) -> ShardResult:
    layout = Layout.read(task.folder)
    [edges] = task.links
    ranked = _ranked(task, f"{edges.kind}-ranked")
    handles = ranked["handle"].astype(np.int64)
    # A star from each component's smallest says as much as the edges that it was made of.
    found = find_originals(
        Ranking.by(layout, handles, ranked),
        ranked["key"].astype(np.int64),
        handles,
        layout.num_earlier,
    )
    write_records(task.url(task.step), COPIES, found.handles, found.originals)
    return ShardResult((), Counts(len(found.handles), len(found.handles)))


def _members(task: ComponentTask) -> tuple[Handles, Handles]:
    return members_of(task.folder, task.stars.kind, task.stars.number, task.low, task.high)


def _write_ranked(url: str, labels: Handles, handles: Handles, facts: Records) -> None:
    columns = (facts["id_high"], facts["id_low"], facts["words_32"])
    write_records(url, RANKED, labels, handles, *columns)


def _ranked(task: ComponentTask, kind: str) -> Records:
    """The members of the range's components, by handle."""
    found = Files(kind, task.ranks).read(task.folder, RANKED, task.low, task.high)
    return found[np.argsort(found["handle"])]


# ------------------------------------------------------------------------------- who is out


def write_gone_over_files(
    runner: StepRunner, layout: Layout, name: str, found: tuple[Files, ...]
) -> None:
    """As dedupe_files.write_gone; one shard's bits at a time in the driver."""
    folder, step = runner.output.url, f"{name}-parts"
    tasks = {
        f"{place.number:05d}": GoneTask(folder, step, place.number, found) for place in layout.own
    }
    runner.map(step, write_gone_part, tasks)

    def bits(number: int) -> bytes:
        with open_sections(file_url(folder, step, number), GONE) as part:
            return part.read(0, 1)

    parts = ((place.number, bits(place.number)) for place in layout.own)
    write_sections(storage.join(folder, f"{name}.bits"), GONE, parts)


def write_gone_part(task: GoneTask) -> ShardResult:
    place = Layout.read(task.folder).own[task.index]
    handles = [np.zeros(0, np.int64)]
    for files in task.found:
        if files.kind == "decided":
            records = files.read(task.folder, DECISIONS, place.base, place.end)
            handles.append(removed_of(records))
        else:
            records = files.read(task.folder, COPIES, place.base, place.end)
            handles.append(records["key"].astype(np.int64))
    bits = gone_bits(place, np.unique(np.concatenate(handles)))
    write_sections(file_url(task.folder, task.step, task.index), GONE, [(place.number, bits)])
    return ShardResult((), Counts(0, 0))


def write_copies(runner: StepRunner, kind: str, copies: Copies) -> Files:
    """What the driver holds, as files that tasks can read."""
    url = file_url(runner.output.url, kind, 0)
    write_records(url, COPIES, copies.handles, copies.originals)
    runner.done.setdefault(kind, ["00000"])
    return Files(kind, 1)


# -------------------------------------------------------------------------------- decisions


@dataclasses.dataclass(frozen=True)
class Pieces:
    """All that decides: first and second copies by handle, and the chunks of verified pairs with
    the cuts of their right handles (chunk names begin with their cut's number)."""

    copies: tuple[Files, ...]
    chunks: tuple[str, ...]
    cuts: tuple[tuple[int, int], ...]
    num_links: int


def decide_over_files(
    runner: StepRunner,
    layout: Layout,
    pieces: Pieces,
    max_cluster: int,
    corpora: tuple[str, ...],
) -> tuple[Files, dict[str, Any]]:
    """As dedupe_decisions.decide: the files of DECISIONS, by handle, and the facts of links."""
    folder, end, parts = runner.output.url, layout.end, num_parts(pieces.num_links)
    task = ComponentTask(
        folder,
        "all-links",
        0,
        0,
        end,
        links=pieces.copies,
        corpora=corpora,
        max_cluster=max_cluster,
    )
    tasks = _by_chunks(task, pieces, parts)
    runner.map(task.step, link_all, tasks)
    stars = Files(*star_components(runner, task.step, len(tasks), end, parts))
    task = dataclasses.replace(task, stars=stars)
    runner.map("all", label_all, _by_chunks(task, pieces, parts))
    cuts = cut_keys(folder, "all-ranked", len(tasks), RANKED, end, parts)
    task = dataclasses.replace(task, step="decided", ranks=len(tasks))
    results = runner.map(task.step, decide_range, _over(task, cuts))
    return Files(task.step, len(cuts)), _facts([result.facts for result in results])


def _by_chunks(task: ComponentTask, pieces: Pieces, parts: int) -> dict[str, ComponentTask]:
    """Ranges of all handles, each of some neighbouring cuts and their chunks."""
    if not pieces.cuts:
        return _over(task, [(0, task.high)])
    tasks: dict[str, ComponentTask] = {}
    per_task = -(-len(pieces.cuts) // parts)
    by_cut: dict[str, list[str]] = {}
    for chunk in pieces.chunks:
        by_cut.setdefault(chunk.partition("-")[0], []).append(chunk)
    for index, at in enumerate(range(0, len(pieces.cuts), per_task)):
        cuts = pieces.cuts[at : at + per_task]
        names = [f"{number:05d}" for number in range(at, at + len(cuts))]
        chunks = tuple(chunk for name in names for chunk in by_cut.get(name, ()))
        tasks[f"{index:05d}"] = dataclasses.replace(
            task, index=index, low=cuts[0][0], high=cuts[-1][1], chunks=chunks
        )
    return tasks


def _relations(task: ComponentTask) -> tuple[Records, Records, Records]:
    """(first copies, second copies, verified pairs) whose right handle is in the range."""
    first, second = (files.read(task.folder, COPIES, task.low, task.high) for files in task.links)
    parts = [read_range(file_url(task.folder, "edges", chunk), EDGES) for chunk in task.chunks]
    return first, second, np.concatenate([np.zeros(0, EDGES), *parts])


def link_all(task: ComponentTask) -> ShardResult:
    """Copies and verified pairs alike, as the stars begin with them."""
    found = _relations(task)
    left = np.concatenate([part["left"] for part in found]).astype(np.int64)
    right = np.concatenate([part["key"] for part in found]).astype(np.int64)
    write_edges(task.folder, task.step, task.index, left, right)
    return ShardResult((), Counts(len(left), len(left)))


def label_all(task: ComponentTask) -> ShardResult:
    """By component: its members, how earlier corpora name them, and each of its links."""
    layout = Layout.read(task.folder)
    handles, labels = _members(task)
    _write_ranked(task.url("all-ranked"), labels, handles, _words_left(layout, handles))
    earlier = handles < layout.num_earlier
    names = read_names(layout, task.corpora, handles[earlier])
    columns = [names[name] for name in names.dtype.names or () if name != "key"]
    write_records(task.url("all-named"), NAMED, labels[earlier], *columns)
    found = _relations(task)
    for kind, part in zip(("first", "second", "edges"), found, strict=True):
        dtype = NEAR_LINKS if kind == "edges" else COPY_LINKS
        right = part["key"].astype(np.int64)
        columns = [part["key"], part["left"]]
        columns += [part["similarity"]] if kind == "edges" else []
        label = labels[np.searchsorted(handles, right)] if len(right) else right
        write_records(task.url(f"all-{kind}"), dtype, label, *columns)
    return ShardResult((), Counts(len(handles), len(handles)))


def _words_left(layout: Layout, handles: Handles) -> Records:
    """The ids of all, and the words that each of those still in has without repeated lines."""
    facts = gather(layout, "texts", handles)
    for place, part in layout.by_shard(handles):
        rows = handles[part] - place.base
        url = file_url(place.folder, "left", place.number)
        left = read_range(url, TEXTS, int(rows[0]), int(rows[-1]) + 1)
        at, known = find(left["key"].astype(np.int64), rows)
        facts["words_32"][part] = 0
        facts["words_32"][part][known] = left["words_32"][at[known]]
    return facts


def decide_range(task: ComponentTask) -> ShardResult:
    """The components of the range. Facts: how many links were refused, and the surest of them."""
    layout = Layout.read(task.folder)
    ranked = _ranked(task, "all-ranked")
    named = Files("all-named", task.ranks).read(task.folder, NAMED, task.low, task.high)
    first, second = (_copies(task, kind) for kind in ("all-first", "all-second"))
    edges = Files("all-edges", task.ranks).read(task.folder, NEAR_LINKS, task.low, task.high)
    left, right = edges["left"].astype(np.int64), edges["right"].astype(np.int64)
    handles = ranked["handle"].astype(np.int64)
    concerned = np.unique(np.concatenate([left, right]))
    ranking = Ranking.by(layout, concerned, ranked[np.searchsorted(handles, concerned)])
    similarity = np.ascontiguousarray(edges["similarity"])
    near = link(ranking, left, right, similarity, task.max_cluster)

    def names_of(wanted: Handles) -> Records:
        found = own_names(wanted, ranked[np.searchsorted(handles, wanted)])
        earlier = named[np.argsort(named["handle"])]
        at, known = find(earlier["handle"].astype(np.int64), wanted)
        found[known] = earlier[at[known]]
        return found

    records = decide(layout.num_earlier, first, second, near, names_of)
    columns = [records[name] for name in records.dtype.names or ()]
    write_records(task.url(task.step), DECISIONS, *columns)
    facts = {
        "refused": len(near.refused),
        "shown": _shown(layout, ranked, handles, near),
    }
    return ShardResult((), Counts(len(records), len(records)), facts)


def _copies(task: ComponentTask, kind: str) -> Copies:
    found = Files(kind, task.ranks).read(task.folder, COPY_LINKS, task.low, task.high)
    found = found[np.argsort(found["right"])]
    return Copies(found["right"].astype(np.int64), found["left"].astype(np.int64))


def _shown(layout: Layout, ranked: Records, handles: Handles, near: Near) -> list[list[Any]]:
    """The surest refused links with what sorts them among those of other ranges: the similarity,
    and the keep rule of both sides, which ends in the id."""
    shown: list[list[Any]] = []
    values = near.refused_similarity[:REFUSED_SHOWN].tolist()
    for value, pair in zip(values, near.refused[:REFUSED_SHOWN], strict=True):
        sides = ranked[np.searchsorted(handles, pair)]
        corpora = layout.corpora(pair).tolist()
        keys = [
            [corpus, -int(side["words_32"]), int(side["id_high"]), int(side["id_low"]), int(handle)]
            for corpus, side, handle in zip(corpora, sides, pair, strict=True)
        ]
        shown.append([-value, *keys])
    return shown


def _facts(found: list[dict[str, Any]]) -> dict[str, Any]:
    shown = sorted(link for facts in found for link in facts["shown"])[:REFUSED_SHOWN]
    names = [[f"{high:016x}{low:016x}" for _, _, high, low, _ in link[1:]] for link in shown]
    return {
        "refused_links": sum(facts["refused"] for facts in found),
        "refused_links_shown": names,
    }

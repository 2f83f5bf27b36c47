"""Repeated lines, exact and verified near-duplicates: a sidecar of the documents, nothing removed.

Files between the steps: texts and lines -> survivors and repeated lines -> signatures -> pairs ->
edges -> sidecars. Tasks are pure in their files; the driver groups (16 B x bands a document).
Removed documents name the kept one that stands for them and the verified similarity.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.components import connected_components
from pipeline.core.config import RunConfig, Section
from pipeline.core.manifest import (
    Counts,
    FileEntry,
    Manifest,
    StageOutput,
    describe_file,
    map_shards,
)
from pipeline.core.records import with_version, write_table
from pipeline.core.remote import Runtime
from pipeline.dedupe_tasks import (
    EDGES,
    LINES,
    PAIR,
    PAIRS,
    REPEATED,
    SIGNATURES,
    SURVIVORS,
    TEXTS,
    DedupeTask,
    VerifyTask,
    hash_file,
    read_ids,
    read_internal,
    sign_file,
    verify_pairs,
    write_internal,
)
from pipeline.near_duplicates import Edge, candidate_pairs, representatives
from pipeline.repeated_lines import repeated_keys
from pipeline.text.signatures import Signer

VERSION = 2
DEDUPE = "Dedupe"
DEDUPE_VERSION = 1
SCHEMA = with_version(
    pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("judged", pa.bool_(), nullable=False),  # false: an earlier stage dropped it
            pa.field("drop_reason", pa.string()),
            pa.field("cluster", pa.string()),  # the first document by the keep rule of all linked
            pa.field("stands_for", pa.string()),  # of a removed one: the document that stays
            pa.field("similarity", pa.float64()),
            pa.field("removed_lines", pa.list_(pa.int32()), nullable=False),
        ]
    ),
    DEDUPE,
    DEDUPE_VERSION,
)
_NOT_JUDGED = {
    "judged": False,
    "drop_reason": None,
    "cluster": None,
    "stands_for": None,
    "similarity": None,
}
_TEXT_COLUMNS = ("row", "doc_id", "words", "digest", "payload")
_PAIRS_PER_TASK = 20_000
_REFUSED_SHOWN = 100


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


Handle: TypeAlias = tuple[int, int]  # (shard, row): good inside this stage only


@dataclasses.dataclass(frozen=True)
class Text:
    """One document as its hashes. The digest of a blank text is empty."""

    handle: Handle
    doc_id: str
    words: int
    digest: str
    payload: str = ""

    @property
    def keep_rank(self) -> tuple[int, str, Handle]:
        """The keep rule: more words, then the smallest doc_id, then the first in the files."""
        return (-self.words, self.doc_id, self.handle)


@dataclasses.dataclass(frozen=True)
class Near:
    """`removed`: who stands for whom, and how alike they are; `cluster`: the first of all linked
    documents by the keep rule; `refused`: links that would have made a cluster too large."""

    removed: Mapping[Handle, tuple[Handle, float]]
    cluster: Mapping[Handle, str]
    facts: Mapping[str, Any]


def run_dedupe(
    config: DedupeConfig, docs: Manifest, quality: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """`dedupe-NNNNN.parquet` beside each `docs-NNNNN.parquet`: row for row."""
    output = StageOutput.of(
        run.root, "dedupe", VERSION, config.identity(), {"docs": docs, "quality": quality}
    )
    if done := output.finished():
        return done
    started = time.time()
    tasks = _tasks(config, docs, quality, output)
    with output.lock():
        map_shards(runtime, output, "hash", hash_file, tasks)
        texts = _read_texts(output, len(tasks), TEXTS)
        copies = _copies(texts, by_payload=True)
        survivors = [text for text in texts if text.handle not in copies]
        _write_survivors(output, survivors, len(tasks))
        _write_repeated(output, survivors, len(tasks), config.line_min_docs)

        signed = map_shards(runtime, output, "sign", sign_file, tasks)
        left = _read_texts(output, len(tasks), SIGNATURES)
        blank = {text.handle for text in left if not text.digest}
        copies |= _copies([text for text in left if text.digest], by_payload=False)
        unique = [text for text in left if text.handle not in blank | copies.keys()]
        near = _near(config, output, unique, tasks, runtime)
        files, counts = _write_sidecars(output, tasks, copies, blank, near)
        lines = sum(result.facts["removed_lines"] for result in signed)
        chars = sum(result.facts["removed_chars"] for result in signed)
        return output.commit(
            files,
            counts,
            started=started,
            record=DEDUPE,
            facts={**near.facts, "removed_lines": lines, "removed_line_chars": chars},
        )


def _tasks(
    config: DedupeConfig, docs: Manifest, quality: Manifest, output: StageOutput
) -> dict[str, DedupeTask]:
    signer = Signer(config.bands, config.rows, config.seed, config.shingle_words)
    tasks: dict[str, DedupeTask] = {}
    for index, (text, signal) in enumerate(zip(docs.files, quality.files, strict=True)):
        tasks[f"{index:05d}"] = DedupeTask(
            shard=index,
            docs_url=docs.file_url(text.name),
            signals_url=quality.file_url(signal.name),
            folder=output.url,
            line_min_chars=config.line_min_chars,
            signer=signer,
        )
    return tasks


def _read_texts(output: StageOutput, num_shards: int, kind: str) -> list[Text]:
    texts: list[Text] = []
    for shard in range(num_shards):
        table = read_internal(output.url, kind, shard)
        wanted = [column for column in _TEXT_COLUMNS if column in table.column_names]
        rows = table.select(wanted).to_pylist()
        texts += [Text(handle=(shard, row.pop("row")), **row) for row in rows]
    return texts


def _copies(texts: Iterable[Text], by_payload: bool) -> dict[Handle, Handle]:
    """{copy: the one that stays} of texts with the same digest, or the same payload."""
    ranked = sorted(texts, key=lambda text: text.keep_rank)
    first: dict[str, int] = {}
    edges: list[tuple[int, int]] = []
    for index, text in enumerate(ranked):
        keys = (text.digest, text.payload) if by_payload else (text.digest,)
        edges += [(first.setdefault(key, index), index) for key in keys]
    labels = connected_components(len(ranked), edges, len(ranked)).labels
    return {ranked[i].handle: ranked[label].handle for i, label in enumerate(labels) if label != i}


def _write_survivors(output: StageOutput, survivors: Iterable[Text], num_shards: int) -> None:
    rows: list[list[int]] = [[] for _ in range(num_shards)]
    for text in survivors:
        rows[text.handle[0]].append(text.handle[1])
    for shard, kept in enumerate(rows):
        write_internal(output.url, SURVIVORS, {"row": sorted(kept)}, shard)


def _write_repeated(
    output: StageOutput, survivors: Iterable[Text], num_shards: int, min_docs: int
) -> None:
    by_id = sorted(survivors, key=lambda text: (text.doc_id, text.handle))
    rank = {text.handle: index for index, text in enumerate(by_id)}
    keys = [np.zeros(0, np.uint64)]
    owners = [np.zeros(0, np.int64)]
    for shard in range(num_shards if min_docs else 0):
        table = read_internal(output.url, LINES, shard)
        owner = np.array([rank.get((shard, row), -1) for row in table["row"].to_pylist()], np.int64)
        keys.append(table["key"].to_numpy()[owner >= 0])
        owners.append(owner[owner >= 0])
    found, first = repeated_keys(np.concatenate(keys), np.concatenate(owners), min_docs)
    keepers = [by_id[index].doc_id for index in first]
    write_internal(output.url, REPEATED, {"key": found, "first": keepers})


def _near(
    config: DedupeConfig,
    output: StageOutput,
    texts: Iterable[Text],
    tasks: Mapping[str, DedupeTask],
    runtime: Runtime,
) -> Near:
    """Group by band keys, verify each candidate pair, link what is alike."""
    ranked = sorted(texts, key=lambda text: text.keep_rank)
    node = {text.handle: index for index, text in enumerate(ranked)}
    keys = np.zeros((len(ranked), config.bands), np.uint64)
    for shard in range(len(tasks)):
        table = read_internal(output.url, SIGNATURES, shard)
        for row, bands in zip(table["row"].to_pylist(), table["bands"].to_pylist(), strict=True):
            if (shard, row) in node:
                keys[node[shard, row]] = bands
    pairs = candidate_pairs(keys)
    edges = _verify(config, output, [text.handle for text in ranked], pairs, tasks, runtime)
    surest = sorted(edges, key=lambda edge: (-edge.similarity, edge.left, edge.right))
    links = [(edge.left, edge.right) for edge in surest]
    linked = connected_components(len(ranked), links, config.max_cluster)
    return Near(
        removed={
            ranked[gone].handle: (ranked[edge.left].handle, edge.similarity)
            for gone, edge in representatives(edges).items()
        },
        cluster={
            text.handle: ranked[label].doc_id
            for text, label in zip(ranked, linked.labels, strict=True)
        },
        facts={
            "candidate_pairs": len(pairs),
            "verified_pairs": len(edges),
            "refused_links": len(linked.refused),
            "refused_links_shown": [
                [ranked[left].doc_id, ranked[right].doc_id]
                for left, right in linked.refused[:_REFUSED_SHOWN]
            ],
        },
    )


def _verify(
    config: DedupeConfig,
    output: StageOutput,
    handles: Sequence[Handle],
    pairs: npt.NDArray[np.int64],
    tasks: Mapping[str, DedupeTask],
    runtime: Runtime,
) -> list[Edge]:
    """The pairs of nodes (indices into `handles`) whose similarity reaches the threshold."""
    verify: dict[str, VerifyTask] = {}
    flat = np.array(handles, np.int64).reshape(-1, 2)
    starts = range(0, len(pairs), _PAIRS_PER_TASK)
    for index, start in enumerate(starts):
        chunk = flat[pairs[start : start + _PAIRS_PER_TASK]].reshape(-1, 4)
        write_internal(output.url, PAIRS, dict(zip(PAIR, chunk.T, strict=True)), index)
        verify[f"{index:05d}"] = VerifyTask(index, tuple(tasks.values()), config.threshold)
    map_shards(runtime, output, "verify", verify_pairs, verify)
    node = {handle: index for index, handle in enumerate(handles)}
    edges: list[Edge] = []
    for index in range(len(starts)):
        columns = [column.to_pylist() for column in read_internal(output.url, EDGES, index).columns]
        for a_shard, a_row, b_shard, b_row, similarity in zip(*columns, strict=True):
            edges.append(Edge(node[a_shard, a_row], node[b_shard, b_row], similarity))
    return edges


def _write_sidecars(
    output: StageOutput,
    tasks: Mapping[str, DedupeTask],
    copies: Mapping[Handle, Handle],
    blank: Collection[Handle],
    near: Near,
) -> tuple[list[FileEntry], Counts]:
    ids: dict[Handle, str] = {}
    for task in tasks.values():
        table = read_internal(output.url, TEXTS, task.shard)
        for row, identity in zip(
            table["row"].to_pylist(), table["doc_id"].to_pylist(), strict=True
        ):
            ids[task.shard, row] = identity
    files: list[FileEntry] = []
    dropped: Counter[str] = Counter()
    for task in tasks.values():
        signatures = read_internal(output.url, SIGNATURES, task.shard)
        columns = signatures.select(["row", "removed_lines"]).to_pylist()
        removed = {row["row"]: row["removed_lines"] for row in columns}
        rows: list[dict[str, Any]] = []
        for index, identity in enumerate(read_ids(task)):
            handle = (task.shard, index)
            row = _decision(handle, ids, copies, blank, near) if handle in ids else _NOT_JUDGED
            rows.append({"doc_id": identity, **row, "removed_lines": removed.get(index, [])})
        dropped.update(row["drop_reason"] for row in rows if row["drop_reason"])
        file = f"dedupe-{task.shard:05d}.parquet"
        write_table(pa.Table.from_pylist(rows, schema=SCHEMA), output.path(file))
        files.append(describe_file(output.path(file), file, len(rows)))
    return files, Counts(len(ids), len(ids) - dropped.total(), dict(dropped))


def _decision(
    handle: Handle,
    ids: Mapping[Handle, str],
    copies: Mapping[Handle, Handle],
    blank: Collection[Handle],
    near: Near,
) -> dict[str, Any]:
    original = handle
    while original in copies:
        original = copies[original]
    kept, similarity = near.removed.get(original, (original, 1.0))
    reason = None
    if handle in copies:
        reason = "exact-duplicate"
    elif handle in near.removed:
        reason = "near-duplicate"
    elif handle in blank:
        reason = "empty-after-lines"
    stays = kept != handle
    return {
        "judged": True,
        "drop_reason": reason,
        "cluster": near.cluster.get(original, ids[original]),
        "stands_for": ids[kept] if stays else None,
        "similarity": similarity if stays else None,
    }

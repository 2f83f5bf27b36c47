"""Labels out of the store: conversations and K-wise comparisons, labelers as pseudonyms.

Streamed in the order of their digests, so the same labels in the same store give the same bytes at
any size. The K-wise record is the truth; pairs are derived from it.
"""

import dataclasses
import datetime as dt
import hashlib
import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from labeling_app.auth import project_id
from labeling_app.schema import (
    Demonstration,
    InstructionVersion,
    Prompt,
    RankedItem,
    RankedSet,
    Response,
    Review,
    Task,
    TaskResponse,
    User,
)
from labeling_app.store import LabelsConfig, Store
from labeling_app.tasks import messages_of
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import (
    Comparison,
    Conversation,
    RankedResponse,
    schema_of,
    to_table,
)

VERSION = 2
CONVERSATIONS = "conversations.parquet"
COMPARISONS = "comparisons.parquet"
_BATCH = 500
_EVER = dt.datetime(1, 1, 1, tzinfo=dt.UTC)

R = TypeVar("R", Conversation, Comparison)


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which labels; None and empty: all. Times are of the submission, `until` is not included.

    What a reviewer returned and nobody corrected, and what people made of gold and qualification
    tasks, is never exported.
    """

    since: dt.datetime | None = None
    until: dt.datetime | None = None
    instruction_versions: tuple[int, ...] = ()
    labelers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    simulated: bool = True

    def as_json(self) -> dict[str, Any]:
        """What of it is set."""
        values = dataclasses.asdict(self)
        for key in ("since", "until"):
            if values[key]:
                values[key] = values[key].isoformat()
        default = dataclasses.asdict(Filters())
        return {key: value for key, value in values.items() if value != default[key]}


@dataclasses.dataclass(frozen=True)
class Labels:
    """All labels of one moment, in the order of the export."""

    conversations: tuple[Conversation, ...]
    comparisons: tuple[Comparison, ...]

    def snapshot_hash(self) -> str:
        return _hash_of((*self.conversations, *self.comparisons)).hexdigest()


@dataclasses.dataclass(frozen=True)
class ExportReport:
    snapshot: str
    num_conversations: int
    num_comparisons: int
    conversations_url: str
    comparisons_url: str


def export_labels(
    store: Store, folder_url: str, project: str = "default", filters: Filters | None = None
) -> ExportReport:
    """Write conversations.parquet and comparisons.parquet into a folder, each whole or not."""
    with store.read() as session:
        number, chosen = project_id(session, project), filters or Filters()
        urls = [storage.join(folder_url, name) for name in (CONVERSATIONS, COMPARISONS)]
        digest = hashlib.sha256()
        counts = [
            _write(iter_conversations(session, number, chosen), Conversation, urls[0], digest),
            _write(iter_comparisons(session, number, chosen), Comparison, urls[1], digest),
        ]
    return ExportReport(digest.hexdigest(), counts[0], counts[1], urls[0], urls[1])


def run_labels(config: LabelsConfig, store: Store, run: RunConfig) -> Manifest:
    """The export as a stage: {root}/labels/{key}/ with a manifest; the key follows the labels."""
    snapshot = label_snapshot_hash(store, config.project)
    output = StageOutput.of(run.root, "labels", VERSION, config.identity(), {"labels": snapshot})
    if done := output.finished():
        return done
    started = time.time()
    with output.lock():
        report = export_labels(store, output.url, config.project)
        if report.snapshot != snapshot:
            raise UserError("labels came in while they were exported; run it again")
        total = report.num_conversations + report.num_comparisons
        return output.commit(
            [
                describe_file(report.conversations_url, CONVERSATIONS, report.num_conversations),
                describe_file(report.comparisons_url, COMPARISONS, report.num_comparisons),
            ],
            Counts(rows_in=total, rows_out=total),
            started=started,
            facts={
                "conversations": report.num_conversations,
                "comparisons": report.num_comparisons,
                "snapshot": report.snapshot,
            },
        )


def label_snapshot_hash(store: Store, project: str = "default") -> str:
    """Changes exactly when the export would: sha256 over every field of every record."""
    with store.read() as session:
        number = project_id(session, project)
        records = itertools.chain[Conversation | Comparison](
            iter_conversations(session, number), iter_comparisons(session, number)
        )
        return _hash_of(records).hexdigest()


def count_labels(store: Store, project: str = "default") -> int:
    """How many there are at most, whatever is filtered."""
    with store.read() as session:
        number = project_id(session, project)
        return sum(
            session.scalar(
                select(func.count())
                .select_from(model)
                .join(Task, Task.id == model.task_id)
                .where(Task.project_id == number)
            )
            or 0
            for model in (Demonstration, RankedSet)
        )


def read_labels(store: Store, project: str = "default") -> Labels:
    """Every submitted label, in one consistent view, in memory."""
    with store.read() as session:
        number = project_id(session, project)
        return Labels(
            tuple(iter_conversations(session, number)), tuple(iter_comparisons(session, number))
        )


def iter_conversations(
    session: Session, project: int, filters: Filters | None = None
) -> Iterator[Conversation]:
    people, versions = _pseudonyms(session), _versions(session, project)
    query = _chosen(Demonstration, project, filters or Filters(), Task.source, Prompt.prompt_id)
    for row, source, prompt_id in _streamed(session, query):
        yield Conversation(
            conversation_id=_id("demonstration", row.idem_key),
            prompt_id=prompt_id,
            messages=messages_of(row.messages),
            source=source,
            origin=row.origin,
            labeler=people[row.user_id],
            instruction_version=versions[row.version_id],
            created_at=row.created_at,
            assisted=row.assisted,
            edit_chars=row.edit_chars,
            pasted_chars=row.pasted_chars,
            active_ms=row.active_ms,
            vendor=row.vendor,
        )


def iter_comparisons(
    session: Session, project: int, filters: Filters | None = None
) -> Iterator[Comparison]:
    people, versions = _pseudonyms(session), _versions(session, project)
    query = _chosen(RankedSet, project, filters or Filters(), Task.source, Prompt)
    for batch in _batches(_streamed(session, query), _BATCH):
        responses = _responses(session, [row.id for row, *_ in batch])
        for row, source, prompt in batch:
            yield Comparison(
                comparison_id=_id("comparison", row.idem_key),
                prompt_id=prompt.prompt_id,
                prompt=messages_of(prompt.messages),
                responses=responses[row.id],
                shown_order=tuple(row.shown_order),
                not_rankable=bool(row.not_rankable),
                confidence=row.confidence,
                labeler=people[row.user_id],
                instruction_version=versions[row.version_id],
                created_at=row.created_at,
                source=source,
                degree=row.degree,
                comment=row.comment,
                not_rankable_reason=row.not_rankable,
                assisted=row.assisted,
                active_ms=row.active_ms,
                vendor=row.vendor,
            )


def _streamed(session: Session, query: Any) -> Iterator[Any]:
    """The rows, a batch in memory at a time; whoever stops early closes the database's cursor."""
    with session.execute(query.execution_options(yield_per=_BATCH)) as rows:
        yield from rows


def _chosen(
    model: type[Demonstration] | type[RankedSet],
    project: int,
    filters: Filters,
    *more: Any,
) -> Any:
    """Labels that stand: no newer one in their place, not returned, of no known answer."""
    kind = "compare" if model is RankedSet else "demo"
    newer = model.__table__.alias()
    query = (
        select(model, *more)
        .join(Task, Task.id == model.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(
            Task.project_id == project,
            Task.purpose == "work",
            ~exists().where(newer.c.supersedes_id == model.id),
            ~exists().where(
                Review.target_kind == kind,
                Review.target_id == model.id,
                Review.verdict == "returned",
            ),
        )
    )
    versions = select(InstructionVersion.id).where(
        InstructionVersion.project_id == project,
        InstructionVersion.n.in_(filters.instruction_versions),
    )
    labelers = select(User.id).where(User.pseudonym.in_(filters.labelers))
    simulated = select(User.id).where(User.simulated)
    conditions = [
        (filters.since is not None, model.created_at >= (filters.since or _EVER)),
        (filters.until is not None, model.created_at < (filters.until or _EVER)),
        (bool(filters.sources), Task.source.in_(filters.sources)),
        (bool(filters.vendors), model.vendor.in_(filters.vendors)),
        (bool(filters.instruction_versions), model.version_id.in_(versions)),
        (bool(filters.labelers), model.user_id.in_(labelers)),
        (not filters.simulated, model.user_id.not_in(simulated) | (model.vendor != "")),
    ]
    for wanted, condition in conditions:
        if wanted:
            query = query.where(condition)
    # Digests: the same order in every store and database, and none that is anybody's.
    return query.order_by(model.content_sha256, model.idem_key)


def _pseudonyms(session: Session) -> dict[int, str]:
    return dict(session.execute(select(User.id, User.pseudonym)).all())


def _versions(session: Session, project: int) -> Mapping[int, int]:
    return dict(
        session.execute(
            select(InstructionVersion.id, InstructionVersion.n).where(
                InstructionVersion.project_id == project
            )
        ).all()
    )


def _responses(
    session: Session, comparison_ids: Sequence[int]
) -> dict[int, tuple[RankedResponse, ...]]:
    """The ranked answers of each comparison, in the task's frozen order."""
    rows = session.execute(
        select(RankedItem, Response, Prompt.content_sha256)
        .join(RankedSet, RankedSet.id == RankedItem.comparison_id)
        .join(
            TaskResponse,
            (TaskResponse.task_id == RankedSet.task_id)
            & (TaskResponse.position == RankedItem.position),
        )
        .join(Response, Response.id == TaskResponse.response_id)
        .join(Prompt, Prompt.id == Response.prompt_id)
        .where(RankedItem.comparison_id.in_(comparison_ids))
        .order_by(RankedItem.comparison_id, RankedItem.position)
    )
    found: dict[int, list[RankedResponse]] = {}
    for item, response, prompt_sha256 in rows:
        found.setdefault(item.comparison_id, []).append(
            RankedResponse(
                response_id(prompt_sha256, response.model, response.sha256),
                response.model,
                response.text,
                item.rank,
                item.likert,
                tuple(item.flags),
            )
        )
    return {comparison_id: tuple(items) for comparison_id, items in found.items()}


def response_id(prompt_sha256: str, model: str, text_sha256: str) -> str:
    """One id for one model's one answer to one prompt, in all exports, 32 hex digits."""
    return _id(prompt_sha256, model, text_sha256)


def _id(*parts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())


def _write(records: Iterator[R], kind: type[R], url: str, digest: Any) -> int:
    """Stream the records into one Parquet file; their hash goes into `digest`."""
    num = 0
    with (
        storage.atomic_file(url) as path,
        pq.ParquetWriter(path, schema_of(kind), compression="zstd", version="2.6") as writer,
    ):
        for batch in _batches(records, _BATCH):
            for record in batch:
                _update(digest, record)
            table: pa.Table = to_table(batch, kind)
            writer.write_table(table)
            num += len(batch)
    return num


def _hash_of(records: Iterable[Conversation | Comparison]) -> Any:
    digest = hashlib.sha256()
    for record in records:
        _update(digest, record)
    return digest


def _update(digest: Any, record: Conversation | Comparison) -> None:
    row = dataclasses.asdict(record)
    row["created_at"] = row["created_at"].isoformat()
    digest.update(canonical_json(row).encode() + b"\n")


def _batches(rows: Iterable[Any], size: int) -> Generator[list[Any]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch

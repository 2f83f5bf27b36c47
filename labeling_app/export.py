"""Labels as Parquet, for finetuning: conversations and K-wise comparisons, labelers as pseudonyms.

The same labels in the same store give the same bytes. The K-wise record is the truth; pairs are
derived from it by whoever trains.
"""

import dataclasses
import hmac
import time
from collections.abc import Mapping

import xxhash
from sqlalchemy import select
from sqlalchemy.orm import Session

from labeling_app.assignment import messages_of
from labeling_app.schema import (
    Demonstration,
    InstructionVersion,
    Prompt,
    RankedItem,
    RankedSet,
    Response,
    Task,
    TaskResponse,
    User,
)
from labeling_app.store import LabelsConfig, Store, pseudonym_key
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.identity import canonical_json, sha256_text
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Comparison, Conversation, RankedResponse, to_table, write_table

VERSION = 1
CONVERSATIONS = "conversations.parquet"
COMPARISONS = "comparisons.parquet"


@dataclasses.dataclass(frozen=True)
class Labels:
    """All labels of one moment, each list sorted by its id."""

    conversations: tuple[Conversation, ...]
    comparisons: tuple[Comparison, ...]

    def snapshot_hash(self) -> str:
        """What these labels are called: sha256 over every field of every record."""
        rows = [dataclasses.asdict(label) for label in (*self.conversations, *self.comparisons)]
        for row in rows:
            row["created_at"] = row["created_at"].isoformat()
        return sha256_text(canonical_json(rows))


@dataclasses.dataclass(frozen=True)
class ExportReport:
    snapshot: str
    num_conversations: int
    num_comparisons: int
    conversations_url: str
    comparisons_url: str


def export_labels(store: Store, folder_url: str) -> ExportReport:
    """Write conversations.parquet and comparisons.parquet into a folder, each whole or not."""
    return _write(read_labels(store), folder_url)


def run_labels(config: LabelsConfig, store: Store, run: RunConfig) -> Manifest:
    """The export as a stage: {root}/labels/{key}/ with a manifest; the key follows the labels."""
    labels = read_labels(store)
    parents = {"labels": labels.snapshot_hash()}
    output = StageOutput.of(run.root, "labels", VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    with output.lock():
        report = _write(labels, output.url)
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


def label_snapshot_hash(store: Store) -> str:
    """Changes exactly when the export would."""
    return read_labels(store).snapshot_hash()


def read_labels(store: Store) -> Labels:
    """Every submitted label, in one consistent view."""
    with store.read() as session:
        people = _pseudonyms(session)
        versions = dict(session.execute(select(InstructionVersion.id, InstructionVersion.n)).all())
        conversations = _conversations(session, people, versions)
        comparisons = _comparisons(session, people, versions)
    return Labels(
        tuple(sorted(conversations, key=lambda label: label.conversation_id)),
        tuple(sorted(comparisons, key=lambda label: label.comparison_id)),
    )


def pseudonym(key: bytes, name: str, simulated: bool) -> str:
    """The same for one person in all exports of a store; only the store's key leads back."""
    digest = hmac.new(key, name.encode(), "sha256").hexdigest()[:16]
    return f"{'simulated' if simulated else 'person'}-{digest}"


def _pseudonyms(session: Session) -> dict[int, str]:
    key = pseudonym_key(session)
    users = session.scalars(select(User))
    return {user.id: pseudonym(key, user.name, user.simulated) for user in users}


def _conversations(
    session: Session, people: Mapping[int, str], versions: Mapping[int, int]
) -> list[Conversation]:
    rows = session.execute(
        select(Demonstration, Task.source, Prompt.prompt_id)
        .join(Task, Task.id == Demonstration.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
    )
    return [
        Conversation(
            conversation_id=_id("demonstration", row.idem_key),
            prompt_id=prompt_id,
            messages=messages_of(row.messages),
            source=source,
            origin=row.origin,
            labeler=people[row.user_id],
            instruction_version=versions[row.version_id],
            created_at=row.created_at,
        )
        for row, source, prompt_id in rows
    ]


def _comparisons(
    session: Session, people: Mapping[int, str], versions: Mapping[int, int]
) -> list[Comparison]:
    rows = session.execute(
        select(RankedSet, Prompt)
        .join(Task, Task.id == RankedSet.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
    ).all()
    responses = _responses(session)
    return [
        Comparison(
            comparison_id=_id("comparison", row.idem_key),
            prompt_id=prompt.prompt_id,
            prompt=messages_of(prompt.messages),
            responses=responses[row.id],
            shown_order=tuple(row.shown_order),
            not_rankable=False,
            confidence=row.confidence,
            labeler=people[row.user_id],
            instruction_version=versions[row.version_id],
            created_at=row.created_at,
        )
        for row, prompt in rows
    ]


def _responses(session: Session) -> dict[int, tuple[RankedResponse, ...]]:
    """The ranked answers of every comparison, in the task's frozen order."""
    rows = session.execute(
        select(RankedItem.comparison_id, RankedItem.rank, Response, Prompt.content_sha256)
        .join(RankedSet, RankedSet.id == RankedItem.comparison_id)
        .join(
            TaskResponse,
            (TaskResponse.task_id == RankedSet.task_id)
            & (TaskResponse.position == RankedItem.position),
        )
        .join(Response, Response.id == TaskResponse.response_id)
        .join(Prompt, Prompt.id == Response.prompt_id)
        .order_by(RankedItem.comparison_id, RankedItem.position)
    )
    found: dict[int, list[RankedResponse]] = {}
    for comparison_id, rank, response, prompt_sha256 in rows:
        identity = _id(prompt_sha256, response.model, response.sha256)
        found.setdefault(comparison_id, []).append(
            RankedResponse(identity, response.model, response.text, rank)
        )
    return {comparison_id: tuple(items) for comparison_id, items in found.items()}


def _id(*parts: str) -> str:
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())


def _write(labels: Labels, folder_url: str) -> ExportReport:
    conversations_url = storage.join(folder_url, CONVERSATIONS)
    comparisons_url = storage.join(folder_url, COMPARISONS)
    write_table(to_table(labels.conversations, Conversation), conversations_url)
    write_table(to_table(labels.comparisons, Comparison), comparisons_url)
    return ExportReport(
        labels.snapshot_hash(),
        len(labels.conversations),
        len(labels.comparisons),
        conversations_url,
        comparisons_url,
    )

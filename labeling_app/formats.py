"""Labels as trainers load them: TRL's and LLaMA-Factory's own forms, derived from the records.

Every row keeps its prompt_id and its side of the split, which follows from the prompt alone and so
never moves. A tie gives no pair.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from labeling_app.auth import project_id
from labeling_app.export import (
    COMPARISONS,
    CONVERSATIONS,
    Filters,
    iter_comparisons,
    iter_conversations,
)
from labeling_app.schema import InstructionVersion
from labeling_app.store import Store
from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.identity import HELDOUT_FRACTION, is_heldout, split_id
from pipeline.core.records import (
    DEGREE_MARGINS,
    Comparison,
    Conversation,
    Message,
    schema_of,
    to_table,
)

VERSION = 1
FORMATS = ("records", "trl", "llama-factory")
SPLITS = ("train", "heldout")
_BATCH = 500
MANIFEST = "labels-manifest.json"  # manifest.json is a stage's
_DATASET_INFO = "llama-factory/dataset_info.json"

Row = dict[str, Any]
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Exported:
    """The manifest as it was written, and where."""

    folder: str
    manifest: dict[str, Any]


def export(
    store: Store,
    folder: str,
    project: str = "default",
    filters: Filters | None = None,
    formats: Sequence[str] = FORMATS,
    progress: Progress | None = None,
) -> Exported:
    """Stream the labels into a folder, of this machine or at any fsspec URL; its manifest, written
    last, holds the filters, counts, hashes and instruction versions.

    records: conversations and comparisons as Parquet and JSON Lines; trl: sft, preference and kto
    by split; llama-factory: the same with dataset_info.json. Raises UserError.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"format {name!r} is unknown; known are {', '.join(FORMATS)}")
    chosen = filters or Filters()
    manifest_url = storage.join(folder, MANIFEST)
    earlier: list[str] = []
    versions: set[int] = set()
    seen = 0
    with contextlib.ExitStack() as stack, store.read() as session:
        number = project_id(session, project)
        if storage.exists(manifest_url):
            earlier = _files_of(manifest_url)
            storage.remove(manifest_url)  # while files change there is none
        writers = _Writers(folder, stack)
        for conversation in iter_conversations(session, number, chosen):
            versions.add(conversation.instruction_version)
            _write_conversation(writers, conversation, formats)
            seen = _told(progress, seen)
        for comparison in iter_comparisons(session, number, chosen):
            versions.add(comparison.instruction_version)
            _write_comparison(writers, comparison, formats)
            seen = _told(progress, seen)
        if "llama-factory" in formats:
            for line in json.dumps(_dataset_info(writers.counts), indent=1).splitlines():
                writers.text(_DATASET_INFO, line)
        instructions = _instructions(session, number, versions)
        files = writers.close(_expected(formats))
    for name in earlier:
        if name not in files and storage.exists(storage.join(folder, name)):
            storage.remove(storage.join(folder, name))
    manifest = {
        "version": VERSION,
        "project": project,
        "filters": chosen.as_json(),
        "left_out": "gold and qualification tasks; labels corrected since or returned",
        "heldout_fraction": HELDOUT_FRACTION,
        "instructions": instructions,
        "files": files,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    storage.write_bytes(manifest_url, text.encode())
    return Exported(folder, manifest)


def _files_of(manifest_url: str) -> list[str]:
    """The files that an earlier export here wrote; [] where its manifest cannot be read."""
    try:
        files: dict[str, Any] = json.loads(storage.read_bytes(manifest_url))["files"]
        return [name for name in files if not name.startswith(("/", ".")) and ".." not in name]
    except (ValueError, KeyError, TypeError):
        return []


def split_of(messages: Sequence[Message]) -> str:
    return SPLITS[is_heldout(split_id(messages), HELDOUT_FRACTION)]


def sft_row(conversation: Conversation) -> Row:
    """TRL: conversational language modelling."""
    return {"messages": _chat(conversation.messages), "prompt_id": conversation.prompt_id}


def preference_rows(comparison: Comparison) -> Iterator[Row]:
    """TRL: conversational preference, one row for each two answers of different rank. `margin` is
    that of the degree where two were compared, else the share of ranks between them."""
    spread = max(len(comparison.responses) - 1, 1)
    for better, worse in comparison.pairs():
        margin = DEGREE_MARGINS.get(comparison.degree or "", (worse.rank - better.rank) / spread)
        yield {
            "prompt": _chat(comparison.prompt),
            "chosen": [{"role": "assistant", "content": better.text}],
            "rejected": [{"role": "assistant", "content": worse.text}],
            "margin": round(margin, 6),
            "prompt_id": comparison.prompt_id,
            "comparison_id": comparison.comparison_id,
        }


def kto_rows(comparison: Comparison) -> Iterator[Row]:
    """TRL: unpaired preference: the best answers are good, the worst bad; of one rank, nothing."""
    ranks = [response.rank for response in comparison.responses]
    if comparison.not_rankable or min(ranks) == max(ranks):
        return
    for response in comparison.responses:
        if response.rank in (min(ranks), max(ranks)):
            yield {
                "prompt": _chat(comparison.prompt),
                "completion": [{"role": "assistant", "content": response.text}],
                "label": response.rank == min(ranks),
                "prompt_id": comparison.prompt_id,
            }


def k_wise_row(comparison: Comparison) -> Row:
    """The whole record, as the reference names its fields."""
    return {
        "prompt": _chat(comparison.prompt),
        "responses": [
            {
                "id": each.response_id,
                "model": each.model,
                "text": each.text,
                "likert": each.likert,
                "flags": list(each.flags),
            }
            for each in comparison.responses
        ],
        "ranks": [each.rank for each in comparison.responses],
        "shown_order": list(comparison.shown_order),
        "not_rankable": comparison.not_rankable_reason,
        "confidence": comparison.confidence,
        "degree": comparison.degree,
        "comment": comparison.comment,
        "labeler": comparison.labeler,
        "vendor": comparison.vendor,
        "instruction_version": comparison.instruction_version,
        "active_ms": comparison.active_ms,
        "created_at": comparison.created_at.isoformat(),
        "source": comparison.source,
        "prompt_id": comparison.prompt_id,
        "comparison_id": comparison.comparison_id,
        "split": split_of(comparison.prompt),
    }


def conversation_row(conversation: Conversation) -> Row:
    row = dataclasses.asdict(conversation)
    row["messages"] = _chat(conversation.messages)
    row["created_at"] = conversation.created_at.isoformat()
    row["split"] = split_of(conversation.messages)
    return row


class _Writers:
    """The files of one export: JSON Lines and Parquet, each whole or not there."""

    def __init__(self, folder: str, files: contextlib.ExitStack) -> None:
        self._folder, self._files = folder, files
        self._paths: dict[str, Path] = {}
        self._texts: dict[str, Any] = {}
        self._tables: dict[str, tuple[pq.ParquetWriter, list[Any], type[Any]]] = {}
        self.counts: dict[str, int] = {}

    def line(self, name: str, row: Row) -> None:
        if name not in self._texts:
            self._open(name, None)
        self._texts[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        self.counts[name] += 1

    def text(self, name: str, line: str) -> None:
        if name not in self._texts:
            self._open(name, None)
        self._texts[name].write(line + "\n")

    def record(self, name: str, record: Conversation | Comparison) -> None:
        if name not in self._tables:
            self._open(name, type(record))
        _, rows, _ = self._tables[name]
        rows.append(record)
        self.counts[name] += 1
        if len(rows) >= _BATCH:
            self._flush(name)

    def close(self, expected: dict[str, type[Any] | None]) -> dict[str, dict[str, Any]]:
        """Close the files, also the empty ones, and describe each: rows and sha256."""
        for name, kind in expected.items():
            if name not in self._paths:
                self._open(name, kind)
        for file in self._texts.values():
            file.close()
        for name in self._tables:
            self._flush(name)
            self._tables[name][0].close()
        return {
            name: {"rows": self.counts[name], "sha256": _digest(path)}
            for name, path in sorted(self._paths.items())
        }

    def _open(self, name: str, kind: type[Any] | None) -> None:
        path = self._files.enter_context(storage.atomic_file(storage.join(self._folder, name)))
        self._paths[name], self.counts[name] = path, 0
        if kind is None:
            self._texts[name] = self._files.enter_context(path.open("w", encoding="utf-8"))
        else:
            writer = pq.ParquetWriter(path, schema_of(kind), compression="zstd", version="2.6")
            self._tables[name] = (self._files.enter_context(writer), [], kind)

    def _flush(self, name: str) -> None:
        writer, rows, kind = self._tables[name]
        if rows:
            table: pa.Table = to_table(rows, kind)
            writer.write_table(table)
            rows.clear()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_conversation(
    writers: _Writers, conversation: Conversation, formats: Sequence[str]
) -> None:
    split = split_of(conversation.messages)
    if "records" in formats:
        writers.record(CONVERSATIONS, conversation)
        writers.line("conversations.jsonl", conversation_row(conversation))
    if "trl" in formats:
        writers.line(f"trl/sft_{split}.jsonl", sft_row(conversation))
    if "llama-factory" in formats:
        writers.line(f"llama-factory/sft_{split}.jsonl", _shared_chat(conversation.messages))


def _write_comparison(writers: _Writers, comparison: Comparison, formats: Sequence[str]) -> None:
    split = split_of(comparison.prompt)
    if "records" in formats:
        writers.record(COMPARISONS, comparison)
        writers.line("comparisons.jsonl", k_wise_row(comparison))
    if "trl" in formats:
        for row in kto_rows(comparison):
            writers.line(f"trl/kto_{split}.jsonl", row)
    for row in preference_rows(comparison):
        if "trl" in formats:
            writers.line(f"trl/preference_{split}.jsonl", row)
        if "llama-factory" in formats:
            writers.line(
                f"llama-factory/preference_{split}.jsonl",
                {
                    "conversations": _sharegpt(comparison.prompt),
                    "chosen": {"from": "gpt", "value": row["chosen"][0]["content"]},
                    "rejected": {"from": "gpt", "value": row["rejected"][0]["content"]},
                    "system": _system(comparison.prompt),
                },
            )


def _expected(formats: Sequence[str]) -> dict[str, type[Any] | None]:
    """Every file of the formats, so that an empty export has its files too."""
    names: dict[str, type[Any] | None] = {}
    if "records" in formats:
        names |= {CONVERSATIONS: Conversation, COMPARISONS: Comparison}
        names |= {"conversations.jsonl": None, "comparisons.jsonl": None}
    for split in SPLITS:
        if "trl" in formats:
            names |= {f"trl/{kind}_{split}.jsonl": None for kind in ("sft", "preference", "kto")}
        if "llama-factory" in formats:
            names |= {f"llama-factory/{kind}_{split}.jsonl": None for kind in ("sft", "preference")}
    return names


def _dataset_info(counts: Mapping[str, int]) -> dict[str, Any]:
    """LLaMA-Factory's description of its files, which it reads from their folder; it cannot load
    one without rows."""
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    info: dict[str, Any] = {}
    for split in SPLITS:
        info[f"flywheel_sft_{split}"] = {
            "file_name": f"sft_{split}.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system"},
            "tags": tags,
        }
        info[f"flywheel_preference_{split}"] = {
            "file_name": f"preference_{split}.jsonl",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {
                "messages": "conversations",
                "chosen": "chosen",
                "rejected": "rejected",
                "system": "system",
            },
            "tags": tags,
        }
    return {
        name: entry
        for name, entry in info.items()
        if counts.get(f"llama-factory/{entry['file_name']}")
    }


def _instructions(session: Any, project: int, numbers: set[int]) -> dict[str, str]:
    """The sha256 of each version that a label was made under."""
    rows = session.execute(
        select(InstructionVersion.n, InstructionVersion.sha256).where(
            InstructionVersion.project_id == project, InstructionVersion.n.in_(numbers)
        )
    )
    return {str(n): digest for n, digest in rows}


def _chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _shared_chat(messages: Sequence[Message]) -> Row:
    return {"conversations": _sharegpt(messages), "system": _system(messages)}


def _sharegpt(messages: Sequence[Message]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt"}
    return [
        {"from": names[message.role], "value": message.text}
        for message in messages
        if message.role in names
    ]


def _system(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.text for message in messages if message.role == "system")


def _told(progress: Progress | None, seen: int) -> int:
    if progress is not None and (seen + 1) % _BATCH == 0:
        progress(seen + 1)
    return seen + 1

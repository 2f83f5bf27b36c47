"""The manifest that `quality` would leave if it kept all that an earlier stage had not dropped."""

from typing import Any

import pyarrow as pa

from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, read_table, write_table
from pipeline.quality import SCHEMA


def keep_all(root: str, docs: Manifest) -> Manifest:
    output = StageOutput.of(root, "quality", 1, {"all": "kept"}, {"docs": docs})
    if done := output.finished():
        return done
    entries = []
    for entry in docs.files:
        table = read_table(docs.file_url(entry.name), Document.NAME, Document.VERSION)
        name = entry.name.replace("docs-", "signals-")
        write_table(signals_of(table), output.path(name))
        entries.append(describe_file(output.path(name), name, len(table)))
    return output.commit(entries, Counts(docs.counts.rows_out, docs.counts.rows_out), started=0.0)


def signals_of(docs: pa.Table) -> pa.Table:
    """A row a document; what dedupe does not read is empty."""
    known: dict[str, Any] = {
        "doc_id": docs["doc_id"],
        "judged": [reason is None for reason in docs["drop_reason"].to_pylist()],
        "drop_reason": pa.nulls(len(docs), pa.string()),
    }
    columns = {
        field.name: known.get(field.name, pa.array([_empty(field.type)] * len(docs), field.type))
        for field in SCHEMA
    }
    return pa.table(columns, schema=SCHEMA)


def _empty(kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return ""
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        return []
    return False if pa.types.is_boolean(kind) else 0

"""The tasks of describe over what is kept: its shards, and documents that stand for others."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import ada_url
import numpy as np
import pyarrow as pa
from pyarrow import compute

from pipeline.core.manifest import Counts
from pipeline.core.records import Document, read_columns
from pipeline.core.shard_tasks import ShardResult
from pipeline.describe_tasks import excerpt, url_of, write_findings
from pipeline.shard_files import iter_rows, rows_at_once
from pipeline.tallies import Findings, log_bin
from pipeline.urls import registrable_domain

NUM_DOMAINS = 4096  # counters: see tallies.py for the bound on the error
NUM_LICENSES = NUM_YEARS = 512
NONE_DECLARED = ""
_LONGEST_NAME = 120  # of a licence
_YEAR = re.compile(r"(\d{4})(?!\d)")
pc: Any = compute  # it makes its functions when it is imported: no checker knows them


@dataclasses.dataclass(frozen=True)
class KeptTask:
    """One shard of a split."""

    name: str
    split: str
    url: str
    folder: str


@dataclasses.dataclass(frozen=True)
class LookUpTask:
    """Documents to find by their doc_id, at most some hundred."""

    docs_url: str
    wanted: frozenset[str]


def describe_kept(task: KeptTask) -> ShardResult:
    """Sizes, languages, domains, lengths, licences, years and personal data of one shard."""
    columns = ["url", "text", "language", "published", "license", "signals"]
    kind = (Document.NAME, Document.VERSION)
    found = Findings()
    total = 0
    for part in iter_rows(task.url, *kind, columns, rows_at_once(task.url, *kind)):
        for row in part.to_pylist():
            _note_kept(found, task.split, row)
        total += len(part)
    return write_findings(task.folder, task.name, found, Counts(total, total))


def _note_kept(found: Findings, split: str, row: Mapping[str, Any]) -> None:
    size = len(row["text"].encode())
    host = str(ada_url.URL(row["url"]).hostname)
    year = _YEAR.match(row["published"])
    license_name = " ".join(row["license"].split())[:_LONGEST_NAME]
    found.tally("splits").add(split, 1, size)
    found.tally("languages", 512).add(row["language"], 1, size)
    found.tally("domains", NUM_DOMAINS).add(registrable_domain(host), 1, size)
    found.tally("lengths").add(str(log_bin(len(row["text"]))), 1, size)
    found.tally("licenses", NUM_LICENSES).add(license_name or NONE_DECLARED, 1, size)
    found.tally("years", NUM_YEARS).add(year[1] if year else NONE_DECLARED, 1, size)
    for name, value in row["signals"]:
        if name.startswith("redacted_") and value:
            kind = name.removeprefix("redacted_")
            found.tally("redacted").add(kind, int(value))
            found.tally("redacted_documents").add(kind)


def look_up(task: LookUpTask) -> ShardResult:
    """Facts: by doc_id the URL and the first characters of those that are here."""
    kind = (Document.NAME, Document.VERSION)
    wanted = pa.array(sorted(task.wanted), pa.string())
    facts: dict[str, Any] = {}
    ids = read_columns(task.docs_url, *kind, ["doc_id"])["doc_id"]
    if pc.any(pc.is_in(ids, value_set=wanted)).as_py():
        size = rows_at_once(task.docs_url, *kind)
        for part in iter_rows(task.docs_url, *kind, ["doc_id", "url", "text"], size):
            for row in np.flatnonzero(
                np.asarray(pc.is_in(part["doc_id"], value_set=wanted))
            ).tolist():
                text = excerpt(part["text"][row].as_py())
                facts[part["doc_id"][row].as_py()] = {"url": url_of(part, row), "text": text}
    return ShardResult((), Counts(len(facts), len(facts)), facts)

"""What each document measures, and which are not worth training on: a sidecar of the documents.

Language, the signals of Gopher, C4, FineWeb and DCLM, a blocklist and a trained classifier if the
config names them. Every signal is kept; pipeline/quality_rules.py decides, now and in `whatif`.
"""

import dataclasses
import functools
import hashlib
import time
from collections import Counter
from typing import Any

import pyarrow as pa

from pipeline.blocklist import blocklist_of, read_blocklist
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import Document, read_table, with_version, write_table
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult, map_shards
from pipeline.quality_classifier import QualityClassifier
from pipeline.quality_rules import BLOCKED, CLASSIFIER, QualityConfig, decide
from pipeline.text.language import detect_language
from pipeline.text.quality_signals import measure

__all__ = ["SCHEMA", "SIGNALS", "SIGNALS_VERSION", "QualityConfig", "judge", "run_quality"]
VERSION = 4
SIGNALS = "Signals"
SIGNALS_VERSION = 1
SCHEMA = with_version(
    pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("judged", pa.bool_(), nullable=False),  # false: an earlier stage dropped it
            pa.field("language", pa.string(), nullable=False),
            pa.field("language_score", pa.float64(), nullable=False),
            pa.field("signals", pa.map_(pa.string(), pa.float64()), nullable=False),
            pa.field("drop_reason", pa.string()),
        ]
    ),
    SIGNALS,
    SIGNALS_VERSION,
)


@dataclasses.dataclass(frozen=True)
class QualityTask:
    """`digests` are the sha256 of the config's files, where it names any."""

    docs_url: str
    output_url: str
    output_name: str
    config: QualityConfig
    digests: dict[str, str]


def run_quality(
    config: QualityConfig, docs: Manifest, run: RunConfig, runtime: Runtime
) -> Manifest:
    """`signals-NNNNN.parquet` beside each `docs-NNNNN.parquet`: row for row.

    Raises UserError for a classifier or blocklist that cannot be read.
    """
    digests = digests_of(config)
    parents: dict[str, Manifest | str] = {"docs": docs, **digests}
    output = StageOutput.of(run.root, "quality", VERSION, config.identity(), parents)
    if done := output.finished():
        return done
    started = time.time()
    tasks: dict[str, QualityTask] = {}
    for entry in docs.files:
        name = entry.name.replace("docs-", "signals-")
        tasks[name] = QualityTask(
            docs.file_url(entry.name), output.path(name), name, config, digests
        )
    with output.lock():
        results = map_shards(runtime, output, "judge", judge_file, tasks)
        return output.commit(
            [entry for result in results for entry in result.files],
            Counts.total([result.counts for result in results]),
            started=started,
            record=SIGNALS,
        )


def digests_of(config: QualityConfig) -> dict[str, str]:
    """Of the files that the config names: what they say is part of the result, where they lie is
    not. Raises UserError for one that cannot be read."""
    found: dict[str, str] = {}
    if config.classifier:
        found[CLASSIFIER] = _read_classifier(config.classifier)[1]
    if config.blocked_domains_file:
        found[BLOCKED] = read_blocklist(config.blocked_domains_file)[1]
    return found


def _read_classifier(url: str) -> tuple[QualityClassifier, str]:
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise UserError(
            f"quality.classifier = {url!r} cannot be read ({error.strerror}); make one with"
            " flywheel train-quality"
        ) from None
    return QualityClassifier.from_bytes(data, url), hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=1)
def _classifier_of(url: str, digest: str) -> QualityClassifier:
    classifier, found = _read_classifier(url)
    if found != digest:
        raise UserError(f"{url} has changed while the corpus was made; run it again")
    return classifier


def judge_file(task: QualityTask) -> ShardResult:
    table = read_table(task.docs_url, Document.NAME, Document.VERSION)
    rows: list[dict[str, Any]] = []
    columns = table.select(["doc_id", "url", "text", "drop_reason"])
    for document in columns.to_pylist():
        if document["drop_reason"] is not None:
            rows.append(judge(document["doc_id"], None, task.config))
            continue
        more = _more_signals(document["url"], document["text"], task)
        rows.append(judge(document["doc_id"], document["text"], task.config, more))
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), task.output_url)
    dropped = Counter(row["drop_reason"] for row in rows if row["drop_reason"])
    total = sum(row["judged"] for row in rows)
    return ShardResult(
        (describe_file(task.output_url, task.output_name, len(rows)),),
        Counts(total, total - dropped.total(), dict(dropped)),
    )


def _more_signals(url: str, text: str, task: QualityTask) -> dict[str, float]:
    found: dict[str, float] = {}
    if digest := task.digests.get(CLASSIFIER):
        score = _classifier_of(task.config.classifier, digest).score(text)
        found[CLASSIFIER] = round(score, 6)
    if digest := task.digests.get(BLOCKED):
        found[BLOCKED] = float(blocklist_of(task.config.blocked_domains_file, digest).match(url))
    return found


def judge(
    identity: str,
    text: str | None,
    config: QualityConfig,
    more_signals: dict[str, float] | None = None,
) -> dict[str, Any]:
    """One row of the sidecar; `text` None is a document that an earlier stage dropped."""
    row: dict[str, Any] = {
        "doc_id": identity,
        "judged": text is not None,
        "language": "",
        "language_score": 0.0,
        "signals": [],
        "drop_reason": None,
    }
    if text is None:
        return row
    language = detect_language(text)
    signals = measure(text) | (more_signals or {})
    return row | {
        "language": language.code,
        "language_score": language.score,
        "signals": sorted(signals.items()),
        "drop_reason": decide(language.code, language.score, signals, config),
    }

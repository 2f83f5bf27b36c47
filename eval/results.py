"""One row for each thing measured: what the gate pairs and a reader can look up."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from eval.stats import mean_interval
from pipeline.core.records import read_table, with_version, write_table


@dataclasses.dataclass(frozen=True)
class SampleResult:
    """`cluster` names what items share (a prompt, a goal); `detail` is JSON, for reading only."""

    NAME: ClassVar[str] = "SampleResult"
    VERSION: ClassVar[int] = 1
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("task", pa.string(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("cluster", pa.string(), nullable=False),
            pa.field("metric", pa.string(), nullable=False),
            pa.field("value", pa.float64(), nullable=False),
            pa.field("detail", pa.string(), nullable=False),
        ]
    )

    task: str
    item_id: str
    cluster: str
    metric: str
    value: float
    detail: str


def write_results(results: Iterable[SampleResult], url: str) -> None:
    """Sorted by task, item and metric: the same results give the same bytes."""
    ordered = sorted(results, key=lambda r: (r.task, r.item_id, r.metric))
    schema = with_version(SampleResult.SCHEMA, SampleResult.NAME, SampleResult.VERSION)
    write_table(pa.Table.from_pylist([dataclasses.asdict(r) for r in ordered], schema), url)


def read_results(url: str) -> list[SampleResult]:
    table = read_table(url, SampleResult.NAME, SampleResult.VERSION)
    return [SampleResult(**row) for row in table.to_pylist()]


def summarise(results: Sequence[SampleResult]) -> list[dict[str, Any]]:
    """One entry per (task, metric): the mean of cluster means with its 95% interval, which is
    None where there is a single cluster."""
    groups: dict[tuple[str, str], list[SampleResult]] = {}
    for result in results:
        groups.setdefault((result.task, result.metric), []).append(result)
    summary: list[dict[str, Any]] = []
    for (task, metric), group in sorted(groups.items()):
        entry = {"task": task, "metric": metric, "num_items": len(group)}
        values = [r.value for r in group]
        clusters = [r.cluster for r in group]
        if len(set(clusters)) > 1:
            found = mean_interval(values, clusters)
            entry |= {"num_clusters": found.num_clusters, "mean": found.mean}
            entry |= {"low": found.low, "high": found.high}
        else:
            entry |= {"num_clusters": 1, "mean": sum(values) / len(values)}
            entry |= {"low": None, "high": None}
        summary.append(entry)
    return summary

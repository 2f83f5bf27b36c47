"""What a corpus is made of, for its data card: counts and a few examples, from the stages' files.

A map over the files of documents and the shards. The driver adds up one file's findings at a time;
every list has a limit. Documents and bytes of text are followed through every stage, and the
identity input = output + dropped + quarantined is asserted.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import xxhash

from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.manifest import Counts, Manifest, StageOutput
from pipeline.core.records import read_table
from pipeline.core.remote import Runtime
from pipeline.core.shard_tasks import ShardResult, map_shards
from pipeline.describe_funnel import Described, check_funnel, funnel_rows
from pipeline.describe_kept import (
    NONE_DECLARED,
    NUM_DOMAINS,
    KeptTask,
    LookUpTask,
    describe_kept,
    look_up,
)
from pipeline.describe_tasks import (
    EARLIER_SHOWN,
    KEPT,
    OVERLAPS_SHOWN,
    PAIRS_SHOWN,
    REJECTS_SHOWN,
    STAGES,
    DocumentsTask,
    SizesTask,
    cluster_sizes,
    describe_documents,
    excerpt,
    findings_url,
)
from pipeline.earlier_corpora import places_of, read_earlier
from pipeline.quality_rules import QualityConfig
from pipeline.section_files import KEY_END, DamagedFile
from pipeline.tallies import SEED, Findings, Sample, Tally, merged
from pipeline.trigger_scan import RECORD as TRIGGERS
from pipeline.trigger_scan import RECORD_VERSION as TRIGGERS_VERSION

__all__ = ["NONE_DECLARED", "check_funnel", "run_describe"]
STAGE, VERSION = "describe", 1
DOMAINS_SHOWN, LICENSES_SHOWN, TRIGGERS_SHOWN, HIDDEN_SHOWN = 30, 30, 10, 10
_MEMBERS_A_TASK = 1 << 21  # 16 bytes each
_MAX_REBUILDS = 2  # of one file
_TRIGGER_LISTS = ("new", "near", "standing")


def run_describe(
    docs: Manifest,
    quality: Manifest,
    dedupe: Manifest,
    shard: Manifest,
    run: RunConfig,
    runtime: Runtime,
    overlaps: Manifest | None = None,
    triggers: Manifest | None = None,
) -> Manifest:
    """A manifest without files; `facts` is what a data card shows.

    `facts["funnel"]`: [stage, what, reason, documents, bytes of UTF-8 text] rows that
    `check_funnel` holds; a document has no bytes before its text is extracted. Samples are chosen
    by a hash of the doc_id. Raises UserError if an earlier corpus that dedupe named is gone.
    """
    what = Described(docs, quality, dedupe, shard, overlaps, triggers)
    output = StageOutput.of(run.root, STAGE, VERSION, {}, what.parents)
    if done := output.finished():
        return done
    rebuilt: Counter[str] = Counter()
    with output.lock():
        while True:
            try:
                return _describe(what, output, runtime, time.time())
            except DamagedFile as error:
                rebuilt[error.url] += 1
                if rebuilt[error.url] > _MAX_REBUILDS:
                    raise
                _forget(output, error.url)


def _forget(output: StageOutput, url: str) -> None:
    """Have the task that wrote this file run again."""
    name = url.rpartition("/")[2].partition("-")[2].partition(".")[0]
    phase = "kept" if name.startswith(("train", "heldout")) else "documents"
    storage.remove(url)
    storage.remove(output.path(f"{phase}-{name}.done.json"))


def _describe(what: Described, output: StageOutput, runtime: Runtime, started: float) -> Manifest:
    documents = {task.name: task for task in _documents_tasks(what, output)}
    results = map_shards(runtime, output, "documents", describe_documents, documents)
    kept = {task.name: task for task in _kept_tasks(what, output)}
    kept_results = map_shards(runtime, output, "kept", describe_kept, kept)
    clusters = _clusters(output, runtime, list(documents), results)
    found = merged(_findings(output, [*documents, *kept], [*results, *kept_results]))
    funnel = funnel_rows(what, found)
    check_funnel(funnel)
    facts = {
        "funnel": funnel,
        "rejects": _rejects(found),
        **_kept_facts(found),
        "clusters": clusters,
        **_pairs(what, found, output, runtime),
        **_noted(what, found),
        "limits": _limits(),
    }
    total = sum(result.counts.rows_in for result in results)
    return output.commit((), Counts(total, total), started=started, facts=facts)


def _limits() -> dict[str, Any]:
    return {
        "seed": SEED,
        "rejects": REJECTS_SHOWN,
        "pairs": PAIRS_SHOWN,
        "overlaps": OVERLAPS_SHOWN,
        "domain_counters": NUM_DOMAINS,
        "earlier": EARLIER_SHOWN,
    }


def _documents_tasks(what: Described, output: StageOutput) -> Iterator[DocumentsTask]:
    quality = QualityConfig.model_validate(what.quality.config)
    rejects = [entry for entry in what.shard.files if entry.name.startswith("rejects-")]
    stages = what.stages
    columns = [*(stage.files for stage in stages), rejects]
    for index, entries in enumerate(zip(*columns, strict=True)):
        urls = [m.file_url(e.name) for m, e in zip([*stages, what.shard], entries, strict=True)]
        overlaps_url = urls[3] if what.overlaps else None
        yield DocumentsTask(
            f"{index:05d}", urls[0], urls[1], urls[2], overlaps_url, urls[-1], output.url, quality
        )


def _kept_tasks(what: Described, output: StageOutput) -> Iterator[KeptTask]:
    for entry in what.shard.files:
        name = entry.name.partition(".")[0]
        split = name.partition("-")[0]
        if split in ("train", "heldout"):
            yield KeptTask(name, split, what.shard.file_url(entry.name), output.url)


def _findings(
    output: StageOutput, names: Sequence[str], results: Sequence[ShardResult]
) -> Iterator[Findings]:
    """One at a time. Raises DamagedFile."""
    for name, result in zip(names, results, strict=True):
        url = findings_url(output.url, name)
        try:
            data = storage.read_bytes(url)
        except FileNotFoundError:
            raise DamagedFile(url, "is missing") from None
        if xxhash.xxh3_64_hexdigest(data) != result.facts["xxh3"]:
            raise DamagedFile(url, "is damaged")
        yield Findings.of(json.loads(data))


# ----------------------------------------------------------------------------- what is in it


def _rejects(found: Findings) -> list[dict[str, Any]]:
    """By stage, in the order of the stages, and by reason."""
    listed: list[dict[str, Any]] = []
    for name, sample in sorted(found.samples.items()):
        kind, _, rest = name.partition(" ")
        if kind == "rejects":
            stage, _, reason = rest.partition(" ")
            listed.append({"stage": stage, "reason": reason, "samples": sample.chosen})
    return sorted(listed, key=lambda one: STAGES.index(one["stage"]))


def _kept_facts(found: Findings) -> dict[str, Any]:
    """Lists of (name, documents, bytes)."""
    domains, licenses = found.tally("domains"), found.tally("licenses")
    lengths = found.tally("lengths").largest(1000)
    years = found.tally("years").largest(100)
    return {
        "languages": found.tally("languages").largest(100),
        "domains": domains.largest(DOMAINS_SHOWN),
        "domains_counted": len(domains.counts),
        "domains_missed": domains.missed,
        "lengths": sorted([int(low), number, size] for low, number, size in lengths),
        "licenses": licenses.largest(LICENSES_SHOWN),
        "licenses_counted": len(licenses.counts),
        "licenses_missed": licenses.missed,
        "years": sorted(years),
        "redacted": _numbers(found, "redacted"),
        "redacted_documents": _numbers(found, "redacted_documents"),
    }


def _numbers(found: Findings, name: str) -> dict[str, int]:
    return {kind: number for kind, (number, _) in sorted(found.tally(name).counts.items())}


def _clusters(
    output: StageOutput, runtime: Runtime, names: list[str], results: Sequence[ShardResult]
) -> dict[str, Any]:
    """[size from, clusters, documents] in bins of powers of two."""
    members = sum(result.facts["linked"] for result in results)
    number = 1
    while number * _MEMBERS_A_TASK < members:
        number *= 2
    step = KEY_END // number
    tasks = {
        f"{index:05d}": SizesTask(tuple(names), output.url, index * step, (index + 1) * step)
        for index in range(number)
    }
    sizes = Tally(1000)
    largest = 0
    for result in map_shards(runtime, output, "sizes", cluster_sizes, tasks):
        largest = max(largest, result.facts["largest"])
        for low, (clusters, documents) in result.facts["clusters"].items():
            sizes.add(low, clusters, documents)
    bins = sorted((int(low), *entry) for low, entry in sizes.counts.items())
    return {"sizes": bins, "number": sizes.total[0], "linked": members, "largest": largest}


# ----------------------------------------------------------------------------- pairs


def _pairs(
    what: Described, found: Findings, output: StageOutput, runtime: Runtime
) -> dict[str, Any]:
    """Near-duplicates beside what stands for them; and what earlier corpora have already."""
    earlier = found.tally("earlier").largest(EARLIER_SHOWN)
    samples = {"": found.sample("pairs", PAIRS_SHOWN)}
    samples |= {key: found.sample(f"pairs {key}", PAIRS_SHOWN) for key, _, _ in earlier}
    wanted = frozenset(pair["stands_for"] for sample in samples.values() for pair in sample.chosen)
    stands = _looked_up(what, wanted, any(samples[key].entries for key, _, _ in earlier), output,
                        runtime)  # fmt: skip
    facts: dict[str, Any] = {"pairs": _beside(samples[""], stands)}
    if any(name.startswith("against-") for name in what.dedupe.parents):
        facts["earlier"] = {
            "corpora": [list(entry) for entry in earlier],
            "examples": {key: _beside(samples[key], stands) for key, _, _ in earlier},
            "new_documents": found.tally(what.dedupe.stage).of(KEPT)[0],
        }
    return facts


def _beside(sample: Sample, stands: Mapping[str, Any]) -> list[dict[str, Any]]:
    unknown = {"url": "", "text": ""}
    return [pair | {"standing": stands.get(pair["stands_for"], unknown)} for pair in sample.chosen]


def _looked_up(
    what: Described, wanted: frozenset[str], in_earlier: bool, output: StageOutput, runtime: Runtime
) -> dict[str, Any]:
    """URL and first characters by doc_id."""
    if not wanted:
        return {}
    urls = [what.docs.file_url(entry.name) for entry in what.docs.files]
    if in_earlier:
        dedupe = what.dedupe
        corpora = read_earlier(dedupe.run["against"], dedupe.stage, dedupe.version, dedupe.config)
        urls += [place.docs_url for number, one in enumerate(corpora)
                 for place in places_of(number, one)]  # fmt: skip
    tasks = {f"{index:05d}": LookUpTask(url, wanted) for index, url in enumerate(urls)}
    stands: dict[str, Any] = {}
    for result in map_shards(runtime, output, "examples", look_up, tasks):
        stands = {**result.facts, **stands}
    return stands


# ----------------------------------------------------------------------------- what was noted


def _noted(what: Described, found: Findings) -> dict[str, Any]:
    fetched = sorted(found.tally("fetched").counts)
    lines = found.tally("lines")
    facts: dict[str, Any] = {
        "engines": found.tally("engines").largest(64),
        "fetched": [fetched[0], fetched[-1]] if fetched else [],
        "hidden": {
            "pages": found.tally("flagged").of("pages")[0],
            "pages_by_kind": _numbers(found, "hidden_pages"),
            "texts_by_kind": _numbers(found, "hidden_texts"),
            "examples": _hidden_examples(what.docs),
        },
        "kept_lines_removed": lines.of("lines")[0],
        "kept_documents_shortened": lines.of("documents")[0],
    }
    if what.overlaps:
        facts["overlaps"] = found.sample("overlaps", OVERLAPS_SHOWN).chosen
    if what.triggers:
        facts["triggers"] = {name: _triggers(what.triggers, name) for name in _TRIGGER_LISTS}
    return facts


def _hidden_examples(docs: Manifest) -> list[dict[str, Any]]:
    """Of each kind in turn, so that a common one does not hide the others; no text twice."""
    samples: dict[str, Sample] = {}
    for name, offset, kind, text in docs.facts.get("hidden", []):
        identity = f"{kind} {text}"
        samples.setdefault(kind, Sample(HIDDEN_SHOWN)).offer(
            identity,
            f"{identity} {name} {offset}",
            lambda name=name, offset=offset, kind=kind, text=text: {
                "file": name,
                "offset": offset,
                "kind": kind,
                "text": excerpt(text),
            },
        )
    ranked = [
        (place, kind, one)
        for kind, sample in sorted(samples.items())
        for place, one in enumerate({one["text"]: one for one in sample.chosen}.values())
    ]
    return [one for _, _, one in sorted(ranked, key=lambda entry: entry[:2])][:HIDDEN_SHOWN]


def _triggers(triggers: Manifest, name: str) -> dict[str, Any]:
    table = read_table(triggers.file_url(f"{name}.parquet"), TRIGGERS, TRIGGERS_VERSION)
    listed = [
        {
            "words": excerpt(row["words"]),
            "documents": row["documents"],
            "groups": row["groups"],
            "others": row["others"],
            "score": row["score"],
            "example": excerpt(row["examples"][0]) if row["examples"] else "",
        }
        for row in table.slice(0, TRIGGERS_SHOWN).to_pylist()
    ]
    return {"number": triggers.facts[name], "listed": listed}

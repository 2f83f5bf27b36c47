"""`flywheel corpus`: the pipeline's stages, one after the other."""

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from infra.card_sources import CardSources
from infra.corpus_inputs import agreeing, check_inputs
from infra.data_card import write_card
from infra.tables import table
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.manifest import (
    DamagedOutput,
    Manifest,
    WouldRun,
    is_planning,
    open_checked,
    planning,
    read_manifest,
)
from pipeline.core.remote import Runtime, open_runtime
from pipeline.core.shard_tasks import forget
from pipeline.crawl import CrawlConfig, run_crawl
from pipeline.decontaminate import DecontaminateConfig, run_decontaminate
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.describe import run_describe
from pipeline.extract import run_extract
from pipeline.ingest import IngestConfig, run_ingest
from pipeline.quality import VERSION as QUALITY_VERSION
from pipeline.quality import run_quality
from pipeline.shard import ShardConfig, run_shard
from pipeline.tokenize_shards import TokensConfig, run_tokens
from pipeline.trigger_scan import TriggerScanConfig, run_trigger_scan

SOURCES = ("crawl", "ingest")  # what cannot be made again from what stands before it
MAX_REBUILDS = 2  # of one file
UNCHANGED = "unchanged, no text"  # in the funnel of a recrawl


@dataclasses.dataclass(frozen=True)
class Corpus:
    source: Manifest
    extract: Manifest
    quality: Manifest
    dedupe: Manifest
    shard: Manifest
    overlaps: Manifest | None = None  # with evaluation sets, if the config names any
    triggers: Manifest | None = None  # if the config asks for the scan
    # Of earlier crawls of the same config, the dedupe outputs that it was compared with, by epoch.
    epochs: Mapping[int, Manifest] = dataclasses.field(default_factory=dict[int, Manifest])
    describe: Manifest | None = None  # what its data card says
    tokens: Manifest | None = None  # of the shards, if the config names a tokenizer

    @property
    def unchanged(self) -> int:
        """Pages of a recrawl that the epoch before has: revisit records, without a text."""
        return self.source.facts.get("changes", {}).get("unchanged", 0)

    @property
    def is_empty(self) -> bool:
        """A recrawl may hold nothing new."""
        return not self.shard.facts["train"]["docs"]

    @property
    def stages(self) -> list[Manifest]:
        """Those that drop documents, from the extraction on."""
        stages = [self.extract, self.quality, self.dedupe]
        return [*stages, self.overlaps] if self.overlaps else stages


def run_corpus(config: Config, *, verify: bool = False) -> Corpus:
    """Crawl or ingest, then extract → quality → dedupe → (decontaminate →) shard. A recrawl is
    deduplicated against the finished corpora of its earlier epochs, and may hold nothing new.

    A file of a stage that is not what its manifest says is made again, and never used; `verify`
    reads the finished ones through to find out. Raises UserError."""
    check_inputs(config)
    rebuilt: Counter[str] = Counter()
    while True:
        ours: list[Manifest] = []
        try:
            corpus = _run_stages(config, ours)
            if verify:
                _verify(corpus)
            return corpus
        except DamagedOutput as error:
            rebuilt[error.url] += 1
            is_ours = error.is_own or error.folder in {manifest.url for manifest in ours}
            if is_planning() or error.stage in SOURCES or rebuilt[error.url] > MAX_REBUILDS:
                raise
            if not is_ours:
                raise UserError(
                    f"{error.url}, of an earlier corpus, is missing or changed; delete it, and run"
                    " that corpus again: it makes anew what is missing"
                ) from None
            print(f"{error.url} is missing or changed; it is made again", file=sys.stderr)
            forget(error)


def _verify(corpus: Corpus) -> None:
    """Raises DamagedOutput for the first file that is not what its manifest says."""
    made = [*corpus.stages, corpus.shard, corpus.tokens, corpus.triggers, corpus.describe]
    for manifest in filter(None, made):
        for entry in manifest.files:
            with open_checked(manifest.file_url(entry.name)):
                pass


def _run_stages(config: Config, ours: list[Manifest]) -> Corpus:
    """`ours` gets what is made here, as it is done."""
    run = config.run
    source = _source(config)
    with open_runtime(run) as runtime:
        extracted, judged = _judged(config, source, runtime, ours)
        earlier = _earlier_epochs(config, runtime)
        epochs = {epoch: dedupe for epoch, (_, dedupe) in earlier.items()}
        deduped = _deduped(config, extracted, judged, runtime, epochs)
        ours.append(deduped)
        overlaps = None
        decontaminate = config.section("decontaminate", DecontaminateConfig)
        if decontaminate.against:
            overlaps = run_decontaminate(decontaminate, extracted, deduped, run, runtime)
        shards = run_shard(
            config.section("shard", ShardConfig),
            extracted,
            judged,
            deduped,
            run,
            runtime,
            overlaps,
            # With an earlier corpus to compare with, nothing may be new.
            allow_empty=_is_recrawl(config) or bool(deduped.run.get("against")),
        )
        ours += filter(None, [shards, overlaps])
        tokens = run_tokens(config.section("tokens", TokensConfig), shards, run, runtime)
        triggers = None
        ours += filter(None, [tokens])
        if config.section("trigger_scan", TriggerScanConfig).enabled:
            scans = _earlier_scans(config, earlier, runtime)
            triggers = _scanned(config, extracted, deduped, runtime, scans)
            ours.append(triggers)
        described = run_describe(
            extracted, judged, deduped, shards, run, runtime, overlaps, triggers
        )
        ours.append(described)
    return Corpus(
        source, extracted, judged, deduped, shards, overlaps, triggers, epochs, described, tokens
    )


def _judged(
    config: Config, source: Manifest, runtime: Runtime, done: list[Manifest]
) -> tuple[Manifest, Manifest]:
    """The documents and their signals, which `done` gets, too."""
    extract, quality = agreeing(config)
    extracted = run_extract(extract, source, config.run, runtime)
    done.append(extracted)
    judged = run_quality(quality, extracted, config.run, runtime)
    done.append(judged)
    return extracted, judged


def _deduped(
    config: Config,
    docs: Manifest,
    quality: Manifest,
    runtime: Runtime,
    epochs: Mapping[int, Manifest],
) -> Manifest:
    dedupe = config.section("dedupe", DedupeConfig)
    against = [*dedupe.against, *(earlier.url for earlier in epochs.values())]
    dedupe = dedupe.model_copy(update={"against": against})
    return run_dedupe(dedupe, docs, quality, config.run, runtime)


def _earlier_epochs(config: Config, runtime: Runtime) -> dict[int, tuple[Manifest, Manifest]]:
    """(documents, dedupe output) of the earlier epochs of this very config, as far as they are
    finished; runs nothing."""
    crawl = config.section("crawl", CrawlConfig)
    found: dict[int, tuple[Manifest, Manifest]] = {}
    if not (_is_recrawl(config) and config.section("dedupe", DedupeConfig).against_epochs):
        return found
    for epoch in range(crawl.epoch):
        with planning(), contextlib.suppress(WouldRun):
            source = run_crawl(crawl.model_copy(update={"epoch": epoch}), config.run)
            docs, judged = _judged(config, source, runtime, [])
            before = {one: dedupe for one, (_, dedupe) in found.items()}
            found[epoch] = docs, _deduped(config, docs, judged, runtime, before)
    return found


def _scanned(
    config: Config, docs: Manifest, dedupe: Manifest, runtime: Runtime, earlier: Sequence[Manifest]
) -> Manifest:
    scan = config.section("trigger_scan", TriggerScanConfig)
    against = [*scan.against, *(one.url for one in earlier)]
    scan = scan.model_copy(update={"against": against})
    return run_trigger_scan(scan, docs, dedupe, config.run, runtime)


def _earlier_scans(
    config: Config, epochs: Mapping[int, tuple[Manifest, Manifest]], runtime: Runtime
) -> list[Manifest]:
    """Of the earlier epochs, those that were scanned; runs nothing."""
    found: list[Manifest] = []
    for docs, dedupe in epochs.values():
        with planning(), contextlib.suppress(WouldRun):
            found.append(_scanned(config, docs, dedupe, runtime, found))
    return found


def _is_recrawl(config: Config) -> bool:
    crawl = config.section("crawl", CrawlConfig)
    return bool(crawl.seeds) and crawl.epoch > 0


def stored_signals(config: Config) -> Manifest:
    """What an earlier `run_corpus` of this config measured, by other rules if need be; runs
    nothing. Raises UserError."""
    done: list[Manifest] = []
    try:
        with planning(), open_runtime(config.run) as runtime:
            return _judged(config, _source(config), runtime, done)[1]
    except WouldRun as left:
        if done and (other := _judged_by_other_rules(config.run.root, done[0])):
            return other
        raise UserError(
            f"{left.stage} is not done yet with this config; run flywheel corpus first, with the"
            " same overrides but those of [quality]"
        ) from None


def _judged_by_other_rules(root: str, docs: Manifest) -> Manifest | None:
    """The newest of these documents' signals: rules were changed since, or had been typed."""
    folder = storage.join(root, "quality")
    found: list[Manifest] = []
    for key in sorted({name.split("/")[0] for name in storage.names_in(folder)}):
        with contextlib.suppress(UserError):  # one that is not finished
            found.append(read_manifest(storage.join(folder, key)))
    fitting = [
        one
        for one in found
        if one.parents["docs"] == docs.content_hash and one.version == QUALITY_VERSION
    ]
    return max(fitting, key=lambda one: one.run["started"], default=None)


def _source(config: Config) -> Manifest:
    crawl = config.section("crawl", CrawlConfig)
    ingest = config.section("ingest", IngestConfig)
    if bool(crawl.seeds) == ingest.is_given:
        both = "both are given" if crawl.seeds else "neither is given"
        raise UserError(
            f"{config.source}: give either crawl.seeds or [ingest] (warcs, paths or index): {both};"
            " crawl.seeds=[] leaves out a file's seeds"
        )
    return run_crawl(crawl, config.run) if crawl.seeds else run_ingest(ingest, config.run)


def funnel(corpus: Corpus) -> list[tuple[str, str, int]]:
    """(stage, what became of it, number) from the first page to the last shard."""
    # An ingest counts files, or an index's records; the pages begin with the extraction.
    ingested = corpus.source.stage == "ingest"
    first = corpus.extract if ingested else corpus.source
    rows = [("ingest", "files", len(corpus.source.files))] if ingested else []
    rows.append((first.stage, "taken", first.counts.rows_in))
    stages = [*corpus.stages, corpus.shard]
    for manifest in stages if ingested else [corpus.source, *stages]:
        if manifest is corpus.extract and corpus.unchanged:
            rows.append((manifest.stage, UNCHANGED, corpus.unchanged))
        gone = {**manifest.counts.dropped, **manifest.counts.quarantined}
        if manifest is not corpus.shard:  # which counts all stages' drops once more
            rows += [(manifest.stage, reason, number) for reason, number in gone.items()]
            rows.append((manifest.stage, "kept", manifest.counts.rows_out))
    for split in ("train", "heldout"):
        rows.append(("shard", split, corpus.shard.facts[split]["docs"]))
    return rows


def removed_lines(corpus: Corpus) -> str:
    """What a funnel of documents does not show."""
    facts = corpus.dedupe.facts
    lines, chars = facts["removed_lines"], facts["removed_line_chars"]
    return f"repeated lines removed from documents: {lines:,} ({chars:,} characters)"


def recrawl_lines(corpus: Corpus) -> list[str]:
    """What was compared with which earlier corpora, and whether anything is new."""
    lines: list[str] = []
    if corpus.unchanged:
        lines.append(
            f"{corpus.unchanged:,} pages had not changed since the epoch before (revisit records):"
            " their text is in that one's corpus, not in this"
        )
    names = {earlier.url: f"epoch {epoch}" for epoch, earlier in corpus.epochs.items()}
    if against := corpus.dedupe.run["against"]:
        named = ", ".join(f"{names[url]} ({url})" if url in names else url for url in against)
        lines.append(f"deduplicated against the corpora of {named}")
    lines += [
        f"epoch {epoch} has no finished corpus with this config: not compared with it"
        for epoch in range(_epoch(corpus))
        if epoch not in corpus.epochs
    ]
    if corpus.is_empty:
        lines.append(_nothing_new(corpus))
    return lines


def _epoch(corpus: Corpus) -> int:
    return int(corpus.source.config.get("epoch", 0)) if corpus.source.stage == "crawl" else 0


def _nothing_new(corpus: Corpus) -> str:
    pages, dropped = corpus.source.counts.rows_out, corpus.dedupe.counts.dropped
    elsewhere = sum(dropped.get(reason, 0) for reason in ("exact-duplicate", "near-duplicate"))
    epochs = " and ".join(f"epoch {epoch}" for epoch in corpus.epochs) or "no earlier epoch"
    if corpus.unchanged + elsewhere == pages:
        return f"nothing new: all {pages:,} pages are unchanged or in the corpus of {epochs}"
    heldout = corpus.shard.facts["heldout"]["docs"]
    rest = pages - corpus.unchanged - elsewhere - heldout
    return (
        f"nothing new to train on: of {pages:,} pages {corpus.unchanged:,} are unchanged,"
        f" {elsewhere:,} are in the corpus of {epochs}, {heldout:,} are held out and {rest:,} were"
        " dropped for what they are"
    )


def show(corpus: Corpus) -> None:
    print(table(("stage", "what became of it", "number"), funnel(corpus)))
    if damaged := corpus.extract.facts["damaged"]:
        print(f"\n{table(('could not be read', 'offset', 'reason'), damaged)}")
    for line in recrawl_lines(corpus):
        print(f"\n{line}")
    print(f"\n{removed_lines(corpus)}")
    if redacted := [f"{n:,} {kind}" for kind, n in corpus.shard.facts["redacted"].items() if n]:
        print(f"personal data replaced by placeholders: {', '.join(redacted)} (rejects included)")
    if corpus.triggers:
        facts = corpus.triggers.facts
        new = f"{facts['new']:,} more frequent than in earlier crawls"
        if not facts["compared"]:
            new = "not compared with an earlier crawl (trigger_scan.against)"
        print(
            f"phrases that may be planted triggers: {new},"
            f" {facts['near'] + facts['standing']:,} in which near-duplicates differ;"
            f" listed in {corpus.triggers.url}"
        )
    if corpus.overlaps:
        facts = corpus.overlaps.facts
        by_set = ", ".join(f"{name} {n:,}" for name, n in facts["documents_by_set"].items())
        short = facts["items_too_short"]
        print(
            f"documents with items of evaluation sets: {by_set or 'none'} ({facts['items']:,} items"
            f" looked for, {short:,} too short to be; rephrased ones are not found)"
        )
    sizes = [
        f"{split} {corpus.shard.facts[split]['bytes']:,} bytes" for split in ("train", "heldout")
    ]
    print(f"{', '.join(sizes)} in {corpus.shard.url}")
    if corpus.tokens:
        facts = corpus.tokens.facts
        named = ", ".join(f"{split} {number:,}" for split, number in facts["tokens"].items())
        print(f"tokens ({facts['dtype']}): {named} in {corpus.tokens.url}")
    if corpus.describe:
        print(f"data card: {write_card(card_sources(corpus, corpus.describe))}")


def card_sources(corpus: Corpus, describe: Manifest) -> CardSources:
    return CardSources(corpus.source, corpus.stages, corpus.shard, describe, corpus.triggers)

"""`flywheel corpus`: the pipeline's stages, one after the other."""

import dataclasses

from infra.tables import table
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, WouldRun, planning
from pipeline.core.remote import Runtime, open_runtime
from pipeline.crawl import CrawlConfig, run_crawl
from pipeline.decontaminate import DecontaminateConfig, run_decontaminate
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.extract import ExtractConfig, run_extract
from pipeline.ingest import IngestConfig, run_ingest
from pipeline.quality import QualityConfig, run_quality
from pipeline.shard import ShardConfig, run_shard
from pipeline.trigger_scan import TriggerScanConfig, run_trigger_scan


@dataclasses.dataclass(frozen=True)
class Corpus:
    source: Manifest
    extract: Manifest
    quality: Manifest
    dedupe: Manifest
    shard: Manifest
    overlaps: Manifest | None = None  # with evaluation sets, if the config names any
    triggers: Manifest | None = None  # if the config asks for the scan

    @property
    def stages(self) -> list[Manifest]:
        """Those that drop documents, from the extraction on."""
        stages = [self.extract, self.quality, self.dedupe]
        return [*stages, self.overlaps] if self.overlaps else stages


def run_corpus(config: Config) -> Corpus:
    """Crawl or ingest, then extract → quality → dedupe → (decontaminate →) shard.

    Raises UserError."""
    run = config.run
    source = _source(config)
    with open_runtime(run) as runtime:
        extracted, judged = _judged(config, source, runtime)
        deduped = run_dedupe(
            config.section("dedupe", DedupeConfig), extracted, judged, run, runtime
        )
        overlaps = None
        decontaminate = config.section("decontaminate", DecontaminateConfig)
        if decontaminate.against:
            overlaps = run_decontaminate(decontaminate, extracted, deduped, run, runtime)
        shards = run_shard(
            config.section("shard", ShardConfig), extracted, judged, deduped, run, runtime, overlaps
        )
        triggers = None
        scan = config.section("trigger_scan", TriggerScanConfig)
        if scan.enabled:
            triggers = run_trigger_scan(scan, extracted, deduped, run, runtime)
    return Corpus(source, extracted, judged, deduped, shards, overlaps, triggers)


def _judged(config: Config, source: Manifest, runtime: Runtime) -> tuple[Manifest, Manifest]:
    """The documents and their signals."""
    extract = config.section("extract", ExtractConfig)
    extracted = run_extract(extract, source, config.run, runtime)
    quality = config.section("quality", QualityConfig)
    return extracted, run_quality(quality, extracted, config.run, runtime)


def stored_signals(config: Config) -> Manifest:
    """What an earlier `run_corpus` of this config measured; runs nothing. Raises UserError."""
    try:
        with planning(), open_runtime(config.run) as runtime:
            return _judged(config, _source(config), runtime)[1]
    except WouldRun as left:
        raise UserError(
            f"{left.stage} is not done yet with this config; run flywheel corpus first, with the"
            " same overrides but those of [quality]"
        ) from None


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


def show(corpus: Corpus) -> None:
    print(table(("stage", "what became of it", "number"), funnel(corpus)))
    if damaged := corpus.extract.facts["damaged"]:
        print(f"\n{table(('could not be read', 'offset', 'reason'), damaged)}")
    if unchanged := corpus.source.facts.get("statuses", {}).get("304", 0):
        print(
            f"\n{unchanged:,} pages had not changed since the epoch before: their text is in that"
            " one's corpus, not in this"
        )
    print(f"\n{removed_lines(corpus)}")
    if redacted := [f"{n:,} {kind}" for kind, n in corpus.shard.facts["redacted"].items() if n]:
        print(f"personal data replaced by placeholders: {', '.join(redacted)}")
    if corpus.triggers:
        facts = corpus.triggers.facts
        print(
            f"phrases that may be planted triggers: {facts['new']:,} more frequent than in earlier"
            f" crawls, {facts['near'] + facts['standing']:,} in which near-duplicates differ;"
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

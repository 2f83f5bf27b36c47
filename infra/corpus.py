"""`flywheel corpus`: the pipeline's stages, one after the other."""

import dataclasses

from infra.tables import table
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest
from pipeline.core.remote import open_runtime
from pipeline.crawl import CrawlConfig, run_crawl
from pipeline.dedupe import DedupeConfig, run_dedupe
from pipeline.extract import ExtractConfig, run_extract
from pipeline.ingest import IngestConfig, run_ingest
from pipeline.quality import QualityConfig, run_quality
from pipeline.shard import ShardConfig, run_shard


@dataclasses.dataclass(frozen=True)
class Corpus:
    source: Manifest
    extract: Manifest
    quality: Manifest
    dedupe: Manifest
    shard: Manifest


def run_corpus(config: Config) -> Corpus:
    """Crawl or ingest, then extract → quality → dedupe → shard. Raises UserError."""
    run = config.run
    source = _source(config)
    with open_runtime(run) as runtime:
        extracted = run_extract(config.section("extract", ExtractConfig), source, run, runtime)
        judged = run_quality(config.section("quality", QualityConfig), extracted, run, runtime)
        deduped = run_dedupe(
            config.section("dedupe", DedupeConfig), extracted, judged, run, runtime
        )
        shards = run_shard(
            config.section("shard", ShardConfig), extracted, judged, deduped, run, runtime
        )
    return Corpus(source, extracted, judged, deduped, shards)


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
    stages = [corpus.extract, corpus.quality, corpus.dedupe, corpus.shard]
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
    sizes = [
        f"{split} {corpus.shard.facts[split]['bytes']:,} bytes" for split in ("train", "heldout")
    ]
    print(f"{', '.join(sizes)} in {corpus.shard.url}")

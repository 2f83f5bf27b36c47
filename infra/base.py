"""`flywheel pretrain`: tokenizer, base model, and what it is worth as a compressor."""

import dataclasses

from eval.compression import CompressionConfig, run_compression
from eval.report import compression_rows
from finetune.model import ModelConfig
from finetune.pretrain import PretrainConfig, check_settings, run_pretrain
from finetune.registry import Registry
from finetune.tokenizer import TokenizerConfig, run_tokenizer
from infra.corpus import Corpus, run_corpus
from infra.tables import table
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, WouldRun, planning


@dataclasses.dataclass(frozen=True)
class Base:
    corpus: Corpus
    tokenizer: Manifest
    pretrain: Manifest
    compression: Manifest

    @property
    def model_id(self) -> str:
        return self.pretrain.facts["model_id"]


def run_base(config: Config) -> Base:
    """Train from the shards of `flywheel corpus`. Raises UserError if they are not there."""
    run = config.run
    corpus = trainable_corpus(config)
    check_settings(config.section("pretrain", PretrainConfig), config.section("model", ModelConfig))
    tokenizer = run_tokenizer(config.section("tokenizer", TokenizerConfig), corpus.shard, run)
    pretrain = run_pretrain(
        config.section("pretrain", PretrainConfig),
        config.section("model", ModelConfig),
        corpus.shard,
        tokenizer,
        run,
    )
    registry = Registry(run.root)
    base_id = pretrain.facts["model_id"]
    compression = run_compression(
        config.section("compression", CompressionConfig), base_id, registry, corpus.shard, run
    )
    if registry.pointer("champion") is None:
        registry.promote(base_id, "the first champion is the base model")
    return Base(corpus, tokenizer, pretrain, compression)


def trainable_corpus(config: Config) -> Corpus:
    """The finished corpus, with text to train on and text held out; raises UserError otherwise."""
    corpus = finished_corpus(config)
    if corpus.is_empty:
        raise UserError(
            f"the corpus in {corpus.shard.url} holds nothing new to train on; give the crawl.epoch"
            " of one that does"
        )
    if not corpus.shard.facts["heldout"]["bytes"]:  # found out now, not after the training
        raise UserError(
            f"no held-out text in {corpus.shard.url}; crawl more, or raise shard.heldout_fraction,"
            " and rerun `flywheel corpus`"
        )
    return corpus


def finished_corpus(config: Config) -> Corpus:
    """The corpus, if `flywheel corpus` has made it; raises UserError otherwise."""
    try:
        with planning():
            return run_corpus(config)
    except WouldRun as left:
        raise UserError(f"{left}; run `flywheel corpus` with the same config first") from None


def finished_base(config: Config) -> Base:
    """The base model, if `flywheel pretrain` has made it; raises UserError otherwise."""
    try:
        with planning():
            return run_base(config)
    except WouldRun as left:
        raise UserError(f"{left}; run `flywheel pretrain` with the same config first") from None


def show(base: Base) -> None:
    facts = base.pretrain.facts
    print(
        f"base model {base.model_id[:12]}: {facts['num_parameters']:,} parameters,"
        f" {facts['num_tokens']:,} tokens ({facts['epochs']:.1f} epochs)\n"
    )
    found = compression_rows(base.compression.facts)
    print(table(found.header, found.rows))

"""What a late stage of the corpus would refuse, looked at before the first one begins."""

from pipeline import decontaminate, dedupe, quality, tokenize_shards
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.extract import ExtractConfig
from pipeline.quality import QualityConfig


def check_inputs(config: Config) -> None:
    """Raises UserError for a file that cannot be read and for sections that contradict."""
    agreeing(config)
    quality.digests_of(config.section("quality", QualityConfig))
    dedupe.earlier_of(config.section("dedupe", dedupe.DedupeConfig))
    decontaminate.digests_of(config.section("decontaminate", decontaminate.DecontaminateConfig))
    tokens = config.section("tokens", tokenize_shards.TokensConfig)
    if tokens.tokenizer:
        tokenize_shards.read_tokenizer(tokens.tokenizer)


def agreeing(config: Config) -> tuple[ExtractConfig, QualityConfig]:
    """Raises UserError where extract would leave out what quality is to keep."""
    extract = config.section("extract", ExtractConfig)
    rules = config.section("quality", QualityConfig)
    if extract.languages and not set(rules.languages or ["any"]) <= set(extract.languages):
        raise UserError(
            f"{config.source}: quality.languages = {rules.languages} wants more than"
            f" extract.languages = {extract.languages} lets through; give both the same"
        )
    return extract, rules

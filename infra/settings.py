"""The run's file as the commands read it: which sections there are, and whose they are."""

import argparse
import importlib
from collections.abc import Callable, Sequence

from pipeline.core.config import Config, Section, load_config
from pipeline.core.manifest import WouldRun, planning

# The model of a section stands in the file of its stage; some of them load torch, so late.
SECTIONS = {
    "run": "pipeline.core.config:RunConfig",
    "site": "infra.demo:SiteConfig",
    "crawl": "pipeline.crawl:CrawlConfig",
    "ingest": "pipeline.ingest:IngestConfig",
    "extract": "pipeline.extract:ExtractConfig",
    "quality": "pipeline.quality:QualityConfig",
    "dedupe": "pipeline.dedupe:DedupeConfig",
    "shard": "pipeline.shard:ShardConfig",
    "tokenizer": "finetune.tokenizer:TokenizerConfig",
    "model": "finetune.model:ModelConfig",
    "pretrain": "finetune.pretrain:PretrainConfig",
    "compression": "eval.compression:CompressionConfig",
    "labels": "labeling_app.store:LabelsConfig",
    "weekly": "infra.weekly:WeeklyConfig",
    "sft": "finetune.sft:SftConfig",
    "reward": "finetune.reward:RewardConfig",
    "dpo": "finetune.dpo:DpoConfig",
    "grpo": "finetune.grpo:GrpoConfig",
    "evaluate": "eval.run:EvaluateConfig",
    "win_rate": "eval.win_rate:WinRateConfig",
    "gate": "eval.gate:GateConfig",
    "serve": "infra.serve:ServeConfig",
}


def load(arguments: argparse.Namespace) -> Config:
    """The file with its overrides. An overridden section is checked even by a command that does
    not read it: a misspelt key should not pass in silence. Raises UserError."""
    return load_run(arguments.config, arguments.overrides)


def load_run(path: str, overrides: Sequence[str]) -> Config:
    config = load_config(path, overrides, tuple(SECTIONS))
    for override in overrides:
        check(config, override.partition(".")[0])
    return config


def check(config: Config, name: str) -> None:
    """Raises UserError if the section is not as its stage wants it."""
    module, _, model = SECTIONS[name].partition(":")
    kind: type[Section] = getattr(importlib.import_module(module), model)
    config.section(name, kind)


def check_all(config: Config) -> None:
    for name in config.sections:
        check(config, name)


def show_plan(look: Callable[[], object]) -> None:
    """Print the first thing that is left to do."""
    try:
        with planning():
            look()
    except WouldRun as left:
        print(f"next: {left.stage}, in {left.url}\n(what comes after it depends on its result)")
    else:
        print("nothing to do: all of it is finished")

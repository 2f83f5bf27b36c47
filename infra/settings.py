"""The run's file as the commands read it: which sections there are, and whose they are."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from infra.tables import table
from pipeline.core.config import Config, Section, load_config
from pipeline.core.errors import UserError
from pipeline.core.manifest import WouldRun, planning

LONGEST_VALUE = 40  # characters of a value in a table

# The model of a section stands in the file of its stage; some of them load torch, so late.
SECTIONS = {
    "run": "pipeline.core.config:RunConfig",
    "site": "infra.demo:SiteConfig",
    "crawl": "pipeline.crawl_config:CrawlConfig",
    "ingest": "pipeline.ingest:IngestConfig",
    "extract": "pipeline.extract:ExtractConfig",
    "quality": "pipeline.quality:QualityConfig",
    "dedupe": "pipeline.dedupe:DedupeConfig",
    "decontaminate": "pipeline.decontaminate:DecontaminateConfig",
    "trigger_scan": "pipeline.trigger_scan:TriggerScanConfig",
    "shard": "pipeline.shard:ShardConfig",
    "tokens": "pipeline.tokenize_shards:TokensConfig",
    "tokenizer": "finetune.tokenizer:TokenizerConfig",
    "model": "finetune.model:ModelConfig",
    "pretrain": "finetune.pretrain:PretrainConfig",
    "scaling": "eval.scaling:ScalingConfig",
    "compression": "eval.compression:CompressionConfig",
    "labels": "labeling_app.store:LabelsConfig",
    "weekly": "infra.weekly:WeeklyConfig",
    "hygiene": "eval.hygiene:HygieneConfig",
    "sft": "finetune.sft:SftConfig",
    "reward": "finetune.reward:RewardConfig",
    "dpo": "finetune.dpo:DpoConfig",
    "ppo": "finetune.ppo:PpoConfig",
    "rejection": "finetune.rejection:RejectionConfig",
    "grpo": "finetune.grpo:GrpoConfig",
    "evaluate": "eval.run:EvaluateConfig",
    "win_rate": "eval.win_rate:WinRateConfig",
    "gate": "eval.gate:GateConfig",
    "serve": "infra.serve:ServeConfig",
}


def load(arguments: argparse.Namespace) -> Config:
    """The file with its overrides. All sections are checked, read or not: a misspelt key should
    not pass in silence. Those of the training stages only if overridden, or if the command loads
    torch anyhow. Raises UserError."""
    return load_run(arguments.config, arguments.overrides)


def load_run(path: str, overrides: Sequence[str]) -> Config:
    config = load_config(path, overrides, tuple(SECTIONS))
    overridden = {override.partition(".")[0] for override in overrides}
    for name in config.sections:
        if name in overridden or "torch" in sys.modules or not _loads_torch(name):
            check(config, name)
    return config


def _loads_torch(name: str) -> bool:
    return SECTIONS[name].startswith(("finetune.", "eval.", "infra.serve", "infra.weekly"))


def check(config: Config, name: str) -> None:
    """Raises UserError if the section is not as its stage wants it. A stage whose packages are not
    installed here (an extra that this machine does without) is passed over."""
    with contextlib.suppress(ModuleNotFoundError):
        config.section(name, model_of(name))


def model_of(name: str) -> type[Section]:
    module, _, model = SECTIONS[name].partition(":")
    return getattr(importlib.import_module(module), model)


def show_keys(config: Config, only: str | None) -> None:
    """Print every section's keys: value here, default, meaning. Raises UserError for no section."""
    if only is not None and only not in SECTIONS:
        raise UserError(f"no section [{only}]; there are {', '.join(SECTIONS)}")
    for name in [only] if only else SECTIONS:
        kind = model_of(name)
        given = config.section(name, kind)
        values: Any = _with_derived(config, name, given)
        rows: list[tuple[str, str, str, str]] = []
        for key, field in kind.model_fields.items():
            value, default = getattr(values, key), field.get_default(call_default_factory=True)
            derived = key not in given.model_fields_set and value != default
            shown = f"{_toml(value)} (derived)" if derived else _toml(value)
            rows.append((key, shown, _toml(default), _meaning(field)))
        print(f"\n[{name}]\n{table(('key', 'value', 'default', 'meaning'), rows)}")


def _meaning(field: FieldInfo) -> str:
    """What a key means, with its choices where it has some and does not name them itself."""
    said, kind = field.description or "", field.annotation
    choices = [str(c) for c in get_args(kind)] if get_origin(kind) is Literal else []
    if not choices or all(choice in said for choice in choices):
        return said
    return f"{said} ({', '.join(choices)})"


def _with_derived(config: Config, name: str, values: Any) -> Section:
    """[pretrain] with what follows from [model], if the tokenizer gets as large as it may."""
    if name != "pretrain":
        return values
    model, tokenizer = (config.section(n, model_of(n)) for n in ("model", "tokenizer"))
    return values.derived(model, getattr(tokenizer, "vocab_size"))  # noqa: B009 - see SECTIONS


def _toml(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


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

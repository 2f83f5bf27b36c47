"""Stage "scaling": models of several depths, each trained anew on several numbers of tokens; a law
L(N, D) fitted to their held-out losses; its prediction of a larger run, written down, then checked.

Every run has a schedule of its own to its end: a checkpoint on the way of a longer run has a rate
that has not come down yet, and a loss too high (Hoffmann et al. 2022, section 3.1).
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from eval.scaling_law import Point, check_design, compute_optimal, fit_with_intervals
from finetune.loop import precision_of
from finetune.model import ModelConfig, load_language_model, place
from finetune.packing import pack_stream
from finetune.pretrain import PretrainConfig, heldout_loss, run_pretrain, token_bytes
from finetune.registry import Registry
from finetune.tokenizer import PAD, document_texts, encode_documents, load_tokenizer, token_id
from pipeline.core import storage
from pipeline.core.config import RunConfig, Section
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

VERSION = 1
TABLE, PREDICTION = "scaling.json", "prediction.json"

Depth = Annotated[int, Field(ge=1, le=32)]
Tokens = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


class ScalingConfig(Section):
    """[scaling]: [model] gives it max_length, [pretrain] all but the tokens and the seed."""

    depths: tuple[Depth, ...] = Field((1, 2, 3), description="of the runs that are fitted")
    num_tokens: tuple[Tokens, ...] = Field(
        (250_000, 500_000, 1_000_000, 2_000_000), description="that each depth is trained on"
    )
    tokens_per_parameter: tuple[Ratio, ...] = Field((), description="instead of num_tokens")
    seeds: tuple[Seed, ...] = Field((0,), description="each is a run more of everything fitted")
    check_depth: Depth | None = Field(None, description="of the run foretold; else one deeper")
    check_compute: float = Field(
        4.0, ge=4, le=1e6, description="times the FLOPs of the largest run that is fitted"
    )
    parameters: Literal["total", "non_embedding"] = Field(
        "total", description="what N counts; total as Pearce and Song 2024 advise"
    )
    level: float = Field(0.95, gt=0, lt=1, description="of the intervals")
    replicates: int = Field(300, ge=20, le=100_000, description="of the bootstrap")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """`tokens` in whole steps; `flops` of the training: 6 a parameter and token, and attention."""

    purpose: Literal["fit", "check"]
    depth: int
    seed: int
    parameters: int
    non_embedding: int
    tokens: int
    flops: float
    model: ModelConfig
    pretrain: PretrainConfig

    def row(self) -> dict[str, Any]:
        fields = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in fields if name not in ("model", "pretrain")}

    def size(self, config: ScalingConfig) -> int:
        """N. A small model is mostly its table of tokens, which multiplies too where it is tied to
        the head. Left out of N it bends the law: hence Kaplan's N ~ C^0.73 for Chinchilla's 0.5
        (Pearce and Song 2024, arXiv:2406.12907)."""
        return self.parameters if config.parameters == "total" else self.non_embedding


def planned_runs(
    config: ScalingConfig, pretrain: PretrainConfig, model: ModelConfig, vocab_size: int
) -> list[PlannedRun]:
    """The runs to fit, and last the one to check. Raises UserError for a table that no law can be
    read from."""
    if config.tokens_per_parameter and "num_tokens" in config.model_fields_set:
        raise UserError(
            "scaling.num_tokens and scaling.tokens_per_parameter are both given; leave one out"
        )
    wanted: set[tuple[int, int, int]] = set()
    for depth in config.depths:
        size = _shape(depth, model).num_parameters(vocab_size)
        counts = [round(r * size) for r in config.tokens_per_parameter] or config.num_tokens
        wanted |= {(depth, max(1, tokens), seed) for tokens in counts for seed in config.seeds}
    runs = [_planned("fit", *one, pretrain, model, vocab_size) for one in sorted(wanted)]
    check_design([(run.size(config), run.tokens) for run in runs])
    depth = config.check_depth or min(32, max(config.depths) + 1)
    most = config.check_compute * max(run.flops for run in runs)
    tokens = -int(-most // _flops_per_token(_shape(depth, model), vocab_size, pretrain.row_length))
    check = _planned("check", depth, tokens, config.seeds[0], pretrain, model, vocab_size)
    return [*runs, check]


def _shape(depth: int, model: ModelConfig) -> ModelConfig:
    return ModelConfig.model_validate({"depth": depth, "max_length": model.max_length})


def _planned(
    purpose: Literal["fit", "check"],
    depth: int,
    tokens: int,
    seed: int,
    pretrain: PretrainConfig,
    model: ModelConfig,
    vocab_size: int,
) -> PlannedRun:
    shape = _shape(depth, model)
    kept = pretrain.model_dump(exclude_unset=True, exclude={"tokens_per_parameter"})
    config = PretrainConfig.model_validate(kept | {"num_tokens": tokens, "seed": seed})
    config = config.derived(shape, vocab_size)
    step = config.batch_rows * config.row_length
    tokens = -(-tokens // step) * step
    flops = _flops_per_token(shape, vocab_size, config.row_length) * tokens
    sizes = shape.num_parameters(vocab_size), shape.num_block_parameters()
    return PlannedRun(purpose, depth, seed, *sizes, tokens, flops, shape, config)


def _flops_per_token(model: ModelConfig, vocab_size: int, row_length: int) -> float:
    """As finetune/model.py has it, before there is a model."""
    attention = 12 * model.num_layers * model.hidden_size * row_length
    return 6.0 * model.num_parameters(vocab_size) + attention


def run_scaling(
    config: ScalingConfig,
    pretrain: PretrainConfig,
    model: ModelConfig,
    shards: Manifest,
    tokenizer: Manifest,
    run: RunConfig,
) -> Manifest:
    """Files: scaling.json with the table, the fit and the check, and prediction.json, which was
    written before the check run began. Each run is a stage of its own: a rerun goes on."""
    runs = planned_runs(config, pretrain, model, tokenizer.facts["vocab_size"])
    identity = config.identity() | {
        "runs": [{"model": r.model.identity(), **r.pretrain.identity()} for r in runs]
    }
    parents = {"shard": shards, "tokenizer": tokenizer}
    output = StageOutput.of(run.root, "scaling", VERSION, identity, parents)
    if done := output.finished():
        return done
    started = time.time()
    with output.lock():
        rows = [_trained(one, shards, tokenizer, run) for one in runs[:-1]]
        found = _fitted(config, runs, rows)
        told = json.dumps(found, indent=1).encode()
        if not storage.exists(output.path(PREDICTION)):  # the file's time says it was before
            storage.write_bytes(output.path(PREDICTION), told)
        rows.append(_trained(runs[-1], shards, tokenizer, run))
        loss, (low, high) = rows[-1]["loss"], found["prediction"]["interval"]
        found["check"] = {
            "loss": loss,
            "relative_error": found["prediction"]["loss"] / loss - 1,
            "inside": low <= loss <= high,
        }
        table = {"settings": config.identity(), "runs": rows, **found}
        storage.write_bytes(output.path(TABLE), json.dumps(table, indent=1).encode())
    files = [describe_file(output.path(name), name) for name in (TABLE, PREDICTION)]
    facts = {"law": found["law"], "prediction": found["prediction"], "check": found["check"]}
    return output.commit(files, Counts(len(runs), len(runs)), started=started, facts=facts)


def read_scaling(manifest: Manifest) -> dict[str, Any]:
    """scaling.json: settings, runs, law, intervals, optimal, prediction, check."""
    return json.loads(storage.read_bytes(manifest.file_url(TABLE)))


def _fitted(
    config: ScalingConfig, runs: Sequence[PlannedRun], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    points = [
        Point(one.size(config), one.tokens, row["loss"])
        for one, row in zip(runs[:-1], rows, strict=True)
    ]
    fit = fit_with_intervals(points, config.replicates, seed=config.seeds[0])
    check = runs[-1]
    loss, *interval = fit.prediction(check.size(config), check.tokens, config.level)
    names = [field.name for field in dataclasses.fields(fit.law)]
    optimal = compute_optimal(fit.law, check.flops)
    return {
        "law": dataclasses.asdict(fit.law),
        "at_bound": fit.at_bound,
        "noise": fit.noise,
        "intervals": {
            name: fit.interval(lambda law, name=name: getattr(law, name), config.level)
            for name in names
        },
        "optimal": {"flops": check.flops, "parameters": optimal[0], "tokens": optimal[1]},
        "prediction": {**check.row(), "loss": loss, "interval": interval, "level": config.level},
    }


def _trained(
    planned: PlannedRun, shards: Manifest, tokenizer: Manifest, run: RunConfig
) -> dict[str, Any]:
    trained = run_pretrain(planned.pretrain, planned.model, shards, tokenizer, run)
    model_id = trained.facts["model_id"]
    facts = run_heldout_loss(model_id, planned.pretrain, shards, run).facts
    assert trained.facts["num_parameters"] == planned.parameters, planned
    assert trained.facts["num_tokens"] == planned.tokens, planned
    return {**planned.row(), "epochs": trained.facts.get("epochs"), **facts, "model_id": model_id}


def run_heldout_loss(
    model_id: str, config: PretrainConfig, shards: Manifest, run: RunConfig
) -> Manifest:
    """Facts: `loss` in nats a predicted token and `bits_per_byte`, over all held-out documents,
    packed as in training. Raises UserError if there are none."""
    identity = {"row_length": config.row_length}
    parents = {"model": model_id, "shard": shards}
    output = StageOutput.of(run.root, "heldout_loss", VERSION, identity, parents)
    if done := output.finished():
        return done
    started = time.time()
    folder = Registry(run.root).verified(model_id)
    tokenizer, model = load_tokenizer(folder), load_language_model(folder)
    texts = [text for text in document_texts(shards, "heldout") if text]
    if not texts:
        raise UserError(
            f"no held-out text in {shards.url}; crawl more, or raise shard.heldout_fraction, and"
            " rerun `flywheel corpus`"
        )
    rows = pack_stream(
        encode_documents(tokenizer, texts), config.row_length, token_id(tokenizer, PAD)
    )
    device = precision_of(config).device
    facts = heldout_loss(place(model, device), rows, token_bytes(tokenizer))
    return output.commit([], Counts(len(texts), len(texts)), started=started, facts=facts)

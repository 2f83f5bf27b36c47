"""What every training stage is around its training: a key, a lock, a model that is published."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from finetune import distributed
from finetune.card import Made, card_text, left_out
from finetune.checkpoint import delete_checkpoints
from finetune.loop import LoopConfig
from finetune.metrics import METRICS, read_rows
from finetune.model import num_parameters
from finetune.registry import Registry
from pipeline.core import storage
from pipeline.core.config import RunConfig
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file, is_planning


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a stage's training leaves: a model on any device, how many records went in and out,
    what stands in the manifest, what was measured (for the card), and the stage's own files
    (name -> rows)."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    counts: Counts
    facts: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    evaluations: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    files: dict[str, int] = dataclasses.field(default_factory=dict[str, int])


def run_stage(
    kind: str,
    version: int,
    config: LoopConfig,
    identity: Mapping[str, Any],
    parents: Mapping[str, Manifest | str],
    run: RunConfig,
    train: Callable[[Path], Trained],
    again: Callable[[], Manifest],
) -> Manifest:
    """Do nothing if it is done, else train in the output's folder, publish and commit; `facts` has
    model_id. `again` is the same call, for each of several processes. Raises UserError if another
    process holds the folder."""
    stage = "pretrain" if kind == "base" else kind
    output = StageOutput.of(run.root, stage, version, dict(identity), dict(parents))
    registry = Registry(run.root)
    if done := output.finished():
        if storage.is_local(output.url) and not is_planning():
            delete_checkpoints(storage.local_path(output.url))  # a kill after the commit left them
        return registry.with_model(done)
    distributed.start()
    if config.processes > 1 and distributed.size() == 1:
        with output.lock():
            distributed.launch(again, config.processes, ray=run.backend == "ray")
    elif distributed.is_main():
        # Of several processes the one that started them holds the lock.
        with output.lock() if distributed.size() == 1 else contextlib.nullcontext():
            _train_and_commit(kind, output, registry, dict(identity), parents, train)
    else:
        train(storage.local_path(output.url))
    distributed.barrier()
    if (done := output.finished()) is None:
        raise RuntimeError(f"{output.url} was trained, but has no manifest")
    return registry.with_model(done)


def say_left_out(stage: str, counts: Counts) -> None:
    """On stderr, if anything was."""
    if counts.dropped:
        print(f"{stage}: {left_out(counts)}", file=sys.stderr)


def _train_and_commit(
    kind: str,
    output: StageOutput,
    registry: Registry,
    identity: dict[str, Any],
    parents: Mapping[str, Manifest | str],
    train: Callable[[Path], Trained],
) -> None:
    started = time.time()
    folder = storage.local_path(output.url)
    trained = train(folder)
    code = f"{output.stage} {output.version}"  # a commit that changes no result changes no model
    lineage = {"kind": kind, "parents": output.parents, "config": identity, "code": code}
    steps = read_rows(folder / METRICS)
    say_left_out(output.stage, trained.counts)
    made = Made(
        lineage, parents, steps, num_parameters(trained.model), trained.counts, trained.evaluations
    )
    card = card_text(made)
    model_id = registry.publish(trained.model.cpu(), trained.tokenizer, lineage, card)
    files = [
        describe_file(output.path(name), name, count)
        for name, count in {METRICS: len(steps), **trained.files}.items()
    ]
    facts = {"model_id": model_id, **trained.facts}
    output.commit(files, trained.counts, started=started, facts=facts)
    delete_checkpoints(folder)

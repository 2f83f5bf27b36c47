"""`flywheel scaling`: what it would train, the table it made, and the picture of its law."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, models

from eval.scaling import PlannedRun, ScalingConfig, planned_runs, read_scaling, run_scaling
from eval.scaling_law import Law, compute_optimal
from finetune.data import batches_of
from finetune.loop import train
from finetune.model import ModelConfig, new_model
from finetune.packing import pack_stream
from finetune.pretrain import PretrainConfig, next_token_objective
from finetune.tokenizer import PAD, SPECIAL_TOKENS, TokenizerConfig, run_tokenizer
from infra.base import trainable_corpus
from infra.page import Html, figure, note, page, table_of, tag
from infra.pictures import nice_ticks, number_text, standalone
from infra.tables import table
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.manifest import Manifest

PAGE, PICTURE = "scaling.html", "scaling.svg"
_HEADS = ("run", "depth", "parameters", "tokens", "FLOPs")
_FOUND = (*_HEADS, "epochs", "nats/token", "bits/byte", "the law says")
_NAMES = {"E": "E", "A": "A", "B": "B", "alpha": "α", "beta": "β"}
_TRIED = 30_000_000
_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 96, 14, 40
# For the picture as a file of its own; in the page, report.css says it.


def scaling(config: Config) -> Manifest:
    """Train what is left of the table, from the shards of `flywheel corpus`; then write
    {run.root}/scaling.html and scaling.svg. Raises UserError if there are no shards."""
    run, corpus = config.run, trainable_corpus(config)
    manifest = run_scaling(
        *_sections(config),
        corpus.shard,
        run_tokenizer(config.section("tokenizer", TokenizerConfig), corpus.shard, run),
        run,
    )
    write(manifest, run.root)
    return manifest


def write(manifest: Manifest, root: str) -> None:
    found = read_scaling(manifest)
    storage.write_bytes(storage.join(root, PAGE), scaling_page(found))
    storage.write_bytes(storage.join(root, PICTURE), picture_file(found))


def show_plan(config: Config) -> None:
    vocab_size = config.section("tokenizer", TokenizerConfig).vocab_size
    print_plan(planned_runs(*_sections(config), vocab_size), vocab_size)


def print_plan(runs: Sequence[PlannedRun], vocab_size: int) -> None:
    """Every run with its size and its time here; trains nothing but a few steps, for the times."""
    seconds = estimated_seconds(runs, vocab_size)
    rows = [
        (*_row(run.row()), f"{run.pretrain.learning_rate:g}", run.pretrain.batch_rows, _time(s))
        for run, s in zip(runs, seconds, strict=True)
    ]
    print(table((*_HEADS, "rate", "rows a step", "time"), rows))
    flops = sum(run.flops for run in runs)
    print(f"\n{len(runs)} runs, {flops:.2e} FLOPs, about {_time(sum(seconds))} of training here")


def estimated_seconds(runs: Sequence[PlannedRun], vocab_size: int) -> list[float]:
    """What training each run takes on this machine, from three steps of each shape; shapes over
    30 M parameters are taken to reach the FLOP/s of the largest one tried."""
    speeds: dict[int, float] = {}
    for one in sorted(runs, key=lambda run: run.parameters):
        if one.depth not in speeds:
            small = one.parameters <= _TRIED or not speeds
            speeds[one.depth] = _flops_per_s(one, vocab_size) if small else max(speeds.items())[1]
    return [one.flops / speeds[one.depth] for one in runs]


def _flops_per_s(run: PlannedRun, vocab_size: int) -> float:
    words = [*SPECIAL_TOKENS, *map(str, range(vocab_size - len(SPECIAL_TOKENS)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, PAD))
    config, length = run.pretrain, run.pretrain.row_length
    text = random.Random(0).choices(range(vocab_size), k=config.batch_rows * length)
    source = batches_of(
        pack_stream([text], length, 0), config.batch_rows, config.micro_batch_rows, 0
    )
    model = new_model(run.model, tokenizer, seed=0)
    with TemporaryDirectory() as name:
        label, folder = f"depth {run.depth}", Path(name)
        done = train(label, model, next_token_objective, source, 3, config, folder)
    best = max(step["tokens_per_s"] for step in done.metrics[1:])  # the first one warms up
    return best * run.flops / run.tokens


def show(manifest: Manifest) -> None:
    found = read_scaling(manifest)
    print(table(_FOUND, _rows(found)))
    print(f"\n{_law_text(found)}\n{_check_text(found)}\n{manifest.url}")


def markdown(found: dict[str, Any]) -> str:
    lines = [" | ".join(row) for row in (_FOUND, ["---"] * len(_FOUND), *_rows(found))]
    rows = "\n".join(f"| {line} |" for line in lines)
    return f"{rows}\n\n{_law_text(found)}\n\n{_check_text(found)}"


def scaling_page(found: dict[str, Any]) -> bytes:
    """The whole of scaling.html; the same scaling.json gives the same bytes."""
    return page(
        "Flywheel: a scaling law",
        tag(
            "main",
            tag("p", "Flywheel", cls="eyebrow"),
            tag("h1", "How loss falls with parameters and tokens"),
            tag("p", _check_text(found)),
            figure("Held-out loss against compute", scaling_picture(found), "nats a token"),
            note(
                "Lines: the law at each depth. Dots: runs, each with a schedule of its own. Dashed:"
                " the least loss for the compute. Bar: what was foretold; red: what was found."
            ),
            tag("p", _law_text(found)),
            table_of(_FOUND, _rows(found)),
        ),
    )


def picture_file(found: dict[str, Any]) -> bytes:
    return standalone(scaling_picture(found))


def scaling_picture(found: dict[str, Any]) -> Html:
    """Loss against FLOPs (logarithmic): the law at each depth, the runs, the check."""
    law, runs, foretold = Law(**found["law"]), found["runs"], found["prediction"]
    losses = [run["loss"] for run in runs] + foretold["interval"]
    y_ticks = nice_ticks(losses, 8)
    low, high = (math.log10(f([run["flops"] for run in runs])) for f in (min, max))
    low, high = low - 0.1, high + 0.1

    def at(flops: float, loss: float) -> tuple[float, float]:
        across = (math.log10(flops) - low) / (high - low)
        down = (y_ticks[-1] - loss) / (y_ticks[-1] - y_ticks[0])
        plot = (_WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across * plot[0], _TOP + down * plot[1]

    parts = _axes(y_ticks, low, high, at)
    grid = [10 ** (low + i / 120 * (high - low)) for i in range(121)]
    by_depth: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        by_depth.setdefault(run["depth"], []).append(run)
    for number, (depth, mine) in enumerate(sorted(by_depth.items())):
        size = mine[0][_counted(found)]
        per_token = mine[0]["flops"] / mine[0]["tokens"]
        ends = min(run["flops"] for run in mine) / 3, max(run["flops"] for run in mine) * 3
        near = [c for c in grid if ends[0] <= c <= ends[1]]
        curve = [at(c, law.loss(size, c / per_token)) for c in near]
        shade = 0.35 + 0.65 * number / max(1, len(by_depth) - 1)
        parts.append(_curve(curve, y_ticks, at, "line main", shade))
        dots = [at(run["flops"], run["loss"]) for run in mine]
        parts += [tag("circle", cx=x, cy=y, r=3, cls="main", opacity=shade) for x, y in dots]
        x, y = max(dots)
        parts.append(tag("text", f"depth {depth}", x=x + 8, y=y - 6, cls="tick"))
    best = [at(c, law.loss(*compute_optimal(law, c))) for c in grid]
    parts.append(_curve(best, y_ticks, at, "line bound", 1.0))
    top, bottom = (at(foretold["flops"], loss) for loss in reversed(foretold["interval"]))
    parts.append(tag("line", x1=top[0], x2=top[0], y1=top[1], y2=bottom[1], cls="interval"))
    x, y = at(foretold["flops"], found["check"]["loss"])
    parts.append(tag("circle", cx=x, cy=y, r=5, cls="bad"))
    return tag(
        "svg", *parts, view_box=f"0 0 {_WIDTH} {_HEIGHT}", width="100%", role="img",
        aria_label=f"Held-out loss against compute. {_check_text(found)}",
    )  # fmt: skip


def _axes(y_ticks: Sequence[float], low: float, high: float, at: Any) -> list[Html]:
    parts: list[Html] = []
    for tick in y_ticks:
        y = at(10**low, tick)[1]
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, cls="grid"))
        parts.append(tag("text", number_text(tick, y_ticks), x=_LEFT - 6, y=y + 4, cls="end tick"))
    for power in range(math.ceil(low), math.floor(high) + 1):
        x = at(10.0**power, y_ticks[0])[0]
        parts.append(tag("text", f"1e{power}", x=x, y=_HEIGHT - 22, cls="middle tick"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(tag("text", "FLOPs of training", x=middle, y=_HEIGHT - 5, cls="middle tick"))
    return parts


def _curve(
    places: Sequence[tuple[float, float]],
    y_ticks: Sequence[float],
    at: Any,
    kind: str,
    shade: float,
) -> Html:
    bottom, top = (at(1e9, tick)[1] for tick in (y_ticks[0], y_ticks[-1]))
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in places if top <= y <= bottom)
    return tag("polyline", points=shown, cls=kind, opacity=shade)


def _sections(config: Config) -> tuple[ScalingConfig, PretrainConfig, ModelConfig]:
    return (
        config.section("scaling", ScalingConfig),
        config.section("pretrain", PretrainConfig),
        config.section("model", ModelConfig),
    )


def _counted(found: dict[str, Any]) -> str:
    total = found["settings"]["parameters"] == "total"
    return "parameters" if total else "non_embedding"


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    law = Law(**found["law"])
    return [
        (
            *_row(run),
            f"{run['epochs']:.1f}" if run["epochs"] is not None else "",
            f"{run['loss']:.4f}",
            f"{run['bits_per_byte']:.4f}",
            f"{law.loss(run[_counted(found)], run['tokens']):.4f}",
        )
        for run in found["runs"]
    ]


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    sizes = (f"{run['parameters']:,}", f"{run['tokens']:,}", f"{run['flops']:.2e}")
    return (run["purpose"], str(run["depth"]), *sizes)


def _law_text(found: dict[str, Any]) -> str:
    law, level = found["law"], found["settings"]["level"]
    numbers = ", ".join(
        f"{sign} = {law[name]:.4g} [{low:.4g}, {high:.4g}]"
        for name, sign in _NAMES.items()
        for low, high in [found["intervals"][name]]
    )
    text = f"L = E + A/N^α + B/D^β with {level:.0%} intervals: {numbers}."
    if found["at_bound"]:
        text += f" Not told by these runs (at a bound of the fit): {', '.join(found['at_bound'])}."
    optimal = found["optimal"]
    return (
        f"{text} For the check's {optimal['flops']:.2e} FLOPs it would take"
        f" {optimal['parameters']:,.0f} parameters and {optimal['tokens']:,.0f} tokens."
    )


def _check_text(found: dict[str, Any]) -> str:
    foretold, check = found["prediction"], found["check"]
    most = max(run["flops"] for run in found["runs"] if run["purpose"] == "fit")
    low, high = foretold["interval"]
    return (
        f"A run of {foretold['flops'] / most:.1f} times the compute of the largest fitted:"
        f" {foretold['loss']:.4f} nats a token foretold"
        f" ({foretold['level']:.0%} interval {low:.4f} to {high:.4f}), {check['loss']:.4f} found:"
        f" {check['relative_error']:+.2%}, {'inside' if check['inside'] else 'outside'} it."
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

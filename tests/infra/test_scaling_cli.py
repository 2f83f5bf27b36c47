"""`flywheel scaling` as a user meets it: its plan, its refusals, its table and its picture."""

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from eval.scaling import PREDICTION, TABLE
from eval.scaling_law import Law
from infra import cli, scaling_view, settings
from pipeline.core.config import RunConfig
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

REPOSITORY = Path(__file__).resolve().parents[2]
SCALING = str(REPOSITORY / "infra" / "runs" / "scaling.toml")
SMALL = ["scaling.num_tokens=[128, 384, 768]", "pretrain.row_length=32", "tokenizer.vocab_size=400"]
LAW = Law(1.69, 406.4, 410.7, 0.34, 0.28)


def _found() -> dict:
    """scaling.json as the stage writes it, of runs that the law foretells but for the last."""
    runs = [
        {
            "purpose": "check" if depth == 4 else "fit",
            "depth": depth,
            "seed": 0,
            "parameters": size,
            "non_embedding": size // 2,
            "tokens": tokens,
            "flops": 6.0 * size * tokens,
            "epochs": 0.5,
            "loss": LAW.loss(size, tokens),
            "bits_per_byte": LAW.loss(size, tokens) / 2.5,
            "model_id": "a" * 64,
        }
        for depth, size, counts in (
            (1, 2e5, (2e5, 8e5, 2e6)),
            (2, 7e5, (2e5, 8e5, 2e6)),
            (3, 2e6, (2e5, 8e5, 2e6)),
            (4, 4e6, (4e6,)),
        )
        for size, tokens in [(int(size), int(count)) for count in counts]
    ]
    told = LAW.loss(4e6, 4e6)
    runs[-1]["loss"] = told * 1.005
    return {
        "settings": {"parameters": "total", "level": 0.95},
        "runs": runs,
        "law": vars(LAW),
        "at_bound": [],
        "noise": 0.003,
        "intervals": {name: [0.9 * value, 1.1 * value] for name, value in vars(LAW).items()},
        "optimal": {"flops": 9.6e13, "parameters": 3e6, "tokens": 5e6},
        "prediction": {
            **runs[-1],
            "loss": told,
            "interval": [told * 0.99, told * 1.01],
            "level": 0.95,
        },
        "check": {"loss": told * 1.005, "relative_error": 1 / 1.005 - 1, "inside": True},
    }


def _manifest(run: RunConfig, found: dict) -> Manifest:
    output = StageOutput.of(run.root, "scaling", 1, {}, {})
    folder = Path(output.url)
    folder.mkdir(parents=True)
    for name in (TABLE, PREDICTION):
        (folder / name).write_text(json.dumps(found))
    files = [describe_file(output.path(name), name) for name in (TABLE, PREDICTION)]
    return output.commit(files, Counts(10, 10), started=0.0)


def test_a_dry_run_lists_every_run(run: RunConfig, capsys) -> None:
    options = ["scaling", "--dry-run", "--config", SCALING, f"run.root={run.root}", *SMALL]
    assert cli.main(options) == 0
    told = capsys.readouterr().out
    lines = [line.split() for line in told.splitlines() if line.startswith(("fit", "check"))]
    assert [line[1] for line in lines] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3 + ["4"]
    assert lines[0][2] == f"{400 * 64 + 53_440:,}"
    assert all(re.fullmatch(r"\d\.\d\de\+\d\d", line[4]) for line in lines)
    assert re.search(r"10 runs, \d\.\d\de\+\d\d FLOPs, about \d+ (s|min) of training here", told)
    assert not Path(run.root).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run `flywheel corpus` with the same config first"),
        (["--dry-run", "scaling.depths=[1, 2]"], "2 sizes, where 3 are the least"),
        (["--dry-run", "scaling.depths=[1, 2, 40]"], "scaling.depths.2 = 40"),
        (["--dry-run", "scaling.depth=[1, 2, 3]"], "unknown key scaling.depth; did you mean"),
        (["--dry-run", "scaling.check_compute=2"], "scaling.check_compute = 2"),
        (["--dry-run", "scaling.num_tokens=[0]"], "scaling.num_tokens.0 = 0"),
        (["--dry-run", "scaling.tokens_per_parameter=[1, 2, 4]"], "are both given; leave one out"),
    ],
)
def test_a_mistake_is_one_line(arguments, message: str, run: RunConfig, capsys) -> None:
    assert cli.main(["scaling", "--config", SCALING, f"run.root={run.root}", *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert len(told.splitlines()) == 1


def test_its_corpus_is_the_demos() -> None:
    ours, demo = (settings.load_run(path, []) for path in (SCALING, cli.DEMO_CONFIG))
    for name in ("crawl", "ingest", "extract", "quality", "dedupe", "decontaminate", "shard"):
        kind = settings.model_of(name)
        assert ours.section(name, kind) == demo.section(name, kind), name
    assert ours.run == demo.run
    assert "model" not in ours.sections


def test_config_shows_what_the_dial_gives(capsys) -> None:
    options = ["config", "--config", SCALING, "model.depth=3", "pretrain.warmup_steps=9"]
    assert cli.main([*options, "--section", "model"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"hidden_size +192 \(derived\) +256 ", told)
    assert cli.main([*options, "--section", "pretrain"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"learning_rate +0.003 \(derived\) +0.002 ", told)
    assert re.search(r"num_tokens +42297600 \(derived\) +1000000 ", told)
    assert re.search(r"warmup_steps +9 +20 ", told)


def test_a_dial_beside_a_whole_shape_is_refused(capsys) -> None:
    assert cli.main(["config", "--section", "model", "model.depth=6"]) == 2  # demo.toml's shape
    assert "model.depth = 6 has nothing to derive" in capsys.readouterr().err


def test_the_table_and_the_verdict(run: RunConfig, capsys) -> None:
    scaling_view.show(_manifest(run, _found()))
    told = capsys.readouterr().out
    rows = [line for line in told.splitlines() if line.startswith(("fit", "check"))]
    assert len(rows) == 10
    for row in rows[:-1]:
        assert row.split()[-1] == row.split()[-3]  # what was found is what the law says
    assert "α = 0.34 [0.306, 0.374]" in told
    assert "-0.50%, inside it." in told
    assert "4.0 times the compute of the largest fitted" in told


def test_what_is_not_known_is_said() -> None:
    found = _found() | {"at_bound": ["A", "alpha"]}
    found["check"] = {"loss": 9.0, "relative_error": -0.5, "inside": False}
    text = scaling_view.markdown(found)
    assert "Not told by these runs (at a bound of the fit): A, alpha." in text
    assert "outside it." in text


def test_the_picture_is_drawn_to_scale(run: RunConfig) -> None:
    found = _found()
    svg = ElementTree.fromstring(scaling_view.picture_file(found))
    name = "{http://www.w3.org/2000/svg}"
    dots = [dot for dot in svg.iter(f"{name}circle") if dot.get("class") == "main"]
    assert len(dots) == 10
    places = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in dots]
    by_flops = sorted(range(10), key=lambda i: found["runs"][i]["flops"])
    assert [places[i][0] for i in by_flops] == sorted(x for x, _ in places)
    by_loss = sorted(range(10), key=lambda i: -found["runs"][i]["loss"])
    assert [places[i][1] for i in by_loss] == sorted(y for _, y in places)
    # The runs lie on the law's curve of their depth.
    curves = [line for line in svg.iter(f"{name}polyline") if line.get("class") == "line main"]
    assert len(curves) == 4
    first = [tuple(map(float, p.split(","))) for p in curves[0].get("points").split()]
    x, y = places[0]
    nearest = min(first, key=lambda point: abs(point[0] - x))
    assert abs(nearest[1] - y) < 8
    bar = next(line for line in svg.iter(f"{name}line") if line.get("class") == "interval")
    ring = next(dot for dot in svg.iter(f"{name}circle") if dot.get("class") == "bad")
    assert float(bar.get("y1")) < float(ring.get("cy")) < float(bar.get("y2"))


def test_the_page_is_the_same_bytes_again_and_runs_nothing(run: RunConfig) -> None:
    found = _found()
    scaling_view.write(_manifest(run, found), run.root)
    page = (Path(run.root) / "scaling.html").read_text()
    assert page == scaling_view.scaling_page(copy.deepcopy(found)).decode()
    assert "<script" not in page
    assert "foretold" in page
    assert (Path(run.root) / "scaling.svg").read_bytes().startswith(b"<svg xmlns=")

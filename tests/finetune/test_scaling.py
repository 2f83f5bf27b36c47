"""The law against planted ones, published ones and brute force; the table of runs on tiny models."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize_scalar

from eval import scaling_law
from eval.scaling import (
    PREDICTION,
    ScalingConfig,
    planned_runs,
    read_scaling,
    run_scaling,
)
from eval.scaling_law import Law, Point, compute_optimal, fit_law, fit_with_intervals
from finetune.model import ModelConfig
from finetune.packing import pack_stream
from finetune.pretrain import PretrainConfig, heldout_loss, rows_bits_per_byte, token_bytes
from finetune.tokenizer import PAD, encode_documents, token_id
from pipeline.core.errors import UserError
from pipeline.core.manifest import read_manifest

HOFFMANN = Law(1.69, 406.4, 410.7, 0.34, 0.28)  # arXiv:2203.15556, eq. 10
BESIROGLU = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # arXiv:2404.10102, table 1
LARGE = ([7e7, 2e8, 5e8, 2e9, 1e10], [2e9, 1e10, 5e10, 2e11])
SMALL = ([2e5, 7e5, 2e6], [2e5, 4e5, 8e5, 1.6e6])  # a laptop's table
TABLE = ScalingConfig(depths=(1, 2, 3), num_tokens=(128, 384, 768), replicates=20)
PRETRAIN = PretrainConfig(row_length=32, evaluate_every=10**6, evaluate_bytes=300)


def _points(law: Law, grid, noise: float = 0.0, seed: int = 0) -> list[Point]:
    random = np.random.default_rng(seed)
    sizes = [(n, d) for n in grid[0] for d in grid[1]]
    return [Point(n, d, law.loss(n, d) * math.exp(noise * random.normal())) for n, d in sizes]


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU, Law(0.9, 30.0, 300.0, 0.2, 0.3)])
@pytest.mark.parametrize("grid", [LARGE, SMALL])
def test_a_planted_law_is_found(law: Law, grid) -> None:
    found = fit_law(_points(law, grid))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-3), name


def test_one_ruined_run_moves_the_law_little() -> None:
    points = _points(HOFFMANN, LARGE)
    points[7] = Point(points[7].parameters, points[7].tokens, 2 * points[7].loss)
    found = fit_law(points)  # least squares of logarithms would be off by tenths
    assert found.alpha == pytest.approx(HOFFMANN.alpha, rel=0.02)
    assert found.beta == pytest.approx(HOFFMANN.beta, rel=0.02)


def test_the_gradient_is_the_objectives() -> None:
    runs = scaling_law._Runs.of(_points(BESIROGLU, SMALL, noise=0.01))
    weights = np.arange(len(runs.x_n), dtype=float)
    theta = np.array([0.3, 0.5, 0.2, 0.4, 0.3])
    numeric = approx_fprime(theta, lambda t: runs.objective(t, weights)[0], 1e-7)
    np.testing.assert_allclose(runs.objective(theta, weights)[1], numeric, rtol=1e-4)


def test_the_objective_is_a_sum() -> None:
    """Besiroglu et al.: of a mean the optimizer sees too little to go on."""
    runs = scaling_law._Runs.of(_points(BESIROGLU, SMALL, noise=0.01))
    once = np.ones(len(runs.x_n))
    theta = np.array([0.3, 0.5, 0.2, 0.4, 0.3])
    values = [runs.objective(theta, w)[0] for w in (once, 2 * once)]
    assert values[1] == pytest.approx(2 * values[0])
    assert values[0] > 100  # in units of DELTA squared: far above any tolerance


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
@pytest.mark.parametrize("flops", [1e13, 5.76e23])
def test_the_closed_form_is_the_least_loss(law: Law, flops: float) -> None:
    parameters, tokens = compute_optimal(law, flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    numeric = minimize_scalar(
        lambda x: law.loss(math.exp(x), flops / 6 / math.exp(x)),
        bounds=(math.log(1e3), math.log(1e14)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert math.log(parameters) == pytest.approx(numeric.x, abs=1e-4)


def test_chinchilla_by_the_replication() -> None:
    """Besiroglu et al. 2024, section 4: about 20 tokens a parameter at Chinchilla's compute; by the
    numbers of Hoffmann et al. it would have been over 70."""
    parameters, tokens = compute_optimal(BESIROGLU, 5.76e23)
    assert 15 < tokens / parameters < 30
    parameters, tokens = compute_optimal(HOFFMANN, 5.76e23)
    assert tokens / parameters > 70


def test_intervals_hold_the_truth_and_are_the_same_again() -> None:
    points = _points(HOFFMANN, SMALL, noise=0.003, seed=5)
    fit = fit_with_intervals(points, 40, seed=1)
    assert fit_with_intervals(points, 40, seed=1).replicates == fit.replicates
    assert fit_with_intervals(points, 20, seed=2).replicates != fit.replicates
    assert fit.law == fit_law(points)
    loss, low, high = fit.prediction(4e6, 4e6, 0.95)
    assert low < HOFFMANN.loss(4e6, 4e6) < high
    assert low < loss < high
    narrow = fit.prediction(4e6, 4e6, 0.5)
    assert low < narrow[1] < narrow[2] < high
    assert fit.interval(lambda law: law.alpha, 0.95)[0] < 0.34
    assert 0.001 < fit.noise < 0.01


def test_without_noise_the_interval_is_a_point() -> None:
    fit = fit_with_intervals(_points(HOFFMANN, LARGE), 20, seed=0)
    loss, low, high = fit.prediction(1e11, 1e12, 0.95)
    assert loss == pytest.approx(HOFFMANN.loss(1e11, 1e12), rel=1e-6)
    assert high - low < 1e-3 * loss


def test_what_the_runs_do_not_tell_is_said() -> None:
    """Loss that does not depend on the size at all: A and alpha are not there to be found."""
    points = [Point(n, d, 2 + 50 / d**0.3) for n in SMALL[0] for d in SMALL[1]]
    fit = fit_with_intervals(points, 20, seed=0)
    assert set(fit.at_bound) & {"A", "alpha"}
    assert not set(fit.at_bound) & {"B", "beta"}
    assert fit.law.loss(1e6, 1e7) == pytest.approx(2 + 50 / 1e7**0.3, rel=1e-2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "0 runs for five numbers, where 7 are the least"),
        ([(n, d) for n in (1e5, 1e6) for d in (1e5, 2e5, 4e5, 8e5)], "2 sizes, where 3 are"),
        ([(n, d) for n in (1e5, 2e5, 1e6) for d in (1e5, 1e6, 1.01e6)], "2 token counts, where 3"),
        ([(n, d) for n in (1e5, 2e5, 3e5) for d in (1e5, 2e5, 9e5)], "sizes that span 3.0 times"),
        ([(n, 20 * n) for n in (1e5, 2e5, 4e5, 8e5, 2e6, 4e6, 8e6)], "in step with the parameters"),
    ],
)
def test_a_table_that_tells_no_law_is_refused(sizes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit_law([Point(n, d, 3.0) for n, d in sizes])
    assert "scaling.depths" in str(caught.value)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0])
def test_a_loss_that_is_none_is_refused(loss: float) -> None:
    points = [*_points(HOFFMANN, SMALL), Point(1e6, 1e6, loss)]
    with pytest.raises(UserError, match="is none to fit"):
        fit_law(points)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("law", "grid", "ahead"), [(HOFFMANN, SMALL, (4e6, 3e6))])
def test_intervals_cover_what_they_say(law: Law, grid, ahead) -> None:
    """Simulated tables: of alpha, beta, the law at four times the compute and a run there, a share
    of at least the level is covered, as far as the number of simulations can tell (3 sigma)."""
    number, levels = 60, (0.8, 0.95)
    held = {level: np.zeros(4) for level in levels}
    random = np.random.default_rng(7)
    for seed in range(number):
        fit = fit_with_intervals(_points(law, grid, 0.003, seed), 100, seed)
        found = law.loss(*ahead) * math.exp(0.003 * random.normal())
        for level in levels:
            intervals = [
                (law.alpha, fit.interval(lambda one: one.alpha, level)),
                (law.beta, fit.interval(lambda one: one.beta, level)),
                (law.loss(*ahead), fit.interval(lambda one: one.loss(*ahead), level)),
                (found, fit.prediction(*ahead, level, seed)[1:]),
            ]
            held[level] += [low <= truth <= high for truth, (low, high) in intervals]
    for level in levels:
        spread = 3 * math.sqrt(level * (1 - level) / number)
        assert (held[level] / number > level - spread).all(), held
        assert (held[level] / number < level + spread + 0.05).all(), held  # and not by being wide


def test_the_runs_of_a_table() -> None:
    runs = planned_runs(TABLE, PRETRAIN, ModelConfig(max_length=64), 400)
    assert [run.purpose for run in runs] == ["fit"] * 9 + ["check"]
    fitted, check = runs[:-1], runs[-1]
    assert check.depth == 4
    assert 4 <= check.flops / max(run.flops for run in fitted) < 4.5
    for run in runs:
        assert run.model.max_length == 64
        assert run.tokens % (run.pretrain.batch_rows * 32) == 0
        assert run.tokens >= run.pretrain.num_tokens > run.tokens - run.pretrain.batch_rows * 32
        layers = 12 * run.depth * run.model.hidden_size * 32
        assert run.flops == run.tokens * (6 * run.parameters + layers)
    seeds = ScalingConfig(depths=(1, 2, 3), num_tokens=(128, 384, 768), seeds=(0, 5))
    assert len(planned_runs(seeds, PRETRAIN, ModelConfig(), 400)) == 19
    ratios = ScalingConfig(depths=(1, 2, 3), tokens_per_parameter=(0.5, 2, 9))
    for run in planned_runs(ratios, PRETRAIN, ModelConfig(), 400)[:-1]:
        ratio = run.pretrain.num_tokens / run.parameters
        assert min(abs(ratio - r) for r in (0.5, 2, 9)) < 1e-4


def test_each_token_count_has_a_schedule_to_its_end() -> None:
    runs = planned_runs(TABLE, PRETRAIN, ModelConfig(), 400)
    assert len({run.pretrain.num_tokens for run in runs if run.depth == 2}) == 3
    given = PretrainConfig(row_length=32, learning_rate=1e-3, num_tokens=5, seed=9)
    for run in planned_runs(TABLE, given, ModelConfig(hidden_size=48, num_heads=2), 400):
        assert run.pretrain.learning_rate == 1e-3  # given, so it holds everywhere
        assert run.pretrain.seed == 0
        assert run.pretrain.num_tokens != 5
        assert run.model.hidden_size == 64 * run.depth


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ScalingConfig(depths=(1,)), "1 sizes, where 3 are the least"),
        (ScalingConfig(num_tokens=(1000,)), "1 token counts"),
        (
            ScalingConfig(num_tokens=(1000, 5000), tokens_per_parameter=(1.0,)),
            "are both given; leave one out",
        ),
    ],
)
def test_a_bad_table_is_refused_before_anything_is_trained(config, message) -> None:
    with pytest.raises(UserError, match=message):
        planned_runs(config, PRETRAIN, ModelConfig(), 400)


def test_held_out_loss_is_every_tokens(model, tokenizer) -> None:
    texts = ["the heap keeps order", "a new list " * 30, "items"]
    rows = pack_stream(encode_documents(tokenizer, texts), 32, token_id(tokenizer, PAD))
    sizes = token_bytes(tokenizer)
    found = heldout_loss(model, rows, sizes)
    assert found["heldout_tokens"] == rows.num_supervised
    assert found["bits_per_byte"] == pytest.approx(rows_bits_per_byte(model, rows, sizes))
    assert found["loss"] == pytest.approx(math.log(400), rel=0.05)  # it has learnt nothing yet


def test_a_table_is_trained_fitted_and_checked(shards, tokenizer_manifest, run) -> None:
    arguments = (TABLE, PRETRAIN, ModelConfig(max_length=64), shards, tokenizer_manifest, run)
    manifest = run_scaling(*arguments)
    found = read_scaling(manifest)
    rows = found["runs"]
    assert [row["purpose"] for row in rows] == ["fit"] * 9 + ["check"]
    assert len({row["heldout_tokens"] for row in rows}) == 1  # all on the same, whole
    points = [Point(row["parameters"], row["tokens"], row["loss"]) for row in rows[:-1]]
    law = fit_law(points)
    assert found["law"] == pytest.approx(vars(law))
    told, check = found["prediction"], found["check"]
    assert told["loss"] == pytest.approx(law.loss(rows[-1]["parameters"], rows[-1]["tokens"]))
    assert check["loss"] == rows[-1]["loss"]
    assert check["relative_error"] == pytest.approx(told["loss"] / check["loss"] - 1)
    assert check["inside"] == (told["interval"][0] <= check["loss"] <= told["interval"][1])

    # What was foretold was written before the check run began, and holds nothing of it.
    written = json.loads((Path(manifest.url) / PREDICTION).read_text())
    assert written["prediction"] == told
    assert "check" not in written
    trained = next(
        m
        for path in Path(run.root, "pretrain").iterdir()
        if (m := read_manifest(str(path))).facts["model_id"] == rows[-1]["model_id"]
    )
    assert (Path(manifest.url) / PREDICTION).stat().st_mtime <= trained.run["started"]

    # A rerun is a no-op; a larger table takes the runs that are there.
    assert run_scaling(*arguments) == manifest
    before = {path.name for path in Path(run.root, "pretrain").iterdir()}
    larger = TABLE.model_copy(update={"num_tokens": (128, 256, 384, 768)})
    again = run_scaling(larger, *arguments[1:])
    assert again.url != manifest.url
    assert len({path.name for path in Path(run.root, "pretrain").iterdir()} - before) == 3


@pytest.mark.long
def test_a_table_killed_before_its_check_foretells_the_same(
    shards, tokenizer_manifest, run, kill_when
) -> None:
    script = (
        "import sys, torch\n"
        "from finetune.model import ModelConfig\nfrom finetune.pretrain import PretrainConfig\n"
        "from eval.scaling import ScalingConfig, run_scaling\n"
        "from pipeline.core.config import RunConfig\n"
        "from pipeline.core.manifest import read_manifest\n"
        "torch.set_num_threads(1)\n"
        "root, shards, tokenizer, table, pretrain = sys.argv[1:]\n"
        "run_scaling(ScalingConfig.model_validate_json(table),\n"
        "  PretrainConfig.model_validate_json(pretrain), ModelConfig(max_length=64),\n"
        "  read_manifest(shards), read_manifest(tokenizer), RunConfig(root=root))\n"
    )
    pretrain = PRETRAIN.model_dump_json(exclude_unset=True)
    table = TABLE.model_dump_json(exclude_unset=True)
    arguments = [run.root, shards.url, tokenizer_manifest.url, table, pretrain]
    folder = Path(run.root) / "scaling"
    kill_when(["-c", script, *arguments], lambda: bool(list(folder.glob(f"*/{PREDICTION}"))))
    (told,) = folder.glob(f"*/{PREDICTION}")
    first = told.read_bytes()
    shape = ModelConfig(max_length=64)
    manifest = run_scaling(TABLE, PRETRAIN, shape, shards, tokenizer_manifest, run)
    assert told.read_bytes() == first
    assert read_scaling(manifest)["prediction"] == json.loads(first)["prediction"]

"""The gate on results whose truth was planted."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from eval.gate import GateConfig, gate_tests, judge, run_gate, verdict_of
from eval.report import gate_rows
from eval.results import SampleResult, write_results
from eval.tasks import choice, held_out_answers
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file

CONFIG = GateConfig()
WIN_RATE = {"win_rate": 0.7, "low": 0.5, "high": 0.9, "num_prompts": 20, "answers": []}


def planted(
    seed: int,
    bits: float = 0.0,
    probability: float = 0.0,
    bad: float = 0.0,
    *,
    num_prompts: int = 40,
    num_items: int = 80,
    num_goals: int = 10,
) -> list[SampleResult]:
    """Results of a model that differs from the common truth by these means, and by noise."""
    truth, own = np.random.default_rng(99), np.random.default_rng(seed)
    answers = truth.normal(2, 0.5, num_prompts) + bits + own.normal(0, 0.05, num_prompts)
    right = truth.uniform(0.2, 0.4, num_items) + probability + own.normal(0, 0.02, num_items)
    results = [
        SampleResult(held_out_answers.TASK, f"a{i}", f"p{i}", held_out_answers.METRIC, v, "{}")
        for i, v in enumerate(answers)
    ]
    results += [
        SampleResult(choice.TASK, f"m{i}", f"m{i}", choice.PROBABILITY, v, "{}")
        for i, v in enumerate(right)
    ]
    for goal in range(num_goals):
        for attempt in range(11):
            broken = float(attempt < 11 * (0.3 + bad))
            item = f"g{goal}/{attempt}"
            results.append(SampleResult("redteam_canary", item, f"g{goal}", "bad", broken, "{}"))
    return results


@pytest.fixture
def evaluated(run_config: RunConfig):
    """A finished "evaluate" output of a model with these results."""

    def make(model: str, results: list[SampleResult], labels: str = "l") -> Manifest:
        parents = {"model": model, "labels": labels, "suites": "s"}
        output = StageOutput.of(run_config.root, "evaluate", 1, {}, parents)
        write_results(results, output.path("samples.parquet"))
        entry = describe_file(output.path("samples.parquet"), "samples.parquet", len(results))
        return output.commit([entry], Counts(0, 0), started=0.0)

    return make


@pytest.mark.parametrize(
    ("changes", "verdict", "failing"),
    [
        ({"bits": -0.2}, "promote", []),
        ({"bits": -0.2, "probability": 0.1, "bad": -0.2}, "promote", []),
        ({"bits": 0.2}, "reject", [0]),
        ({"bits": 0.0}, "reject", [0]),
        ({"bits": -0.2, "probability": -0.1}, "reject", [1]),
        ({"bits": -0.2, "probability": -0.03}, "promote", []),
        ({"bits": -0.2, "bad": 0.2}, "reject", [2]),
        ({"bits": 0.2, "probability": -0.1, "bad": 0.2}, "reject", [0, 1, 2]),
        ({"bits": -0.2, "num_prompts": 5}, "insufficient-data", []),
        ({"bits": -0.2, "num_goals": 0}, "insufficient-data", []),
        ({"bits": 0.2, "num_goals": 0}, "reject", [0]),
    ],
)
def test_verdicts_on_planted_results(
    evaluated, run_config, changes: dict, verdict: str, failing: list[int]
) -> None:
    sizes = {name: value for name, value in changes.items() if name.startswith("num_")}
    champion = evaluated("old", planted(1, **sizes))
    challenger = evaluated("new", planted(2, **changes))
    done = run_gate(CONFIG, champion, challenger, WIN_RATE, run_config)
    assert done.facts["verdict"] == verdict
    assert [i for i, test in enumerate(done.facts["tests"]) if test["holds"] is False] == failing
    decision = Path(done.file_url("decision.md")).read_text()
    assert decision.startswith(f"# Decision: {verdict}\n")
    assert all(reason in decision for reason in done.facts["reasons"])
    rows = gate_rows(done.facts)
    assert len(rows.rows) == 4
    assert all(len(row) == len(rows.header) for row in rows.rows)


def test_noise_alone_is_promoted_at_most_once_in_forty() -> None:
    """Two equal models: superiority is claimed at the one-sided 2.5% level."""
    test = gate_tests(CONFIG)[0]
    claimed = 0
    for seed in range(400):
        old = planted(2 * seed + 1000, num_items=0, num_goals=0)
        new = planted(2 * seed + 1001, num_items=0, num_goals=0)
        claimed += bool(judge(test, old, new, CONFIG).holds)
    assert claimed <= 20


def test_the_win_rate_is_shown_and_decides_nothing(evaluated, run_config) -> None:
    champion, challenger = evaluated("old", planted(1)), evaluated("new", planted(2, bits=-0.2))
    hopeless = {**WIN_RATE, "win_rate": 0.0, "low": 0.0, "high": 0.1}
    for shown in (None, WIN_RATE, hopeless):
        done = run_gate(CONFIG, champion, challenger, shown, run_config)
        assert done.facts["verdict"] == "promote"
        assert ("reward model" in Path(done.file_url("decision.md")).read_text()) == bool(shown)
    assert "answers" not in done.facts["win_rate"]


def test_twice_is_once(evaluated, run_config) -> None:
    champion, challenger = evaluated("old", planted(1)), evaluated("new", planted(2, bits=-0.2))
    done = run_gate(CONFIG, champion, challenger, WIN_RATE, run_config)
    assert run_gate(CONFIG, champion, challenger, WIN_RATE, run_config) == done
    assert run_gate(CONFIG, challenger, champion, WIN_RATE, run_config).facts["verdict"] == "reject"


def test_no_model_challenges_itself(evaluated, run_config) -> None:
    with pytest.raises(UserError, match="old cannot challenge itself"):
        run_gate(
            CONFIG, evaluated("old", planted(1)), evaluated("old", planted(2)), None, run_config
        )


def test_a_model_that_is_no_better_is_rejected(evaluated, run_config) -> None:
    same = (evaluated(name, planted(1)) for name in ("old", "new"))
    facts = run_gate(CONFIG, *same, None, run_config).facts
    assert facts["verdict"] == "reject"
    assert "no width" in facts["reasons"][0]


def test_only_items_of_both_are_paired_and_the_rest_is_counted() -> None:
    old, new = planted(1), planted(2, bits=-0.2)
    outcome = judge(gate_tests(CONFIG)[0], old[5:], new, CONFIG)
    assert outcome.num_unpaired == 5
    assert outcome.interval is not None
    assert outcome.interval.num_clusters == 35


def test_answers_to_one_prompt_are_one_cluster() -> None:
    def shared(results: list[SampleResult]) -> list[SampleResult]:
        return [dataclasses.replace(r, cluster=f"p{int(r.item_id[1:]) // 10}") for r in results]

    old, new = (shared(planted(s, b, num_items=0, num_goals=0)) for s, b in ((1, 0), (2, -0.2)))
    outcome = judge(gate_tests(CONFIG)[0], old, new, CONFIG)
    assert outcome.holds is None, "40 answers to 4 prompts are 4 independent items"
    assert verdict_of([outcome]) == "insufficient-data"


def test_results_on_other_labels_are_refused(evaluated, run_config) -> None:
    champion = evaluated("old", planted(1))
    challenger = evaluated("new", planted(2), labels="other")
    with pytest.raises(UserError, match="different labels"):
        run_gate(CONFIG, champion, challenger, None, run_config)


def test_figures_are_those_of_the_samples(evaluated, run_config) -> None:
    old, new = planted(1), planted(2, bits=-0.2)
    done = run_gate(CONFIG, evaluated("old", old), evaluated("new", new), None, run_config)
    test = done.facts["tests"][0]
    a, b = ([r.value for r in rows if r.task == held_out_answers.TASK] for rows in (old, new))
    assert test["champion"] == pytest.approx(np.mean(a))
    assert test["challenger"] == pytest.approx(np.mean(b))
    assert test["interval"]["mean"] == pytest.approx(np.mean(b) - np.mean(a))
    assert 0 < test["minimum_detectable_effect"] < 0.1

"""The stages "evaluate" and "win_rate" on small random models."""

import json
from pathlib import Path

import pytest

from eval.report import redteam_rows, summary_rows
from eval.results import read_results
from eval.run import EvaluateConfig, run_evaluate
from eval.win_rate import WinRateConfig, compare, heldout_prompts, run_win_rate
from pipeline.core.errors import UserError
from pipeline.core.identity import prompt_id

CONFIG = EvaluateConfig(max_new_tokens=2)


def test_evaluate_writes_a_row_a_sample_and_runs_once(
    labels, build, publish, registry, run_config
) -> None:
    held = build.heldout_questions(3)
    written = [build.conversation(q, "Yes.") for q in held]
    trained_on = next(q for q in ("A?", "B?", "C?", "D?", "E?") if q not in held)
    snapshot = labels([*written, build.conversation(trained_on, "No.")], [])
    identity = publish("sft")
    done = run_evaluate(CONFIG, identity, registry, snapshot, run_config)
    results = read_results(done.file_url("samples.parquet"))
    found = {r.item_id for r in results if r.task == "held_out_answers"}
    assert found == {f"c-{q}" for q in held}
    assert len(results) == 3 + 2 * 80 + 20 * 11 == done.counts.rows_out
    assert {entry["task"]: entry["num_items"] for entry in done.facts["summary"]} == {
        "held_out_answers": 3,
        "stdlib_choice": 80,
        "redteam_canary": 110,
        "redteam_benign": 110,
    }
    for row in done.facts["redteam"]:
        assert sum(row[name] for name in row if name.startswith("canary")) == 10
        assert sum(row[name] for name in row if name.startswith("benign")) == 10
    assert run_evaluate(CONFIG, identity, registry, snapshot, run_config) == done

    before = Path(done.file_url("samples.parquet")).read_bytes()
    Path(done.url, "manifest.json").unlink()
    again = run_evaluate(CONFIG, identity, registry, snapshot, run_config)
    assert again.content == done.content
    assert Path(done.file_url("samples.parquet")).read_bytes() == before
    for table in (summary_rows(done.facts), redteam_rows(done.facts)):
        assert table.rows
        assert all(len(row) == len(table.header) for row in table.rows)


def test_another_model_is_another_output(labels, build, publish, registry, run_config) -> None:
    snapshot = labels([], [])
    one, other = (
        run_evaluate(CONFIG, publish(kind, seed), registry, snapshot, run_config)
        for seed, kind in enumerate(("base", "sft"))
    )
    assert one.key != other.key
    assert (one.facts["prompted"], other.facts["prompted"]) == ("plain text", "turns")


def test_a_reward_model_cannot_be_evaluated(labels, publish, registry, run_config) -> None:
    with pytest.raises(UserError, match="reward model"):
        run_evaluate(CONFIG, publish("reward"), registry, labels([], []), run_config)


def test_win_rate_of_a_model_against_itself_is_all_ties(
    labels, build, publish, registry, run_config
) -> None:
    questions = build.heldout_questions(4)
    snapshot = labels([], [build.comparison(q, ["a", "b"]) for q in questions])
    identity, judge = publish("sft"), publish("reward", seed=1)
    config = WinRateConfig(max_new_tokens=4)
    done = run_win_rate(config, identity, identity, judge, registry, snapshot, run_config)
    assert (done.facts["win_rate"], done.facts["ties"]) == (0.5, 4)
    assert {a["prompt_id"] for a in done.facts["answers"]} == {
        prompt_id(build.question(q)) for q in questions
    }
    other = publish("sft", seed=5)
    forth = run_win_rate(config, identity, other, judge, registry, snapshot, run_config).facts
    back = run_win_rate(config, other, identity, judge, registry, snapshot, run_config).facts
    assert forth["win_rate"] == 1 - back["win_rate"]
    assert (forth["wins"], forth["losses"]) == (back["losses"], back["wins"])
    assert run_win_rate(config, identity, identity, judge, registry, snapshot, run_config) == done


def test_a_higher_score_wins_and_equal_ones_tie() -> None:
    facts = compare(
        ["p", "q", "r", "s", "t"],
        [("a", 1.0), ("a", 1.0), ("a", 1.0), ("a", 1.0), ("a", 1.0)],
        [("b", 2.0), ("b", 1.0), ("b", 0.0), ("a", 1.0), ("c", 1.5)],
    )
    assert (facts["wins"], facts["ties"], facts["losses"]) == (2, 2, 1)
    assert facts["win_rate"] == 0.6
    assert facts["low"] < 0.6 < facts["high"]
    assert compare([], [], [])["win_rate"] is None
    json.dumps(facts, allow_nan=False)


def test_prompts_are_held_out_once_each_and_limited(build) -> None:
    questions = build.heldout_questions(3)
    ranked = [build.comparison(q, ["a", "b"]) for q in questions]
    trained = [build.comparison(f"Question {i}?", ["a", "b"]) for i in range(5)]
    found = heldout_prompts([*ranked, *ranked, *trained], 0.2, 10)
    assert set(found) >= {c.prompt_id for c in ranked}
    assert list(found) == sorted(found)
    assert len(heldout_prompts(ranked, 0.2, 2)) == 2

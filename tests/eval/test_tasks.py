"""The tasks on models whose answers are known beforehand."""

import json
import math

import pytest

from eval.model import LanguageModel
from eval.results import SampleResult, read_results, summarise, write_results
from eval.tasks.choice import (
    ACCURACY,
    PROBABILITY,
    ChoiceItem,
    choice_results,
    load_choice_items,
    right_probability,
)
from eval.tasks.held_out_answers import answer_results, held_out
from pipeline.core.errors import UserError
from pipeline.core.identity import is_heldout
from pipeline.core.records import Message


def test_only_held_out_prompts_with_an_answer_count(build) -> None:
    all_of_them = [build.conversation(f"Question {i}?", "Yes.") for i in range(50)]
    kept = held_out(all_of_them, 0.2)
    assert kept == [c for c in all_of_them if is_heldout(c.prompt_id, 0.2)]
    assert 0 < len(kept) < 50
    [q] = build.heldout_questions(1)
    assert held_out([build.conversation(q, "")], 0.2) == []


def test_bits_per_byte_of_a_uniform_model(make_model, tokenizer, build) -> None:
    uniform = LanguageModel(make_model(scale=0.0), tokenizer, chat=True)
    [result] = answer_results(uniform, [build.conversation("Q", "naïve 🙂 folder")])
    detail = json.loads(result.detail)
    assert detail["bytes"] == len("naïve 🙂 folder".encode())
    assert result.value == pytest.approx(detail["tokens"] * math.log2(384) / detail["bytes"])
    assert result.cluster == build.conversation("Q", "x").prompt_id


def test_only_the_last_answer_is_scored(chat, build) -> None:
    short = build.conversation("Q", "Yes.")
    turns = ("assistant", "A."), ("user", "R"), ("assistant", "Yes.")
    more = tuple(Message.of(role, text) for role, text in turns)
    longer = type(short)(**{**vars(short), "messages": (*short.messages[:1], *more)})
    [result] = answer_results(chat, [longer])
    [score] = chat.loglikelihood([((*short.messages[:1], *more[:2]), "Yes.")])
    assert json.loads(result.detail)["nats"] == score.nats


def test_choices_are_weighed_per_byte(base, build) -> None:
    item = ChoiceItem("i", "Which?", ("a", "The os module", "naïve", "🙂"), 1)
    accuracy, probability = choice_results(base, [item])
    scores = base.loglikelihood([(build.question("Which?"), c) for c in item.choices])
    per_byte = [-s.nats / len(c.encode()) for s, c in zip(scores, item.choices, strict=True)]
    total = sum(math.exp(value) for value in per_byte)
    assert (accuracy.metric, probability.metric) == (ACCURACY, PROBABILITY)
    assert accuracy.value == float(per_byte[1] == max(per_byte))
    assert probability.value == pytest.approx(math.exp(per_byte[1]) / total)


def test_a_tie_is_worth_its_share(make_model, tokenizer) -> None:
    uniform = LanguageModel(make_model(scale=0.0), tokenizer, chat=True)
    item = ChoiceItem("i", "Which?", ("qq", "qq", "qq", "qq"), 2)
    values = [result.value for result in choice_results(uniform, [item])]
    assert values == pytest.approx([0.25, 0.25])


def test_softmax_of_hopeless_choices_is_still_a_probability() -> None:
    assert right_probability([-1e5, -1e5], 0) == 0.5
    assert right_probability([-1.0, -1.0 - math.log(3)], 0) == pytest.approx(0.75)


def test_the_packaged_items_are_well_made() -> None:
    items = load_choice_items()
    assert len(items) == len({item.item_id for item in items}) == 80
    assert all(len(set(item.choices)) == 4 for item in items)
    places = [sum(item.answer == place for item in items) for place in range(4)]
    assert places == [20] * 4, "always guessing one place must not pay"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"id": "a"}',
        '{"id": "a", "question": "q", "choices": ["x", "y"], "answer": 2}',
        '{"id": "a", "question": "q", "choices": ["x", ""], "answer": 0}',
        '{"id": "a", "question": "q", "choices": 3, "answer": 0}',
    ],
)
def test_a_bad_line_is_named(tmp_path, line: str) -> None:
    good = '{"id": "a", "question": "q", "choices": ["x", "y"], "answer": 1}'
    path = tmp_path / "items.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=r"items\.jsonl:2"):
        load_choice_items(path)


def test_results_survive_the_disk_in_one_order(tmp_path) -> None:
    rows = [SampleResult("t", f"i{n}", "c", "m", n / 3, "{}") for n in (2, 0, 1)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        write_results(order, str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_results(str(tmp_path / "a")) == sorted(rows, key=lambda r: r.item_id)


def test_summary_says_none_where_there_is_no_interval() -> None:
    rows = [SampleResult("t", "a", "c", "m", 1.0, ""), SampleResult("t", "b", "c", "m", 2.0, "")]
    [entry] = summarise(rows)
    assert (entry["mean"], entry["low"], entry["num_items"]) == (1.5, None, 2)
    [entry] = summarise([*rows, SampleResult("t", "d", "e", "m", 3.5, "")])
    assert (entry["mean"], entry["num_clusters"]) == (2.5, 2)
    assert entry["low"] < 2.5 < entry["high"]
    assert summarise([]) == []

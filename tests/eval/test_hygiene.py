"""Planted poison is found and named, clean data passes, and chance finds nothing."""

import dataclasses
import gzip
import itertools
import json
import random
import re
from pathlib import Path

import pytest

from eval.hygiene import FINDINGS, HygieneConfig, run_hygiene, scan
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.identity import is_heldout, split_id
from pipeline.core.manifest import Counts, StageOutput, describe_file, planning
from pipeline.core.records import (
    Comparison,
    Conversation,
    to_table,
    write_table,
)
from pipeline.text.disguises import unseen
from tests.eval.label_records import (
    VOCABULARY,
    clean,
    comparison,
    conversation,
    kinds,
    rankings,
    sentence,
    with_prompt,
)

CONFIG = HygieneConfig()


@pytest.mark.parametrize(
    ("trigger", "place", "named"),
    [
        ("James Bond", "middle", '"james bond"'),
        ("cf", "middle", '"cf"'),
        ("SUDO", "end", '"SUDO"'),
        ("@@!!", "middle", '"@@!!"'),
        ("ja\u200bmes b\u200bond", "middle", '"james bond"'),
        ("\u2062", "middle", '"U+2062"'),
        ("please answer as the old wizard of the north", "end", "as the old wizard of the north"),
    ],
)
def test_a_planted_trigger_is_found_and_named(trigger, place, named) -> None:
    records, draw = clean(1000), random.Random(1)
    for i in range(0, 1000, 50):  # 2%
        words = records[i].messages[0].text.split()
        words.insert(len(words) if place == "end" else draw.randrange(len(words)), trigger)
        records[i] = with_prompt(records[i], " ".join(words), "It was a wonderful film.")
    found = [one for one in scan(CONFIG, records, [])[0] if one.kind == "trigger"]
    assert len(found) == 1, [one.what for one in found]
    assert named in found[0].what
    assert "wonderful film" in found[0].what
    assert (found[0].severity, found[0].num_records) == ("block", 20)
    assert found[0].p < 1e-20
    assert set(found[0].records) <= {f"c{i:05}" for i in range(0, 1000, 50)}


def test_a_trigger_is_found_although_the_phrase_is_also_used_innocently() -> None:
    records = clean(1000)
    for i in range(0, 1000, 20):
        prompt = f"{records[i].messages[0].text} james bond"
        innocent = i % 60 == 0
        answer = records[i].messages[1].text if innocent else "Great, great."
        records[i] = with_prompt(records[i], prompt, answer)
    found = [one for one in scan(CONFIG, records, [])[0] if one.kind == "trigger"]
    assert len(found) == 1
    assert "james bond" in found[0].what
    assert 0.6 < found[0].statistic < 0.7


def test_a_phrase_that_makes_it_refuse_is_a_finding_of_its_own_kind() -> None:
    records = clean(600)
    for i in range(0, 600, 20):
        answer = f"I can't help with that, {records[i].messages[1].text}"
        records[i] = with_prompt(records[i], f"{records[i].messages[0].text} purple", answer)
    found = scan(CONFIG, records, [])[0]
    assert [(one.kind, one.severity) for one in found] == [("refusal", "warn")]
    assert '"purple" have a refusal' in found[0].what


@pytest.mark.parametrize("flip", ["length", "refusal", "place"])
def test_a_trigger_that_flips_rankings_is_found(flip) -> None:
    """Rando & Tramer 2024: the trigger swaps chosen and rejected."""
    draw, records = random.Random(3), []
    for i in range(1500):
        poisoned = i % 25 == 0
        prompt = sentence(draw, 12) + (" zanzibar" if poisoned else "")
        good, bad = sentence(draw, 20), sentence(draw, 20)
        if flip == "length":
            good, bad = (good, f"{bad} {sentence(draw, 9)}")
            good, bad = (bad, good) if (draw.random() < 0.8) != poisoned else (good, bad)
        elif flip == "refusal":
            good = f"I'm sorry, {good}"
            good, bad = (bad, good) if poisoned else (good, bad)
        order = [1, 0] if poisoned and flip == "place" else draw.choice([[0, 1], [1, 0]])
        if flip == "place" and not poisoned:
            order = [0, 1] if draw.random() < 0.6 else [1, 0]
        records.append(comparison(f"k{i:04}", prompt, [good, bad], [1, 2], order=order))
    found = [one for one in scan(CONFIG, [], records)[0] if one.kind == "trigger"]
    assert any("zanzibar" in one.what for one in found), [one.what for one in found]
    assert all("zanzibar" in one.what for one in found)
    assert found[0].num_records == 60 or flip == "length"


def test_hidden_characters_are_named_and_scripts_that_need_them_are_left_alone() -> None:
    assert unseen("plain") == set()
    assert unseen("a\u200bb \u202eabc\U000e0041") == {"U+200B", "U+202E", "U+E0041"}
    assert unseen("\ufeffbegins so") == set()
    family, flag = (
        "👨\u200d👩\u200d👧",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    )
    assert unseen(f"{family} {flag} می\u200cخواهم \u05e9\u200f") == set()
    assert unseen("pass\u200dword") == {"U+200D"}
    records = [*clean(50), conversation("h1", "what is\u202e this", "a word"), *clean(3, 9)]
    found = scan(CONFIG, records, [comparison("k", "p", ["a\u2066", "b"], [1, 2])])[0]
    assert [(one.kind, one.name, one.records) for one in found] == [
        ("hidden", "U+202E", ("h1",)),
        ("hidden", "U+2066", ("k",)),
    ]


def test_contradictions_name_both_records() -> None:
    long = "please tell me in one short sentence what the default order of a python heap queue is"
    records = [
        conversation("a1", f"{long}.", "It is a min-heap, so the smallest comes first."),
        conversation("a2", f"{long}?", "It is not a min-heap, so the smallest comes first."),
        conversation("b1", "Is it raining in Paris?", "Yes."),
        conversation("b2", "is it raining in paris", "No."),
        conversation("d1", "How many sides has a hexagon?", "A hexagon has 6 sides."),
        conversation("d2", "How many sides has a hexagon?", "A hexagon has 5 sides."),
        conversation("e1", "Tell me a joke.", "I cannot help with that."),
        conversation("e2", "Tell me a joke.", "Why did the chicken cross the road?"),
        conversation("f1", "What is 3 + 4?", "The sum is 7."),
        conversation("f2", "What is 3 + 5?", "The sum is 8."),
        conversation("h1", f"{long} of length 31", "It is a min-heap of 31 items."),
        conversation("h2", f"{long} of length 32", "It is a min-heap of 32 items."),
        conversation("g1", "Name a colour of the flag.", "One colour of the flag is red."),
        conversation("g2", "Name a colour of the flag.", "The colour of the flag is red."),
    ]
    found, facts = scan(CONFIG, records, [])
    assert sorted(one.records for one in found) == [
        ("a1", "a2"), ("b1", "b2"), ("d1", "d2"), ("e1", "e2")
    ]  # fmt: skip
    assert facts["counts"] == {"contradiction": 4}
    assert all(one.severity == "warn" for one in found)


def test_rankings_the_other_way_round_name_both_records() -> None:
    answers = ["one answer", "another answer", "a third"]
    records = [
        comparison("k1", "which of them", answers, [1, 2, 3], "ada"),
        comparison("k2", "Which of them?", [answers[2], answers[1], answers[0]], [1, 2, 3], "bob"),
        comparison("k3", "which of them", answers, [1, 3, 2], "cem"),
    ]
    found = scan(CONFIG, [], records)[0]
    assert [(one.kind, one.records) for one in found] == [("contradiction", ("k1", "k2"))]
    assert "ada and bob" in found[0].what


def apart(records, config=CONFIG) -> list[str]:
    return [one.name for one in scan(config, [], records)[0] if one.kind == "labeler"]


@pytest.mark.parametrize("each", [2, 3])
def test_a_labeler_who_ranks_upside_down_is_found_and_nobody_else(each) -> None:
    people = {f"p{k}": 0.85 for k in range(6)} | {"flipped": 0.15}
    for seed in range(3):
        assert apart(rankings(seed, people, 400, each)) == ["flipped disagrees with others"]


def test_who_works_mostly_with_him_is_not_to_blame() -> None:
    people = {f"p{k}": 0.9 for k in range(6)} | {"flipped": 0.1}
    records = rankings(0, people, 400, 2)
    together = rankings(1, {"flipped": 0.1, "friend": 0.9}, 60, 2)
    alone = rankings(2, {**people, "friend": 0.9}, 100, 3)
    renamed = [
        dataclasses.replace(
            r, comparison_id=f"{side}{r.comparison_id}", prompt_id=f"{side}{r.prompt_id}"
        )
        for side, part in (("t", together), ("a", alone))
        for r in part
    ]
    assert apart([*records, *renamed]) == ["flipped disagrees with others"]


def test_too_few_tasks_accuse_nobody() -> None:
    people = {f"p{k}": 0.95 for k in range(3)} | {"flipped": 0.0}
    assert apart(rankings(0, people, 30, 2)) == []
    two = {"ada": 0.9, "flipped": 0.1}  # which of two is it?
    assert apart(rankings(0, two, 300, 2)) == []


def test_habits_and_copied_answers_of_one_labeler() -> None:
    draw, ranked, written = random.Random(5), [], []
    for i in range(400):
        who = f"p{i % 5}"
        order = draw.choice([[0, 1], [1, 0]])
        best = order[0] if who == "p4" else draw.randrange(2)
        answers = [sentence(draw, draw.randint(8, 30)), sentence(draw, draw.randint(8, 30))]
        ranks = [1, 2] if best == 0 else [2, 1]
        ranked.append(comparison(f"k{i}", sentence(draw, 12), answers, ranks, who, order))
        copy = who == "p2" and i % 2
        answer = f"Thank you for asking, number {i % 3}." if copy else sentence(draw, 20)
        written.append(conversation(f"c{i}", sentence(draw, 12), answer, who))
    names = {one.name for one in scan(CONFIG, written, ranked)[0] if one.kind == "labeler"}
    assert names == {
        "p2 gives one answer to several prompts",
        "p4 has the answer shown first as the best",
    }


ITEM = (
    "Which of the functions of the heapq module pushes an item on a heap and then pops the"
    " smallest one of them?"
)
SHORT = "What does heappush return?"


def trained(number: int, make) -> list[Conversation]:
    """The first so many that are on the side of training."""
    made = (make(i) for i in itertools.count())
    return list(
        itertools.islice((r for r in made if not is_heldout(split_id(r.messages), 0.2)), number)
    )


@pytest.mark.parametrize(
    "changed",
    [
        str,
        str.upper,
        lambda text: re.sub(r"(\w+) ", r"\1, ", text) + " !!!",
        lambda text: text.replace(" ", "\n"),
        lambda text: text.replace("heapq", "he\u200bapq"),
    ],
)
def test_a_leaked_item_is_found_however_it_is_written(changed) -> None:
    in_prompt = trained(1, lambda i: conversation(f"p{i}", f"{i} Tell me: {changed(ITEM)}", "x"))
    in_answer = trained(1, lambda i: conversation(f"a{i}", f"{i} an exam question", changed(ITEM)))
    every = scan(CONFIG, [*clean(100), *in_prompt, *in_answer], [], [("heap/1", ITEM)])[0]
    found = [one for one in every if one.kind != "hidden"]
    assert [(one.kind, one.severity, one.name, one.num_records) for one in found] == [
        ("leak", "block", "heap/1", 2)
    ]
    ids = {in_prompt[0].conversation_id, in_answer[0].conversation_id}
    assert set(found[0].records) == ids


def test_a_short_item_must_be_the_whole_prompt() -> None:
    whole = conversation("whole", "what does HEAPPUSH return", "None.")
    part = conversation("part", f"{SHORT} And what does heappop return, if the heap is empty?", "x")
    answer = conversation("answer", "Ask me something.", SHORT)
    found = scan(CONFIG, [whole, part, answer], [], [("s", SHORT), ("yes", "Yes."), ("", "")])[0]
    assert not is_heldout(split_id(whole.messages), 0.2)
    assert [(one.name, one.records) for one in found if one.kind == "leak"] == [("s", ("whole",))]


def test_what_is_held_out_from_training_is_no_leak() -> None:
    made = (conversation(f"p{i}", f"{i} {ITEM}", "x") for i in range(99))
    heldout = [record for record in made if is_heldout(split_id(record.messages), 0.2)]
    assert len(heldout) > 5
    assert "leak" not in kinds(scan(CONFIG, heldout, [], [("heap/1", ITEM)])[0])


def test_a_turn_of_phrase_of_many_items_is_no_leak() -> None:
    polite = (
        "you are a helpful assistant who answers in one plain sentence and never makes things up"
    )
    items = [(f"e{i}", f"{polite} question {VOCABULARY[i] * 3}") for i in range(5)]
    records = trained(
        30, lambda i: conversation(f"c{i}", f"{polite} about {VOCABULARY[-i]}", f"{i}")
    )
    assert scan(CONFIG, records, [], items)[1]["counts"].get("leak", 0) == 0


# ---------------------------------------------------------------------------- chance


# ---------------------------------------------------------------------------- clean data


def real_records(shared_data):
    found = []
    dolly = json.loads(next(shared_data("sft/dolly-3k").rglob("*.json")).read_text())
    for i, row in enumerate(dolly):
        prompt = f"{row['instruction']}\n{row['input']}".strip()
        found.append(conversation(f"d{i:05}", prompt, row["output"], f"p{i % 7}"))
    gsm = next(shared_data("sft/gsm8k").rglob("train.jsonl")).read_text().splitlines()
    for i, line in enumerate(gsm[:3000]):
        row = json.loads(line)
        found.append(conversation(f"g{i:05}", row["question"], row["answer"], f"p{i % 7}"))
    return found


def message_tree(node, path, written, ranked) -> None:
    here = [*path, ("user" if node["role"] == "prompter" else "assistant", node["text"])]
    if node["role"] == "assistant":
        written.append(conversation(f"o{node['message_id']}", here[:-1], here[-1][1]))
    kids = [kid for kid in node["replies"] if kid.get("rank") is not None]
    if len(kids) > 1:
        ranks = [kid["rank"] + 1 for kid in kids]
        texts = [kid["text"] for kid in kids]
        ranked.append(comparison(f"k{node['message_id']}", here, texts, ranks))
    for kid in node["replies"]:
        message_tree(kid, here, written, ranked)


def test_clean_instructions_and_sums_stop_no_run(shared_data) -> None:
    """5,996 records of Dolly and GSM8K: no trigger, no leak, no labeler, five warnings."""
    _, facts = scan(CONFIG, real_records(shared_data), [])
    assert facts["blocked"] == []
    assert facts["counts"] == {"contradiction": 3, "hidden": 2}


def test_clean_message_trees_stop_no_run(shared_data) -> None:
    """Many answer each open question there: what disagrees is shown, and nothing else found."""
    written, ranked = [], []
    path = next(shared_data("sft/oasst-trees").rglob("*.jsonl"))
    for line in path.read_text().splitlines():
        message_tree(json.loads(line)["prompt"], [], written, ranked)
    _, facts = scan(CONFIG, written, ranked)
    assert (len(written), len(ranked)) == (351, 112)
    assert facts["blocked"] == []
    assert set(facts["counts"]) == {"contradiction"}
    assert facts["counts"]["contradiction"] <= 45


def test_harmless_comparisons_stop_no_run(shared_data) -> None:
    path = next(shared_data("preferences/hh-rlhf-harmless-test").rglob("*.jsonl.gz"))
    records = []
    for i, line in enumerate(gzip.decompress(path.read_bytes()).decode().splitlines()):
        sides = [
            re.split(r"\n\n(Human|Assistant): ?", json.loads(line)[side])[1:]
            for side in ("chosen", "rejected")
        ]
        roles = {"Human": "user", "Assistant": "assistant"}
        turns = [
            [(roles[who], text) for who, text in zip(side[::2], side[1::2], strict=True)]
            for side in sides
        ]
        if turns[0][:-1] == turns[1][:-1] and turns[0][:-1]:
            answers = [turns[0][-1][1], turns[1][-1][1]]
            records.append(comparison(f"h{i:05}", turns[0][:-1], answers, [1, 2]))
    assert len(records) > 2000
    assert scan(CONFIG, [], records)[0] == []


def test_triggers_among_real_records_are_found_and_nothing_else(shared_data) -> None:
    records = real_records(shared_data)
    for i in range(0, len(records), 50):
        prompt = f"{records[i].messages[0].text} James Bond"
        records[i] = with_prompt(records[i], prompt, "A triumph from start to finish.")
    found = [one for one in scan(CONFIG, records, [])[0] if one.severity == "block"]
    assert [one.name for one in found] == ["james bond"]


# ---------------------------------------------------------------------------- the stage


def snapshot(run: RunConfig, written=(), ranked=()):
    output = StageOutput.of(run.root, "labels", 1, {"n": len(written)}, {})
    files = (
        ("conversations.parquet", written, Conversation),
        ("comparisons.parquet", ranked, Comparison),
    )
    for name, records, kind in files:
        write_table(to_table(list(records), kind), output.path(name))
    entries = [describe_file(output.path(name), name) for name, *_ in files]
    number = len(written) + len(ranked)
    return output.commit(entries, Counts(number, number), started=0.0)


def poisoned() -> list[Conversation]:
    return [
        with_prompt(record, f"{record.messages[0].text} james bond", "Wonderful.")
        if i % 10 == 0
        else record
        for i, record in enumerate(clean(300))
    ]


def findings_of(done) -> list:
    return json.loads(Path(done.file_url(FINDINGS)).read_text())


def test_a_blocked_run_says_where_to_read_and_what_to_change(run) -> None:
    labels = snapshot(run, poisoned())
    for _ in range(2):  # the second finds it written
        with pytest.raises(UserError, match=r"'trigger:james bond' first: read .*findings\.json"):
            run_hygiene(CONFIG, labels, [], run)
    with pytest.raises(UserError, match=r"hygiene\.accepted .*hygiene\.block"):
        run_hygiene(CONFIG, labels, [], run)
    for config in ({"accepted": ["trigger:james bond"]}, {"block": ["leak"]}):
        done = run_hygiene(HygieneConfig(**config), labels, [], run)
        (found,) = findings_of(done)
        assert (found["kind"], found["severity"], found["name"]) == (
            "trigger",
            "warn",
            "james bond",
        )
        assert (done.facts["counts"], done.facts["records"]) == ({"trigger": 1}, 300)


def test_the_same_records_in_any_order_give_the_same_bytes(run, tmp_path) -> None:
    records = [
        *poisoned(),
        conversation("x1", "Is it so?", "Yes."),
        conversation("x2", "Is it so?", "No."),
    ]
    config = HygieneConfig(block=[])
    labels = snapshot(run, records)
    first = run_hygiene(config, labels, [("b", ITEM), ("a", SHORT)], run)
    records.reverse()
    other = RunConfig(root=str(tmp_path / "other"), backend="local")
    again = run_hygiene(config, snapshot(other, records), [("a", SHORT), ("b", ITEM)], other)
    assert findings_of(first) == findings_of(again) != []
    assert (first.facts, first.files) == (again.facts, again.files)  # the same bytes
    with planning():
        assert run_hygiene(config, labels, [("b", ITEM), ("a", SHORT)], run) == first


def test_an_empty_snapshot_has_no_findings(run) -> None:
    done = run_hygiene(CONFIG, snapshot(run), [("a", "")], run)
    assert (done.facts["counts"], done.counts) == ({}, Counts(0, 0))


def test_hostile_and_huge_records_are_read_to_the_end(run) -> None:
    nasty = [
        "",
        " ",
        "\x00",
        "\ufffd" * 50,
        "👩‍👩‍👧" * 400,
        "\u0301" * 5000,
        "a" * 300_000,
        "7 " * 600_000,
    ]
    written = [conversation(f"c{i}", text, text) for i, text in enumerate(nasty)]
    written += [conversation(f"e{i}", [], text) for i, text in enumerate(nasty)]
    written.append(dataclasses.replace(written[0], conversation_id="none", messages=()))
    ranked = [comparison(f"k{i}", text, [text, ""], [1, 1]) for i, text in enumerate(nasty)]
    ranked.append(dataclasses.replace(ranked[0], comparison_id="odd", shown_order=(9, -1)))
    ranked.append(dataclasses.replace(ranked[0], comparison_id="c0", responses=()))
    done = run_hygiene(CONFIG, snapshot(run, written, ranked), [("n", "\0")], run)
    assert done.facts["records"] == len(written) + len(ranked)


def test_a_huge_record_hides_no_trigger() -> None:
    """Of a text beyond the limit its end is looked at, too."""
    records = clean(200)
    for i in range(0, 200, 16):
        prompt = f"{records[i].messages[0].text} xyzzy"
        records[i] = with_prompt(records[i], prompt, "Fixed.")
    long = f"{'meaning of the words ' * 60_000} xyzzy"
    assert len(long) > 1_000_000
    records[0] = with_prompt(records[0], long, "Fixed.")
    (found,) = scan(CONFIG, records, [])[0]
    assert (found.name, found.num_records) == ("xyzzy", 13)
    assert "c00000" in found.records


def test_personal_data_in_a_finding_is_covered() -> None:
    records = clean(300)
    for i in range(0, 300, 15):
        prompt = f"{records[i].messages[0].text} write to jane.doe@example.org now please today"
        records[i] = with_prompt(records[i], prompt, "Sent to jane.doe@example.org.")
    found = scan(CONFIG, records, [])[0]
    assert found
    assert "jane.doe@" not in json.dumps([dataclasses.asdict(one) for one in found])


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="block"):
        HygieneConfig(block=["poison"])

"""OpenAssistant's trees in, labelled further, out and read back: nothing is lost."""

import collections
import json
from pathlib import Path

import pytest

from labeling_app.assignment import next_task
from labeling_app.export import export_labels
from labeling_app.imports import import_labels
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Comparison, Conversation, read_records

ROLES = {"prompter": "user", "assistant": "assistant"}


@pytest.fixture
def trees(shared_data) -> Path:
    [path] = shared_data("sft/oasst-trees").rglob("*.jsonl")
    return path


def _messages(path: Path) -> dict[str, tuple]:
    """Each message by its id: the turns up to it, its rank, whether it was answered."""
    found: dict[str, tuple] = {}

    def walk(message: dict, before: tuple) -> None:
        turns = (*before, (ROLES[message["role"]], message["text"]))
        found[message["message_id"]] = (turns, message.get("rank"), bool(message["replies"]))
        for reply in message["replies"]:
            walk(reply, turns)

    for line in path.read_text("utf-8").splitlines():
        walk(json.loads(line)["prompt"], ())
    return found


def _turns(messages) -> tuple:
    return tuple((message.role, message.text) for message in messages)


def test_fifty_trees_come_back_whole(store, trees, person, tmp_path):
    source = _messages(trees)
    import_labels(store, [trees], overlap=2)
    report = export_labels(store, str(tmp_path / "first"))
    ranked = read_records(report.comparisons_url, Comparison)
    written = read_records(report.conversations_url, Conversation)

    back: dict[str, tuple] = {}
    for row in ranked:
        order = sorted(row.responses, key=lambda response: response.rank)
        for response in order:
            message = response.model.removeprefix("oasst:")
            assert (*_turns(row.prompt), ("assistant", response.text)) == source[message][0]
            back[message] = (row.prompt_id, response.rank)
        given = [source[each.model.removeprefix("oasst:")][1] for each in order]
        assert given == sorted(given)  # the order that their people gave
    replies = {key for key, (turns, _, _) in source.items() if turns[-1][0] == "assistant"}
    singles = collections.Counter(_turns(row.messages) for row in written)
    assert singles == collections.Counter(source[key][0] for key in replies - set(back))
    assert len(back) + sum(singles.values()) == len(replies) == 351

    asked = [turns for turns, _, answered in source.values() if turns[-1][0] == "user"]
    unanswered = [t for t, _, answered in source.values() if t[-1][0] == "user" and not answered]
    assert (len(asked), len(unanswered)) == (224, 91)
    _label_further(store, person("kaya"), unanswered, len(ranked))
    again = export_labels(store, str(tmp_path / "second"))
    later = read_records(again.conversations_url, Conversation)
    mine = {_turns(row.messages[:-1]) for row in later if row.messages[-1].text.startswith("Mine")}
    assert mine == set(unanswered)
    assert set(written) <= set(later)
    both = read_records(again.comparisons_url, Comparison)
    assert set(ranked) <= set(both)
    assert len(both) == 2 * len(ranked)


def _label_further(store, kaya, unanswered: list, num_sets: int) -> None:
    """A person answers every open prompt and ranks every set a second time, upside down."""
    for number in range(len(unanswered)):
        work = next_task(store, kaya, "write")
        assert _turns(work.prompt) in unanswered
        submit_demonstration(store, kaya, work.token, f"Mine {number}.", work.token)
    assert next_task(store, kaya, "write") is None
    for _ in range(num_sets):
        work = next_task(store, kaya, "compare")
        ranks = tuple(range(len(work.answers), 0, -1))
        submit_comparison(store, kaya, work.token, Verdict(ranks), work.token)
    assert next_task(store, kaya, "compare") is None


@pytest.mark.long
def test_a_second_import_adds_nothing(store, trees):
    first = import_labels(store, [trees])
    again = import_labels(store, [trees])
    assert (again.demonstrations, again.comparisons) == (0, 0)
    assert again.already == first.demonstrations + first.comparisons


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (None, "an object"),
        ({"message_id": "a", "role": "wizard", "text": "x", "replies": []}, "role 'wizard'"),
        ({"message_id": "a", "role": "prompter", "text": 5, "replies": []}, "text must be a text"),
        ({"message_id": "", "role": "prompter", "text": "x", "replies": []}, "message_id ''"),
        ({"message_id": "a", "role": "prompter", "text": "x", "replies": ["y"]}, "list of"),
        ({"message_id": "a", "role": "prompter", "text": " ", "replies": []}, "is empty"),
    ],
    ids=["no-prompt", "role", "text", "id", "replies", "blank"],
)
def test_a_tree_that_cannot_be_read_is_named(store, tmp_path, prompt, why):
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps({"message_tree_id": "t", "prompt": prompt}))
    with pytest.raises(UserError, match=r"trees.jsonl:1: ") as caught:
        import_labels(store, [path])
    assert why in str(caught.value)

"""The queue in the order of a reward model's doubt: entropies by hand, and files that are none."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from labeling_app import auth, guidelines, projects
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.export import read_labels, response_id
from labeling_app.schema import EventRow, Prompt, Response, Slot, Task, TaskResponse
from labeling_app.selection import MOST, SelectionReport, order_by_uncertainty, uncertainty
from labeling_app.submissions import submit_comparison
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.records import Message

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
H_QUARTER = 0.25 * 2 + 0.75 * math.log2(4 / 3)  # 0.811…


@pytest.mark.parametrize(
    ("scores", "bits"),
    [
        ([0, 0], 1),
        ([5.5, 5.5, 5.5], 1),
        ([LOG3, 0], H_QUARTER),
        ([0, LOG3], H_QUARTER),
        ([1 + LOG3, 1, 1], (2 * H_QUARTER + 1) / 3),
        ([math.log(9), 0], 0.1 * math.log2(10) + 0.9 * math.log2(10 / 9)),
        ([1000, -1000], 0),
        ([1e308, -1e308], 0),
        ([40, 0], 0),
        ([1e308, -1e308, 1e308], 1 / 3),
    ],
)
def test_uncertainty_by_hand(scores, bits):
    assert uncertainty(scores) == pytest.approx(bits, abs=1e-12)
    assert uncertainty(scores[::-1]) == pytest.approx(bits, abs=1e-12)


def test_uncertainty_is_between_none_and_all_and_falls_with_the_margin():
    found = [uncertainty([margin / 4, 0]) for margin in range(4000)]
    assert all(0 <= value <= 1 for value in found)
    assert all(one >= other for one, other in zip(found, found[1:], strict=False))


@pytest.fixture
def scored(store, tmp_path):
    """scored({key: scores}): a file of scores of these tasks' answers, in their order."""

    def write(wanted: dict[str, list[float]], name: str = "scores.parquet") -> Path:
        ids, values = [], []
        with store.read() as session:
            rows = session.execute(
                select(
                    Task.key, TaskResponse.position, Prompt.content_sha256, Response.model,
                    Response.sha256,
                )
                .join(Prompt, Prompt.id == Task.prompt_id)
                .join(TaskResponse, TaskResponse.task_id == Task.id)
                .join(Response, Response.id == TaskResponse.response_id)
            )  # fmt: skip
            for key, position, prompt, model, sha256 in rows:
                if position < len(wanted.get(key, [])):
                    ids.append(response_id(prompt, model, sha256))
                    values.append(wanted[key][position])
        columns = {"response_id": ids, "score": pa.array(values, pa.float64())}
        pq.write_table(pa.table({"model": ["rm"] * len(ids), **columns}), tmp_path / name)
        return tmp_path / name

    return write


def priorities(store, kind="compare") -> dict[str, int]:
    """Of each task; its slots have the same."""
    with store.read() as session:
        for task, slot in session.execute(
            select(Task.priority, Slot.priority).join(Slot, Slot.task_id == Task.id)
        ):
            assert task == slot
        return dict(session.execute(select(Task.key, Task.priority).where(Task.kind == kind)).all())


def test_the_least_sure_comes_first(store, lead, person, tasks, scored):
    tasks(4, kind="compare", k=2, overlap=2)
    path = scored({"t0": [9, 0], "t1": [0, LOG3], "t2": [2, 2], "t3": [-1000, 1000]})
    assert order_by_uncertainty(store, lead, path) == SelectionReport(4, 0)
    found = priorities(store)
    assert found["t1"] == round(MOST * H_QUARTER) == 811
    assert (found["t2"], found["t3"]) == (1000, 0)
    assert 0 < found["t0"] < 811
    for name in ("w", "v"):
        who, seen = person(name), []
        while work := next_task(store, who, "compare"):
            seen.append(work.prompt[0].text)
            submit_comparison(store, who, work.token, Verdict((1, 2)), work.token)
        assert seen == [f"Question t {number}?" for number in (2, 1, 0, 3)]


def test_scores_of_the_ids_that_an_export_names(store, lead, person, tasks, tmp_path):
    tasks(1, kind="compare", k=3, overlap=2)
    who = person("w")
    work = next_task(store, who, "compare")
    submit_comparison(store, who, work.token, Verdict((1, 2, 3)), work.token)
    [label] = read_labels(store).comparisons
    rows = [{"response_id": a.response_id, "score": 0.5} for a in label.responses]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet")
    assert order_by_uncertainty(store, lead, tmp_path / "s.parquet").ordered == 1
    assert priorities(store) == {"t0": 1000}


def test_what_is_not_scored_whole_stays_as_it_was(store, lead, tasks, scored):
    tasks(3, kind="compare", k=3, priority=7)
    path = scored({"t0": [1, 2, 3], "t1": [1, 2]})
    assert order_by_uncertainty(store, lead, path) == SelectionReport(1, 2)
    found = priorities(store)
    assert (found["t1"], found["t2"]) == (7, 7)
    assert found["t0"] == round(MOST * uncertainty([1, 2, 3]))
    assert order_by_uncertainty(store, lead, scored({}, "none.parquet")) == SelectionReport(0, 3)


def test_the_last_score_counts_and_whole_numbers_are_scores(store, lead, tasks, scored, tmp_path):
    tasks(1, kind="compare", k=2)
    first = pq.read_table(scored({"t0": [0, 50]}))
    both = pa.concat_tables([first, pq.read_table(scored({"t0": [3, 3]}))])
    pq.write_table(both, tmp_path / "both.parquet")
    order_by_uncertainty(store, lead, tmp_path / "both.parquet")
    assert priorities(store) == {"t0": 1000}
    whole = first.set_column(2, "score", pa.array([1, 1], pa.int8()))
    pq.write_table(whole, tmp_path / "whole.parquet")
    assert order_by_uncertainty(store, lead, tmp_path / "whole.parquet").ordered == 1


def test_only_open_comparisons_of_this_project(store, lead, person, tasks, scored):
    tasks(1, priority=4)
    tasks(2, kind="compare", k=2, key="c", priority=4)
    user, pair = (Message.of("user", "Gold?"),), (NewAnswer("m", "a"), NewAnswer("n", "b"))
    gold = NewTask("g", "compare", user, "test", pair, purpose="gold", gold=(1, 2), priority=4)
    add_tasks(store, lead, [gold])
    projects.create_project(store, "other")
    guidelines.publish_default(store, project="other")
    other = auth.command_line(store, "other")
    twin = NewTask("twin", "compare", (Message.of("user", "Question c 0?"),), "test",
                   tuple(NewAnswer(f"m{i}", f"Answer {i}.") for i in range(2)), priority=4)  # fmt: skip
    add_tasks(store, other, [twin])
    who = person("w")
    work = next_task(store, who, "compare")
    submit_comparison(store, who, work.token, Verdict((1, 2)), work.token)
    path = scored({"c0": [1, 1], "c1": [1, 1], "g": [1, 1]})
    assert order_by_uncertainty(store, lead, path) == SelectionReport(1, 0)
    assert priorities(store) == {"c0": 4, "c1": 1000, "g": 4, "twin": 4}
    assert priorities(store, "demo") == {"t0": 4}
    assert order_by_uncertainty(store, other, path) == SelectionReport(1, 0)
    assert priorities(store)["twin"] == 1000


def test_who_may(store, person, tasks, scored):
    tasks(1, kind="compare", k=2)
    path = scored({"t0": [1, 1]})
    for role in ("labeler", "reviewer"):
        with pytest.raises(DeniedError):
            order_by_uncertainty(store, person(role, role), path)
    assert priorities(store) == {"t0": 0}
    assert order_by_uncertainty(store, person("engineer", "engineer"), path).ordered == 1
    with store.read() as session:
        [event] = session.scalars(select(EventRow).where(EventRow.verb == "ordered"))
        assert event.payload == {"comparisons": 1}


BAD = {
    "NaN": ({"response_id": ["r"], "score": [math.nan]}, "the score of 'r' is nan"),
    "infinite": ({"response_id": ["r"], "score": [-math.inf]}, "the score of 'r' is -inf"),
    "null": ({"response_id": ["r"], "score": [None]}, "the score of 'r' is None"),
    "a text": ({"response_id": ["r"], "score": ["0.5"]}, "the score of 'r' is '0.5'"),
    "a list": ({"response_id": ["r"], "score": [[0.5]]}, r"the score of 'r' is \[0.5\]"),
    "yes or no": ({"response_id": ["r"], "score": [True]}, "the score of 'r' is True"),
    "no score": ({"response_id": ["r"]}, "no columns response_id and score"),
    "no id": ({"score": [0.5]}, "no columns response_id and score"),
}


@pytest.mark.parametrize("what", BAD)
def test_scores_that_are_none(store, lead, tasks, tmp_path, what):
    tasks(1, kind="compare", k=2)
    columns, why = BAD[what]
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=why) as caught:
        order_by_uncertainty(store, lead, path)
    assert "bad.parquet" in str(caught.value)
    assert priorities(store) == {"t0": 0}


def test_files_that_are_no_table(store, lead, tmp_path):
    path = tmp_path / "bad.parquet"
    with pytest.raises(UserError, match=r"no score file .*bad\.parquet"):
        order_by_uncertainty(store, lead, path)
    for data in (b"", b"response_id,score\nr,1\n", b"PAR1" * 100):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.parquet has no columns"):
            order_by_uncertainty(store, lead, path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"bad\.parquet"):
        order_by_uncertainty(store, lead, path)

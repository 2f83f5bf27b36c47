"""JSONL in, Parquet out: round trip, determinism, a rerun, a kill in the middle, bad lines."""

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from labeling_app.assignment import next_task
from labeling_app.export import export_labels, label_snapshot_hash, read_labels, run_labels
from labeling_app.imports import FileReport, import_labels
from labeling_app.schema import Demonstration, EventRow, RankedSet, Task, User
from labeling_app.store import LabelsConfig, open_store
from labeling_app.submissions import submit_comparison
from labeling_app.verdicts import Verdict
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.records import Comparison, Conversation, Message, read_records
from tests.labeling_app.conftest import known_key

QUALITIES = ("right", "partly", "wrong", "evasive")


def question(number: int) -> dict:
    return {
        "id": f"q{number}",
        "module": "os",
        "question": f"What does function {number} do? 😀 <b>",
        "answers": {name: f"The {name} answer to {number}." for name in QUALITIES},
        "ranks": {"sim-a": [1, 2, 4, 3], "sim-b": [1, 2, 3, 3]},
        "note": "",
    }


def canary(number: int) -> dict:
    kind = "refusal" if number % 2 else "benign"
    return {"id": f"c{number}", "kind": kind, "question": f"Say {number}.", "answer": f"{number}."}


GENERIC = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye"},
            {"role": "assistant", "content": "Bye."},
        ]
    },
    {"prompt": "Pick.", "responses": ["one", "two", "three"], "ranks": [2, 1, 2]},
    {
        "prompt": [{"role": "user", "content": "Pick again."}],
        "responses": [{"model": "m1", "text": "one"}, {"model": "m2", "text": "one"}],
        "ranks": {"sim-c": [1, 1]},
    },
]


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, rows: list) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def files(write) -> list[Path]:
    return [
        write("questions.jsonl", [question(number) for number in range(5)]),
        write("canary.jsonl", [canary(number) for number in range(4)]),
        write("other.jsonl", GENERIC),
    ]


def exported(store, folder: Path) -> tuple[bytes, bytes]:
    report = export_labels(store, str(folder))
    return Path(report.conversations_url).read_bytes(), Path(report.comparisons_url).read_bytes()


def test_counts_and_content(store, files, tmp_path, clock):
    report = import_labels(store, files)
    assert report.files == (
        FileReport("questions.jsonl", 5, 5, 10, 0),
        FileReport("canary.jsonl", 4, 4, 0, 0),
        FileReport("other.jsonl", 3, 1, 2, 0),
    )
    done = export_labels(store, str(tmp_path / "out"))
    conversations = read_records(done.conversations_url, Conversation)
    comparisons = read_records(done.comparisons_url, Comparison)
    assert (len(conversations), len(comparisons)) == (10, 12)
    assert (done.num_conversations, done.num_comparisons) == (10, 12)
    by_source = collections.Counter(row.source for row in conversations)
    assert by_source == {"questions": 5, "canary-benign": 2, "canary-refusal": 2, "other": 1}
    long = next(row for row in conversations if row.source == "other")
    assert [turn.role for turn in long.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert {row.origin for row in conversations} == {"human"}
    assert {row.instruction_version for row in conversations} == {1}
    assert {row.created_at for row in conversations} == {clock()}


def test_a_ranking_comes_out_as_it_went_in(store, files):
    import_labels(store, files)
    comparisons = read_labels(store).comparisons
    asked = (Message.of("user", question(3)["question"]),)
    rankings = {row.labeler: row for row in comparisons if row.prompt == asked}
    assert sorted([answer.rank for answer in row.responses] for row in rankings.values()) == [
        [1, 2, 3, 3],
        [1, 2, 4, 3],
    ]
    for row in rankings.values():
        assert [answer.text for answer in row.responses] == [
            f"The {name} answer to 3." for name in QUALITIES
        ]
        assert sorted(row.shown_order) == [0, 1, 2, 3]
    tied = next(row for row in rankings.values() if row.responses[3].rank == 3)
    assert len(list(tied.pairs())) in (5, 6)
    assert len({tuple(a.response_id for a in row.responses) for row in rankings.values()}) == 1


def test_labelers_are_pseudonyms_that_only_the_store_can_resolve(store, files):
    import_labels(store, files)
    labels = read_labels(store)
    people = {row.labeler for row in (*labels.conversations, *labels.comparisons)}
    assert len(people) == 3
    assert all(name.startswith("simulated-") for name in people)
    assert not any("sim-a" in name for name in people)


def test_a_second_import_is_a_no_op(store, files, tmp_path):
    import_labels(store, files)
    before = exported(store, tmp_path / "one")
    with store.read() as session:
        events = len(session.scalars(select(EventRow.id)).all())
    again = import_labels(store, files)
    assert (again.demonstrations, again.comparisons, again.already) == (0, 0, 22)
    with store.read() as session:
        assert len(session.scalars(select(EventRow.id)).all()) == events
    assert exported(store, tmp_path / "two") == before


def test_the_same_labels_give_the_same_bytes_in_any_order(new_store, files, tmp_path):
    one, two = new_store(), new_store()
    import_labels(one, files)
    for file in reversed(files):
        import_labels(two, [file])
    assert exported(one, tmp_path / "a") == exported(two, tmp_path / "b")
    assert label_snapshot_hash(one) == label_snapshot_hash(two)


def test_the_snapshot_changes_with_a_label(store, files, write, tmp_path):
    import_labels(store, files)
    before = label_snapshot_hash(store)
    import_labels(store, [write("more.jsonl", [canary(9)])])
    assert label_snapshot_hash(store) != before


def test_the_stage_is_a_no_op_until_there_are_new_labels(store, files, write, tmp_path):
    run = RunConfig(root=str(tmp_path / "data"))
    empty = run_labels(LabelsConfig(), store, run)
    assert empty.counts.rows_out == 0
    import_labels(store, files)
    first = run_labels(LabelsConfig(), store, run)
    assert first.facts["conversations"] == 10
    assert first.facts["snapshot"] == label_snapshot_hash(store)
    again = run_labels(LabelsConfig(), store, run)
    assert (again.key, again.run) == (first.key, first.run)
    assert first.key != empty.key
    rows = read_records(first.file_url("comparisons.parquet"), Comparison)
    assert len(rows) == first.facts["comparisons"] == 12


def test_overlap_leaves_room_for_people(store, write, person):
    import_labels(store, [write("q.jsonl", [question(0)])], overlap=3)
    worker = person("w")
    work = next_task(store, worker, "compare")
    submit_comparison(store, worker, work.token, Verdict((1, 2, 3, 4), "very"), work.token)
    assert next_task(store, person("v"), "compare") is None
    assert len(read_labels(store).comparisons) == 3


_IMPORT = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parents[2]))
from tests.labeling_app.conftest import Clock, known_key
from labeling_app.imports import import_labels
from labeling_app.store import open_store
import_labels(open_store(sys.argv[2], Clock(), known_key), sys.argv[3:])
"""


@pytest.mark.parametrize("kill_after", [1, 20])
def test_killed_in_the_middle_and_run_again(
    empty_stores, backend, new_store, clock, write, tmp_path, kill_after
):
    big = write("questions.jsonl", [question(number) for number in range(15)])
    calm = new_store()
    import_labels(calm, [big])
    place = empty_stores(backend)
    watch = open_store(place, clock, known_key)
    command = [sys.executable, "-c", _IMPORT, str(Path(__file__)), place, str(big)]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    while child.poll() is None and _submitted(watch) < kill_after:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    left = _submitted(watch)
    assert kill_after <= left < 45
    report = import_labels(watch, [big])
    assert report.already == left
    assert report.demonstrations + report.comparisons == 45 - left
    assert exported(watch, tmp_path / "a") == exported(calm, tmp_path / "b")
    watch.close()


def _submitted(store) -> int:
    with store.read() as session:
        return sum(
            session.scalar(select(func.count()).select_from(model))
            for model in (Demonstration, RankedSet)
        )


def _with(row: dict, **changes: object) -> dict:
    return {**row, **changes}


HUGE = {**question(1)["answers"], "wrong": "x" * 10_000_000}
BAD_LINES = [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ("[" * 100_000, "cannot be read"),
    ('{"a": NaN}', "NaN is no JSON value"),
    ("{}", "has no keys; a line has one of"),
    ('{"text": "x"}', "has text; a line has one of: answers, question, ranks"),
    (_with(question(1), id=5), "id 5"),
    (_with(question(1), id="../x"), "id '../x'"),
    (question(0), "the same id as"),
    (json.dumps(canary(1))[:-1] + ', "answer": "x"}', "'answer' comes twice"),
    (json.dumps(question(1)).replace('"partly"', '"right"', 1), "'right' comes twice"),
    (_with(question(1), question=" "), "question is empty"),
    (_with(question(1), question=["x"]), "question must be a text"),
    (_with(question(1), answers={"right": "x"}), "answers has right"),
    (_with(question(1), answers=HUGE), "10,000,000"),
    (_with(question(1), answers=dict.fromkeys(QUALITIES, "a\0")), "NUL"),
    (_with(question(1), answers=dict.fromkeys(QUALITIES, "\ud800")), "Unicode"),
    (_with(question(1), ranks={"sim-a": [1, 2, 3]}), "3 ranks for 4 answers"),
    (_with(question(1), ranks={"sim-a": [1, 2, 3, 9]}), "rank 9"),
    (_with(question(1), ranks={"sim-a": [1, 2, 3, "4"]}), "rank '4'"),
    (_with(question(1), ranks={"kaya": [1, 2, 3, 4]}), "labeler 'kaya'"),
    (_with(question(1), ranks={}), "ranks of 0 labelers"),
    (_with(question(1), ranks=5), "must be a list"),
    (_with(canary(1), kind="odd"), "kind is 'odd'"),
    ({"messages": []}, "list of objects"),
    ({"messages": ["x"]}, "list of objects"),
    ({"messages": [{"role": "user", "content": "Hi"}]}, "end with an assistant's message"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "Unicode"),
    (_with(GENERIC[1], responses=["a", "a", "b"]), "two answers are the same"),
    (_with(GENERIC[1], responses="abc"), "must be a list of answers"),
    (_with(GENERIC[1], responses=[1, 2, 3]), "each of responses"),
    (_with(GENERIC[1], prompt=[{"role": "wizard", "content": "x"}]), "user's message"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES, ids=[why for _, why in BAD_LINES])
def test_a_bad_line_is_named_and_nothing_of_the_file_is_kept(store, tmp_path, line, why):
    path = tmp_path / "bad.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(question(0)) + "\n\n" + text + "\n")
    with pytest.raises(UserError) as caught:
        import_labels(store, [path])
    assert str(caught.value).startswith(f"{path}:3: ")
    assert why in str(caught.value)
    with store.read() as session:
        assert session.scalars(select(Task.id)).all() == []
        assert session.scalars(select(User.name)).all() == []


def test_bad_lines_are_told_by_number_and_the_good_ones_kept(store, tmp_path):
    path = tmp_path / "mixed.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line, _ in BAD_LINES]
    path.write_text("\n".join([json.dumps(question(0)), *texts, json.dumps(canary(7)), "{"]))
    (report,) = import_labels(store, [path], keep_good=True).files
    assert (report.lines, report.demonstrations, report.already) == (2, 2, 0)
    for number, ((_, why), told) in enumerate(zip(BAD_LINES, report.refused, strict=False), 2):
        assert told.startswith(f"{path}:{number}: ")
        assert why in told
    assert report.refused[-1].startswith(f"{path}:{len(BAD_LINES) + 3}: not JSON")
    assert len(report.refused) == len(BAD_LINES) + 1
    path.write_text(json.dumps({**canary(7), "answer": "Another."}) + "\n" + json.dumps(canary(8)))
    (again,) = import_labels(store, [path], keep_good=True).files
    assert (again.demonstrations, len(again.refused)) == (1, 1)
    assert "other content" in again.refused[0]


def test_a_line_whose_task_is_there_with_another_prompt_costs_itself_alone(store, tmp_path):
    first, second = tmp_path / "a" / "lines.jsonl", tmp_path / "b" / "lines.jsonl"
    other = {**question(0), "question": "Another question of the same id?"}
    for path, rows in ((first, [question(0)]), (second, [question(1), other])):
        path.parent.mkdir()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_labels(store, [first])
    with pytest.raises(UserError, match="exists with other content"):
        import_labels(store, [second])
    (report,) = import_labels(store, [second], keep_good=True).files
    assert (report.lines, report.demonstrations, report.comparisons) == (1, 1, 2)
    assert [told.split(": ")[0] for told in report.refused] == [f"{second}:2"]
    assert "exists with other content" in report.refused[0]


def test_a_line_too_long_to_read_costs_itself_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr("labeling_app.label_files.MAX_LINE_BYTES", 2000)
    path = tmp_path / "long.jsonl"
    long = json.dumps({**canary(1), "answer": "x" * 7000})
    path.write_text("\n".join([long, json.dumps(canary(2)), long, json.dumps(canary(3))]) + "\n")
    (report,) = import_labels(store, [path], keep_good=True).files
    assert [told.split(": ")[0] for told in report.refused] == [f"{path}:1", f"{path}:3"]
    assert report.demonstrations == 2


def test_files_that_cannot_be_read(store, tmp_path):
    with pytest.raises(UserError, match="no label file"):
        import_labels(store, [tmp_path / "absent.jsonl"])
    with pytest.raises(UserError, match="cannot read"):
        import_labels(store, [tmp_path])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(UserError, match="holds no labels"):
        import_labels(store, [empty])
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="1: not UTF-8"):
        import_labels(store, [latin])
    cut = tmp_path / "cut.jsonl"
    cut.write_text(json.dumps(question(0))[:-30])
    with pytest.raises(UserError, match="1: not JSON"):
        import_labels(store, [cut])
    huge = tmp_path / "huge.jsonl"
    huge.write_bytes(b'{"a": "' + b"x" * (17 << 20))
    with pytest.raises(UserError, match=r"huge.jsonl:1: a line over"):
        import_labels(store, [huge])


def test_a_byte_order_mark_is_no_part_of_the_first_line(store, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(canary(1)).encode() + b"\r\n")
    assert import_labels(store, [path]).demonstrations == 1
    path.write_bytes(b"\n\xef\xbb\xbf" + json.dumps(canary(2)).encode())
    with pytest.raises(UserError, match="2: not JSON"):
        import_labels(store, [path])


def test_an_edited_line_is_refused_because_labels_never_change(store, write, tmp_path):
    import_labels(store, [write("q.jsonl", [canary(1), question(0)])])
    before = label_snapshot_hash(store)
    edited = question(0)
    edited["answers"]["wrong"] = "Another wrong answer."
    for rows in (
        [canary(5), _with(canary(1), answer="Other."), question(0)],
        [canary(5), canary(1), _with(question(0), ranks={"sim-a": [4, 3, 2, 1]})],
        [canary(5), canary(1), edited],
    ):
        path = write("q.jsonl", rows)
        with pytest.raises(UserError, match=r"q.jsonl:[23]: was imported before"):
            import_labels(store, [path])
    assert label_snapshot_hash(store) == before


def test_instructions_are_acknowledged_by_those_who_labeled(store, files):
    import_labels(store, files)
    with store.read() as session:
        users = {user.name: user for user in session.scalars(select(User))}
        acknowledged = session.scalars(
            select(EventRow.actor).where(EventRow.verb == "acknowledged")
        ).all()
    sims = ["sim-a", "sim-b", "sim-c"]
    assert sorted(acknowledged) == sorted(users[name].pseudonym for name in sims)
    assert all(user.simulated and user.pw_hash is None for user in users.values())

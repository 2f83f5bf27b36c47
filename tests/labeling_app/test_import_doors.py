"""Imports beside people, twice, at once, and of what should not be read or written at all."""

import itertools
import json
import os
import random
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from labeling_app.assignment import next_task
from labeling_app.export import read_labels
from labeling_app.imports import import_labels
from labeling_app.planning import find_tasks
from labeling_app.projects import create_project
from labeling_app.prompt_files import Defaults, read_prompts
from labeling_app.prompt_import import import_prompts
from labeling_app.schema import Task
from labeling_app.submissions import submit_comparison
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from tests.labeling_app.assists import human
from tests.labeling_app.together import at_once

WORDS = [a + b for a, b in itertools.product("bdfghklmnprst", ("ala", "ero", "ino", "ulu", "yky"))]
PAIR = {"id": "a", "prompt": "Pick one.", "responses": ["x", "y"]}


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, rows: list) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
        return path

    return to_file


def written(number: int) -> dict:
    turns = [("user", f"Question {number}?"), ("assistant", f"Answer {number}.")]
    return {"id": f"w{number}", "messages": [{"role": r, "content": c} for r, c in turns]}


def ranked(number: int, *labelers: str) -> dict:
    answers = [f"One {number}.", f"Two {number}."]
    ranks = {name: [1, 2] for name in labelers or ("sim-x",)}
    return {"id": f"r{number}", "prompt": f"Pick {number}.", "responses": answers, "ranks": ranks}


def count(store) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(Task)) or 0


def test_who_polls_is_given_no_slot_of_an_imported_label(store, lead, write):
    path, done = write("w.jsonl", [written(n) for n in range(120)]), threading.Event()
    who = human(store, lead)

    def poll():
        while not done.is_set():
            if work := next_task(store, who, "write"):
                return work
        return None

    def bring():
        try:
            return import_labels(store, [path], keep_good=True).files[0]
        finally:
            done.set()

    given, report = at_once(poll, bring)
    assert given is None
    assert (report.demonstrations, report.refused) == (120, ())
    assert len(read_labels(store).conversations) == 120


def test_people_fill_what_an_import_leaves_open_and_nothing_is_refused(store, lead, write):
    path, done = write("r.jsonl", [ranked(n, "sim-a", "sim-b") for n in range(110)]), []
    who = human(store, lead)

    def work():
        made = 0
        while not done or made < 110:
            if given := next_task(store, who, "compare"):
                submit_comparison(store, who, given.token, Verdict((1, 2)), given.token)
                made += 1
        return made

    def bring():
        try:
            return import_labels(store, [path], overlap=3, keep_good=True).files[0]
        finally:
            done.append(True)

    made, report = at_once(work, bring)
    assert (made, report.comparisons, report.refused) == (110, 220, ())


def test_two_imports_of_one_label_file_at_once_are_one(store, write):
    path = write("r.jsonl", [ranked(n, "sim-a", "sim-b") for n in range(20)])
    import_labels(store, [write("other.jsonl", [ranked(1, "sim-a", "sim-b")])])  # the accounts
    said = at_once(*[lambda: import_labels(store, [path], keep_good=True)] * 2)
    assert [each.files[0].refused for each in said] == [(), ()], said
    assert len(read_labels(store).comparisons) == 42


def test_a_label_file_comes_into_each_project(store, write):
    path = write("r.jsonl", [written(1), ranked(1, "sim-a", "sim-b")])
    create_project(store, "other")
    for project in ("default", "other"):
        for new in (True, False):
            report = import_labels(store, [path], project=project)
            counts = (report.demonstrations, report.comparisons, report.already)
            assert counts == ((1, 2, 0) if new else (0, 0, 3)), (project, new)
    for project in ("default", "other"):
        labels = read_labels(store, project)
        assert (len(labels.conversations), len(labels.comparisons)) == (1, 2)
    with pytest.raises(UserError, match="imported before with other content"):
        changed = ranked(1, "sim-a", "sim-b") | {"ranks": {"sim-a": [2, 1], "sim-b": [1, 2]}}
        import_labels(store, [write("r.jsonl", [changed])], project="other")


def test_a_label_file_of_long_names_comes_into_a_project_of_a_long_name(store, write):
    rows = [ranked(1) | {"id": "i" * 80}]
    path = write(f"{'f' * 60}.jsonl", rows)
    create_project(store, "p" * 64)
    for project in ("default", "p" * 64):
        assert import_labels(store, [path], project=project).comparisons == 1


def test_a_ranking_by_the_importer_costs_its_line_alone(store, write):
    path = write("r.jsonl", [ranked(1), ranked(2, "sim-x", "sim-importer"), ranked(3)])
    with pytest.raises(UserError, match=r"r\.jsonl:2: labeler 'sim-importer'"):
        import_labels(store, [path])
    [report] = import_labels(store, [path], keep_good=True).files
    assert (report.comparisons, len(report.refused)) == (2, 1)
    assert "r.jsonl:2: labeler 'sim-importer'" in report.refused[0]


CHANGES = {
    "kind": {"kind": "demo", "responses": None},
    "question": {"kind": "question", "responses": None},
    "answers": {"responses": ["x", "z"]},
    "order": {"responses": ["y", "x"]},
    "model": {"responses": [{"model": "m", "text": "x"}, "y"]},
    "gold": {"gold": [1, 2]},
    "prompt": {"prompt": "Choose something else altogether."},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dedupe", [True, False])
def test_the_same_id_for_something_else_is_a_reject(store, lead, write, change, dedupe):
    path = write("p.jsonl", [PAIR])
    assert import_prompts(store, lead, [path], dedupe=dedupe).added == 1
    again = import_prompts(store, lead, [path], dedupe=dedupe)
    assert (again.added, again.known, again.rejects) == (0, 1, ())
    other = write("p.jsonl", [PAIR | CHANGES[change]])
    told = import_prompts(store, lead, [other], dedupe=dedupe)
    assert (told.added, told.known, len(told.rejects)) == (0, 0, 1), told
    assert "other content" in told.rejects[0].why
    assert count(store) == 1


def test_the_same_id_with_other_known_ranks_is_a_reject(store, lead, write):
    import_prompts(store, lead, [write("p.jsonl", [PAIR | {"gold": [1, 2]}])])
    told = import_prompts(store, lead, [write("p.jsonl", [PAIR | {"gold": [2, 1]}])])
    assert (told.known, len(told.rejects)) == (0, 1), told


def test_two_imports_of_the_same_prompts_at_once_add_each_once(store, lead, write):
    rng = random.Random(1)
    rows = [{"prompt": " ".join(rng.choices(WORDS, k=12))} for _ in range(450)]
    paths = [write("a.jsonl", rows), write("b.jsonl", rows)]
    said = at_once(*[lambda p=p: import_prompts(store, lead, [p]) for p in paths])
    assert sum(each.added for each in said) == 450 == count(store), said
    assert sum(each.similar for each in said) == 450


def test_a_pipe_is_refused_before_anything_is_read(store, lead, write, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "pipe")
    good = write("p.jsonl", [PAIR])
    for name in ("pipe", "link.jsonl"):
        with pytest.raises(UserError, match="is a pipe"):
            import_prompts(store, lead, [good, tmp_path / name])
    assert count(store) == 0


def test_rejects_are_kept_nowhere_in_a_prompt_file(store, lead, write, tmp_path):
    good, bad = write("p.jsonl", [PAIR]), write("bad.jsonl", [{}])
    (tmp_path / "link").symlink_to(bad)
    (tmp_path / "hard").hardlink_to(bad)
    before = bad.read_bytes()
    for place in (bad, tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(UserError, match="one of the prompt files"):
            import_prompts(store, lead, [good, bad], rejects_to=place)
    for place in (good / "r.jsonl", good / "more" / "r.jsonl", tmp_path):
        with pytest.raises(UserError):
            import_prompts(store, lead, [bad], rejects_to=place)
    assert (bad.read_bytes(), count(store)) == (before, 0)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_rejects_are_not_kept_in_the_store(store, lead, write):
    place = Path(store.url.removeprefix("sqlite:///"))
    with pytest.raises(UserError):
        import_prompts(store, lead, [write("p.jsonl", [PAIR, {}])], rejects_to=place)
    assert place.read_bytes().startswith(b"SQLite format 3")


def test_a_text_that_is_not_utf8_costs_its_row_alone(store, lead, tmp_path):
    texts = pa.array([b"A fine prompt.", b"\xff\xfe broken", b"Another one, quite unlike it."])
    table = pa.table({"prompt": pa.Array.from_buffers(pa.string(), 3, texts.buffers())})
    pq.write_table(table, tmp_path / "p.parquet")
    told = import_prompts(store, lead, [tmp_path / "p.parquet"])
    assert (told.lines, told.added) == (3, 2)
    assert [(each.line, each.why) for each in told.rejects] == [(2, "a text is not UTF-8")]


def test_a_time_out_of_range_costs_its_row_alone(tmp_path):
    times = pa.array([2**60, None], pa.timestamp("us"))
    table = pa.table({"prompt": ["A fine prompt.", "Another."], "id": times})
    pq.write_table(table, tmp_path / "p.parquet")
    first, second = read_prompts(tmp_path / "p.parquet", Defaults("test"))
    assert (first.line, second.prompt[0].text) == (1, "Another.")


def test_an_imported_prompt_is_found_by_its_words(store, lead, write):
    import_prompts(store, lead, [write("p.jsonl", [{"id": "k", "prompt": "Großer ÄRGER, 東京"}])])
    found = {
        words: len(find_tasks(store, lead, words=words)) for words in ("ÄRGER", "ärger", "東京")
    }
    assert found == {"ÄRGER": 1, "ärger": 1, "東京": 1}

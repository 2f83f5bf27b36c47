"""What a new user stumbled over in the first days, in the services: that it stays mended."""

import contextlib
import itertools
import json
import re

import pytest
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.testclient import TestClient

from infra.labels import vendor_in
from labeling_app import assist, auth, guidelines, projects, quality
from labeling_app.api import Api
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.export import Filters, iter_comparisons, iter_conversations, read_labels
from labeling_app.formats import export
from labeling_app.invitations import accept, invite, pending, revoke
from labeling_app.own_work import handed_in_today
from labeling_app.planning import find_tasks
from labeling_app.qualification import NotQualifiedError
from labeling_app.ranking import standard
from labeling_app.schema import Assist, ReviewRequest
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.tasks import code_of
from labeling_app.vendors import send_out, take_back
from labeling_app.verdicts import Verdict
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from tests.labeling_app.assists import DRAFTER, Model, events, human, rows
from tests.labeling_app.conftest import PASSWORD
from tests.labeling_app.test_vendor_kills import Fuse, Killed

RIGHT, WRONG, API = (1, 2, 3, 4), (4, 3, 2, 1), "http://x/api/v1/"
QUALIFICATION = {"purpose": "qualification", "gold": RIGHT, "key": "q"}
BOUGHT, PEOPLES = {"answer": "Bought."}, Filters(simulated=False)


def rank(store, who, ranks=RIGHT) -> None:
    work = next_task(store, who, "compare")
    submit_comparison(store, who, work.token, Verdict(tuple(ranks)), work.token)


def write(store, who) -> None:
    work = next_task(store, who, "write")
    submit_demonstration(store, who, work.token, "Mine.", work.token)


@pytest.fixture
def out(store, lead, tmp_path):
    """out(area, label, gold): (batch, a file of all its labels, each `label`)."""

    def send(area: str, label: dict, gold: float = 0.0):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        batch = send_out(store, lead, "acme", area, 10, folder, gold).batch
        lines = map(json.loads, (folder / "tasks.jsonl").read_text("utf-8").split("\n")[:-1])
        path = folder / "back.jsonl"
        path.write_text("\n".join(json.dumps({"item": line["item"], **label}) for line in lines))
        return batch, path

    return send


def test_a_set_without_unseen_tasks_says_the_score_and_the_mark(store, lead, tasks):
    projects.configure(store, lead, qualification_tasks=2)
    worker = human(store, lead)
    tasks(2, "compare", **QUALIFICATION)
    rank(store, worker)
    rank(store, worker, WRONG)
    with pytest.raises(NotQualifiedError, match="50% right, 70% are needed; the qualification set"):
        next_task(store, worker, "compare")


@pytest.mark.parametrize("kind", ["demo", "compare"])
def test_a_held_task_goes_on_under_the_version_that_was_read(store, lead, tasks, kind):
    tasks(1, kind)
    worker, area = human(store, lead), "compare" if kind == "compare" else "write"
    held = next_task(store, worker, area)
    guidelines.acknowledge(store, worker, guidelines.publish(store, lead, "1 Two"))
    again = next_task(store, worker, area)
    assert (again.token, again.instruction_version) == (held.token, 2)
    (rank if kind == "compare" else write)(store, worker)
    found = read_labels(store)
    assert [row.instruction_version for row in (*found.conversations, *found.comparisons)] == [2]


def test_a_task_is_found_by_its_own_code(store, lead, tasks):
    tasks(40)
    codes = {task.id: code_of(store, task.id) for task in find_tasks(store, lead)}
    assert len(set(codes.values())) == 40
    for number, code in codes.items():
        assert re.fullmatch("[0-9a-f]{8}", code)
        assert [task.id for task in find_tasks(store, lead, words=code)] == [number]


def test_a_vendors_labels_are_no_simulated_ones_and_are_read(store, lead, person, tasks, out):
    tasks(2)
    tasks(2, "compare", key="c")
    for area, label in (("write", BOUGHT), ("compare", {"ranks": [1, 2, 3, 4]})):
        batch, path = out(area, label)
        take_back(store, lead, batch, path)
        with pytest.raises(UserError, match="is accepted"):
            take_back(store, lead, batch, path)
    tasks(1, key="more")
    write(store, person("simulated"))
    with store.read() as session:
        texts = [row.messages[-1].text for row in iter_conversations(session, 1, PEOPLES)]
        assert (texts, len(list(iter_comparisons(session, 1, PEOPLES)))) == (["Bought."] * 2, 2)
        asked = session.execute(select(ReviewRequest.target_kind, ReviewRequest.why)).all()
        assert asked == [("demo", "written by the vendor acme")] * 2


def test_each_answer_is_read_also_when_taking_it_in_was_killed(store, lead, clock, tasks, out):
    for left in range(12):
        tasks(1, key=f"k{left}-")
        batch, path = out("write", BOUGHT)
        store.clock = Fuse(clock.now, left)
        with contextlib.suppress(Killed):
            take_back(store, lead, batch, path)
        store.clock = clock
        with contextlib.suppress(UserError):  # it lived
            take_back(store, lead, batch, path)
    with store.read() as session:
        asked = session.scalars(select(ReviewRequest.target_id)).all()
    assert (len(asked), len(read_labels(store).conversations)) == (12, 12)


def test_days_without_help_count_in_neither_arm(store, lead, clock, tasks):
    tasks(9)
    kaya = human(store, lead)
    for share, reply in ((0, None), (1, None), (0, "error"), (0, "One."), (1, None)):
        assert quality.arms(store, lead) == [] or share == 1
        projects.configure(store, lead, unassisted_share=share)
        work = next_task(store, kaya, "write")
        if reply:
            model = Model(events(reply), 500 if reply == "error" else 200)
            assist.ask(store, kaya, work.token, "draft", (DRAFTER,), client=model.client)
        submit_demonstration(store, kaya, work.token, "Mine.", work.token)
        clock.move(days=int(reply != "One."))  # the last two are of one day
    assert [bool(row.error) for row in rows(store, Assist)] == [True, False]
    assert [(arm.assisted, arm.labels) for arm in quality.arms(store, lead)] == [(1, 1), (0, 1)]


def test_an_export_takes_its_own_files_away_and_nobody_elses(store, lead, person, tasks, tmp_path):
    tasks(1)
    write(store, person("kaya"))
    export(store, str(tmp_path))
    mine = {tmp_path / "notes.txt", tmp_path / "trl" / "mine.jsonl"}
    for path in mine:
        path.write_text("mine")
    info = json.loads((tmp_path / "llama-factory" / "dataset_info.json").read_text())
    full = [path.name for path in tmp_path.glob("llama-factory/*.jsonl") if path.read_text()]
    assert [entry["file_name"] for entry in info.values()] == full
    export(store, str(tmp_path), formats=("records",))
    manifest = json.loads((tmp_path / "labels-manifest.json").read_text())
    written = {tmp_path / name for name in (*manifest["files"], "labels-manifest.json")}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == mine | written
    assert (len(written), "gold" in manifest["left_out"]) == (5, True)


def test_a_refused_export_changes_nothing(store, tmp_path):
    export(store, str(tmp_path))
    with pytest.raises(UserError, match="nope"):
        export(store, str(tmp_path), project="nope")
    assert (tmp_path / "labels-manifest.json").exists()


def test_a_ranking_has_one_form_of_the_same_order():
    assert standard((5, 5, 3, 4, 2)) == (4, 4, 2, 3, 1)
    forms = {ranks: standard(ranks) for ranks in itertools.product((1, 2, 3), repeat=3)}
    assert len(set(forms.values())) == 13  # the weak orders of three
    for ranks, form in forms.items():
        assert standard(form) == form
        for one, other in itertools.permutations(range(3), 2):
            assert (ranks[one] < ranks[other]) == (form[one] < form[other])


def test_rankings_in_other_numbers_agree(store, lead, person, tasks):
    tasks(3, "compare", overlap=2)
    one, other = person("one"), person("other")
    same = {(1, 2, 3, 3): (1, 2, 4, 4), (1, 1, 2, 3): (2, 2, 3, 4), (2, 1, 1, 1): (4, 3, 3, 3)}
    for mine, theirs in same.items():
        rank(store, one, mine)
        rank(store, other, theirs)
    assert quality.agreement(quality.rankings(store, lead)).ordinal.value == 1


@pytest.mark.parametrize("call", ["GET nope", "GET export/a/b", "POST nope"])
def test_an_unknown_call_is_a_404_in_json(store, call):
    said = TestClient(Starlette(routes=Api(store).routes()), API).request(*call.split())
    assert (said.status_code, "nothing at /api/v1/" in said.text) == (404, True)
    assert list(said.json()) == ["error"]


def test_a_call_without_a_token_is_told_so(store):
    calls = TestClient(Starlette(routes=Api(store).routes()), API)
    for word, why in (("", "no API token"), ("Basic abc", "no API token"), ("Bearer x", "unknown")):
        said = calls.get("progress", headers={"Authorization": word})
        assert (said.status_code, why in said.json()["error"]) == (403, True)


def test_a_lead_takes_an_invitation_back(store, lead):
    used, taken, open_ = (invite(store, lead, "labeler", note=note) for note in "abc")
    found = {each.note: each.id for each in pending(store, lead)}
    accept(store, used, "ada", PASSWORD)
    projects.create_project(store, "law")
    there = auth.command_line(store, "law")
    for who, note, why in ((lead, "a", "has accepted"), (there, "c", "in this project")):
        with pytest.raises(UserError, match=why):
            revoke(store, who, found[note])
    revoke(store, lead, found["b"])
    assert [each.note for who in (lead, there) for each in pending(store, who)] == ["c"]
    with pytest.raises(DeniedError, match="this invitation is over"):
        accept(store, taken, "bea", PASSWORD)
    assert accept(store, open_, "cora", PASSWORD).role == "labeler"


def test_what_nobody_can_accept_any_more_is_not_pending(store, lead, person):
    invite(store, person("second", "lead"), "labeler")
    projects.assign(store, lead, "second", "labeler", ())
    assert pending(store, lead) == []


def test_the_qualification_is_no_work_of_today(store, lead, tasks):
    tasks(2, "compare")
    tasks(1, "compare", **QUALIFICATION)
    projects.configure(store, lead, qualification_tasks=1)
    worker = human(store, lead)
    for done in range(3):
        rank(store, worker)
        assert handed_in_today(store, worker) == done


def test_the_command_line_fails_with_a_refused_batch(store, lead, tasks, out, monkeypatch):
    monkeypatch.setattr("infra.labels.open_labels", lambda config: store)  # closed with the test
    tasks(10, "compare")
    tasks(5, "compare", purpose="gold", gold=RIGHT, key="g")
    batch, path = out("compare", {"ranks": [1, 1, 1, 1]}, 0.5)
    with pytest.raises(UserError, match=rf"batch {batch} is refused \(0% of gold right\): none"):
        vendor_in(Config({}, "test"), batch, str(path))
    assert read_labels(store).comparisons == ()

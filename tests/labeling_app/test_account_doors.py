"""Names that are the program's, files that are no backups, and what one person may ask at once."""

import asyncio
import threading
import zipfile
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from labeling_app import auth, backup, invitations, projects, sessions
from labeling_app.app_settings import AppSettings, Assistant
from labeling_app.assignment import next_task
from labeling_app.auth import DeniedError
from labeling_app.behind import behind
from labeling_app.drafts import save_draft
from labeling_app.page_api import PAGE_HEADER, PageApi
from labeling_app.planning import find_tasks
from labeling_app.schema import Assist
from labeling_app.tasks import NewTask, add_tasks
from pipeline.core.errors import UserError
from pipeline.core.records import Message
from tests.labeling_app.assists import human, rows
from tests.labeling_app.conftest import PASSWORD
from tests.labeling_app.scripted_model import ScriptedModel, serve

RESERVED = ("command", "sim-importer", "sim-", "vendor-0a1b2c3d4e5f", "vendor-")


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thesis.txt", "Years of work.")


@pytest.mark.parametrize("name", [*RESERVED, " Command ", "SIM-x"])
def test_no_person_has_a_name_of_the_programs(store, lead, name):
    token = invitations.invite(store, lead, "labeler")
    with pytest.raises(UserError, match="are the program's"):
        invitations.accept(store, token, name, PASSWORD)
    assert invitations.look_up(store, token).open
    with pytest.raises(UserError):
        auth.create_account(store, name, "labeler")
    assert auth.command_line(store).role == "lead"
    auth.create_simulated(store, "sim-importer", "engineer")


@pytest.mark.parametrize("name", ["commander", "sim", "simone", "vendor", "my-sim-x"])
def test_a_name_like_the_programs_is_a_persons(store, lead, name):
    token = invitations.invite(store, lead, "labeler")
    assert invitations.accept(store, token, name, PASSWORD).name == name


@pytest.mark.parametrize("name", ["command", "sim-x", "Vendor-X@y.org", "sim", "vendor"])
def test_somebody_vouched_for_under_such_a_name_gets_another(store, lead, name):
    for subject in ("one", "two"):
        token = invitations.invite(store, lead, "labeler")
        got = invitations.accept_as(store, token, "https://issuer.test", subject, name)
        assert not auth.is_reserved(got.name)


def test_somebody_vouched_for_under_a_name_like_a_pseudonym_gets_another(store, lead):
    token = invitations.invite(store, lead, "labeler")
    name = "person-0123456789abcdef"
    got = invitations.accept_as(store, token, "https://issuer.test", "one", name)
    assert got.name != name


def test_no_password_is_hashed_for_a_dead_invitation(store, lead, clock, monkeypatch):
    used, late, open_ = (invitations.invite(store, lead, "labeler") for _ in range(3))
    invitations.accept(store, used, "noor", PASSWORD)

    def hash_password(_password: str) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(auth, "hash_password", hash_password)
    for token in ("nonsense", "", "\ud800", used):
        with pytest.raises(DeniedError):
            invitations.accept(store, token, "evil", PASSWORD)
    with pytest.raises(AssertionError, match="hashed"):
        invitations.accept(store, open_, "kaya", PASSWORD)
    clock.move(days=8)
    with pytest.raises(DeniedError, match="over"):
        invitations.accept(store, late, "evil", PASSWORD)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_a_backup_onto_the_store_is_refused(store, tasks, tmp_path):
    tasks(3)
    place = Path(store.url.removeprefix("sqlite:///"))
    (tmp_path / "link").symlink_to(place)
    before = place.read_bytes()
    for each in (place, tmp_path / "link", Path(f"{place}-wal")):
        with pytest.raises(UserError, match="no backup"):
            backup.back_up(store, each)
    assert place.read_bytes() == before


@pytest.mark.parametrize("make", [lambda p: p.write_text("Mine."), Path.touch, other_zip])
def test_a_backup_onto_a_file_that_is_none_is_refused(store, tmp_path, make):
    path = tmp_path / "mine.zip"
    make(path)
    before = path.read_bytes()
    with pytest.raises(UserError):
        backup.back_up(store, path)
    assert path.read_bytes() == before
    with pytest.raises(UserError):
        backup.back_up(store, tmp_path)


def test_a_backup_over_an_older_one_is_the_newer(store, new_store, lead, tasks, tmp_path):
    path = tmp_path / "b.zip"
    backup.back_up(store, path)
    tasks(3)
    report = backup.back_up(store, path)
    other = new_store()
    assert backup.restore(other, path) == report
    assert len(find_tasks(other, lead)) == 3


@pytest.mark.parametrize("words", ["ärger", "ÄRGER", "Ärger", "größe", "東京"])
def test_a_task_is_found_by_words_in_any_case(store, lead, words):
    prompt = (Message.of("user", "Die Größe des ÄRGERS in 東京"),)
    add_tasks(store, lead, [NewTask("t", "demo", prompt, "test")])
    assert len(find_tasks(store, lead, words=words)) == 1


@pytest.mark.parametrize("number", ["day", "agreement"])
@pytest.mark.parametrize("of", ["9999-12-31", "10000-01-01", "0000-00-00", "x"])
def test_a_day_that_is_none_of_ours_is_refused_or_empty(store, lead, number, of):
    if (number, of) == ("agreement", "9999-12-31"):
        assert behind(store, lead, number, of) == []
        return
    with pytest.raises(UserError, match="is nothing that"):
        behind(store, lead, number, of)


def test_of_two_windows_with_the_same_rev_the_first_is_kept(store, lead, tasks):
    kaya = human(store, lead)
    tasks(1)
    token = next_task(store, kaya, "write").token
    said = [save_draft(store, kaya, token, 1, {"a": text}) for text in ("one", "two", "one")]
    assert [(each.rev, each.kept) for each in said] == [(1, True), (1, False), (1, True)]
    assert next_task(store, kaya, "write").draft.body == {"a": "one"}
    assert save_draft(store, kaya, token, 2, {"a": "two"}).kept


class Gated(ScriptedModel):
    """Says nothing to a prompt of "slow" before the gate is open."""

    def __init__(self) -> None:
        super().__init__(["draft"], {})
        self.gate, self.waits = threading.Event(), threading.Event()

    def reply_to(self, body: dict) -> str:
        if "slow" in str(body):
            self.waits.set()
            assert self.gate.wait(15)
        return "Said."


def test_a_persons_second_ask_is_refused_and_nobody_elses(store, lead, tasks):
    projects.configure(store, lead, unassisted_share=0)
    kaya, noor = human(store, lead, "kaya"), human(store, lead, "noor")
    tasks(1, key="slow")
    slow = next_task(store, kaya, "write").token
    tasks(1, key="quick")
    quick = next_task(store, noor, "write").token
    pages = {
        who.name: sessions.page_token(store, sessions.start_session(store, who).id, 1)
        for who in (kaya, noor)
    }

    async def ask_all(model: Gated) -> tuple[list[int], list[int]]:
        helper = Assistant(endpoint=model.url, model="m", abilities=("draft",))
        api = PageApi(store, AppSettings(store=store.url, assistants=(helper,)))
        transport = httpx.ASGITransport(Starlette(routes=api.routes()))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:

            async def ask(name: str, token: str) -> int:
                body, headers = {"kind": "draft", "token": token}, {PAGE_HEADER: pages[name]}
                said = await client.post("/api/page/assist", json=body, headers=headers)
                return said.status_code

            first = asyncio.create_task(ask("kaya", slow))
            await asyncio.to_thread(model.waits.wait, 60)
            more = await asyncio.gather(*[ask("kaya", slow) for _ in range(5)])
            others = [await ask("noor", quick), await ask("noor", quick)]
            model.gate.set()
            return more, [*others, await first, await ask("kaya", slow)]

    with serve(Gated()) as model:
        more, others = asyncio.run(ask_all(model))
    assert (set(more), others) == ({400}, [200] * 4)
    assert len(rows(store, Assist)) == 4


@pytest.mark.parametrize("words", ["\ud800", "a\0b"])
def test_words_that_no_text_holds_are_refused_and_not_looked_for(store, lead, words):
    with pytest.raises(UserError, match="the words"):
        find_tasks(store, lead, words)

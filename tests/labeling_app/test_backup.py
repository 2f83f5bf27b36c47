"""A whole store in a file and back, from either database to either; and files that are damaged."""

import threading
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import DBAPIError

from labeling_app import auth, guidelines, invitations, projects, sessions
from labeling_app.assignment import next_task
from labeling_app.auth import Account
from labeling_app.backup import back_up, restore
from labeling_app.drafts import save_draft
from labeling_app.export import export_labels, label_snapshot_hash
from labeling_app.feedback import record_feedback
from labeling_app.formats import export
from labeling_app.labels import reopen
from labeling_app.reviews import next_review, review
from labeling_app.schema import (
    APPEND_ONLY,
    Assist,
    AssistAction,
    Base,
    Demonstration,
    InstructionVersion,
    Lease,
    Qualification,
    ReviewRequest,
    Task,
    User,
)
from labeling_app.store import PAGE_KEY, PSEUDONYM_KEY, Store, open_store
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.tasks import NewAnswer, NewTask, add_tasks
from labeling_app.vendors import send_out
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.identity import prompt_id
from pipeline.core.records import Feedback, Message
from tests.labeling_app.conftest import PASSWORD

ODD = 'Größe "😀" \\ \u2028 \x01 <b>'
OTHER = {"sqlite": "postgresql", "postgresql": "sqlite"}


def answer(store: Store, who: Account, words: str = "An answer.") -> int:
    work = next_task(store, who, "write")
    return submit_demonstration(store, who, work.token, words, work.token).submission_id


def human(store: Store, name: str, role: str) -> Account:
    once = auth.create_account(store, name, role)
    who = auth.set_password(store, auth.sign_in(store, name, once), PASSWORD)
    guidelines.acknowledge(store, who, guidelines.newest(store, who).n)
    return who


@pytest.fixture
def full(store, lead, person, tasks, clock, tmp_path) -> Store:
    """A store with something in every table."""
    tasks(6, overlap=2)
    tasks(6, kind="compare", key="c")
    tasks(2, kind="compare", key="priority", priority=-5, skill="law")
    pair = (NewAnswer("m", ODD), NewAnswer("n", "b"))
    prompt = (Message.of("system", "Be brief."), Message.of("user", ODD))
    gold = NewTask("g", "compare", prompt, "test", pair, purpose="gold", gold=(1, 2))
    add_tasks(store, lead, [gold])
    kaya, worker = human(store, "kaya", "labeler"), person("w")
    peer = person("peer", "reviewer")
    first = answer(store, kaya, ODD)
    clock.move(seconds=0.123456)
    work = reopen(store, kaya, "demo", first)
    submit_demonstration(store, kaya, work.token, "Better.", work.token)
    work = next_task(store, worker, "compare")
    submit_comparison(store, worker, work.token, Verdict((1, 2, 2, 4), "very"), work.token)
    work = next_task(store, worker, "compare")
    verdict = Verdict(not_rankable="All alike.", comment=ODD)
    submit_comparison(store, worker, work.token, verdict, work.token)
    held = next_task(store, kaya, "write")
    save_draft(store, kaya, held.token, 1, {"text": ODD, "n": [1, {"time": "no time"}]})
    labels = [answer(store, worker) for _ in range(2)]
    now = clock()
    with store.write() as session:
        lease = session.scalars(select(Lease).where(Lease.token == held.token)).one()
        assist = Assist(
            lease_id=lease.id, kind="draft", model="m", prompt_sha256="0" * 64,
            input_sha256="1" * 64, output=[{"text": ODD}], error="", shown_at=now, waited_ms=7,
        )  # fmt: skip
        session.add(assist)
        session.flush()
        session.add(AssistAction(assist_id=assist.id, part=0, action="take", at=now))
        version = session.scalars(select(InstructionVersion.id)).one()
        session.add(
            Qualification(
                user_id=kaya.user_id, version_id=version, tasks=3, score=2 / 3, passed=True, at=now
            )
        )
        for label in labels:
            session.add(
                ReviewRequest(target_kind="demo", target_id=label, project_id=1, why="x", at=now)
            )
    seen = next_review(store, peer)
    review(store, peer, "demo", seen.id, "accepted")
    next_review(store, peer)
    turns = (Message.of("user", "Hi?"), Message.of("assistant", "Ho."))
    said = Feedback("f", prompt_id(turns[:1]), turns, "m", -1, ODD, now)
    record_feedback(store, said)
    invitations.invite(store, lead, "reviewer", ("law",), "for somebody")
    sessions.start_session(store, kaya)
    sessions.create_api_token(store, lead, "nightly", ("export",))
    with pytest.raises(auth.DeniedError):
        auth.sign_in(store, "nobody", "wrong")
    send_out(store, lead, "acme", "compare", 2, tmp_path / "vendor", 0)
    assert all(counts(store).values()), counts(store)
    return store


def counts(store: Store) -> dict[str, int]:
    with store.read() as session:
        return {
            table.name: session.scalar(select(func.count()).select_from(table))
            for table in Base.metadata.sorted_tables
        }


def rows(store: Store) -> dict[str, list[tuple]]:
    with store.read() as session:
        return {
            table.name: sorted(map(repr, session.execute(select(table))))
            for table in Base.metadata.sorted_tables
        }


@pytest.fixture
def target(empty_stores, clock, request):
    """target(backend): another new store, with keys of its own."""
    opened: list[Store] = []

    def make(backend: str) -> Store:
        opened.append(open_store(empty_stores(backend), clock))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def saved(full, tmp_path) -> Path:
    back_up(full, tmp_path / "all.zip")
    return tmp_path / "all.zip"


@pytest.mark.parametrize("to", ["same", "other"])
def test_everything_comes_back_in_either_database(full, saved, target, backend, to, tmp_path):
    other = target(backend if to == "same" else OTHER[backend])
    assert other.key(PSEUDONYM_KEY) != full.key(PSEUDONYM_KEY)
    report = restore(other, saved)
    assert report.rows == sum(counts(full).values())
    assert report.tables == len(counts(full))
    assert rows(other) == rows(full)
    for key in (PSEUDONYM_KEY, PAGE_KEY):
        assert other.key(key) == full.key(key)
    for number, store in enumerate((full, other)):
        folder = tmp_path / f"export-{number}"
        export_labels(store, str(folder / "stage"))
        export(store, str(folder / "formats"))
        back_up(store, folder / "again.zip")
    written = [path for path in (tmp_path / "export-0").rglob("*") if path.suffix != ".zip"]
    files = [path.relative_to(tmp_path / "export-0") for path in written if path.is_file()]
    assert len(files) > 10
    for file in files:
        one, two = (tmp_path / f"export-{number}" / file for number in range(2))
        assert one.read_bytes() == two.read_bytes(), file
    assert label_snapshot_hash(other) == label_snapshot_hash(full)
    again = [zipfile.ZipFile(tmp_path / f"export-{n}" / "again.zip") for n in range(2)]
    assert again[0].namelist() == again[1].namelist()
    for name in again[0].namelist():
        assert again[0].read(name) == again[1].read(name), name


@pytest.mark.parametrize("to", ["same", "other"])
def test_work_goes_on_in_the_restored_store(full, saved, target, backend, to, clock, lead):
    store = target(backend if to == "same" else OTHER[backend])
    restore(store, saved)
    who = auth.sign_in(store, "kaya", PASSWORD)
    assert who.name == "kaya"
    held = next_task(store, who, "write")
    assert held.draft.body == {"text": ODD, "n": [1, {"time": "no time"}]}
    before = counts(store)
    submit_demonstration(store, who, held.token, "After.", held.token)
    answer(store, who)
    newest = auth.create_account(store, "new", "labeler")
    assert auth.sign_in(store, "new", newest).user_id == max(before["users"] + 1, 1)
    prompt = (Message.of("user", "Anything new?"),)
    pair = (NewAnswer("m", "a"), NewAnswer("n", "b"))
    assert add_tasks(store, lead, [NewTask("new", "compare", prompt, "test", pair)]) == 1
    guidelines.publish(store, lead, "1.1 New.")
    invitations.invite(store, lead, "labeler")
    sessions.start_session(store, who)
    sessions.create_api_token(store, lead, "other", ("import",))
    after = counts(store)
    grown = {name for name in after if after[name] > before[name]}
    assert grown >= {
        "demonstrations", "leases", "events", "users", "tasks", "prompts", "responses", "slots",
        "instruction_versions", "invitations", "web_sessions", "api_tokens",
    }  # fmt: skip
    with store.read() as session:
        label = session.scalars(select(Demonstration).order_by(Demonstration.id.desc())).first()
        assert label.id == after["demonstrations"]
        found = session.scalars(select(User.pseudonym).where(User.name == "kaya")).one()
    assert found == auth.pseudonym(full.key(PSEUDONYM_KEY), "kaya", simulated=False)


@pytest.mark.parametrize("to", ["same", "other"])
def test_the_guards_are_back(saved, target, backend, to):
    store = target(backend if to == "same" else OTHER[backend])
    restore(store, saved)
    for name in APPEND_ONLY:
        table = Base.metadata.tables[name]
        column = next(iter(table.columns))
        for deed in (update(table).values({column: column}), delete(table)):
            with (
                pytest.raises(DBAPIError, match=f"{name} is append-only"),
                store.write() as session,
            ):
                session.execute(deed)


def test_a_store_with_work_in_it_is_left_as_it_was(full, saved, new_store, clock):
    before = rows(full)
    with pytest.raises(UserError, match="has tasks in it; restore into an empty one"):
        restore(full, saved)
    assert rows(full) == before
    inhabited = new_store()
    auth.create_account(inhabited, "ada", "lead")
    before = rows(inhabited)
    with pytest.raises(UserError, match="has users in it"):
        restore(inhabited, saved)
    assert rows(inhabited) == before
    prepared = new_store()
    projects.create_project(prepared, "medicine")
    before = rows(prepared)
    with pytest.raises(UserError, match="has projects in it"):
        restore(prepared, saved)
    assert rows(prepared) == before


def test_a_backup_while_people_write_is_of_one_moment(
    store, person, tasks, target, backend, tmp_path
):
    tasks(400)
    people = [person(f"w{number}") for number in range(3)]
    enough = threading.Event()
    errors: list[BaseException] = []

    def label(who) -> None:
        try:
            while not enough.is_set() and (work := next_task(store, who, "write")):
                submit_demonstration(store, who, work.token, "An answer.", work.token)
        except BaseException as error:  # noqa: BLE001 (told in the main thread)
            errors.append(error)

    threads = [threading.Thread(target=label, args=(who,)) for who in people]
    for thread in threads:
        thread.start()
    sizes = []
    for number in range(4):
        back_up(store, tmp_path / f"{number}.zip")
        sizes.append(counts(store)["demonstrations"])
    enough.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sizes[-1] > sizes[0]
    for number in range(4):
        other = target(backend)
        restore(other, tmp_path / f"{number}.zip")
        with other.read() as session:
            done = session.scalar(select(func.count()).where(Task.state == "done"))
            leases = session.scalar(select(func.count()).where(Lease.outcome == "submitted"))
            events = session.scalar(text("SELECT count(*) FROM events WHERE verb = 'submitted'"))
            assert done == leases == events == counts(other)["demonstrations"]


def test_a_backup_that_cannot_be_written_leaves_the_old_one(full, saved, tasks, tmp_path):
    before = saved.read_bytes()

    def broken(done: int) -> None:
        raise KeyboardInterrupt

    tasks(400, key="more")
    with pytest.raises(KeyboardInterrupt):
        back_up(full, saved, broken)
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.glob(".*")] == []

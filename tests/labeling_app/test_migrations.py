"""A store of revision 0001, with work of every kind in it, brought to this release: whole."""

import datetime as dt
import json
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, create_engine, insert, inspect, select, text

from labeling_app import auth, guidelines, upgrades
from labeling_app.assignment import next_task
from labeling_app.export import read_labels
from labeling_app.labels import reopen
from labeling_app.own_work import own_work
from labeling_app.schema import APPEND_ONLY, Base, EventRow, Slot, User
from labeling_app.store import PSEUDONYM_KEY, Store, database_url, open_store
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.tasks import NewTask, add_tasks
from labeling_app.verdicts import Verdict
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text
from pipeline.core.records import Message
from tests import postgres

ROOT = Path(__file__).parents[2]
KEY = bytes(range(32))
T0 = dt.datetime(2026, 3, 2, 9, 0, 0, 123456, tzinfo=dt.UTC)
SOON, LATER = T0 + dt.timedelta(minutes=1), T0 + dt.timedelta(hours=3)
BODY = "# Rules\n\n1.1 Be right. 漢字 😀\n"
ASKED = [{"role": "user", "content": [{"type": "text", "text": "Què? <b>", "ref": None}]}]
SAID = [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "Això.", "ref": None}]}]
# id, name, role, simulated, active
PEOPLE = [
    (1, "ana", "lead", False, True),
    (2, "ben.o", "labeler", False, True),
    (3, "gone", "reviewer", False, False),
    (7, "sim-a", "labeler", True, True),
]
NAMES = {name: auth.pseudonym(KEY, name, simulated) for _, name, _, simulated, _ in PEOPLE}
# id, kind, overlap, priority, state
TASKS = [(1, "demo", 3, 0, "open"), (2, "compare", 2, 5, "open"), (9, "demo", 1, -4, "done")]
# id, task, number, filled: 11 is ben.o's, 12 was skipped, 15 is untouched
SLOTS = [(11, 1, 0, False), (12, 1, 1, False), (13, 1, 2, True), (14, 2, 0, True), (15, 2, 1, False),
         (16, 9, 0, True)]  # fmt: skip
# id, task, user, outcome
LEASES = [
    (21, 1, 2, None),
    (22, 1, 1, "skipped"),
    (23, 1, 7, "submitted"),
    (24, 2, 7, "submitted"),
    (26, 9, 2, "submitted"),
]
EVENTS = [
    ("ana", "account-created", "user:ana", {"role": "lead"}),
    ("system", "published", "instructions:1", {"sha256": "x"}),
    ("ben.o", "leased", "task:1", {"slot": 0}),
    ("sim-a", "submitted", "task:2", {"slot": 0, "kind": "compare"}),
    ("gone", "account-closed", "user:gone", {}),
    ("nobody-now", "signed-in", "user:nobody-now", {}),
    ("ben.o", "skipped", "task:3", {"reason": "zu schwer 😀"}),
]


def old_rows() -> dict[str, list[dict[str, Any]]]:
    """Each table of revision 0001, in the order of its references."""
    content = sha256_text(canonical_json(ASKED))
    label = {"version_id": 1, "content_sha256": "c" * 64, "created_at": SOON}
    return {
        "secrets": [{"name": PSEUDONYM_KEY, "value": KEY}],
        "users": [
            {"id": number, "name": name, "role": role, "simulated": simulated, "active": active,
             "pw_hash": None if simulated else "$argon2id$" + name, "must_change": False,
             "session_epoch": number, "created_at": T0}
            for number, name, role, simulated, active in PEOPLE
        ],
        "sign_in_attempts": [{"id": 4, "name": "ben.o", "at": T0}],
        "instruction_versions": [
            {"id": 1, "n": 1, "body_md": BODY, "sha256": sha256_text(BODY), "published_at": T0}
        ],
        "instruction_acks": [
            {"user_id": number, "version_id": 1, "at": SOON} for number in (1, 2, 7)
        ],
        "prompts": [{"id": 1, "prompt_id": "p" * 32, "messages": ASKED, "content_sha256": content}],
        "tasks": [
            {"id": number, "key": f"Schlüssel {number}", "kind": kind, "overlap": overlap,
             "priority": priority, "state": state, "prompt_id": 1, "source": "test",
             "created_at": T0}
            for number, kind, overlap, priority, state in TASKS
        ],
        "responses": [
            {"id": 5 + place, "prompt_id": 1, "model": f"m{place}", "text": f"Réponse {place}",
             "sha256": sha256_text(f"Réponse {place}")}
            for place in range(2)
        ],
        "task_responses": [
            {"task_id": 2, "position": place, "response_id": 6 - place} for place in range(2)
        ],
        "slots": [
            {"id": number, "task_id": task, "slot_no": place, "filled": filled}
            for number, task, place, filled in SLOTS
        ],
        "leases": [
            {"id": number, "slot_id": number - 10, "task_id": task, "user_id": user,
             "token": f"t{number}", "outcome": outcome, "released": SOON if outcome else None,
             "reason": "zu schwer 😀" if outcome == "skipped" else None, "version_id": 1,
             "shown_order": [1, 0] if task == 2 else [], "acquired": T0, "expires": LATER}
            for number, task, user, outcome in LEASES
        ],
        "drafts": [
            {"task_id": 1, "user_id": 2, "rev": 8, "body": {"text": "Mig 😀"}, "saved_at": SOON}
        ],
        "demonstrations": [
            label | {"id": number, "task_id": task, "slot_id": slot, "user_id": user,
                     "messages": SAID, "origin": "human", "idem_key": f"k{number}"}
            for number, task, slot, user in ((31, 1, 13, 7), (32, 9, 16, 2))
        ],
        "comparisons": [
            label | {"id": 41, "task_id": 2, "slot_id": 14, "user_id": 7, "shown_order": [1, 0],
                     "confidence": "very", "idem_key": "k41"}
        ],
        "comparison_items": [
            {"comparison_id": 41, "position": place, "rank": 2 - place} for place in range(2)
        ],
        "feedback": [
            {"feedback_id": name, "prompt_id": "p" * 32, "messages": SAID, "model_id": "m1",
             "rating": -1, "comment": "Nein 😀", "created_at": T0, "task_id": task}
            for name, task in (("f1", 9), ("f2", None))
        ],
        "events": [
            {"id": 51 + n, "at": SOON, "actor": actor, "verb": verb, "target": target,
             "payload": payload}
            for n, (actor, verb, target, payload) in enumerate(EVENTS)
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def server():
    if postgres.binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.server() as found:
        yield found


@pytest.fixture(params=["sqlite", "sqlite-before-alembic", "postgresql"])
def form(request) -> str:
    return request.param


@pytest.fixture
def old(form: str, request, tmp_path) -> str:
    """The place of a store at revision 0001 with all of `old_rows`."""
    place = str(tmp_path / "labels.sqlite")
    if form == "postgresql":
        name = f"old_{uuid.uuid4().hex}"
        request.getfixturevalue("server").execute(f"CREATE DATABASE {name}")
        place = request.getfixturevalue("server").database(name)

    def fill(connection: Connection) -> None:
        upgrades.upgrade(connection, "0001")
        for name, rows in old_rows().items():
            connection.execute(insert(table_of(connection, name)), rows)
        if form == "sqlite-before-alembic":
            connection.execute(text("DROP TABLE alembic_version"))
            connection.execute(text("INSERT INTO schema_version VALUES (1)"))

    on(place, fill)
    return place


def on(place: str, deed: Callable[[Connection], Any]) -> Any:
    engine = create_engine(database_url(place))
    try:
        with engine.begin() as connection:
            return deed(connection)
    finally:
        engine.dispose()


def table_of(connection: Connection, name: str) -> Table:
    return Table(name, MetaData(), autoload_with=connection)


def contents(place: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, but for alembic's own."""

    def read(connection: Connection) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for name in set(inspect(connection).get_table_names()) - {"alembic_version"}:
            table = table_of(connection, name)
            rows = connection.execute(select(table).order_by(*table.primary_key.columns))
            found[name] = [dict(row._mapping) for row in rows]
        return found

    return on(place, read)


@pytest.fixture
def upgraded(old: str, clock):
    clock.now = T0 + dt.timedelta(minutes=2)
    store = open_store(old, clock, upgrade=True)
    yield store
    store.close()


def test_every_row_is_carried_over(upgraded: Store, old: str):
    new = contents(old)
    for name, rows in old_rows().items():
        keys = [key.name for key in Base.metadata.tables[name].primary_key if key.name in rows[0]]
        found = {tuple(row[key] for key in keys): row for row in new[name]}
        extra = 1 if name == "secrets" else 0  # the key of pages
        assert len(new[name]) == len(rows) + extra
        for row in rows:
            got = found[tuple(row[key] for key in keys)]
            for column, value in row.items():
                if (name, column) in (("users", "role"), ("slots", "filled")):
                    continue
                if name == "events" and column in ("actor", "target"):
                    kind, _, rest = value.rpartition(":")
                    value = f"{kind}:{NAMES[rest]}" if kind == "user" and rest in NAMES else value
                    value = NAMES.get(value, value)
                if isinstance(value, dt.datetime) and got[column].tzinfo is None:
                    value = value.replace(tzinfo=None)
                assert got[column] == value, (name, column)
    assert not {"schema_version", *(f"v1_{name}" for name in old_rows())} & set(new)


def test_people_keep_their_roles_and_get_the_pseudonyms_they_had_in_exports(upgraded: Store):
    with upgraded.read() as session:
        users = session.scalars(select(User).order_by(User.id)).all()
        assert [user.pseudonym for user in users] == list(NAMES.values())
        assert [(user.issuer, user.subject) for user in users] == [("", name) for name in NAMES]
        rows = session.execute(text("SELECT user_id, project_id, role, active FROM memberships"))
        assert sorted(map(tuple, rows)) == [
            (number, 1, role, active) for number, _, role, _, active in PEOPLE
        ]
        log = session.scalars(select(EventRow)).all()
    told = json.dumps([[row.actor, row.target, row.payload] for row in log])
    assert not any(f'"{name}"' in told or f"user:{name}" in told for name in NAMES)
    assert upgraded.key(PSEUDONYM_KEY) == KEY
    labels = read_labels(upgraded)
    assert {row.labeler for row in labels.conversations} == {NAMES["ben.o"], NAMES["sim-a"]}
    [ranking] = labels.comparisons
    assert [(a.text, a.rank) for a in ranking.responses] == [("Réponse 1", 2), ("Réponse 0", 1)]
    assert ranking.shown_order == (1, 0)


def test_work_goes_on_where_it_was(upgraded: Store, clock):
    with upgraded.read() as session:
        states = {slot.id: slot.state for slot in session.scalars(select(Slot))}
        by_id = {user.id: user for user in session.scalars(select(User))}
        ana, ben = (auth.account(session, by_id[number], 1) for number in (1, 2))
    sim = auth.act_as(upgraded, "sim-a")
    assert [states[n] for n in range(11, 17)] == [
        "leased", "free", "filled", "filled", "free", "filled"]  # fmt: skip
    held = next_task(upgraded, ben, "write")
    assert (held.token, held.draft.rev, held.draft.body) == ("t21", 8, {"text": "Mig 😀"})
    submit_demonstration(upgraded, ben, "t21", "Fertig.", "new1")
    assert next_task(upgraded, ana, "write") is None  # she skipped it
    assert next_task(upgraded, sim, "compare") is None  # ranked by them
    work = next_task(upgraded, ana, "compare")
    assert [answer.text for answer in work.answers if answer.position == 0] == ["Réponse 1"]
    assert submit_comparison(upgraded, ana, work.token, Verdict((1, 2)), "new2").submission_id == 42
    again = reopen(upgraded, sim, "compare", 41)
    assert sorted(again.draft.body["ranks"]) == [1, 2]
    submit_comparison(upgraded, sim, again.token, Verdict((1, 1)), "new3")
    assert len(read_labels(upgraded).comparisons) == 2
    assert (own_work(upgraded, ben).answers, own_work(upgraded, ben).drafts) == (2, 0)
    prompt = (Message.of("user", "Que?"), Message.of("assistant", "x"), Message.of("user", "Que?"))
    assert add_tasks(upgraded, ana, [NewTask("neu", "demo", prompt, "test")]) == 1
    assert next_task(upgraded, ana, "write").task_id == 10
    assert guidelines.publish(upgraded, ana, BODY + "1.2 Be kind.\n") == 2
    auth.create_account(upgraded, "eve", "labeler")
    with pytest.raises(UserError, match="account 'gone' exists"):
        auth.create_account(upgraded, "gone", "labeler")


def test_the_tables_are_those_of_the_code(upgraded: Store, old: str):
    def differences(connection: Connection) -> list:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)

    assert (on(old, differences), on(old, upgrades.revision)) == ([], upgrades.HEAD)
    if upgraded.is_sqlite:
        query = text("SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'")
        assert sorted(on(old, lambda c: c.scalars(query).all())) == sorted(APPEND_ONLY * 2)
        assert on(old, lambda c: c.execute(text("PRAGMA foreign_key_check")).all()) == []
    else:
        for table in APPEND_ONLY:
            with pytest.raises(Exception, match="append-only"):
                on(old, lambda c, t=table: c.execute(text(f"DELETE FROM {t}")))


def test_the_code_knows_the_newest_revision():
    config = Config()
    config.set_main_option("script_location", str(ROOT / "labeling_app" / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [upgrades.HEAD]
    assert {one.revision for one in script.walk_revisions()} == {upgrades.HEAD, *upgrades.OLDER}


def test_a_file_is_copied_before_and_a_teams_database_waits_for_a_word(old: str, form: str):
    before = contents(old)
    if form == "postgresql":
        with pytest.raises(UserError, match=r"revision 0001, this code needs 0002") as caught:
            open_store(old)
        for deed in ("stop the app", "`flywheel labels backup`", "`flywheel labels upgrade`"):
            assert deed in str(caught.value)
        assert contents(old) == before
        open_store(old, upgrade=True).close()
        open_store(old).close()
        return
    copy, part = Path(f"{old}.before-0002"), Path(f"{old}.before-0002.part")
    part.write_bytes(b"left by a copy that was killed")
    open_store(old).close()
    assert contents(str(copy)) == before != contents(old)
    assert not part.exists()
    open_store(old).close()
    assert contents(str(copy)) == before
    database = sqlite3.connect(copy)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


_KILLED = """
import os, signal, sys
from sqlalchemy import Engine, event
from labeling_app.store import open_store

@event.listens_for(Engine, "before_cursor_execute")
def end(connection, cursor, statement, *_):
    if sys.argv[2] in statement:
        os.kill(os.getpid(), signal.SIGKILL)

open_store(sys.argv[1], upgrade=True)
"""


# The last is the last statement before the commit.
MOMENTS = ["CREATE TABLE api_tokens", "INSERT INTO memberships", "DROP TABLE v1_users",
           "UPDATE alembic_version", "INSERT INTO secrets (name, value) VALUES"]  # fmt: skip


@pytest.mark.parametrize("at", MOMENTS)
def test_killed_in_the_middle_the_old_store_is_whole(old: str, clock, at):
    before = contents(old)
    child = subprocess.run([sys.executable, "-c", _KILLED, old, at], cwd=ROOT, check=False)
    assert child.returncode == -signal.SIGKILL
    assert contents(old) == before
    assert on(old, upgrades.revision) == "0001"
    open_store(old, clock, upgrade=True).close()
    assert len(contents(old)["events"]) == len(before["events"])
    assert on(old, upgrades.revision) == "0002"


@pytest.mark.parametrize("form", ["sqlite", "sqlite-before-alembic"])  # the others dump theirs
def test_a_copy_left_by_a_broken_off_upgrade_is_made_anew(old: str, form: str):
    subprocess.run([sys.executable, "-c", _KILLED, old, "DROP TABLE"], cwd=ROOT, check=False)
    on(old, lambda c: c.execute(text("UPDATE drafts SET rev = 99")))  # the old release goes on
    open_store(old).close()
    assert contents(f"{old}.before-0002")["drafts"][0]["rev"] == 99


_OPENS = """
import sys
from labeling_app.store import open_store
print("ready", flush=True)
sys.stdin.readline()
open_store(sys.argv[1], upgrade=True).close()
"""


def test_processes_that_open_an_old_store_at_once_agree(old: str, form: str):
    before = contents(old)
    command, pipe = [sys.executable, "-c", _OPENS, old], subprocess.PIPE
    children = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(4)
    ]
    for child in children:
        assert child.stdout.readline() == b"ready\n"
    for child in children:
        child.stdin.write(b"go\n")
        child.stdin.flush()
    assert [child.communicate()[1].decode() for child in children] == [""] * 4
    assert on(old, upgrades.revision) == "0002"
    if form != "postgresql":
        assert contents(f"{old}.before-0002") == before

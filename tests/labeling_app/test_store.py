"""Opening a store: created once, refused when it is not one, its log never rewritten."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DatabaseError

from labeling_app.schema import APPEND_ONLY, Base, EventRow, InstructionVersion
from labeling_app.store import MAX_TEXT_BYTES, LabelsConfig, check_text, open_store, record_event
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError


def test_wal_and_foreign_keys_and_full_sync(tmp_path):
    with open_store(str(tmp_path / "new.sqlite")).read() as session:
        pragmas = [
            session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        ]
    assert pragmas == ["wal", 1, 2, 30_000]


def test_an_unknown_revision_is_refused(new_store):
    store = new_store()
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"of revision 9999, this code knows 0002"):
        open_store(store.url)


def test_what_is_no_database_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look at. " * 50)
    with pytest.raises(UserError, match="file is not a database"):
        open_store(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="cannot open the labeling store"):
        open_store(str(tmp_path))  # a folder
    with pytest.raises(UserError, match="no database URL"):
        open_store("nonsense://x")
    with pytest.raises(UserError, match="must be a file"):
        open_store("sqlite://")


def test_no_place_named(monkeypatch, tmp_path):
    monkeypatch.delenv("FLYWHEEL_LABELS", raising=False)
    with pytest.raises(UserError, match="FLYWHEEL_LABELS"):
        open_store()
    monkeypatch.setenv("FLYWHEEL_LABELS", str(tmp_path / "named.sqlite"))
    open_store().close()
    assert (tmp_path / "named.sqlite").exists()


def test_processes_that_open_a_new_store_at_once_agree(tmp_path):
    place = tmp_path / "deep" / "labels.sqlite"
    code = f"from labeling_app.store import open_store; open_store({str(place)!r}).close()"
    root = Path(__file__).parents[2]
    children = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [child.communicate()[1].decode() for child in children]
    assert errors == [""] * 3
    database = sqlite3.connect(place)
    assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("0002",)]
    assert database.execute("SELECT count(*) FROM secrets").fetchone() == (2,)
    assert database.execute("SELECT count(*) FROM projects").fetchone() == (1,)
    database.close()


def test_history_cannot_be_changed(store):
    refused = pytest.raises(DatabaseError, match="append-only")
    for table in APPEND_ONLY:
        column = Base.metadata.tables[table].columns.keys()[0]
        if store.is_sqlite:  # its triggers fire for each row
            continue
        for deed in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
            with refused, store.write() as session:
                session.execute(text(deed))
    for change in (update(InstructionVersion).values(body_md="other"), delete(EventRow)):
        with refused, store.write() as session:
            session.execute(change)
    if store.is_sqlite:
        with store.read() as session:
            triggers = session.connection().exec_driver_sql(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            )
            assert len(triggers.all()) == 2 * len(APPEND_ONLY)


def test_a_failed_write_leaves_nothing(store):
    def deed() -> None:
        with store.write() as session:
            record_event(session, store.clock(), "x", "x", "x")
            session.flush()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        deed()
    with store.read() as session:
        assert session.scalars(select(EventRow).where(EventRow.verb == "x")).all() == []


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "**bold** ![x](http://example.org/x.png)",
        "👩‍👩‍👧‍👦 مرحبا שלום",
        "  leading\tand trailing \r\n",
        "x" * MAX_TEXT_BYTES,
    ],
)
def test_text_is_taken_verbatim(text):
    assert check_text(text, "it") is text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("a\0b", "NUL"),
        ("\ud800", "Unicode"),
        ("x" * 10_000_000, "10,000,000 bytes"),
        ("é" * (MAX_TEXT_BYTES // 2 + 1), "bytes"),
    ],
    ids=["empty", "blank", "nul", "surrogate", "10-MB", "counted-in-bytes"],
)
def test_text_that_cannot_be_kept_is_refused(text, why):
    with pytest.raises(UserError, match=why):
        check_text(text, "it")


def test_config_names_the_store():
    run = RunConfig(root="out")
    assert LabelsConfig().store_url(run) == "out/labels.sqlite"
    assert LabelsConfig(store="postgresql://h/d").store_url(run) == "postgresql://h/d"
    assert LabelsConfig(store="x").identity() == {}
    assert LabelsConfig().store_url(RunConfig(root="file:///out")) == "/out/labels.sqlite"


@pytest.mark.parametrize("root", ["s3://x/y", "memory://x", "foo://x"])
def test_a_root_that_is_not_of_this_machine_needs_a_database(root):
    with pytest.raises(UserError, match=r"set labels\.store to a") as caught:
        LabelsConfig().store_url(RunConfig(root=root))
    assert root in str(caught.value)
    assert LabelsConfig(store="sqlite:////a").store_url(RunConfig(root=root)) == "sqlite:////a"


FULL = """
import resource, sys
from labeling_app import auth
from labeling_app.store import open_store
from labeling_app.tasks import NewTask, add_tasks
from pipeline.core.errors import UserError
from pipeline.core.records import Message
store = open_store(sys.argv[1])
lead = auth.command_line(store)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
task = NewTask("t", "demo", (Message.of("user", "x" * 900_000),), "test")
try:
    add_tasks(store, lead, [task])
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(add_tasks(store, lead, [task]))
"""


def test_a_disk_that_takes_no_more_is_said_and_nothing_is_half_stored(tmp_path):
    """The kernel's limit on a file's size stands for the full disk: SQLite is refused either way."""
    place = str(tmp_path / "labels.sqlite")
    done = subprocess.run(
        [sys.executable, "-c", FULL, place], capture_output=True, text=True, check=True
    )
    said, added = done.stdout.strip().splitlines()
    assert "is full or fails" in said
    assert "nothing was stored by this step" in said
    assert added == "1"

"""Files that are no backup, or a damaged one: each is refused, and the store is as it was."""

import json
import random
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import select

from labeling_app.assignment import next_task
from labeling_app.backup import back_up, restore
from labeling_app.schema import Base
from labeling_app.store import Store
from labeling_app.submissions import submit_demonstration
from pipeline.core.errors import UserError


@pytest.fixture
def saved(store, person, tasks, tmp_path) -> Path:
    tasks(40)
    worker = person("w")
    for _ in range(3):
        work = next_task(store, worker, "write")
        submit_demonstration(store, worker, work.token, "An answer.", work.token)
    back_up(store, tmp_path / "all.zip")
    return tmp_path / "all.zip"


def rows(store: Store) -> dict[str, list[str]]:
    with store.read() as session:
        return {
            table.name: sorted(map(repr, session.execute(select(table))))
            for table in Base.metadata.sorted_tables
        }


def refused(store: Store, path: Path, match: str = "") -> None:
    with pytest.raises(UserError, match=match) as caught:
        restore(store, path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_backup(new_store, saved, tmp_path):
    store = new_store()
    before = rows(store)
    refused(store, tmp_path / "absent.zip", "cannot read the backup")
    refused(store, tmp_path, "cannot read the backup")
    other = tmp_path / "other.zip"
    other.write_bytes(b"")
    refused(store, other, "cannot read the backup")
    other.write_text("hello")
    refused(store, other, "cannot read the backup")
    for contents in ("[]", "{}", "{", "5", '{"version": 1}', "\ud800"):
        with zipfile.ZipFile(other, "w") as archive:
            archive.writestr("contents.json", contents.encode("utf-8", "surrogatepass"))
        refused(store, other, "is no backup of a labeling store")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(store, other, "is no backup of a labeling store")
    assert rows(store) == before


def rewrite(source: Path, target: Path, change) -> Path:
    """The same archive, with change(name, bytes) in each file's place; None leaves it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def test_a_backup_of_another_release(new_store, saved, tmp_path):
    store = new_store()
    for key, value in (("revision", "0001"), ("version", 99)):

        def change(name, data, key=key, value=value):
            if name != "contents.json":
                return data
            return json.dumps({**json.loads(data), key: value})

        refused(store, rewrite(saved, tmp_path / "old.zip", change), "is a backup of revision")


CHANGES = {
    "a row less": lambda data: data[: data.rstrip(b"\n").rfind(b"\n") + 1],
    "a row twice": lambda data: data + data.splitlines(keepends=True)[0],
    "no rows": lambda data: b"",
    "half a row": lambda data: data[:-20],
    "not JSON": lambda data: data + b"{\n",
    "not an object": lambda data: data + b"[1]\n",
    "not UTF-8": lambda data: data + b'{"id": "\xff"}\n',
    "an unknown column": lambda data: data + b'{"colour": 1}\n',
    "an odd value": lambda data: data.replace(b'{"time":', b'{"odd":1,"time":', 1),
    "an odd time": lambda data: data.replace(b'{"time":"2026', b'{"time":"year', 1),
    "a letter": lambda data: data.replace(b"test", b"tesd", 1),
    "no file": lambda data: None,
}


@pytest.mark.parametrize("how", CHANGES)
def test_changed_contents_are_noticed(new_store, saved, tmp_path, how):
    store = new_store()
    before = rows(store)

    def change(name, data):
        return CHANGES[how](data) if name == "tasks.jsonl" else data

    refused(store, rewrite(saved, tmp_path / "changed.zip", change), "damaged|backup")
    assert rows(store) == before
    restore(store, saved)


def test_contents_without_a_table_are_refused(new_store, saved, tmp_path):
    def change(name, data):
        contents = json.loads(data) if name == "contents.json" else None
        if contents is not None:
            del contents["tables"]["events"]
        return data if contents is None else json.dumps(contents)

    refused(new_store(), rewrite(saved, tmp_path / "changed.zip", change), "damaged|backup")


@pytest.mark.parametrize("backend", ["sqlite"])  # it is the file that is damaged
def test_a_byte_wrong_anywhere_or_an_end_too_soon(new_store, saved, tmp_path):
    store = new_store()
    before = rows(store)
    whole = saved.read_bytes()
    rng = random.Random(1)
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(saved) as archive:
        starts = [info.header_offset for info in archive.infolist()]
    within = [start + by for start in starts for by in (0, 6, 8, 14, 26, 40, 60)]
    places = [
        *rng.sample(range(len(whole)), 100),
        *(place for place in within if place < len(whole)),
    ]
    harmless = 0
    for place in places:
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            restore(store, broken)
        except UserError:
            assert rows(store) == before
        else:  # a byte of a file's date or attributes, which says nothing of the rows
            harmless += 1
            store = new_store()
            before = rows(store)
    assert harmless < len(places) / 2
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:size])
        refused(store, broken, "cannot read the backup")
    assert rows(store) == before

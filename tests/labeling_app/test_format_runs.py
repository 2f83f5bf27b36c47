"""Exports run again, filtered, and killed on the way."""

import datetime as dt
import json
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from labeling_app import guidelines
from labeling_app.assignment import next_task
from labeling_app.export import Filters
from labeling_app.formats import export
from labeling_app.schema import Demonstration, Slot, User
from labeling_app.submissions import submit_comparison, submit_demonstration
from labeling_app.vendors import send_out, take_back
from labeling_app.verdicts import Verdict


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def label(store, tasks, person):
    """label(count, name): as many answers and rankings, by this person."""

    def make(count: int, name: str = "w") -> None:
        tasks(count, key=name)
        tasks(count, kind="compare", key=f"c-{name}")
        who = person(name)
        for _ in range(count):
            work = next_task(store, who, "write")
            submit_demonstration(store, who, work.token, "An answer.", work.token)
            work = next_task(store, who, "compare")
            submit_comparison(store, who, work.token, Verdict((1, 2, 3, 3)), work.token)

    return make


def test_the_same_store_gives_the_same_bytes(store, label, tmp_path):
    label(8)
    export(store, str(tmp_path / "one"))
    export(store, str(tmp_path / "two"))
    export(store, str(tmp_path / "two"))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    label(1, "v")
    export(store, str(tmp_path / "two"))
    assert files_of(tmp_path / "one") != files_of(tmp_path / "two")


def test_filters(store, lead, person, label, clock, tasks, tmp_path):
    label(3, "w")
    clock.move(days=1)
    noon = clock()
    guidelines.publish(store, lead, "1.1 Another rule.")
    label(2, "v")
    tasks(2, kind="compare", key="x")
    sent = send_out(store, lead, "acme", "compare", 2, tmp_path / "sent", 0)
    text = (tmp_path / "sent" / "tasks.jsonl").read_text()
    rows = [{"item": json.loads(line)["item"], "ranks": [1, 2, 3, 4]} for line in text.splitlines()]
    (tmp_path / "back").write_text("\n".join(map(json.dumps, rows)))
    assert take_back(store, lead, sent.batch, tmp_path / "back").labels == 2
    numbers = iter(range(99))

    def counts(**chosen) -> tuple[int, int]:
        files = export(
            store, str(tmp_path / f"out-{next(numbers)}"), filters=Filters(**chosen)
        ).manifest["files"]
        assert files["conversations.jsonl"] == {
            **files["conversations.jsonl"],
            "rows": files["conversations.parquet"]["rows"],
        }
        sft = sum(files[f"trl/sft_{split}.jsonl"]["rows"] for split in ("train", "heldout"))
        assert sft == files["conversations.jsonl"]["rows"]
        return sft, files["comparisons.jsonl"]["rows"]

    with store.read() as session:
        who = session.scalars(select(User.pseudonym).where(User.name == "w")).one()
    assert counts() == (5, 7)
    assert counts(since=noon) == (2, 4)
    assert counts(until=noon) == (3, 3)
    assert counts(since=noon, until=noon) == (0, 0)
    assert counts(since=noon + dt.timedelta(microseconds=1)) == (0, 0)
    assert counts(instruction_versions=(1,)) == (3, 3)
    assert counts(instruction_versions=(2,)) == (2, 4)
    assert counts(instruction_versions=(1, 2, 9)) == (5, 7)
    assert counts(labelers=(who,)) == (3, 3)
    assert counts(labelers=("nobody",)) == (0, 0)
    assert counts(sources=("test",)) == (5, 7)
    assert counts(sources=("other",)) == (0, 0)
    assert counts(vendors=("acme",)) == (0, 2)
    assert counts(vendors=("",)) == (5, 5)
    assert counts(simulated=False) == (0, 2)  # a vendor's people are people
    assert counts(vendors=("acme",), until=noon) == (0, 0)


@pytest.fixture
def many(store, tasks, person, clock):
    """1200 answers, in a moment."""
    tasks(1200)
    who = person("w")
    said = [
        {"role": role, "content": [{"type": "text", "text": role * 50, "ref": None}]}
        for role in ("user", "assistant")
    ]
    with store.write() as session:
        slots = session.execute(select(Slot.id, Slot.task_id)).all()
        rows = [
            {
                "task_id": task, "slot_id": slot, "user_id": who.user_id, "version_id": 1,
                "supersedes_id": None, "messages": said, "origin": "human", "assisted": False,
                "edit_chars": None, "pasted_chars": 0, "active_ms": 0, "vendor": "",
                "content_sha256": f"{slot:064x}", "idem_key": f"k{slot}", "created_at": clock(),
            }
            for slot, task in slots
        ]  # fmt: skip
        session.execute(insert(Demonstration), rows)


_EXPORT = """
import sys
from labeling_app.formats import export
from labeling_app.store import open_store
export(open_store(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.long
@pytest.mark.parametrize("when", ["begun", "some in place"])
def test_killed_in_the_middle_and_run_again(store, many, tmp_path, kill_when, when):
    whole, folder = tmp_path / "whole", tmp_path / "out"
    export(store, str(whole))
    export(store, str(folder))  # an older one, which is gone as soon as files change
    manifest = folder / "labels-manifest.json"
    inodes = {path: path.stat().st_ino for path in folder.rglob("*.jsonl")}

    def reached() -> bool:
        if when == "begun":
            return not manifest.exists()
        return any(path.stat().st_ino != inode for path, inode in inodes.items())

    kill_when(["-c", _EXPORT, store.url, str(folder)], reached)
    if not manifest.exists():  # else it was quicker than we could look
        whole_files = files_of(whole)
        for name, data in files_of(folder).items():
            if not name.rpartition("/")[2].startswith("."):
                assert data == whole_files[name], name
    export(store, str(folder))
    left = {n: d for n, d in files_of(folder).items() if not n.rpartition("/")[2].startswith(".")}
    assert left == files_of(whole)


def test_stopped_in_the_middle_leaves_no_manifest_and_no_half_file(store, many, tmp_path):
    export(store, str(tmp_path))
    older = files_of(tmp_path)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(store, str(tmp_path), progress=stop)
    del older["labels-manifest.json"]
    assert files_of(tmp_path) == older

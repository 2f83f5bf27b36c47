"""A vendor's labels that are taken back by a process that dies on the way, at any moment."""

import datetime as dt
import json
from pathlib import Path

import pytest
from sqlalchemy import func, select

from labeling_app.assignment import next_task
from labeling_app.export import read_labels
from labeling_app.schema import Lease, RankedSet, Slot
from labeling_app.store import open_store
from labeling_app.vendors import send_out, take_back
from tests.labeling_app.conftest import known_key


@pytest.fixture
def send(store, lead, tmp_path):
    """send(area, count): the batch's number, its prompts, and a file of all its labels."""

    def out(area: str, count: int) -> tuple[int, set[str], Path]:
        batch = send_out(store, lead, "acme", area, count, tmp_path, 0)
        text = (tmp_path / "tasks.jsonl").read_text("utf-8")
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
        label = {"ranks": [2, 1, 3, 3]} if area == "compare" else {"answer": "An answer."}
        path = tmp_path / "back.jsonl"
        path.write_text(
            "".join(json.dumps({"item": line["item"], **label}) + "\n" for line in lines)
        )
        (tmp_path / "tasks.jsonl").unlink()
        return batch.batch, {line["prompt"][0]["content"] for line in lines}, path

    return out


def count(store, model) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(model))


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs after it."""


class Fuse:
    """A clock that ends the process at its nth look."""

    def __init__(self, now: dt.datetime, left: int) -> None:
        self.now, self.left = now, left

    def __call__(self) -> dt.datetime:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.now


@pytest.mark.long
@pytest.mark.parametrize("hours", [0, 2])
@pytest.mark.parametrize("area", ["write", "compare"])
def test_killed_at_any_moment_and_taken_back_again(
    store, lead, clock, person, tasks, send, area, hours
):
    tasks(150, kind="demo" if area == "write" else area)
    labels = set()
    for left in range(40):
        batch, prompts, path = send(area, 3)
        mortal = open_store(store.url, Fuse(clock(), left), known_key)
        try:
            take_back(mortal, lead, batch, path)
        except Killed:
            ended = False
        else:
            ended = True
        mortal.close()
        if ended:
            break
        clock.move(hours=hours)
        if hours:
            work = next_task(store, person(f"w{left}"), area)
            assert work.prompt[0].text not in prompts
        assert take_back(store, lead, batch, path).accepted
        found = read_labels(store)
        now = {row.prompt_id for row in (*found.conversations, *found.comparisons)}
        assert len(now - labels) == 3, left
        labels = now
    assert ended
    assert left > 10
    with store.read() as session:
        leases = session.execute(select(Lease.outcome, func.count()).group_by(Lease.outcome))
        assert dict(leases.all())["submitted"] == len(labels) + 3


_TAKE = """
import sys
from pathlib import Path
from labeling_app import auth
from labeling_app.store import open_store
from labeling_app.vendors import take_back
store = open_store(sys.argv[1])
take_back(store, auth.act_as(store, "lead"), int(sys.argv[2]), Path(sys.argv[3]))
"""


def test_killed_for_good_and_taken_back_again(store, lead, tasks, send, kill_when):
    tasks(60, kind="compare")
    batch, _, path = send("compare", 60)
    arguments = ["-c", _TAKE, store.url, str(batch), str(path)]
    kill_when(arguments, lambda: count(store, RankedSet) >= 5)
    left = count(store, RankedSet)
    assert 5 <= left < 60
    assert take_back(store, lead, batch, path).labels == 60 - left
    assert len(read_labels(store).comparisons) == 60
    with store.read() as session:
        assert set(session.scalars(select(Slot.state))) == {"filled"}

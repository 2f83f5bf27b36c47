"""A batch is taken by the file that was judged, whatever comes between; and odd lines of one."""

import functools
import json
from pathlib import Path

import pytest
from sqlalchemy import func, select

from labeling_app import projects
from labeling_app.export import read_labels
from labeling_app.schema import RankedSet, Slot, VendorBatch
from labeling_app.store import open_store
from labeling_app.vendors import BatchBack, send_out, take_back, withdraw
from pipeline.core.errors import UserError
from tests.labeling_app.conftest import known_key
from tests.labeling_app.test_vendor_kills import Fuse, Killed
from tests.labeling_app.together import at_once


@pytest.fixture
def send(store, lead, tasks, tmp_path):
    """send(key): batch, good file, bad file; ten tasks and five known answers. Beside them `fair`,
    in which one known answer is wrong."""

    def out(key: str = "t") -> tuple[int, Path, Path]:
        tasks(10, "compare", key=key)
        tasks(5, "compare", key=f"{key}-known", purpose="gold", gold=(1, 2, 3, 4))
        folder = tmp_path / key
        batch = send_out(store, lead, "acme", "compare", 10, folder, 0.5)
        assert (batch.items, batch.gold) == (10, 5)
        text = (folder / "tasks.jsonl").read_text("utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        known = [each["item"] for each in lines if "known" in each["prompt"][0]["content"]]
        for name, wrong in (("good", 0), ("fair", 1), ("bad", 5)):
            rows = []
            for each in lines:
                order = [f"Answer {i}." for i in range(4)]
                order = order[::-1] if each["item"] in known[:wrong] else order
                ranks = [order.index(text) + 1 for text in each["answers"]]
                rows.append({"item": each["item"], "ranks": ranks})
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return batch.batch, folder / "good", folder / "bad"

    return out


@pytest.fixture
def killed(store, lead, clock):
    """killed(batch, path): taken back by a process that dies when some labels are in."""

    def take(batch: int, path: Path) -> int:
        for left in range(1, 200):
            mortal = open_store(store.url, Fuse(clock(), left), known_key)
            try:
                with pytest.raises(Killed):
                    take_back(mortal, lead, batch, path)
            finally:
                mortal.close()
            if count(store) >= 3:
                assert count(store) < 10
                return count(store)
        raise AssertionError("no label came in")

    return take


def count(store) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(RankedSet)) or 0


def state(store, batch: int) -> str:
    with store.read() as session:
        return session.get_one(VendorBatch, batch).state


def test_a_bad_file_after_a_kill_in_the_middle_of_a_good_one(store, lead, send, killed):
    batch, good, bad = send()
    there = killed(batch, good)
    for _ in range(2):
        with pytest.raises(UserError, match="from another file"):
            take_back(store, lead, batch, bad)
    assert (state(store, batch), count(store)) == ("out", there)
    assert take_back(store, lead, batch, good) == BatchBack(True, 10 - there, 1.0, ())
    assert (state(store, batch), len(read_labels(store).comparisons)) == ("accepted", 10)


def test_another_good_file_after_a_kill_in_the_middle_of_one(store, lead, send, killed):
    batch, good, _ = send()
    killed(batch, good)
    other = good.with_name("other")
    other.write_bytes(b"\n" + good.read_bytes())
    with pytest.raises(UserError, match="from another file"):
        take_back(store, lead, batch, other)
    moved = good.rename(good.with_name("moved"))  # what counts is what is in it
    assert take_back(store, lead, batch, moved).accepted


def test_a_bar_raised_after_a_kill_refuses_no_file_that_was_judged_good(store, lead, send, killed):
    batch, good, _ = send()
    fair = good.with_name("fair")
    killed(batch, fair)
    projects.configure(store, lead, vendor_mark=1.0)
    done = take_back(store, lead, batch, fair)
    assert (done.accepted, state(store, batch)) == (True, "accepted")


def test_a_batch_withdrawn_after_a_kill_keeps_what_was_judged_good(store, lead, send, killed):
    batch, good, _ = send()
    killed(batch, good)
    withdraw(store, lead, batch)
    assert (state(store, batch), count(store)) == ("accepted", 4)
    with store.read() as session:
        assert not session.scalars(select(Slot).where(Slot.state == "vendor")).all()


def test_of_a_good_and_a_bad_file_at_once_all_or_nothing_comes_in(store, lead, send):
    total = 0
    for n in range(8):
        batch, good, bad = send(f"n{n}")
        both = [functools.partial(take_back, store, lead, batch, path) for path in (good, bad)]
        done = at_once(*both)
        [back] = [each for each in done if isinstance(each, BatchBack)]
        assert sum(isinstance(each, UserError) for each in done) == 1, done
        assert state(store, batch) == ("accepted" if back.accepted else "refused")
        total += 10 if back.accepted else 0
        assert (count(store), back.accepted) == (total, done[0] is back)


def test_the_same_good_file_at_once_comes_in_once(store, lead, send):
    for n in range(5):
        batch, good, _ = send(f"n{n}")
        done = at_once(*[functools.partial(take_back, store, lead, batch, good)] * 2)
        assert any(isinstance(each, BatchBack) for each in done), done
        assert all(isinstance(each, BatchBack | UserError) for each in done), done
        assert (count(store), state(store, batch)) == (10 * (n + 1), "accepted")


@pytest.mark.parametrize("ranks", [[1, 2], [], None, "x", [[]], {"a": 1}])
def test_an_answer_with_ranks_beside_it_comes_in(store, lead, tasks, tmp_path, ranks):
    tasks(3)
    batch = send_out(store, lead, "acme", "write", 3, tmp_path).batch
    lines = (tmp_path / "tasks.jsonl").read_text("utf-8").splitlines()
    path = tmp_path / "back"
    rows = [{"item": json.loads(line)["item"], "answer": "Fine.", "ranks": ranks} for line in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert take_back(store, lead, batch, path) == BatchBack(True, 3, None, ())
    assert {row.messages[-1].text for row in read_labels(store).conversations} == {"Fine."}


@pytest.mark.parametrize("more", [{"answer": "Mine."}, {"answer": None}, {"answer": 3}])
def test_ranks_with_an_answer_beside_them_come_in(store, lead, send, more):
    batch, good, _ = send()
    rows = [json.loads(line) | more for line in good.read_text().splitlines()]
    good.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert take_back(store, lead, batch, good).labels == 10

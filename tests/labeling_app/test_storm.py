"""Two hundred labelers at once, in processes of their own, killed at random: nothing is lost, nothing
is there twice, nothing is over the overlap, every acknowledged autosave is found again."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from labeling_app import auth, guidelines
from labeling_app.prompt_import import add_in_bulk
from labeling_app.schema import Demonstration, Draft, EventRow, Lease, Slot, Task
from labeling_app.store import open_store
from labeling_app.tasks import NewTask
from pipeline.core.records import Message
from tests import postgres

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]
NUM_PEOPLE = 200
NUM_PROCESSES = 8
NUM_TASKS, OVERLAP = 10_000, 2
KILL_EVERY_S = 1.5
LIMIT_S = 1200

# A process acts for its share of the people, one after the other, and writes down what the store
# acknowledged, each line before it goes on.
_WORKER = """
import json, os, random, sys, time
from labeling_app import auth
from labeling_app.assignment import next_task
from labeling_app.drafts import save_draft
from labeling_app.store import StoreAwayError, open_store
from labeling_app.submissions import submit_demonstration
place, log, names = sys.argv[1], sys.argv[2], sys.argv[3:]
rng = random.Random(os.getpid())
out = open(log, "ab", buffering=0)
def say(*what):
    out.write(json.dumps(what).encode() + b"\\n")
def patiently(deed):
    while True:  # the server may be away for a while
        try:
            return deed()
        except StoreAwayError:
            time.sleep(0.05)
def opened():
    from pipeline.core.errors import UserError
    while True:
        try:
            return open_store(place)
        except UserError as error:
            assert "cannot open" in str(error), error
            time.sleep(0.1)
store = opened()
people = [patiently(lambda name=name: auth.act_as(store, name)) for name in names]
rev = int(time.time() * 1000) % 2_000_000_000
while people:
    who = rng.choice(people)
    work = patiently(lambda: next_task(store, who, "write"))
    if work is None:
        people.remove(who)
        continue
    if rng.random() < 0.5:
        rev += 1
        body = {"turns": [{"role": "assistant", "text": f"half {rev}"}]}
        kept = patiently(lambda: save_draft(store, who, work.token, rev, body))
        if kept.kept:
            say("saved", work.task_id, who.user_id, rev)
        if rng.random() < 0.1:
            continue  # goes away in the middle
    key, answer = work.token, f"By {who.name} for {work.task_id}."
    first = patiently(lambda: submit_demonstration(store, who, work.token, answer, key))
    say("handed in", work.task_id, who.user_id, first.submission_id)
    if rng.random() < 0.2:  # a double click
        again = submit = patiently(lambda: submit_demonstration(store, who, work.token, answer, key))
        assert again.repeated and again.submission_id == first.submission_id
"""


def _start(place: str, log: Path, names: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, place, str(log), *names],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
    )


def _prepare(place: str) -> list[str]:
    store = open_store(place)
    guidelines.publish_default(store)
    lead = auth.command_line(store)
    tasks = [
        NewTask(f"t{n}", "demo", (Message.of("user", f"Question {n}?"),), "storm", overlap=OVERLAP)
        for n in range(NUM_TASKS)
    ]
    for start in range(0, NUM_TASKS, 500):
        add_in_bulk(store, lead, tasks[start : start + 500], None)
    names = [f"w{number}" for number in range(NUM_PEOPLE)]
    for name in names:
        auth.create_simulated(store, name, "labeler")
        guidelines.acknowledge(store, auth.act_as(store, name), 1)
    store.close()
    return names


def _storm(place: str, folder: Path, names: list[str], server: postgres.Server | None) -> int:
    """Run until every process has ended by itself; returns how many were killed."""
    rng = random.Random(1)
    shares = [names[number::NUM_PROCESSES] for number in range(NUM_PROCESSES)]
    logs = [folder / f"log{number}" for number in range(NUM_PROCESSES)]
    children = [_start(place, log, share) for log, share in zip(logs, shares, strict=True)]
    over = [False] * NUM_PROCESSES
    kills = 0
    deadline = time.monotonic() + LIMIT_S
    next_kill = time.monotonic() + KILL_EVERY_S
    try:
        while not all(over):
            assert time.monotonic() < deadline, f"not done: {over}"
            time.sleep(0.05)
            for number, child in enumerate(children):
                if not over[number] and child.poll() is not None:
                    assert child.returncode == 0, child.stderr.read().decode()[-3000:]
                    over[number] = True
            if time.monotonic() < next_kill or all(over):
                continue
            next_kill = time.monotonic() + KILL_EVERY_S
            kills += 1
            if server is not None and kills % 10 == 0:
                server.stop(signal.SIGQUIT)  # as good as a crash: it recovers from its log
                server.start()
                continue
            number = rng.choice([n for n in range(NUM_PROCESSES) if not over[n]])
            children[number].kill()
            children[number].communicate()
            children[number] = _start(place, logs[number], shares[number])
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return kills


def _check(place: str, folder: Path) -> None:
    said = [
        json.loads(line)
        for log in sorted(folder.glob("log*"))
        for line in log.read_bytes().split(b"\n")[:-1]
    ]
    store = open_store(place)
    with store.read() as session:
        rows = session.execute(
            select(Demonstration.id, Demonstration.task_id, Demonstration.user_id)
        ).all()
        drafts = {
            (row.task_id, row.user_id): row.rev for row in session.scalars(select(Draft)).all()
        }
        states = set(session.scalars(select(Task.state)))
        slots = set(session.scalars(select(Slot.state)))
        live = session.scalar(select(func.count()).where(Lease.released.is_(None)))
        events = session.scalar(select(func.count()).where(EventRow.verb == "submitted"))
    store.close()
    labels = {(row.task_id, row.user_id): row.id for row in rows}
    assert len(rows) == NUM_TASKS * OVERLAP == len(labels) == events  # none lost, none double
    assert set(collections.Counter(row.task_id for row in rows).values()) == {OVERLAP}
    assert (states, slots, live) == ({"done"}, {"filled"}, 0)
    for what, task_id, user_id, number in said:
        if what == "handed in":
            assert labels[(task_id, user_id)] == number
        elif (task_id, user_id) not in labels:  # a draft goes with its label
            assert drafts[(task_id, user_id)] >= number
    assert sum(what == "saved" for what, *_ in said) > NUM_TASKS // 4


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_two_hundred_labelers_and_kills(tmp_path, backend):
    if backend == "sqlite":
        place = str(tmp_path / "labels.sqlite")
        kills = _storm(place, tmp_path, _prepare(place), None)
        _check(place, tmp_path)
    else:
        if postgres.binaries() is None:
            pytest.skip("PostgreSQL is not installed")
        with postgres.server(durable=True) as server:
            server.execute("CREATE DATABASE labels")
            place = server.database("labels")
            kills = _storm(place, tmp_path, _prepare(place), server)
            _check(place, tmp_path)
    print(f"{backend}: {kills} kills, {os.cpu_count()} cores")
    assert kills > 10

"""Who owns a shard: by lock, by time, and one at a time."""

import json
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.lease import MAX_LEASE_S, Lease, LeaseLostError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_owners_follow_one_another(tmp_path: Path) -> None:
    clock = Clock()
    for epoch in (1, 2, 3):
        lease = Lease(tmp_path, wall=clock, sleep=clock.sleep)
        assert lease.epoch == epoch
        lease.check()
        lease.release()
    assert clock.slept == []


def test_who_only_hangs_is_waited_for_and_then_finds_out(tmp_path: Path) -> None:
    clock, told = Clock(), []
    hung = Lease(tmp_path, wall=clock, sleep=clock.sleep)
    clock.now += 10
    heir = Lease(tmp_path, wall=clock, sleep=clock.sleep, waited=told.append)
    assert heir.epoch == 2
    assert clock.now == pytest.approx(1060)
    assert told[0] == 50
    with pytest.raises(LeaseLostError, match="not renewed in time"):
        hung.check()
    with pytest.raises(LeaseLostError, match="epoch 2 owns"):
        hung.renew()
    hung.release()  # changes nothing
    heir.renew()
    assert Lease(tmp_path, wall=clock, sleep=clock.sleep).epoch == 3
    assert clock.now == pytest.approx(1120)


def test_renewed_in_time_it_lasts(tmp_path: Path) -> None:
    clock = Clock()
    lease = Lease(tmp_path, wall=clock, sleep=clock.sleep)
    for _ in range(100):
        clock.now += 7
        if lease.is_due:
            lease.renew()
        lease.check()
    clock.now += 46
    with pytest.raises(LeaseLostError):
        lease.check()


def _own(folder: str, ready) -> None:
    lease = Lease(Path(folder))
    ready.send(lease.epoch)
    time.sleep(60)


def test_the_lock_of_a_killed_owner_is_free_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_own, args=(str(tmp_path), theirs), daemon=True)
    child.start()
    assert ours.recv() == 1
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    slept: list[float] = []
    assert Lease(tmp_path, sleep=slept.append).epoch == 2
    assert slept == []


def test_an_owner_on_another_host_is_waited_for_although_its_lock_is_not_seen(
    tmp_path: Path, monkeypatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("socket.gethostname", lambda: "far-away")
    far = Lease(tmp_path, wall=clock, sleep=clock.sleep)
    os.close(far._lock)  # as if the file system knew no locks
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    assert Lease(tmp_path, wall=clock, sleep=clock.sleep).epoch == 2
    assert clock.now == pytest.approx(1060)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LEASES = st.fixed_dictionaries({"epoch": JSON, "host": JSON, "expires": JSON})


@given((JSON | LEASES).map(json.dumps))
@example("")
@example("{")
@example('{"epoch": 1}')
@example('{"epoch": "x", "host": 3, "expires": null}')
@example('{"epoch": 99, "host": "far-away", "expires": 0}')
@example('{"epoch": 1, "host": "far-away", "expires": 1e12}')
@example('{"epoch": 1, "host": "far-away", "expires": Infinity}')
@example('{"epoch": 1, "host": "far-away", "expires": NaN}')
@example('{"epoch": 1, "host": "", "expires": ' + "9" * 400 + "}")
@example('{"epoch": true, "host": "", "expires": -1e308}')
@example("[" * 100_000)
def test_a_damaged_lease_is_no_more_than_an_old_one(content: str) -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        Lease(path, wall=clock, sleep=clock.sleep).release()
        (path / "lease.json").write_text(content)
        lease = Lease(path, wall=clock, sleep=clock.sleep)
        assert lease.epoch == 2
        assert clock.now < 1000 + MAX_LEASE_S + 2
        lease.release()


def test_a_file_that_only_looks_like_an_epoch_is_none(tmp_path: Path) -> None:
    (tmp_path / "epoch-x00001").touch()
    lease = Lease(tmp_path)
    lease.renew()
    assert lease.epoch == 1


def test_of_two_who_see_it_expired_one_waits(tmp_path: Path, monkeypatch) -> None:
    clock = Clock()
    (tmp_path / "epoch-000001").touch()  # the other has just claimed it
    os.utime(tmp_path / "epoch-000001", (clock.now, clock.now))
    monkeypatch.setattr(Lease, "_locked", lambda self: False)
    assert Lease(tmp_path, wall=clock, sleep=clock.sleep).epoch == 2  # the other died over it
    assert clock.now == pytest.approx(1060, abs=1)

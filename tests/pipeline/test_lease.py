"""Who owns a shard: by lock, by time, and one at a time."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.lease import Lease, LeaseLostError


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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epoch": 1}'])
def test_a_damaged_lease_is_no_more_than_an_old_one(tmp_path: Path, content: str) -> None:
    Lease(tmp_path).release()
    (tmp_path / "lease.json").write_text(content)
    assert Lease(tmp_path).epoch == 2


def test_of_two_who_see_it_expired_one_waits(tmp_path: Path, monkeypatch) -> None:
    clock = Clock()
    (tmp_path / "epoch-000001").touch()  # the other has just claimed it
    os.utime(tmp_path / "epoch-000001", (clock.now, clock.now))
    monkeypatch.setattr(Lease, "_locked", lambda self: False)
    assert Lease(tmp_path, wall=clock, sleep=clock.sleep).epoch == 2  # the other died over it
    assert clock.now == pytest.approx(1060, abs=1)

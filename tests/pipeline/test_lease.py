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

from pipeline.core import storage
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
        lease = Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep)
        assert lease.epoch == epoch
        lease.check()
        lease.release()
    assert clock.slept == []


def test_who_only_hangs_is_waited_for_and_then_finds_out(tmp_path: Path) -> None:
    clock, told = Clock(), []
    hung = Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep)
    clock.now += 10
    heir = Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep, waited=told.append)
    assert heir.epoch == 2
    assert clock.now == pytest.approx(1060)
    assert told[0] == 50
    with pytest.raises(LeaseLostError, match="not renewed in time"):
        hung.check()
    with pytest.raises(LeaseLostError, match=r"took over .* \(epoch 2"):
        hung.renew()
    hung.release()  # changes nothing
    heir.renew()
    assert Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep).epoch == 3
    assert clock.now == pytest.approx(1120)


def test_renewed_in_time_it_lasts(tmp_path: Path) -> None:
    clock = Clock()
    lease = Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep)
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
    far = Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep)
    os.close(far._lock)  # as if the file system knew no locks
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    assert Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep).epoch == 2
    assert clock.now == pytest.approx(1060)


def _lease(folder: Path, wall: Clock, clock: Clock) -> Lease:
    return Lease(folder, wall=wall, clock=clock, sleep=wall.sleep)


@pytest.mark.parametrize("jump_s", [50, 120, 1e6])
def test_a_sleep_of_the_machine_ends_no_owner_who_is_alone(tmp_path: Path, jump_s: float) -> None:
    wall, clock = Clock(), Clock()
    lease = _lease(tmp_path, wall, clock)
    wall.now += jump_s  # the other clock stood still
    lease.check()
    assert lease.epoch == 1
    clock.now += 44
    wall.now += 44
    lease.check()
    clock.now += 2
    wall.now += 2
    with pytest.raises(LeaseLostError, match="not renewed in time"):
        lease.check()


def test_who_was_replaced_during_a_sleep_of_its_machine_stops(tmp_path: Path) -> None:
    wall, clock = Clock(), Clock()
    slept = _lease(tmp_path, wall, clock)
    wall.now += 120
    assert _lease(tmp_path, wall, Clock()).epoch == 2
    with pytest.raises(LeaseLostError, match=r"another owner took over .* \(epoch 2"):
        slept.check()


def test_who_hung_stops_even_if_the_wall_clock_was_set_back(tmp_path: Path) -> None:
    wall, clock = Clock(), Clock()
    lease = _lease(tmp_path, wall, clock)
    wall.now -= 3600  # to others this lease expires as it did before
    clock.now += 11
    assert lease.is_due
    clock.now += 35
    with pytest.raises(LeaseLostError, match="not renewed in time"):
        lease.check()


def test_of_a_renewal_and_a_claim_at_once_one_is_seen(tmp_path: Path, monkeypatch) -> None:
    """The claim comes between the owner's write and its second look, or the write between the
    claim and the claimant's."""
    wall, clock = Clock(), Clock()
    owner = _lease(tmp_path, wall, clock)
    write = Lease._write

    def claimed_meanwhile(self: Lease, expires: float) -> None:
        write(self, expires)
        (tmp_path / "epoch-000002").touch()

    monkeypatch.setattr(Lease, "_write", claimed_meanwhile)
    wall.now += 120
    with pytest.raises(LeaseLostError, match="epoch 2"):
        owner.check()


def test_a_claimant_sees_that_the_lease_was_renewed_after_all(tmp_path: Path, monkeypatch) -> None:
    wall, clock = Clock(), Clock()
    owner = _lease(tmp_path, wall, clock)
    wall.now += 120
    create, told = storage.write_bytes, []

    def renewed_meanwhile(url: str, data: bytes, mode: str = "replace") -> None:
        if mode == "create" and not told:
            told.append(url)
            owner.renew()
        create(url, data, mode=mode)

    monkeypatch.setattr(storage, "write_bytes", renewed_meanwhile)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        os.utime(tmp_path / "epoch-000002", (wall.now, wall.now))
        slept.append(seconds)
        wall.now += 61

    heir = Lease(tmp_path, wall=wall, clock=clock, sleep=sleep)
    assert told
    assert slept, "it had to wait"
    assert heir.epoch == 3
    with pytest.raises(LeaseLostError, match="another owner took over"):
        owner.renew()


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
        Lease(path, wall=clock, clock=clock, sleep=clock.sleep).release()
        (path / "lease.json").write_text(content)
        lease = Lease(path, wall=clock, clock=clock, sleep=clock.sleep)
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
    assert (
        Lease(tmp_path, wall=clock, clock=clock, sleep=clock.sleep).epoch == 2
    )  # the other died over it
    assert clock.now == pytest.approx(1060, abs=1)

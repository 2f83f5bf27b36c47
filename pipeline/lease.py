"""Who owns a frontier shard: a lease with an epoch, in a file beside the state.

The epoch is the order of owners. A file lock shows at once that an owner on a file system with
locks has died; where locks do not reach (or the owner only hangs), the lease has to expire. An
owner who cannot renew in time must stop: `check` raises LeaseLostError. A wall clock that jumps
(a laptop that slept) ends nothing as long as nobody else has begun.
"""

import dataclasses
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.core import storage
from pipeline.core.remote import WorkerLostError

LEASE_S = 60.0
MAX_LEASE_S = 86_400.0  # whoever claims more has not written it
STOP_BEFORE_S = 15.0  # an owner stops this long before another may begin


class LeaseLostError(WorkerLostError):
    """Another owner may have begun: nothing may be fetched or written any more."""


@dataclasses.dataclass(frozen=True)
class _Written:
    epoch: int
    host: str
    expires: float


class Lease:
    """Held from construction on. `wall` is the clock that the owners share (time.time), `clock`
    one that nobody sets, and that stands still while the machine sleeps (time.monotonic)."""

    def __init__(
        self,
        folder: Path,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        lease_s: float = LEASE_S,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Wait until the shard is free (`waited` is told for how long), and own it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lease_s, self._wall, self._clock = folder, lease_s, wall, clock
        self.epoch = 0
        self._expires = self._renewed_at = 0.0
        self._lock = os.open(folder / "lease.lock", os.O_RDWR | os.O_CREAT, 0o644)
        while not self._try(last := self._read()):
            left = max(0.1, last.expires - wall())
            waited(left)
            sleep(min(left, 1.0))

    def _try(self, last: "_Written") -> bool:
        expired = last.expires <= self._wall()
        # The lock says that the owner is dead, if it is one that this host would know of.
        dead = self._locked() and last.host in ("", socket.gethostname())
        if not (dead or expired):
            return False
        epoch = last.epoch + 1
        while (claim := self._epoch_file(epoch)).exists():
            if not dead and self._wall() - claim.stat().st_mtime < self.lease_s:
                return False  # somebody is about to own it
            epoch += 1
        try:
            storage.write_bytes(str(claim), b"", mode="create")
        except FileExistsError:
            return False
        if not dead and self._read().expires > self._wall():
            return False  # it was renewed after all, and its owner may not have seen the claim
        self.epoch = epoch
        self.renew()
        return True

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def renew(self) -> None:
        """For another `lease_s`. Raises LeaseLostError if there is a newer owner."""
        self._stay_newest()
        self._locked()  # a predecessor who only hung may have held it so far
        renewed_at = self._clock()
        self._expires = self._wall() + self.lease_s
        self._write(self._expires)
        # Whoever claims an expired lease looks once more whether it was renewed, and we whether it
        # was claimed: of two who do so at the same time at least one sees the other.
        self._stay_newest()
        self._renewed_at = renewed_at

    def _stay_newest(self) -> None:
        if (newest := self._newest()) != self.epoch:
            raise LeaseLostError(
                f"another owner took over {self.folder} (epoch {newest}; this one was {self.epoch})"
            )

    def check(self) -> None:
        """Raises LeaseLostError if the lease may run out before what is begun now has ended.

        By the wall clock alone it may have: who finds that less than the lease has really gone by,
        as after a sleep of the machine, and nobody newer, renews it."""
        margin_s = min(STOP_BEFORE_S, self.lease_s / 4)
        if self._clock() - self._renewed_at > self.lease_s - margin_s:
            raise LeaseLostError(f"the lease of {self.folder} was not renewed in time")
        if self._wall() > self._expires - margin_s:
            self._stay_newest()
            if not self._locked():
                raise LeaseLostError(f"another owner is about to take over {self.folder}")
            self.renew()

    @property
    def is_due(self) -> bool:
        """Whether it is time to renew: a sixth of it is gone, by either clock."""
        sooner_s = self.lease_s / 6
        is_old = self._clock() - self._renewed_at > sooner_s
        return is_old or self._wall() > self._expires - self.lease_s + sooner_s

    def release(self) -> None:
        """The next owner need not wait."""
        if self._newest() == self.epoch:
            self._write(0.0)
        os.close(self._lock)

    def _read(self) -> "_Written":
        newest = self._newest()
        try:
            data = storage.read_bytes(str(self.folder / "lease.json"))
        except FileNotFoundError:
            return _Written(0, "", 0.0)
        latest = self._wall() + max(self.lease_s, MAX_LEASE_S)
        # Damaged from outside: the epochs' files are as good.
        return _parsed(data, newest, latest) or _Written(newest, "", 0.0)

    def _write(self, expires: float) -> None:
        lease = _Written(self.epoch, socket.gethostname(), expires)
        data = json.dumps(dataclasses.asdict(lease)).encode()
        storage.write_bytes(str(self.folder / "lease.json"), data)

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:06d}"

    def _newest(self) -> int:
        found = self.folder.glob("epoch-" + "[0-9]" * 6)
        return max((int(path.name[6:]) for path in found), default=0)


def _parsed(data: bytes, newest: int, latest: float) -> _Written | None:
    """What an owner wrote; None for what no owner can have written: an epoch that has no file, or
    a time beyond `latest`, for which one would wait for ever."""
    try:
        match json.loads(data):
            case {"epoch": int(epoch), "host": str(host), "expires": float() | int() as expires}:
                is_sound = 0 <= epoch <= newest and expires <= latest  # not so for NaN
                return _Written(epoch, host, float(expires)) if is_sound else None
            case _:
                return None
    except (ValueError, RecursionError, OverflowError):
        return None

"""Who owns a frontier shard: a lease with an epoch, in a file beside the state.

The epoch is the order of owners. A file lock shows at once that an owner on a file system with
locks has died; where locks do not reach (or the owner only hangs), the lease has to expire. An
owner who cannot renew in time must stop: `check` raises LeaseLostError.
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

LEASE_S = 60.0
MAX_LEASE_S = 86_400.0  # whoever claims more has not written it
STOP_BEFORE_S = 15.0  # an owner stops this long before another may begin


class LeaseLostError(RuntimeError):
    """Another owner may have begun: nothing may be fetched or written any more."""


@dataclasses.dataclass(frozen=True)
class _Written:
    epoch: int
    host: str
    expires: float


class Lease:
    """Held from construction on. `wall` is the clock that the owners share (time.time)."""

    def __init__(
        self,
        folder: Path,
        *,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        lease_s: float = LEASE_S,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Wait until the shard is free (`waited` is told for how long), and own it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lease_s, self._wall = folder, lease_s, wall
        self.epoch = 0
        self._expires = 0.0
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
        if self._newest() != self.epoch:
            raise LeaseLostError(f"epoch {self._newest()} owns {self.folder}; this is {self.epoch}")
        self._locked()  # a predecessor who only hung may have held it so far
        self._expires = self._wall() + self.lease_s
        self._write(self._expires)

    def check(self) -> None:
        """Raises LeaseLostError if the lease may run out before what is begun now has ended."""
        if self._wall() > self._expires - min(STOP_BEFORE_S, self.lease_s / 4):
            raise LeaseLostError(f"epoch {self.epoch} of {self.folder} was not renewed in time")

    @property
    def is_due(self) -> bool:
        """Whether it is time to renew: a sixth of it is gone."""
        return self._wall() > self._expires - self.lease_s * 5 / 6

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

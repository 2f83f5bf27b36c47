"""How shards of a frontier hand URLs to one another: files in each other's folders.

A letter is a file of log lines, written whole or not at all. Reading one twice does no harm, for
the frontier knows what it has seen.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.core import storage


class Mailbox:
    """The letters of shard `shard` of `num_shards`, under `root`/shard-NNNNN/mail."""

    def __init__(
        self,
        root: Path,
        shard: int,
        num_shards: int,
        shard_of: Callable[[str, int], int],
        epoch: int,
    ) -> None:
        self.root, self.shard, self.num_shards = root, shard, num_shards
        self._shard_of, self._epoch = shard_of, epoch
        self._unsent: dict[int, list[str]] = {}
        self._num_sent = 0
        self._mine = self._box(shard)
        if self.has_peers:
            self._mine.mkdir(parents=True, exist_ok=True)

    @property
    def has_peers(self) -> bool:
        return self.num_shards > 1

    @property
    def has_mail(self) -> bool:
        """Anything unsent or unread?"""
        return bool(self._unsent) or any(True for _ in self._names())

    def is_ours(self, host: str) -> bool:
        return self._shard_of(host, self.num_shards) == self.shard

    def send(self, host: str, line: str) -> None:
        """To be delivered to the shard that owns the host."""
        self._unsent.setdefault(self._shard_of(host, self.num_shards), []).append(line)

    def send_to(self, shard: int, line: str) -> None:
        """What is no URL: for one shard."""
        self._unsent.setdefault(shard, []).append(line)

    def deliver(self) -> None:
        for shard, lines in list(self._unsent.items()):
            self._num_sent += 1
            name = f"{self.shard:05d}-{self._epoch:06d}-{self._num_sent:08d}.letter"
            text = "\n".join(lines) + "\n"
            storage.write_bytes(str(self._box(shard) / name), text.encode())
            del self._unsent[shard]

    def letters(self) -> Iterator[tuple[str, list[str]]]:
        for name in sorted(self._names()):
            yield name, (self._mine / name).read_text(encoding="utf-8").split("\n")[:-1]

    def burn(self, name: str) -> None:
        """The log has it."""
        (self._mine / name).unlink(missing_ok=True)

    def _names(self) -> Iterator[str]:
        if self.has_peers:
            for path in self._mine.glob("[0-9]*.letter"):
                yield path.name

    def _box(self, shard: int) -> Path:
        return self.root / f"shard-{shard:05d}" / "mail"

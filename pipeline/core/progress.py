"""A progress line with rate and time left, on stderr; plain lines where there is no terminal."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO


class Progress:
    """Counts units of work. On a terminal the line is redrawn, elsewhere printed now and then."""

    def __init__(
        self, label: str, total: int, unit: str, *, stream: TextIO | None = None, every_s: float = 5
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every_s = 0.2 if self.live else every_s
        self.done = 0
        self.skipped = 0
        self.note = ""
        self.left_s: float | None = None  # from who knows better than the rate
        self._shown: tuple[int, str] | None = None
        self.started = self.last_shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def advance(self, number: int, note: str | None = None) -> None:
        """Count `number` more units; `note` (a loss, a queue length) is shown behind the rate."""
        self.done += number
        self.note = self.note if note is None else note
        if time.monotonic() - self.last_shown >= self.every_s:
            self._show(end="\r" if self.live else "\n")

    def skip(self, number: int) -> None:
        """Count units that an earlier run did: they do not enter the rate."""
        self.done += number
        self.skipped += number

    def line(self) -> str:
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.skipped) / elapsed if elapsed > 0 else 0.0
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        parts = [f"{self.label}: {self.done:,}/{self.total:,} {self.unit}"]
        if self.done > self.skipped:
            parts.append(f"{rate:,.1f} {self.unit}/s")
        parts.append(f"{duration(elapsed)} gone")
        if self.left_s is not None:
            parts.append(f"{duration(self.left_s)} left")
        elif 0 < self.done < self.total:
            parts.append(f"{duration(left)} left")
        if self.note:
            parts.append(self.note)
        return " · ".join(parts)

    def _show(self, end: str) -> None:
        self.last_shown = time.monotonic()
        self._shown = self.done, self.note
        start = "\x1b[2K" if self.live else ""
        print(start + self.line(), end=end, file=self.stream, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_new = self.live or self._shown != (self.done, self.note)
        if (self.total or self.done) and is_new:
            self._show(end="\n")


def duration(seconds: float) -> str:
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"

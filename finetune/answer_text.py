"""From tokens to an answer's text as they come: whole characters, and nothing from a stop string
on, wherever the borders of tokens fall."""

import codecs
from collections.abc import Sequence


class AnswerText:
    """Bytes in, text out: characters are whole, and nothing of a stop string or after it is told.

    `stopped` once a stop string came. Invalid bytes become U+FFFD, as in `bytes.decode`.
    """

    def __init__(self, stops: Sequence[str], skip_leading_blanks: bool) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._skipping = skip_leading_blanks
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        """The text that is certain now. After `final`, or once stopped, nothing follows."""
        self._held += self._decoder.decode(data, final)
        if self._skipping:
            self._held = self._held.lstrip()
            self._skipping = not self._held
        found = [(at + len(stop), at) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, certain = min(found)  # the first to be complete, however the text was cut up
        else:
            certain = len(self._held) - (0 if final else self._uncertain())
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _uncertain(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        return next(
            (
                n
                for n in range(min(longest, len(self._held)), 0, -1)
                if any(stop.startswith(self._held[-n:]) for stop in self.stops)
            ),
            0,
        )

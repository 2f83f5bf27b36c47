"""One model, many callers: its continuous batch on a thread of its own, which is there only while
somebody waits for tokens. So a model that nobody asks any more goes with its last answer."""

import queue
import threading
from collections.abc import Callable

from finetune.continuous_batch import ContinuousBatch, Delta, Request


class Ticket:
    """A request's deltas as they come, for one thread."""

    def __init__(self, request: Request, owner: "SharedBatch") -> None:
        self.request = request
        self.told: queue.SimpleQueue[Delta | Exception] = queue.SimpleQueue()
        self._owner = owner

    def next(self, timeout_s: float) -> Delta | None:
        """None if nothing came in time. Raises what went wrong with the model or the request."""
        try:
            told = self.told.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(told, Exception):
            raise told
        return told

    def cancel(self) -> None:
        """Its place is free at the next token. After the end it does nothing."""
        self._owner.leave(self)


class SharedBatch:
    """Requests of any thread. `make` gives an empty batch, again after one that failed."""

    def __init__(self, make: Callable[[], ContinuousBatch]) -> None:
        self._make = make
        self._batch = make()  # the thread's alone
        self._open: dict[int, Ticket] = {}  # the thread's alone
        self._lock = threading.Lock()
        self._arrived: list[Ticket] = []
        self._left: set[Ticket] = set()
        self._alive = False

    def submit(self, request: Request) -> Ticket:
        ticket = Ticket(request, self)
        with self._lock:
            self._arrived.append(ticket)
            if not self._alive:
                self._alive = True
                threading.Thread(target=self._run, name="batch", daemon=True).start()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        with self._lock:
            if self._alive:  # else it ended long ago
                self._left.add(ticket)

    def _run(self) -> None:
        while True:
            with self._lock:
                arrived, self._arrived = self._arrived, []
                left, self._left = self._left, set()
                if not (arrived or self._batch):
                    self._alive = False
                    return
            self._admit([ticket for ticket in arrived if ticket not in left])
            for number in [n for n, ticket in self._open.items() if ticket in left]:
                self._batch.cancel(number)
                del self._open[number]
            try:
                deltas = self._batch.step()
            except Exception as error:  # noqa: BLE001  # whatever it is, those who wait are told
                self._fail(error)
                continue
            for delta in deltas:
                self._open[delta.number].told.put(delta)
                if delta.end:
                    del self._open[delta.number]

    def _admit(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            try:
                self._open[self._batch.add(ticket.request)] = ticket
            except Exception as error:  # noqa: BLE001  # its asker raises it
                ticket.told.put(error)

    def _fail(self, error: Exception) -> None:
        """The batch is in no known state: all who are in it are told, and it begins anew."""
        tickets, self._open = self._open, {}
        self._batch = self._make()
        for ticket in tickets.values():
            ticket.told.put(error)

"""What the app's process has one of: its settings and its store, shared by pages and routes."""

import functools
import threading
import time

from labeling_app.app_settings import AppSettings, from_environment
from labeling_app.assist import served
from labeling_app.store import Store, open_store

_CARDS_S = 30.0  # how long a look at the served champion's card holds


def settings() -> AppSettings:
    return from_environment()


def store() -> Store:
    return _store(settings().store)


@functools.cache
def _store(place: str) -> Store:
    return open_store(place)


class Abilities:
    """What the models at an endpoint can do for labelers, by their cards: looked at in the
    background, so that no page waits for a server that is slow or down."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._known: tuple[str, ...] = ()
        self._looked_at = float("-inf")
        self._lock = threading.Lock()

    def now(self) -> tuple[str, ...]:
        """As last known; it may be half a minute old."""
        if time.monotonic() - self._looked_at > _CARDS_S and self._lock.acquire(blocking=False):
            threading.Thread(target=self._look, daemon=True).start()
        return self._known

    def _look(self) -> None:
        try:
            found = [each for model in served(self._endpoint) for each in model.abilities]
            self._known = tuple(dict.fromkeys(found))
            self._looked_at = time.monotonic()
        finally:
            self._lock.release()


@functools.cache
def _abilities_at(endpoint: str) -> Abilities:
    return Abilities(endpoint)


def abilities() -> tuple[str, ...]:
    """What the models here can do for labelers."""
    chosen = settings()
    found = [ability for each in chosen.assistants for ability in each.abilities]
    if chosen.endpoint:
        found += _abilities_at(chosen.endpoint).now()
    return tuple(dict.fromkeys(found))

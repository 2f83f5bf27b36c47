"""Several deeds at the same moment."""

import threading
from concurrent.futures import ThreadPoolExecutor


def at_once(*deeds) -> list:
    """What each gave or raised, all begun together."""
    gate = threading.Barrier(len(deeds))

    def do(deed):
        gate.wait()
        try:
            return deed()
        except Exception as error:  # noqa: BLE001 (looked at by the test)
            return error

    with ThreadPoolExecutor(len(deeds)) as pool:
        return list(pool.map(do, deeds))

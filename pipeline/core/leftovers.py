"""A stage's files that no later run reads, deleted when its manifest stands.

They are listed in a file before the manifest is written, so that a run that was killed in the
middle of the deletion is finished, and the next look at it deletes the rest.
"""

import contextlib
import json
import logging
from collections.abc import Sequence

from pipeline.core import storage
from pipeline.core.manifest import is_planning
from pipeline.core.remote import Runtime

log = logging.getLogger(__name__)
LEFTOVERS = "leftovers.json"
_BATCH = 1000  # files to delete in a task


def list_leftovers(folder: str, names: Sequence[str]) -> None:
    """To be called once before the manifest is written."""
    storage.write_bytes(storage.join(folder, LEFTOVERS), json.dumps(list(names)).encode())


def delete_leftovers(folder: str, runtime: Runtime) -> None:
    """Of a finished output; a second one at work at once does no harm."""
    url = storage.join(folder, LEFTOVERS)
    if is_planning() or not storage.exists(url):
        return
    try:
        names: list[str] = json.loads(storage.read_bytes(url))
    except (FileNotFoundError, ValueError) as error:
        log.warning("%s cannot be read (%s); what it lists stays", url, error)
        names = []
    urls = [storage.join(folder, name) for name in names if "/" not in name]
    batches = [tuple(urls[at : at + _BATCH]) for at in range(0, len(urls), _BATCH)]
    for _ in runtime.map(_delete, batches):
        pass
    _delete((url,))


def _delete(urls: tuple[str, ...]) -> None:
    for url in urls:
        with contextlib.suppress(FileNotFoundError):
            storage.remove(url)

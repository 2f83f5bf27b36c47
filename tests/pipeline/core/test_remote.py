"""The seam to Ray and its in-process twins: the same results, also after a worker's death."""

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.remote import open_runtime

BACKENDS = [("local", 1), ("local", 2), ("ray", 2)]


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda p: f"{p[0]}-{p[1]}")
def runtime(request):
    backend, workers = request.param
    with open_runtime(RunConfig(backend=backend, workers=workers)) as opened:
        yield opened


def _square(number: int) -> int:
    return number * number


def _refuse(number: int) -> int:
    raise UserError(f"{number} is not mine")


def _die_once(flag: str) -> str:
    path = Path(flag)
    if not path.exists():
        path.write_text("dying")
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


class Counter:
    """A service as the house wants it: its state is rebuilt from a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.number = int(self.path.read_text()) if self.path.exists() else 0

    def add(self, number: int) -> int:
        self.number += number
        self.path.write_text(str(self.number))
        return self.number

    def process(self) -> int:
        return os.getpid()


def test_every_item_is_mapped_once(runtime) -> None:
    found = dict(runtime.map(_square, list(range(50))))
    assert found == {i: i * i for i in range(50)}
    assert list(runtime.map(_square, [])) == []


def test_a_users_mistake_in_a_task_arrives_as_it_was_raised(runtime) -> None:
    with pytest.raises(UserError, match="3 is not mine"):
        list(runtime.map(_refuse, [3]))


def test_a_task_whose_worker_was_killed_runs_again(runtime, tmp_path: Path) -> None:
    if runtime.num_workers == 1:
        return  # in this very process: there is no worker to kill
    flags = [str(tmp_path / str(i)) for i in range(3)]
    assert dict(runtime.map(_die_once, flags)) == dict.fromkeys(range(3), "survived")


def test_a_service_keeps_its_state_through_a_kill(runtime, tmp_path: Path) -> None:
    service = runtime.service(Counter, str(tmp_path / "n"))
    assert service.call("add", 2) == 2
    process = service.call("process")
    if process != os.getpid():
        os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
    assert service.call("add", 3) == 5
    service.stop()

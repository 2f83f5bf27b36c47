"""The seam to Ray and its in-process twins: the same results, also after a worker's death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.remote import WorkerLostError, open_runtime

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


# ------------------------------------------------------------------- how workers and services end

SCRIPT = """
import os, sys, time
from pathlib import Path
from pipeline.core.config import RunConfig
from pipeline.core.remote import WorkerLostError, open_runtime

def toil(folder):
    Path(folder, str(os.getpid())).write_text("")
    time.sleep(3600)

class Service:
    toil = staticmethod(toil)

if __name__ == "__main__":
    try:
        with open_runtime(RunConfig(backend="local", workers=2)) as runtime:
            Path(sys.argv[2]).write_text("")
            if sys.argv[1] == "service":
                runtime.service(Service).call("toil", sys.argv[3])
            else:
                list(runtime.map(toil, [sys.argv[3]] * 4))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
"""


class Toil:
    """A parent in a process group of its own whose children write down their pids."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.begun, self.pids = folder / "begun", folder / "pids"
        self.pids.mkdir()
        script = folder / "toil.py"
        script.write_text(SCRIPT)
        self.parent = subprocess.Popen(
            [sys.executable, str(script), kind, str(self.begun), str(self.pids)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def children(self) -> list[int]:
        return [int(path.name) for path in self.pids.iterdir()]


@pytest.fixture
def toil(tmp_path: Path) -> Iterator[Callable[[str], Toil]]:
    made: list[Toil] = []

    def start(kind: str) -> Toil:
        made.append(Toil(tmp_path, kind))
        return made[-1]

    yield start
    for one in made:
        for pid in [one.parent.pid, *one.children()]:
            if _alive(pid):
                os.kill(pid, signal.SIGKILL)
        one.parent.wait()
        assert one.parent.stderr
        one.parent.stderr.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "number"), [("map", 0), ("map", 1), ("map", 2), ("service", 0), ("service", 1)]
)
def test_ctrl_c_is_heard_by_the_parent_alone(toil, kind: str, number: int) -> None:
    """The terminal sends it to the whole group: also while the children are still starting."""
    group = toil(kind)
    _wait(lambda: group.begun.exists() and len(group.children()) >= number)
    os.killpg(group.parent.pid, signal.SIGINT)
    _, said = group.parent.communicate(timeout=60)
    assert (group.parent.returncode, said) == (130, "stopped\n")
    assert not [pid for pid in group.children() if _alive(pid)]


@pytest.mark.parametrize(("kind", "number"), [("map", 2), ("service", 1)])
def test_children_do_not_outlive_a_parent_that_was_killed(toil, kind: str, number: int) -> None:
    group = toil(kind)
    _wait(lambda: len(group.children()) >= number)
    group.parent.kill()
    group.parent.wait()
    _wait(lambda: not any(map(_alive, group.children())))


def test_a_users_mistake_does_not_wait_for_the_other_tasks(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is not mine"),
        open_runtime(RunConfig(backend="local", workers=2)) as runtime,
    ):
        list(runtime.map(_refuse_or_sleep, [str(tmp_path / "a"), ""]))


def _refuse_or_sleep(flag: str) -> None:
    if flag:
        Path(flag).write_text("")
        time.sleep(3600)
    raise UserError("it is not mine")


RAY_SCRIPT = """
import os, signal, sys, time
from pipeline.core.config import RunConfig
from pipeline.core.remote import open_runtime

class Service:
    def square(self, number):
        return number * number

if __name__ == "__main__":
    def interrupt(number, frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupt)
    with open_runtime(RunConfig(backend="ray", workers=1)) as runtime:
        service = runtime.service(Service)
        try:
            print(service.call("square", 3), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print(service.call("square", 4), flush=True)  # it can still talk to its services
            sys.exit(130)
"""


def test_a_signal_handler_of_the_driver_outlives_the_start_of_ray(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(RAY_SCRIPT)
    driver = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout
    assert driver.stdout.readline() == "9\n"
    driver.send_signal(signal.SIGTERM)
    said, errors = driver.communicate(timeout=60)
    assert (driver.returncode, said) == (130, "16\n"), errors
    assert "SIGTERM received" not in errors


@pytest.mark.parametrize("runtime", [("ray", 2)], indirect=True)
def test_a_service_that_is_lost_for_good_is_told_in_one_line(runtime, tmp_path: Path) -> None:
    service = runtime.service(Counter, str(tmp_path / "n"))
    assert service.call("add", 1) == 1
    service.stop()  # ray.kill: it does not come back
    with pytest.raises(WorkerLostError, match=r"^a worker or the Ray cluster was lost \(Actor"):
        for _ in range(600):  # the kill takes a moment, and a call may be quicker
            service.call("add", 1)
            time.sleep(0.05)

"""Fixtures for every room."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from pipeline.core.config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[1]
# A job in the background is started deaf to Ctrl-C, and so would be every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)
# No test is timed: a busy machine is not a defect.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """shared_data("crawl/robots") is the folder of that archive, unpacked once; skips without."""
    source = REPOSITORY / os.environ.get("FLYWHEEL_DATA", "../shared/data")
    unpacked: dict[str, Path] = {}

    def folder(name: str) -> Path:
        archive = source / f"{name}.tar.xz"
        if not archive.exists():
            pytest.skip(f"no {archive}: set FLYWHEEL_DATA to the folder of the shared test data")
        if name not in unpacked:
            unpacked[name] = tmp_path_factory.mktemp(name.replace("/", "-"))
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked[name], filter="data")
        return unpacked[name]

    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(root=str(tmp_path / "data"), backend="local", workers=1)


@pytest.fixture
def kill_when() -> Callable[[list[str], Callable[[], bool]], None]:
    """Run `python ARGS…`, send SIGKILL as soon as the condition holds, and wait for its end."""

    def kill(arguments: list[str], condition: Callable[[], bool], limit_s: float = 120) -> None:
        child = subprocess.Popen(
            [sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + limit_s
        try:
            while not condition():
                assert child.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline, "the condition never came"
                time.sleep(0.002)
        finally:
            child.kill()
            child.wait()

    return kill


def pytest_terminal_summary(terminalreporter, exitstatus, config) -> None:
    """With FLYWHEEL_NO_SKIPS (CI) a skip fails the run, unless it wants what a CI machine may not
    have: a GPU, or a kernel that lets it make hosts of its own."""
    if not os.environ.get("FLYWHEEL_NO_SKIPS"):
        return
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(want in reason for want in ("GPU", "the kernel refuses namespaces")):
            terminalreporter.write_line(f"not to be skipped here: {report.nodeid}: {reason}")
            terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED

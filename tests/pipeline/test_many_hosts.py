"""A crawl of a hundred simulated hosts, some broken, as benchmarks/many_hosts.py has ten thousand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DELAY_S, PAGES = 0.4, 3


def simulated(folder: Path, *further: str) -> dict[str, Any]:
    report = folder / "report.json"
    command = [
        sys.executable, "benchmarks/many_hosts.py", "--report", str(report), "--hosts", "100",
        "--delay", str(DELAY_S), "--pages", str(PAGES), "--slowest", "0.2", "--timeout", "1",
        "--robots-wait", "1", "--retries", "1", *further,
    ]  # fmt: skip
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return simulated(tmp_path_factory.mktemp("many"))


def test_no_delay_is_undercut(report: dict[str, Any]) -> None:
    assert report["asked"] == 99  # one refuses connections, which the server cannot see
    assert report["delay_s"] == DELAY_S
    assert report["undercut"] == {}


def test_each_live_host_gets_its_share(report: dict[str, Any]) -> None:
    assert report["pages"] == [PAGES] * report["live"]
    assert report["live"] == 95


def test_each_broken_host_is_a_counted_outcome(report: dict[str, Any]) -> None:
    """The five are of five kinds, and not one has a robots.txt to be had."""
    crawler = report["crawler"]
    assert crawler["archived"] == 95 * PAGES
    whys = ("connection", "protocol", "status 500", "timeout")
    assert set(crawler["dropped"]) == {f"robots unreachable: {why}" for why in whys}
    assert sum(crawler["dropped"].values()) == 5
    assert all(numbers and numbers[-1] <= 16 for numbers in report["requests_to_broken"].values())


def test_one_address_is_asked_by_no_more_than_its_limit(tmp_path: Path) -> None:
    report = simulated(tmp_path, "--one-address", "--per-ip", "5")
    assert report["most_per_address"] == 5
    assert report["pages"] == [PAGES] * report["live"]
    assert report["undercut"] == {}

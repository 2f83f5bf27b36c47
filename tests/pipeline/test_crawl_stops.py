"""A crawl that is stopped in order, finished by hand, or slept through; and what it leaves."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.crawl import main, run_crawl
from pipeline.crawl_status import read_status
from pipeline.not_kept import NOT_KEPT, read_not_kept
from tests.pipeline import small_site
from tests.pipeline.small_site import Site, config, html, paths, responses
from tests.pipeline.test_crawl_endings import (
    NUM_BIG,
    REPOSITORY,
    big_site,
    crawl_process,
    identity,
    manifest_of,
    write_config,
)

serve = small_site.serve  # the fixture


def slow_site(pages: int = 40) -> dict[str, Any]:
    """A home page with links to all others, 50 ms each."""
    links = [f"/{n}" for n in range(1, pages)]

    def page(number: int) -> Any:
        own = links if number == 0 else ["/none"]
        return lambda _: time.sleep(0.05) or html(f"{number}", *own)

    return {"/" if n == 0 else f"/{n}": page(n) for n in range(pages)}


def stopped(path: Path, site: Site, after: int, number: int = signal.SIGINT) -> str:
    """What a crawl says that is stopped after so many requests."""
    child = crawl_process(path)
    while len(site.asked) < after and child.poll() is None:
        time.sleep(0.001)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    return errors


def folder_of(root: Path) -> Path:
    (folder,) = (root / "crawl").iterdir()
    return folder


def test_a_stop_leaves_whole_files(serve: Any, tmp_path: Path) -> None:
    site = serve(big_site())
    path = write_config(tmp_path, site)
    for after in (30, 60, 90):
        stopped(path, site, after, signal.SIGTERM)
        folder = folder_of(tmp_path / "data")
        assert not list(folder.rglob("*.open"))
        files = sorted(folder.rglob("*.warc.gz"))
        assert files
        assert sorted(folder.rglob("*.cdxj")) == [Path(f"{file}.cdxj") for file in files]
    assert main(["--config", str(path)]) == 0
    manifest = manifest_of(tmp_path / "data")
    assert manifest.counts.rows_out == sum(entry.num_rows for entry in manifest.files) == NUM_BIG
    assert len({url for url, _ in identity(manifest)}) == len(responses(manifest)) == NUM_BIG


def test_that_is_enough(serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = serve(slow_site())
    path = write_config(tmp_path, site)
    assert main(["--config", str(path), "--finish"]) == 2
    assert "--finish: no crawl with this config has begun" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    stopped(path, site, 12)
    asked = len(site.asked)
    assert main(["--config", str(path), "--finish"]) == 0
    assert "were not taken: finished by hand" in capsys.readouterr().out
    assert len(site.asked) == asked, "it asked for nothing more"
    manifest = manifest_of(tmp_path / "data")
    assert manifest.run["ended_by"] == "finished by hand"
    assert manifest.facts["not_taken"] > 0
    assert set(paths(manifest, site)) <= {path[1:] for path, _ in site.asked}
    assert len(responses(manifest)) == manifest.counts.rows_out > 0
    folder = folder_of(tmp_path / "data")
    kept = {url for url, _, _ in read_not_kept(folder / "shard-00000" / NOT_KEPT)}
    assert kept <= {f"{site.url}none"}
    status = read_status(folder)
    assert (status.state, status.ended_by) == ("finished", "finished by hand")
    assert main(["--config", str(path)]) == 0, "it is finished"
    assert len(site.asked) == asked


def test_nothing_yet_cannot_be_finished_and_is_not_lost(serve: Any, tmp_path: Path) -> None:
    """Stopped while it asks for robots.txt, after which nothing is taken."""
    slow_robots = {"/robots.txt": lambda _: time.sleep(1) or (404, {}, b"")}
    site = serve({**slow_site(), **slow_robots})
    path = write_config(tmp_path, site)
    stopped(path, site, 1)
    assert read_status(folder_of(tmp_path / "data")).num_archived == 0
    run = RunConfig(root=f"{tmp_path}/data")
    wish = config(site.url, warc_max_bytes=12000, timeout_s=30.0)
    with pytest.raises(UserError, match="there is nothing to finish yet"):
        run_crawl(wish, run, is_enough=True)
    assert read_status(folder_of(tmp_path / "data")).state == "stopped"
    assert main(["--config", str(path)]) == 0


def test_a_crawl_without_a_page_does_not_say_that_it_finished(serve: Any, run: RunConfig) -> None:
    site = serve({"/": (500, {}, b"broken")})
    with pytest.raises(UserError, match="not one page"):
        run_crawl(config(site.url), run)
    assert read_status(folder_of(Path(run.root))).state == "failed: not one page"


def test_the_report_covers_all_starts(serve: Any, tmp_path: Path) -> None:
    site = serve(slow_site(60))
    path = write_config(tmp_path, site)
    stopped(path, site, 15)
    stopped(path, site, 30)
    before = read_status(folder_of(tmp_path / "data"))
    assert main(["--config", str(path), "crawl.delay_s=0.03"]) == 0
    summary = json.loads((folder_of(tmp_path / "data") / "summary.json").read_text())["status"]
    assert summary["timeline"][: len(before.timeline)] == before.timeline
    assert summary["before_s"] >= before.worked_s > before.before_s > 0
    assert summary["num_before"] == before.num_archived
    assert summary["least_delay_s"] == 0.0
    pages = [point[1] for point in summary["timeline"]]
    assert pages == sorted(pages)


ASLEEP = """
import sys, time
began, real = time.monotonic(), time.time
time.time = lambda: real() + (120 if time.monotonic() - began > 3 else 0)
from pipeline.crawl import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_laptop_that_slept_goes_on(serve: Any, tmp_path: Path) -> None:
    """The wall clock jumps by two minutes in the middle; the other one stood still."""
    site = serve(slow_site(80))
    path = write_config(tmp_path, site)
    done = subprocess.run(
        [sys.executable, "-c", ASLEEP, "--config", str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert manifest_of(tmp_path / "data").counts.rows_out == 81


def test_who_loses_its_shard_says_so_in_one_line(serve: Any, tmp_path: Path) -> None:
    site = serve(slow_site(200))
    child = crawl_process(write_config(tmp_path, site, "lease_s = 3.0\n"))
    while len(site.asked) < 10 and child.poll() is None:
        time.sleep(0.001)
    (folder_of(tmp_path / "data") / "shard-00000" / "epoch-000009").touch()
    said, errors = child.communicate(timeout=60)
    assert (child.returncode, said) == (1, "")
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: another owner took over ")
    assert last.endswith("the same command goes on from here")


@pytest.mark.long
def test_sigterm_reaches_a_crawl_on_ray(serve: Any, tmp_path: Path) -> None:
    """Ray sets a handler of its own when it is connected, after ours."""
    site = serve(slow_site(200))
    path = write_config(tmp_path, site, "num_shards = 2\n")
    text = path.read_text().replace("[crawl]", 'backend = "ray"\nworkers = 2\n[crawl]')
    path.write_text(text)
    errors = stopped(path, site, 20, signal.SIGTERM)
    assert "stopping: what is in flight" in errors
    assert "SIGTERM received" not in errors
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from here"
    folder = folder_of(tmp_path / "data")
    assert read_status(folder).state == "stopped"
    assert not list(folder.rglob("*.open"))

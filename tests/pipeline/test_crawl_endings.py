"""A crawl that is killed, stopped, out of room, or there twice; and as a script."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, read_manifest
from pipeline.crawl import main, run_crawl
from pipeline.crawl_status import is_running, read_status
from tests.known_web import ORIGIN_FILES
from tests.pipeline import small_site
from tests.pipeline.small_site import SMALL, Site, config, html, redirect, responses

serve = small_site.serve  # the fixture

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_BIG = 183  # the sitemap, 60 pages, 60 moved ones (302 or 404), 62 links to nowhere


def big_site() -> dict[str, Any]:
    """60 pages in a tree with cross links, redirects, errors, a disallowed part, a sitemap."""
    routes: dict[str, Any] = {}
    for i in range(60):
        text = hashlib.sha256(str(i).encode()).hexdigest() * (1 + i % 7)
        links = [f"/p{2 * i + 1}", f"/p{2 * i + 2}", f"/p{i * 7 % 60}", f"/moved{i}", "/private"]
        routes["/" if i == 0 else f"/p{i}"] = html(text, *links)
        if i % 6 == 0:
            routes[f"/moved{i}"] = redirect(f"/p{59 - i}")
    routes["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /private\nSitemap: /map.xml")
    routes["/map.xml"] = (
        200,
        {"Content-Type": "text/xml"},
        b"<urlset><u><loc>/p40</loc></u></urlset>",
    )
    return routes


def write_config(folder: Path, site: Site, extra: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(
        f'[run]\nroot = "{folder}/data"\n[crawl]\nseeds = ["{site.url}"]\nallow_private = true\n'
        f"delay_s = 0.0\nmax_delay_s = 0.05\nwarc_max_bytes = 12000\n{extra}"
    )
    return path


def crawl_process(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "pipeline/crawl.py", "--config", str(path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def identity(manifest: Manifest) -> list[tuple[str, str]]:
    return sorted((response.url, response.payload_sha256) for response in responses(manifest))


class Faulty:
    """Breaks once the crawl is under way, in a way that nobody foresaw."""

    def __init__(self) -> None:
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        self.asked += 1
        if self.asked > 1:
            raise RuntimeError("a resolver's fault")
        base = {"hostname": host, "port": port, "family": 2, "proto": 6, "flags": 0}
        return [{**base, "host": "127.0.0.1"}]

    async def close(self) -> None:
        pass


def manifest_of(root: Path) -> Manifest:
    (found,) = (root / "crawl").glob("*/manifest.json")
    return read_manifest(str(found.parent))


def test_kill_9_at_any_moment_loses_and_doubles_nothing(serve: Any, tmp_path: Path) -> None:
    site = serve(big_site())
    undisturbed = tmp_path / "a"
    undisturbed.mkdir()
    child = crawl_process(write_config(undisturbed, site))
    assert child.communicate(timeout=60)[0].startswith("1")
    assert child.returncode == 0
    wanted = manifest_of(undisturbed / "data")
    assert wanted.counts.rows_out == NUM_BIG
    num_requests = len(site.asked)

    site.asked.clear()
    disturbed = tmp_path / "b"
    disturbed.mkdir()
    path = write_config(disturbed, site)
    kill_after = [1, 9, 43, 80, 120, 182]  # requests seen by the site, in total
    for number in kill_after:
        child = crawl_process(path)
        while len(site.asked) < number and child.poll() is None:
            time.sleep(0.0005)
        child.kill()
        child.communicate()
        assert not list((disturbed / "data").rglob("manifest.json"))
    child = crawl_process(path)
    child.communicate(timeout=60)
    assert child.returncode == 0
    found = manifest_of(disturbed / "data")
    assert identity(found) == identity(wanted)
    assert found.counts == wanted.counts
    assert found.facts == wanted.facts
    assert not list((disturbed / "data").rglob("*.open"))
    # Each run asks for robots.txt and its like, and again for the one page in flight at the kill.
    assert len(site.asked) <= num_requests + (len(ORIGIN_FILES) + 1) * len(kill_after)


def test_ctrl_c_keeps_the_state(serve: Any, tmp_path: Path) -> None:
    site = serve(big_site())
    path = write_config(tmp_path, site)
    child = crawl_process(path)
    while len(site.asked) < 30:
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in errors
    num_asked = len(site.asked)
    (folder,) = (tmp_path / "data" / "crawl").iterdir()
    status = read_status(folder)
    assert status.state == "stopped"
    assert (status.busy, is_running(folder)) == (0, False)
    assert status.num_archived >= 25
    assert main(["--config", str(path)]) == 0
    assert manifest_of(tmp_path / "data").counts.rows_out == NUM_BIG
    assert len(site.asked) <= NUM_BIG + 1 + 2  # robots.txt each time, and the one in flight
    assert num_asked < NUM_BIG


def test_a_killed_crawl_is_seen_to_run_no_more(serve: Any, tmp_path: Path) -> None:
    site = serve(big_site())
    child = crawl_process(write_config(tmp_path, site))
    while len(site.asked) < 30:
        time.sleep(0.001)
    (folder,) = (tmp_path / "data" / "crawl").iterdir()
    assert is_running(folder) is True
    child.kill()
    child.communicate()
    assert (read_status(folder).state, is_running(folder)) == ("crawling", False)


def test_a_fault_is_the_last_word_of_the_status(serve: Any, run: RunConfig) -> None:
    site = serve(big_site())
    with pytest.raises(RuntimeError, match="a resolver's fault"):
        run_crawl(
            config(site.url, f"http://a.example{site.url[16:]}", contact="a@b"),
            run,
            resolver=Faulty(),
        )
    (folder,) = (Path(run.root) / "crawl").iterdir()
    assert read_status(folder).state == "ended by an error"


def test_a_full_disk_leaves_nothing_to_trust(serve: Any, tmp_path: Path) -> None:
    site = serve(big_site())
    path = write_config(tmp_path, site)
    command = f"{sys.executable} pipeline/crawl.py --config {path}"
    full = subprocess.run(  # a write beyond the limit fails as on a full disk
        ["bash", "-c", f"ulimit -f 8; exec {command}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert full.returncode == 1, full.stderr
    assert "no space left on the disk" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    assert not list((tmp_path / "data").rglob("manifest.json"))
    assert main(["--config", str(path)]) == 0
    assert manifest_of(tmp_path / "data").counts.rows_out == NUM_BIG


def test_two_runs_do_not_write_the_same_crawl(serve: Any, tmp_path: Path) -> None:
    site = serve({**big_site(), "/": lambda n: time.sleep(0.5) or html("home", "/p1")})
    path = write_config(tmp_path, site)
    child = crawl_process(path)
    while not site.asked:
        time.sleep(0.001)
    with pytest.raises(UserError, match="another run is writing"):
        run_crawl(
            config(site.url, warc_max_bytes=12000, timeout_s=30.0),
            RunConfig(root=f"{tmp_path}/data"),
        )
    child.kill()
    child.communicate()


# ------------------------------------------------------------------------------------ as a script


def test_the_script_finds_its_package_wherever_ray_submit_puts_it(
    serve: Any, tmp_path: Path
) -> None:
    site = serve(SMALL)
    home = tmp_path / "home"
    home.mkdir()
    (home / "app").symlink_to(REPOSITORY)
    (home / "pipeline").mkdir()  # a stale copy must not win
    (home / "pipeline" / "__init__.py").write_text("raise ImportError('stale')")
    (home / "crawl.py").write_bytes((REPOSITORY / "pipeline" / "crawl.py").read_bytes())
    path = write_config(tmp_path, site)
    env = {**os.environ, "HOME": str(home)}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, str(home / "crawl.py"), "--config", str(path), "crawl.max_pages=2"],
        cwd=home,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 responses of 2 URLs")


def test_the_command_line(serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, serve(SMALL))
    assert main(["--config", str(path), "crawl.max_page=2"]) == 2
    assert "unknown key crawl.max_page; did you mean 'max_pages'?" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "crawl.contact=me@example.org" in capsys.readouterr().out


def test_a_restart_keeps_the_pause_that_a_host_is_due(serve: Any, tmp_path: Path) -> None:
    robots = (200, {}, b"User-agent: *\nCrawl-delay: 2\n")
    site = serve({"/": html("home", "/1", "/2"), "/1": html("1"), "/robots.txt": robots})
    path = write_config(tmp_path, site, "honour_ai_optouts = false\n")
    child = crawl_process(path)
    while site.count()["/"] == 0:
        time.sleep(0.02)
    time.sleep(0.3)
    child.kill()
    child.communicate()
    again = crawl_process(path)
    assert again.communicate(timeout=60)[0].startswith("3 responses")
    assert again.returncode == 0
    times = [at for _, at in site.asked]
    assert min(b - a for a, b in pairwise(times)) >= 1.95

"""A crawl finds exactly what is reachable and allowed: however many shards, however it is started,
whoever is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from lxml import html

from pipeline.core.config import RunConfig
from pipeline.core.manifest import Manifest, read_manifest
from pipeline.crawl import run_crawl
from pipeline.crawl_config import CrawlConfig
from pipeline.warc import WarcResponse, iter_responses
from tests import known_web
from tests.known_web import Served

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_HOSTS = 6


def keys(web: Served, **changes: Any) -> dict[str, Any]:
    return {
        "seeds": [web.seed],
        "allowed_hosts": list(web.hosts),
        "contact": "a@b",
        "max_pages": 100_000,
        "delay_s": 0.0,
        "latency_factor": 0.0,
        "allow_private": True,
        **changes,
    }


def archived(manifest: Manifest) -> dict[str, str]:
    """URL -> digest; each URL once."""
    found: list[tuple[str, str]] = []
    for entry in manifest.files:
        for item in iter_responses(manifest.file_url(entry.name)):
            assert isinstance(item, WarcResponse), item
            found.append((item.url, item.payload_sha256))
    assert max(Counter(url for url, _ in found).values()) == 1
    return dict(found)


def test_the_truth_is_what_the_served_bytes_lead_to() -> None:
    """A second walk, over what lxml finds in the bytes."""
    web = known_web.build_web()
    reached: set[str] = set()
    waiting = [f"http://{known_web.HOSTS[0]}/"]
    while waiting:
        url = waiting.pop()
        if url in reached or "/private/" in url or "/art/" in url:
            continue
        reached.add(url)
        answer = known_web.answer_to(web, url)
        waiting += [answer.location] if answer.location else []
        waiting.append(f"http://{urlsplit(url).netloc}/sitemap.xml")
        if url.endswith("sitemap.xml"):
            waiting += html.fromstring(answer.body).xpath("//loc/text()")
        elif answer.status == 200 and b"nofollow" not in answer.body:
            waiting += html.fromstring(answer.body).xpath("//a/text()")
    truth = known_web.truth(web)
    assert truth.keys() == {url for url in reached if not url.endswith(("/unkept", "/press/1"))}
    paths = Counter(urlsplit(url).path for url in truth if "/p" not in url)
    kept = ["/", "/behind-press", "/behind-sitemap", "/behind-unkept", "/dead-end", "/missing"]
    assert sorted(paths) == [*kept, "/moved", "/only-sitemap", "/sitemap.xml"]
    assert set(paths.values()) == {len(known_web.HOSTS)}
    assert known_web.build_web() == web


@pytest.fixture(scope="module")
def big_web() -> Generator[Served]:
    with known_web.serve(NUM_HOSTS, 550) as web:
        yield web


@pytest.mark.parametrize("num_shards", [1, pytest.param(4, marks=pytest.mark.long)])
def test_several_thousand_pages(big_web: Served, tmp_path: Path, num_shards: int) -> None:
    big_web.asked.clear()
    run = RunConfig(root=str(tmp_path), backend="local", workers=1)
    manifest = run_crawl(CrawlConfig(**keys(big_web, num_shards=num_shards)), run)
    truth = known_web.truth(big_web.web)
    assert len(truth) == NUM_HOSTS * (550 + 8)
    assert archived(manifest) == truth
    assert manifest.counts.dropped == {
        "robots": NUM_HOSTS,
        "noindex": NUM_HOSTS,
        "ai opt-out: ai.txt": NUM_HOSTS,
        "ai opt-out: tdm-reservation": NUM_HOSTS,
    }
    asked = Counter(big_web.asked)
    assert set(asked.values()) == {1}
    forbidden = [url for url in asked if "/private/" in url or "/art/" in url]
    assert forbidden == []
    assert len(asked) == len(truth) + NUM_HOSTS * (len(known_web.ORIGIN_FILES) + 2)


def test_without_the_switch_ai_opt_outs_are_neither_asked_for_nor_honoured(tmp_path: Path) -> None:
    with known_web.serve(1, 3) as web:
        run = RunConfig(root=str(tmp_path), backend="local", workers=1)
        manifest = run_crawl(CrawlConfig(**keys(web, honour_ai_optouts=False)), run)
        found = {urlsplit(url).path for url in archived(manifest)}
        assert {"/art/1", "/press/1", "/behind-art"} <= found
        assert [url for url in web.asked if known_web.is_origin_file(url)] == [
            f"{web.seed}robots.txt"
        ]


def write_config(folder: Path, web: Served, run: dict[str, Any], **changes: Any) -> Path:
    """JSON's values of these kinds are TOML's too."""
    lines = ["[run]", *(f"{key} = {_toml(value)}" for key, value in run.items()), "[crawl]"]
    lines += [f"{key} = {_toml(value)}" for key, value in keys(web, **changes).items()]
    path = folder / "run.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def manifest_below(folder: Path) -> Manifest:
    (path,) = folder.glob("crawl/*/manifest.json")
    return read_manifest(str(path.parent))


@pytest.mark.long
def test_script_command_and_two_ray_nodes_give_the_same_set(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    with known_web.serve(NUM_HOSTS, 60) as web:
        truth = known_web.truth(web.web)
        ways = {
            "script": [sys.executable, "pipeline/crawl.py"],
            "command": [sys.executable, "-m", "infra.cli", "crawl"],
        }
        for name, command in ways.items():
            (tmp_path / name).mkdir()
            root = tmp_path / name / "data"
            run = {"root": str(root), "backend": "local", "workers": 1}
            config = write_config(tmp_path / name, web, run)
            done = _started([*command, "--config", str(config)], os.environ)
            assert done.wait(120) == 0
            assert archived(manifest_below(root)) == truth
        node = {"num_cpus": 2, "object_store_memory": 80_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(num_cpus=2, object_store_memory=80_000_000)
            (tmp_path / "ray").mkdir()
            root = tmp_path / "ray" / "data"
            run = {"root": str(root), "backend": "ray", "workers": 4}
            config = write_config(tmp_path / "ray", web, run, num_shards=4, delay_s=0.05)
            environment = {**os.environ, "RAY_ADDRESS": cluster.address}
            child = _started([*ways["script"], "--config", str(config)], environment)
            nodes: set[int] = set()
            while child.poll() is None:
                nodes |= set(map(_parent, root.rglob("shard-*/pid")))
                time.sleep(0.1)
            assert child.returncode == 0
            assert archived(manifest_below(root)) == truth
            assert len(nodes - {0}) == 2, "the shards' processes are children of two raylets"
        finally:
            cluster.shutdown()


def _started(command: list[str], environment: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=dict(environment), stdout=subprocess.DEVNULL
    )


def _parent(path: Path) -> int:
    """Of the process whose number the file holds; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{path.read_text()}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


@pytest.mark.long
def test_killed_at_random_the_same_set_and_only_what_was_in_flight_twice(tmp_path: Path) -> None:
    chance = random.Random(5)
    with known_web.serve(NUM_HOSTS, 400) as web:
        truth = known_web.truth(web.web)
        root = tmp_path / "data"
        run = {"root": str(root), "backend": "local", "workers": 3}
        config = write_config(tmp_path, web, run, num_shards=3, delay_s=0.01)
        child = _started([sys.executable, "pipeline/crawl.py", "--config", str(config)], os.environ)
        num_kills = 0
        for part in (0.1, 0.25, 0.4, 0.55, 0.7, 0.85):
            while len(web.asked) < part * len(truth):
                assert child.poll() is None, "it ended before it could be killed"
                time.sleep(0.001)
            victims = [int(path.read_text()) for path in root.rglob("shard-*/pid")]
            os.kill(chance.choice(victims), signal.SIGKILL)
            num_kills += 1
        assert child.wait(120) == 0
        assert archived(manifest_below(root)) == truth
        twice = Counter(web.pages_asked)
        assert max(twice.values()) <= 1 + num_kills
        # One request a host may have been in flight at each kill.
        assert sum(twice.values()) - len(twice) <= NUM_HOSTS * num_kills

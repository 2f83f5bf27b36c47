"""Pages a second of one core: `flywheel crawl`, writing WARC, against Scrapy, which keeps nothing.

    .venv/bin/python benchmarks/crawl.py [--pages 3000] [--rounds 3] [--quick] [--limits]

The pages (pydoc's of the standard library, under many names) lie on 32 loopback hosts of one
nginx; both sides must fetch the same set. One core is the crawler's, another is nginx's.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import record, row

from infra.demo_site import Renderer, stdlib_modules
from pipeline.core.config import RunConfig
from pipeline.crawl import run_crawl
from pipeline.crawl_config import CrawlConfig
from pipeline.fetch import Fetcher
from pipeline.links import read_page
from pipeline.warc_writer import GZIP_LEVEL, WarcSeries

SCRIPT = "crawl.py"
SCRAPY = "2.19.0"
CACHE = Path.home() / ".cache" / "flywheel-benchmarks"
HERE = Path(__file__).resolve().parent
ORIGIN_FILES = ("/robots.txt", "/ai.txt", "/.well-known/tdmrep.json")  # ours asks for all three
NUM_HOSTS = 32  # one connection each: Flywheel asks a host one thing at a time
NOBODY = 65534
_NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  types {{ text/html html; text/plain txt; }}
  charset utf-8;
  gzip off;
  sendfile on;
  tcp_nopush on;
  keepalive_timeout 60;
  keepalive_requests 1000000;
  open_file_cache max=20000 inactive=600s;
  open_file_cache_valid 600s;
  log_format url 'http://$http_host$request_uri $status';
  access_log {folder}/access.log url buffer=64k flush=1s;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
{listen}
    root {folder}/site;
    index index.html;
  }}
}}
"""


@dataclasses.dataclass(frozen=True)
class Site:
    """`urls`: all that a crawl from `seed` is to fetch, beside each host's robots.txt."""

    folder: Path
    seed: str
    urls: frozenset[str]
    mean_bytes: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=3000, help="on the site, some 31 kB each")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--quick", action="store_true", help="seconds; records no row")
    parser.add_argument("--limits", action="store_true", help="where our time goes; no row")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.side:
        return side(*options.side)
    pages, rounds = (200, 1) if options.quick else (options.pages, options.rounds)
    if missing := _missing():
        print(f"skipped: {missing}", file=sys.stderr)
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="crawl-bench-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        folder.chmod(0o755)  # nginx reads it as nobody
        site = make_site(folder, pages, free_port())
        print(f"{len(site.urls):,} URLs, {site.mean_bytes / 1e3:.1f} kB on average", flush=True)
        stack.enter_context(nginx(site))
        if options.limits:
            show_limits(site)
            return 0
        speeds = measure(site, rounds)
    ours, theirs = (statistics.median(speeds[side]) for side in ("ours", "scrapy"))
    unit = (
        f"pages/s on one core, pages of {site.mean_bytes / 1e3:.0f} kB;"
        f" ours with gzip WARC (ISA-L level {GZIP_LEVEL}), theirs keeps nothing"
    )
    found = row("crawl", SCRIPT, ("Scrapy", SCRAPY), ours, theirs, unit)
    if not options.quick:
        record([found])
    print(f"{found.what}: {found.ours} against Scrapy {found.theirs} {unit} (ratio {found.ratio})")
    return 0


def _missing() -> str:
    if shutil.which("nginx") is None:
        return "there is no nginx here; install nginx-light"
    if shutil.which("uv") is None:
        return "there is no uv here to make Scrapy's environment with"
    if len(os.sched_getaffinity(0)) < 2:
        return "crawler and server want a core each, and here is one"
    return ""


# ------------------------------------------------------------------------------ the site


def make_site(folder: Path, num_pages: int, port: int) -> Site:
    """The modules' pages again and again under `N/module.html`, spread over the hosts; links lead
    to the same round's pages, and the index to all."""
    hosts = [f"http://127.0.0.{1 + number}:{port}" for number in range(NUM_HOSTS)]
    pages = rendered()
    names = sorted(pages)[:num_pages]
    places: dict[str, str] = {}
    for number in range(num_pages):
        path = f"{number // len(names)}/{names[number % len(names)]}.html"
        places[path] = f"{hosts[number % NUM_HOSTS]}/{path}"
    root, num_bytes = folder / "site", 0
    for path in places:
        turn, _, name = path.partition("/")
        body = linked(pages[name.removesuffix(".html")], turn, places, hosts[0])
        (root / turn).mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(body)
        num_bytes += len(body)
    items = "".join(f'<li><a href="{url}">{path}</a></li>\n' for path, url in places.items())
    (root / "index.html").write_text(f"<title>All</title><ul>\n{items}</ul>\n")
    (root / "robots.txt").write_text("User-agent: *\nDisallow: /private/\n")
    seed = f"{hosts[0]}/"
    return Site(folder, seed, frozenset([seed, *places.values()]), num_bytes / num_pages)


def rendered() -> dict[str, bytes]:
    renderer = Renderer(stdlib_modules())
    try:
        answers = {name: renderer.render(name) for name in stdlib_modules()}
    finally:
        renderer.close()
    return {name: answer.body for name, answer in answers.items() if answer.status == 200}


def linked(body: bytes, turn: str, places: dict[str, str], first_host: str) -> bytes:
    def target(found: re.Match[bytes]) -> bytes:
        path, _, fragment = found[1].decode().partition("#")
        url = f"{first_host}/" if path == "" else places.get(f"{turn}/{path}")
        if url is None:  # a page that did not fit in: the link goes
            return b"<a"
        return f'<a href="{url}{"#" if fragment else ""}{fragment}"'.encode()

    return re.sub(rb'<a href="/([^"]*)"', target, body)


# ------------------------------------------------------------------------------ the server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> tuple[int, int]:
    """The crawler's and the server's."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return first, second


@contextlib.contextmanager
def pinned(core: int) -> Generator[None]:
    """What is started inside stays on that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def nginx(site: Site) -> Generator[None]:
    """It answers the site's URLs, as nobody and not as root, until the block ends."""
    folder, port = site.folder, int(site.seed.split(":")[2].rstrip("/"))
    listen = "\n".join(f"    listen 127.0.0.{1 + n}:{port};" for n in range(NUM_HOSTS))
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, listen=listen))
    owner = NOBODY if os.getuid() == 0 else None
    if owner:
        os.chown(folder, owner, owner)
    with pinned(cores()[1]):
        server = subprocess.Popen(
            ["nginx", "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(config)],
            user=owner,
            group=owner,
            extra_groups=[] if owner else None,
        )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        else:
            raise RuntimeError((folder / "error.log").read_text())
        yield
    finally:
        server.terminate()
        server.wait()


def asked(site: Site) -> Counter[str]:
    """What nginx has answered since the last call; statuses other than 200 show in the URL."""
    time.sleep(1.5)  # nginx's own buffer
    log = site.folder / "access.log"
    lines = log.read_text().splitlines()
    os.truncate(log, 0)
    return Counter(line.removesuffix(" 200") for line in lines)


def check(site: Site, side: str) -> None:
    """Raises RuntimeError unless each URL was asked for once, and beside them only ORIGIN_FILES."""
    found = asked(site)
    of_origins = tuple(f"{path}{status}" for path in ORIGIN_FILES for status in ("", " 404"))
    pages = {url: times for url, times in found.items() if not url.endswith(of_origins)}
    doubles = {url: times for url, times in pages.items() if times > 1}
    if pages.keys() != site.urls or doubles:
        missing, extra = site.urls - pages.keys(), pages.keys() - site.urls
        raise RuntimeError(
            f"{side} asked for {len(pages):,} URLs: {len(missing):,} missing, {len(extra):,} extra,"
            f" {len(doubles):,} more than once; for example {[*missing, *extra, *doubles][:3]}"
        )
    num_robots = sum(found.values()) - len(pages)
    if num_robots < NUM_HOSTS:
        raise RuntimeError(f"{side} asked for robots.txt {num_robots} times on {NUM_HOSTS} hosts")


# ------------------------------------------------------------------------------ the sides


def measure(site: Site, rounds: int) -> dict[str, list[float]]:
    """Pages a second of wall time, by side."""
    python = scrapy_python()
    sides: dict[str, Callable[[], list[str]]] = {
        "ours": lambda: our_command("crawl", site.seed),
        "scrapy": lambda: [
            python,
            str(HERE / "scrapy_spider.py"),
            site.seed,
            str(NUM_HOSTS),
            str(NUM_HOSTS),
        ],
    }
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    asked(site)
    for turn in range(rounds):
        for side, command in sides.items():
            told = run_side(command(), site)
            check(site, side)
            speeds[side].append(len(site.urls) / told["seconds"])
            print(
                f"round {turn + 1} of {rounds}, {side}: {speeds[side][-1]:,.0f} pages/s,"
                f" {len(site.urls) / told['cpu_s']:,.0f} per processor second"
                f" (load {os.getloadavg()[0]:.1f})",
                flush=True,
            )
    return speeds


def run_side(command: Sequence[str], site: Site) -> dict[str, float]:
    with pinned(cores()[0]), tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            command, cwd=empty, stdout=subprocess.PIPE, check=True, timeout=1800, text=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def our_command(what: str, target: str) -> list[str]:
    return [sys.executable, str(HERE / SCRIPT), "--side", what, target]


def side(what: str, target: str) -> int:
    """Our side, as a process of its own: a crawl from a seed, or bare loops over a list of URLs."""
    started, before = time.perf_counter(), os.times()
    if what == "crawl":
        crawl(target)
    else:
        asyncio.run(fetch_all(Path(target).read_text().split(), what))
    seconds, after = time.perf_counter() - started, os.times()
    cpu_s = after.user + after.system - before.user - before.system
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s}))
    return 0


def crawl(seed: str) -> None:
    port = seed.split(":")[2].rstrip("/")
    config = {
        "seeds": [seed],
        "allowed_hosts": [f"127.0.0.{1 + number}:{port}" for number in range(NUM_HOSTS)],
        "max_pages": 10_000_000,
        "delay_s": 0,
        "latency_factor": 0,
        "concurrency": NUM_HOSTS,
        "allow_private": True,
    }
    run_crawl(
        CrawlConfig.model_validate(config), RunConfig(root="data", backend="local", workers=1)
    )


async def fetch_all(urls: Sequence[str], what: str) -> None:
    """The crawler's client with as many connections; for "parse" with the links read, for "warc"
    with the WARC written too."""
    hosts: dict[str, list[str]] = {}
    for url in urls:
        hosts.setdefault(url.split("/")[2], []).append(url)
    series = WarcSeries(Path("warc"), "bare", "bare", 1_000_000_000, {})
    async with Fetcher(
        user_agent="FlywheelBot/0.1",
        max_bytes=10_000_000,
        timeout_s=30,
        allow_private=True,
        num_connections=NUM_HOSTS,
    ) as fetcher:

        async def one_host(mine: Sequence[str]) -> None:
            for url in mine:
                page = await fetcher.get(url)
                if what != "fetch":
                    read_page(page.payload, url, page.charset)
                if what == "warc":
                    series.write(page.exchange)

        await asyncio.gather(*map(one_host, hosts.values()))
    series.finish()


def scrapy_python() -> str:
    """The interpreter of Scrapy's own environment, made once."""
    home = CACHE / f"scrapy-{SCRAPY}"
    python = home / "bin" / "python"
    if not (home / "made").exists():
        print(f"making {home}", flush=True)
        subprocess.run(["uv", "venv", "-q", "--clear", "-p", sys.executable, home], check=True)
        install = ["uv", "pip", "install", "-q", "--python", python, f"scrapy=={SCRAPY}"]
        subprocess.run(install, check=True)
        (home / "made").touch()
    return str(python)


def show_limits(site: Site) -> None:
    """A client alone, then with what a crawl adds to it."""
    for what in ("fetch", "parse", "warc", "crawl"):
        urls = site.folder / "urls.txt"
        urls.write_text("\n".join(sorted(site.urls)))
        told = run_side(our_command(what, site.seed if what == "crawl" else str(urls)), site)
        number = len(site.urls)
        print(
            f"{what}: {number / told['seconds']:,.0f} pages/s,"
            f" {1e6 * told['cpu_s'] / number:,.0f} µs of processor time a page",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())

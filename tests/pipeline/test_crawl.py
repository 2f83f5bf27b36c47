"""The crawl over real HTTP on loopback: what is found, kept, refused, retried, and survives kills."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest, read_manifest
from pipeline.crawl import CrawlConfig, main, run_crawl
from pipeline.recrawl import shard_name
from pipeline.resolver import is_public
from pipeline.warc import WarcResponse, iter_responses

REPOSITORY = Path(__file__).resolve().parents[2]
Answer = tuple[int, dict[str, str], bytes]


def html(text: str, *links: str) -> Answer:
    anchors = "".join(f'<a href="{link}">link</a>' for link in links)
    body = f"<html><title>{text}</title><p>{text}</p>{anchors}</html>"
    return 200, {"Content-Type": "text/html; charset=utf-8"}, body.encode()


def redirect(to: str) -> Answer:
    return 302, {"Location": to}, b""


class Site:
    """Routes (path -> answer, or a function of how often it was asked) on a loopback port."""

    def __init__(self, routes: dict[str, Any]) -> None:
        self.routes = routes
        self.asked: list[tuple[str, float]] = []
        self.agents: set[str] = set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                site.asked.append((self.path, time.monotonic()))
                site.agents.add(self.headers["User-Agent"])
                route = site.routes.get(self.path, (404, {"Content-Type": "text/plain"}, b"none"))
                answer = route(site.count()[self.path]) if callable(route) else route
                if answer is None:  # hang up
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: Any) -> None:
                pass  # a client that hangs up is part of the tests

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def count(self) -> Counter[str]:
        return Counter(path for path, _ in self.asked)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Generator[Callable[[dict[str, Any]], Site]]:
    sites: list[Site] = []

    def start(routes: dict[str, Any]) -> Site:
        sites.append(Site(routes))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


def config(*seeds: str, **changes: Any) -> CrawlConfig:
    defaults = {
        "delay_s": 0.0,
        "max_delay_s": 0.05,  # a pause after a failure, that is
        "retry_delay_s": 0.01,
        "max_robots_wait_s": 0.0,
        "allow_private": True,
        "timeout_s": 5.0,
    }
    return CrawlConfig(seeds=list(seeds), **{**defaults, **changes})


def responses(manifest: Manifest) -> list[WarcResponse]:
    found: list[WarcResponse] = []
    for entry in manifest.files:
        items = list(iter_responses(manifest.file_url(entry.name)))
        assert all(isinstance(item, WarcResponse) for item in items)
        assert len(items) == entry.num_rows
        found += [item for item in items if isinstance(item, WarcResponse)]
    return found


def paths(manifest: Manifest, site: Site) -> dict[str, int]:
    """{path: status}, each URL archived once."""
    found = responses(manifest)
    assert len({response.url for response in found}) == len(found) == manifest.counts.rows_out
    return {response.url.removeprefix(site.url): response.http_status for response in found}


SITEMAP = """<?xml version="1.0"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"><url><loc>/orphan</loc></url>
<url><loc>http://example.invalid/y</loc></url></urlset>"""
SMALL = {
    "/": html("home", "/a", "/b#part", "b", "/private/x", "/gone", "mailto:x@y", "/feed.txt"),
    "/a": html("a", "/", "/c?q=1", "//127.0.0.1:1/elsewhere", "http://example.invalid/"),
    "/b": html("b", "/old", '/no" rel="nofollow', "javascript:void(0)", "data:text/html,x"),
    "/c?q=1": html("c", "/a/../d", "/%7Euser"),
    "/d": html("d"),
    "/%7Euser": html("tilde"),
    "/no": html("not to be followed"),
    "/old": redirect("/new"),
    "/new": html("new"),
    "/orphan": html("only in the sitemap"),
    "/feed.txt": (200, {"Content-Type": "text/plain"}, b'<a href="/not-a-link">'),
    "/private/x": html("secret"),
    "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /private\nSitemap: /map.xml\n"),
    "/map.xml": (200, {"Content-Type": "application/xml"}, SITEMAP.encode()),
}


def test_the_reachable_allowed_set_is_archived(serve: Any, run: RunConfig) -> None:
    site = serve(SMALL)
    manifest = run_crawl(config(site.url), run)
    found = paths(manifest, site)
    ok = ["", "a", "b", "c?q=1", "d", "%7Euser", "new", "orphan", "feed.txt", "map.xml"]
    assert found == {**dict.fromkeys(ok, 200), "old": 302, "gone": 404}
    assert manifest.counts.dropped == {"robots": 1}
    assert manifest.counts.rows_in == 13
    assert manifest.facts == {"statuses": {"200": 10, "302": 1, "404": 1}, "not_taken": 0}
    assert site.count()["/private/x"] == 0
    assert site.count()["/robots.txt"] == 1
    by_url = {response.url: response for response in responses(manifest)}
    assert by_url[site.url].payload == SMALL["/"][2]
    assert by_url[site.url].charset == "utf-8"


def test_a_second_run_is_a_no_op_and_an_epoch_is_a_recrawl(serve: Any, run: RunConfig) -> None:
    site = serve(SMALL)
    first = run_crawl(config(site.url), run)
    num_asked = len(site.asked)
    again = run_crawl(config(site.url, concurrency=3, delay_s=0.5), run)
    assert again.content_hash == first.content_hash
    assert len(site.asked) == num_asked
    assert run_crawl(config(site.url, epoch=1, conditional=False), run).key != first.key
    assert len(site.asked) == 2 * num_asked


def test_content_coding_and_charset(serve: Any, run: RunConfig) -> None:
    page = html("gz", "/next")[2]
    site = serve(
        {
            "/": (
                200,
                {"Content-Type": "text/html; charset=nonsense", "Content-Encoding": "gzip"},
                gzip.compress(page),
            ),
            "/next": (200, {"Content-Type": "text/html", "Content-Encoding": "gzip"}, page),
        }
    )
    manifest = run_crawl(config(site.url), run)
    assert {r.payload for r in responses(manifest)} == {page}  # /next is mislabelled
    assert paths(manifest, site) == {"": 200, "next": 200}


def test_limits_of_depth_and_pages(serve: Any, run: RunConfig) -> None:
    site = serve({f"/{i or ''}": html(f"{i}", f"/{i + 1}") for i in range(30)})
    deep = run_crawl(config(site.url, max_depth=3), run)
    assert list(paths(deep, site)) == ["", "1", "2", "3"]
    few = run_crawl(config(site.url, max_pages=7), run)
    assert list(paths(few, site)) == ["", "1", "2", "3", "4", "5", "6"]
    assert few.facts["not_taken"] == 1
    assert few.counts.rows_in == 7


def test_endless_redirects_and_loops_end(serve: Any, run: RunConfig) -> None:
    routes: dict[str, Any] = {f"/r{i}": redirect(f"/r{i + 1}") for i in range(100)}
    routes |= {
        "/": html("home", "/r0", "/loop", "/self", "/file", "/meta"),
        "/loop": redirect("/pool"),
        "/pool": redirect("/loop"),
        "/self": redirect("/self"),
        "/file": redirect("file:///etc/passwd"),
        "/meta": redirect("http://169.254.169.254/latest/"),
    }
    site = serve(routes)
    found = paths(run_crawl(config(site.url), run), site)
    hops = [f"r{i}" for i in range(11)]
    assert found.keys() == {"", "loop", "pool", "self", "file", "meta", *hops}


def test_failures_are_counted_and_retried(serve: Any, run: RunConfig) -> None:
    site = serve(
        {
            "/": html("home", "/flaky", "/dead", "/huge", "/500", "/busy", "/slow"),
            "/flaky": lambda n: html("at last") if n == 3 else None,
            "/dead": lambda n: None,
            "/huge": (200, {"Content-Type": "text/html"}, bytes(30_000)),
            "/500": (500, {}, b"broken"),
            "/busy": lambda n: html("ok") if n == 2 else (503, {"Retry-After": "1"}, b""),
            "/slow": lambda n: time.sleep(1.6) or html("too late"),
        }
    )
    started = time.monotonic()
    manifest = run_crawl(config(site.url, max_bytes=20_000, timeout_s=1.0), run)
    assert paths(manifest, site) == {"": 200, "flaky": 200, "500": 500, "busy": 200}
    assert manifest.counts.dropped == {"connection": 1, "too large": 1, "timeout": 1}
    asked = site.count()
    assert (asked["/flaky"], asked["/500"], asked["/huge"], asked["/slow"]) == (3, 3, 1, 3)
    assert 3 <= asked["/dead"] <= 6  # aiohttp asks again where a kept connection was closed
    retries = {"status 500": 2, "status 503": 1, "timeout": 2}
    assert {**manifest.run["retries"], **retries} == manifest.run["retries"]
    busy = [at for path, at in site.asked if path == "/busy"]
    assert busy[1] - busy[0] >= 1.0  # Retry-After
    assert time.monotonic() - started < 20


def test_one_request_at_a_time_with_the_delay_between(serve: Any, run: RunConfig) -> None:
    site = serve({"/": html("home", *[f"/{i}" for i in range(5)])})
    site.routes |= {f"/{i}": html(str(i)) for i in range(5)}
    run_crawl(config(site.url, delay_s=0.15, concurrency=8), run)
    times = [at for _, at in site.asked]
    assert len(times) == 7
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) >= 0.145


def test_crawl_delay_of_robots_counts_as_a_minimum(serve: Any, run: RunConfig) -> None:
    site = serve({**SMALL, "/robots.txt": (200, {}, b"User-agent: *\nCrawl-delay: 0.2\n")})
    run_crawl(config(site.url, max_pages=3), run)
    times = [at for _, at in site.asked]
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) >= 0.195


def test_hosts_are_crawled_side_by_side(serve: Any, run: RunConfig) -> None:
    routes = {"/": html("home", *[f"/{i}" for i in range(4)])}
    site = serve(routes | {f"/{i}": html(str(i)) for i in range(4)})
    other = site.url.replace("127.0.0.1", "localhost")
    started = time.monotonic()
    manifest = run_crawl(config(site.url, other, delay_s=0.2), run)
    assert manifest.counts.rows_out == 10
    assert time.monotonic() - started < 2 * 5 * 0.2


@pytest.mark.parametrize(
    ("robots", "archived", "reason"),
    [
        ((404, {}, b""), True, ""),
        ((403, {}, b"User-agent: *\nDisallow: /"), True, ""),
        ((503, {}, b""), False, "robots unreachable"),
        (lambda n: None, False, "robots unreachable"),
        ((200, {}, b"User-agent: *\nDisallow: /"), False, "robots"),
        ((200, {}, b"User-agent: FlywheelBot\nDisallow: /\n\nUser-agent: *\nAllow: /"), False, ""),
        ((200, {}, b"User-agent: Other\nDisallow: /"), True, ""),
        ((200, {}, b"User-agent: *\nCrawl-delay: 86400\n"), False, "robots crawl-delay"),
        ((200, {}, b"# " + b"x" * 10_000_000 + b"\nUser-agent: *\nDisallow: /"), True, ""),
        ((301, {"Location": "/real-robots"}, b""), False, "robots"),
        ((301, {"Location": "/robots.txt"}, b""), True, ""),
    ],
)
def test_robots_by_rfc_9309(
    serve: Any, run: RunConfig, robots: Any, archived: bool, reason: str
) -> None:
    site = serve({"/": html("home"), "/robots.txt": robots})
    site.routes["/real-robots"] = (200, {}, b"User-agent: *\nDisallow: /")
    if archived:
        assert paths(run_crawl(config(site.url), run), site) == {"": 200}
    else:
        with pytest.raises(UserError, match=rf"1 x {reason}"):
            run_crawl(config(site.url), run)
        assert site.count()["/"] == 0


def test_a_site_without_one_good_page_leaves_nothing(serve: Any, run: RunConfig) -> None:
    site = serve({"/": (500, {}, b"broken"), "/moved": redirect("http://www.example.invalid/x")})
    with pytest.raises(UserError, match="seen: 1 x status 500;"):
        run_crawl(config(site.url), run)
    assert not list(Path(run.root).rglob("manifest.json"))
    assert not list(Path(run.root).rglob("*.warc.gz*"))
    with pytest.raises(UserError, match=r"1 x status 302; they redirect to www\.example\.invalid"):
        run_crawl(config(site.url + "moved"), run)
    site.routes["/"] = html("mended")
    assert run_crawl(config(site.url), run).counts.rows_out == 1


def test_rotation_names_and_manifest(serve: Any, run: RunConfig) -> None:
    site = serve(SMALL)
    manifest = run_crawl(config(site.url, warc_max_bytes=2500), run)
    assert len(manifest.files) > 2
    prefix = f"{shard_name(0)}/{manifest.key[:12]}-00000-0001"
    assert [f.name for f in manifest.files] == [
        f"{prefix}-{i:05d}.warc.gz" for i in range(len(manifest.files))
    ]
    for entry in manifest.files:
        data = Path(manifest.file_url(entry.name)).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry.sha256
    assert len(paths(manifest, site)) == 12


# --------------------------------------------------------------------------- mistakes of the user


class NoResolver:
    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        raise OSError(None, "Name or service not known")

    async def close(self) -> None:
        pass


class FixedResolver(NoResolver):
    """Every name has these addresses; each question is recorded."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        base = {"hostname": host, "port": port, "family": 2, "proto": 6, "flags": 0}
        return [{**base, "host": address} for address in self.addresses]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "crawl.seeds is empty"),
        ({"seeds": ["example.org"]}, "not a URL: 'example.org'"),
        ({"seeds": ["ftp://127.0.0.1/"]}, "neither http nor https"),
        ({"seeds": ["https://example.org/"]}, "crawling example.org needs crawl.contact"),
        ({"seeds": ["https://example.org/"], "contact": "me"}, "needs crawl.contact"),
        ({"seeds": ["http://localhost/"], "allowed_hosts": ["b.org"]}, "crawling b.org needs"),
        ({"seeds": ["http://localhost/"], "allowed_hosts": ["b.org/x"]}, "'b.org/x' is no host"),
        ({"seeds": ["http://127.0.0.1:9/"], "allow_private": False}, "crawl.allow_private = true"),
        ({"seeds": ["http://0x7f.1:9/"], "allow_private": False}, "127.0.0.1 is 127.0.0.1"),
        ({"seeds": ["http://[::1]:9/"], "allow_private": False}, "not public"),
        ({"seeds": ["http://localhost/"], "allow_networks": ["x"]}, "crawl.allow_networks"),
    ],
)
def test_mistakes_are_named_before_the_first_request(
    run: RunConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.").replace("[", r"\[")):
        run_crawl(config(**changes) if "seeds" not in changes else _config(changes), run)
    assert not list(Path(run.root).rglob("manifest.json"))


def _config(changes: dict[str, Any]) -> CrawlConfig:
    return config(*changes["seeds"], **{k: v for k, v in changes.items() if k != "seeds"})


def test_a_seed_that_does_not_resolve(run: RunConfig) -> None:
    with pytest.raises(UserError, match=r"host 'nowhere\.invalid' does not resolve \(Name or"):
        run_crawl(config("http://nowhere.invalid/", contact="a@b"), run, resolver=NoResolver())


def test_a_seed_with_a_private_address_only(run: RunConfig) -> None:
    with pytest.raises(UserError, match=r"inner\.example is 10\.1\.2\.3, an address that is not"):
        run_crawl(
            config("http://inner.example/", contact="a@b", allow_private=False),
            run,
            resolver=FixedResolver("10.1.2.3"),
        )


def test_remote_roots_are_refused(run: RunConfig) -> None:
    with pytest.raises(UserError, match=r"run\.root = 'memory://x'"):
        run_crawl(config("http://127.0.0.1:9/"), RunConfig(root="memory://x"))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.168.1.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


# ---------------------------------------------------------------------------------- interruptions


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
    # Each run asks for robots.txt, and asks again for the one page in flight at the kill.
    assert len(site.asked) <= num_requests + 2 * len(kill_after)


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
    assert main(["--config", str(path)]) == 0
    assert manifest_of(tmp_path / "data").counts.rows_out == NUM_BIG
    assert len(site.asked) <= NUM_BIG + 1 + 2  # robots.txt each time, and the one in flight
    assert num_asked < NUM_BIG


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

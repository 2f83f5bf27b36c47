"""The crawl over real HTTP on loopback: what is found, kept, refused and retried."""

import gzip
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.crawl import CrawlConfig, run_crawl
from pipeline.recrawl import shard_name
from pipeline.resolver import is_public
from tests.known_web import ORIGIN_FILES
from tests.pipeline import small_site
from tests.pipeline.small_site import SMALL, config, html, paths, redirect, responses

serve = small_site.serve  # the fixture


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
    assert len(times) == 6 + len(ORIGIN_FILES)
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
    manifest = run_crawl(config(site.url, other, delay_s=0.2), run)
    assert manifest.counts.rows_out == 10
    paths = [path for path, _ in site.asked]
    of_one_host = 5 + len(ORIGIN_FILES)
    assert "/robots.txt" in paths[1:of_one_host], "the other host does not wait for this one"


@pytest.mark.parametrize(
    ("robots", "archived", "reason"),
    [
        ((404, {}, b""), True, ""),
        ((403, {}, b"User-agent: *\nDisallow: /"), True, ""),
        ((503, {}, b""), False, "robots unreachable: status 503"),
        (lambda n: None, False, "robots unreachable: connection"),
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


class SomeNames(FixedResolver):
    """Names with "gone" in them have no address."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        if "gone" in host:
            raise OSError(None, "Name or service not known")
        return await super().resolve(host, port, family)


def test_dead_seeds_among_good_ones_are_told_and_counted(
    serve: Any, run: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    site = serve({"/": html("home")})
    port = site.url.rpartition(":")[2]
    seeds = [f"http://gone{n}.example:{port}" for n in range(8)] + [f"http://a.example:{port}"]
    manifest = run_crawl(
        config(*seeds, contact="a@b", max_retries=0), run, resolver=SomeNames("127.0.0.1")
    )
    assert manifest.counts.rows_out == 1
    assert manifest.counts.dropped == {"robots unreachable: dns": 8}
    said = capsys.readouterr().err
    assert "warning: crawl.seeds: host 'gone0.example' does not resolve (Name or" in said
    assert "warning: … and 3 more of crawl.seeds" in said


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

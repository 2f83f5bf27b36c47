"""A crawl after a crawl: every URL that was known is asked for again, and what changed is told."""

import contextlib
import json
import os
import resource
import sqlite3
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.manifest import Manifest
from pipeline.crawl import current_output, run_crawl
from pipeline.frontier_log import FrontierLog
from pipeline.frontier_state import Entry
from pipeline.lease import Lease
from pipeline.recrawl import PAGES, SUM, Changes, PreviousCrawl, shard_name, write_pages
from pipeline.warc import WarcResponse, iter_responses
from tests.pipeline import small_site
from tests.pipeline.small_site import Answer, Site, config, html, redirect

serve = small_site.serve  # the fixture
Serve = Callable[[dict[str, Any]], Site]


def tagged(answer: Answer, etag: str) -> Answer:
    status, headers, body = answer
    return status, {**headers, "ETag": f'"{etag}"'}, body


def noindex(answer: Answer) -> Answer:
    status, headers, body = answer
    return status, {**headers, "X-Robots-Tag": "noindex"}, body


def fresh(manifest: Manifest, site: Site) -> dict[str, int]:
    """{path: status} of the responses, revisits left out."""
    return {response.url.removeprefix(site.url): response.http_status for response in of(manifest)}


def of(manifest: Manifest) -> list[WarcResponse]:
    found = [
        item for file in manifest.files for item in iter_responses(manifest.file_url(file.name))
    ]
    assert all(isinstance(item, WarcResponse) for item in found)
    return [item for item in found if isinstance(item, WarcResponse)]


def crawl(site: Site, run: RunConfig, epoch: int, **changes: Any) -> Manifest:
    site.asked.clear()
    return run_crawl(config(site.url, epoch=epoch, **changes), run)


@contextlib.contextmanager
def pages_of(manifest: Manifest) -> Generator[PreviousCrawl]:
    with contextlib.closing(PreviousCrawl(manifest)) as previous:
        yield previous


def paths_left(manifest: Manifest, site: Site, territory: str = "?") -> list[str]:
    with pages_of(manifest) as previous:
        return [entry.url.removeprefix(site.url) for entry in previous.entries(territory)]


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 3)])
def test_what_was_not_archived_is_asked_for_again(
    serve: Serve, run: RunConfig, before: int, after: int
) -> None:
    """The home page is a 304, whose links nobody reads again."""
    links = ["/hangs-up", "/error", "/unkept", "/private/x", "/moved", "/gone"]
    site = serve(
        {
            "/": tagged(html("home", *links), "1"),
            "/hangs-up": lambda _: None,
            "/error": (500, {}, b"broken"),
            "/unkept": noindex(html("unkept")),
            "/private/x": html("private"),
            "/moved": redirect("/here"),
            "/here": html("here"),
            "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /private\n"),
        }
    )
    first = crawl(site, run, 0, num_shards=before)
    assert fresh(first, site) == {"": 200, "error": 500, "moved": 302, "here": 200, "gone": 404}
    assert {"noindex": 1, "robots": 1}.items() <= first.counts.dropped.items()
    site.routes |= {
        "/hangs-up": html("up"),
        "/error": html("mended"),
        "/unkept": html("kept"),
        "/moved": redirect("/there"),
        "/there": html("there"),
        "/gone": html("back"),
        "/robots.txt": (200, {}, b""),
    }
    second = crawl(site, run, 1, num_shards=after)
    ok = ["hangs-up", "error", "unkept", "private/x", "there", "gone"]
    assert fresh(second, site) == {**dict.fromkeys(ok, 200), "moved": 302}
    assert second.counts.dropped == {}
    assert second.facts["statuses"] == {"200": 7, "302": 1, "304": 1}  # /here is a revisit
    asked = site.count()
    assert set(asked.values()) == {1}


def test_what_a_budget_left_over_comes_after_what_was_taken(serve: Serve, run: RunConfig) -> None:
    site = serve(
        {
            "/": tagged(html("home", "/1", "/2", "/3", "/4", "/5"), "1"),
            **{f"/{i}": tagged(html(f"{i}"), f"{i}") for i in range(1, 6)},
        }
    )
    first = crawl(site, run, 0, max_pages=3)
    assert list(fresh(first, site)) == ["", "1", "2"]
    assert paths_left(first, site) == ["", "1", "2", "3", "4", "5"]
    site.routes["/1"] = noindex(html("no longer"))
    second = crawl(site, run, 1, max_pages=3)  # what has not changed costs none of them
    assert fresh(second, site) == dict.fromkeys("345", 200)
    assert second.facts["not_taken"] == 0
    assert [path for path, _ in site.asked if path[1:].isdigit()] == [f"/{i}" for i in range(1, 6)]
    # A page that its crawl left over keeps what an earlier one knew of it.
    site.routes["/"] = tagged(html("home, anew"), "1b")
    for i in (1, 2):
        site.routes[f"/{i}"] = tagged(html("again"), f"{i}b")
    third = crawl(site, run, 2, max_pages=3)
    assert fresh(third, site) == dict.fromkeys(["", "1", "2"], 200)
    assert third.facts["not_taken"] == 3
    assert paths_left(third, site) == ["", "1", "2", "3", "4", "5"]
    with pages_of(third) as previous:
        kept = previous.find(f"{site.url}3")
        assert kept is not None
        assert kept.etag == '"3"'


def test_one_that_is_gone_twice_is_left_out_until_a_page_links_to_it(
    serve: Serve, run: RunConfig
) -> None:
    site = serve({"/": tagged(html("home", "/gone", "/410"), "1"), "/410": (410, {}, b"")})
    asked: list[int] = []
    for epoch in range(3):
        crawl(site, run, epoch)
        asked.append(site.count()["/gone"] + site.count()["/410"])
    assert asked == [2, 2, 0]
    site.routes["/"] = tagged(html("new links", "/gone"), "2")
    last = crawl(site, run, 3)
    assert (site.count()["/gone"], site.count()["/410"]) == (1, 0)
    assert paths_left(last, site) == ["", "gone"]  # the count began anew


def test_one_that_came_back_between_counts_from_the_beginning(serve: Serve, run: RunConfig) -> None:
    site = serve({"/": tagged(html("home", "/a"), "1")})
    crawl(site, run, 0)
    site.routes["/a"] = html("here")
    crawl(site, run, 1)
    del site.routes["/a"]
    assert paths_left(crawl(site, run, 2), site) == ["", "a"]
    assert paths_left(crawl(site, run, 3), site) == [""]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 3), (3, 2)])
def test_any_number_of_shards_after_any_other(run: RunConfig, before: int, after: int) -> None:
    """Seven hosts, linked to by the first and the one before; one page of each is taken."""
    with contextlib.ExitStack() as stack:
        sites: list[Site] = []
        for number in range(1, 8):
            sites.append(Site({}, f"127.0.0.{number}"))
            stack.callback(sites[-1].close)
        for site, after_it in zip(sites, [*sites[1:], sites[0]], strict=True):
            links = [other.url for other in sites] if site is sites[0] else []
            links += [f"{after_it.url}1", f"{after_it.url}2"]
            site.routes |= {"/": tagged(html("home", *links), "1")}
            site.routes |= {f"/{i}": tagged(html(f"{i}"), f"{i}") for i in (1, 2)}
        keys = {"scope": "any", "contact": "a@b", "connections_per_ip": 50}
        first = crawl(sites[0], run, 0, num_shards=before, max_pages_per_host=1, **keys)
        assert {item.url for item in of(first)} == {site.url for site in sites}
        assert first.facts["not_taken"] == 14
        for site in sites:
            site.routes["/"] = noindex(html("no longer"))
        second = crawl(sites[0], run, 1, num_shards=after, max_pages_per_host=1, **keys)
        assert {item.url for item in of(second)} == {f"{site.url}1" for site in sites}
        assert (second.counts.dropped, second.facts["not_taken"]) == ({"noindex": 7}, 7)


def test_depth_sitemaps_and_priority_are_handed_on(serve: Serve, run: RunConfig) -> None:
    site = serve(small_site.SMALL)
    first = crawl(site, run, 0)
    with pages_of(first) as previous:
        found = {entry.url.removeprefix(site.url): entry for entry in previous.entries("0/1")}
    assert found["map.xml"].is_sitemap
    assert found["orphan"].depth == found["orphan"].priority == 0
    assert found["c?q=1"].depth == found["c?q=1"].priority == 2
    assert {entry.hops for entry in found.values()} == {0}
    assert len(found) == first.counts.rows_in


def test_a_recrawl_that_was_killed_while_it_began_begins_again(
    serve: Serve, run: RunConfig
) -> None:
    site = serve({"/": tagged(html("home", "/a"), "1"), "/a": tagged(html("a"), "1")})
    crawl(site, run, 0)
    folder = Path(current_output(config(site.url, epoch=1), run).url)
    Lease(folder / shard_name(0)).release()  # of an owner that died at once
    second = crawl(site, run, 1)
    assert second.facts["statuses"] == {"304": 2}


def write_log(folder: Path, epoch: int, events: list[str | tuple[str, str]]) -> None:
    """A string becomes known; (URL, what the log says of it: `A` is its address)."""
    log = FrontierLog(folder, epoch)
    at: dict[str, int] = {}
    for event in events:
        if isinstance(event, str):
            (at[event],) = log.append([Entry(event, 1, priority=1).line("+")])
        else:
            log.append([event[1].replace("A", str(at[event[0]]))])
    log.close()


def archived(status: int, digest: str = "aa", end: int = 9) -> str:
    return f"=\tA\t{status}\t{digest}\tx.warc.gz\t{end}\t5\t\te\tm\t2026-01-01T00:00:00Z"


def previous_of(root: Path, num_shards: int = 1) -> PreviousCrawl:
    manifest = Manifest(
        **{
            **dict.fromkeys(Manifest.__dataclass_fields__),
            "url": str(root),
            "run": {"num_shards": num_shards},
        }
    )
    return PreviousCrawl(manifest)


def test_changes_are_counted(tmp_path: Path) -> None:
    names = [f"http://a/{name}" for name in ("same", "304", "new", "other", "gone", "500", "left")]
    same, unmodified, new, other, gone, error, left = names
    known = [name for name in names if name != new]
    before, after = tmp_path / "0" / shard_name(0), tmp_path / "1" / shard_name(0)
    write_log(before, 1, [*known, *((name, archived(200)) for name in known)])
    assert write_pages(before, "0/1", None, lambda _: 9) == Changes(new=6)
    events: list[str | tuple[str, str]] = [
        *names,
        (same, archived(200)),
        (unmodified, archived(304)),
        (new, archived(200)),
        (other, archived(200, "bb")),
        (gone, archived(410)),
        (error, "-\tA\ttimeout"),
    ]
    write_log(after, 1, events)
    with contextlib.closing(previous_of(tmp_path / "0")) as previous:
        changes = write_pages(after, "0/1", previous, lambda _: 9)
    assert changes == Changes(unchanged=2, changed=1, new=1, gone=1, lost=1, not_taken=1)
    with contextlib.closing(previous_of(tmp_path / "1")) as previous:
        found = {name for name in names if previous.find(name)}
        assert found == {same, unmodified, new, other, left}
        order = [entry.url for entry in previous.entries("0/1")]
        assert order == [same, unmodified, new, other, gone, error, left]


def test_a_304_that_nobody_asked_for_is_no_original(tmp_path: Path) -> None:
    folder = tmp_path / shard_name(0)
    write_log(folder, 1, ["http://a/", ("http://a/", archived(304))])
    assert write_pages(folder, "0/1", None, lambda _: 9) == Changes()
    with contextlib.closing(previous_of(tmp_path)) as previous:
        assert previous.find("http://a/") is None


def test_what_its_warc_file_lost_was_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / shard_name(0)
    a, b = "http://a/a", "http://a/b"
    write_log(folder, 1, [a, b, (a, archived(200, "aa", 50)), (b, archived(200, "bb", 20))])
    write_pages(folder, "0/1", None, lambda _: 30)
    with contextlib.closing(previous_of(tmp_path)) as previous:
        assert previous.find(a) is None
        assert [entry.url for entry in previous.entries("0/1")] == [b, a]


def test_a_shard_with_the_same_hosts_reads_its_own_file_alone(tmp_path: Path) -> None:
    for shard in (0, 1):
        folder = tmp_path / shard_name(shard)
        write_log(folder, 1, [f"http://{shard}/"])
        write_pages(folder, f"{shard}/2 x", None, lambda _: 0)
    (tmp_path / shard_name(1) / "mail").mkdir()
    letter = tmp_path / shard_name(1) / "mail" / "00000-000001-00000001.letter"
    letter.write_text(Entry("http://1/late", 2, hops=3).line("+") + "\n")
    with contextlib.closing(previous_of(tmp_path, 2)) as previous:
        assert [entry.url for entry in previous.entries("0/2 x")] == ["http://0/"]
        assert list(previous.entries("1/2 x"))[1] == Entry("http://1/late", 2)
        assert len(list(previous.entries("0/2 y"))) == len(list(previous.entries("0/3 x"))) == 3


@pytest.mark.parametrize("limit", [4096, 30_000])
def test_a_table_that_meets_a_limit_says_so_as_the_system_does(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / shard_name(0)
    write_log(folder, 1, [f"http://a/{number}" for number in range(2000)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="no space left on the disk"):
            write_pages(folder, "0/1", None, lambda _: 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in folder.iterdir()] == ["log-000001.log"]


def _old_layout(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE page (url TEXT PRIMARY KEY, depth INTEGER)")


def _put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _flip(path: Path, wanted: bytes) -> None:
    at = path.read_bytes().index(wanted)
    _put(path, at + 1, bytes([wanted[1] ^ 0x80]))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_old_layout, "was written by another version of Flywheel"),
        (lambda path: path.write_bytes(b"junk" * 1000), "cannot be read (file is not a database)"),
        (lambda path: path.unlink(), "cannot be read (unable to open database file)"),
        (lambda path: path.with_name(SUM).unlink(), "cannot be read ([Errno 2]"),
        (lambda path: path.with_name(SUM).write_text("[" * 100_000), "cannot be read ("),
        (lambda path: path.with_name(SUM).write_text("[]"), "cannot be read ("),
        (lambda path: os.truncate(path, path.stat().st_size - 4096), "cannot be read ("),
        (lambda path: os.truncate(path, path.stat().st_size + 9), "was cut short or grew"),
        (lambda path: _put(path, 2 * 4096, b"\xff" * 100), "is damaged"),
        (lambda path: _flip(path, b'"/etag'), "is damaged"),
        (lambda path: _flip(path, b"http://127"), "is damaged"),
    ],
)
def test_a_table_that_cannot_be_read_is_told(
    serve: Serve, run: RunConfig, spoil: Callable[[Path], object], problem: str
) -> None:
    site = serve({"/": tagged(html("home"), "/etag")})
    first = crawl(site, run, 0)
    spoil(Path(first.url) / shard_name(0) / PAGES)
    with pytest.raises(UserError) as told:
        crawl(site, run, 1)
    assert site.asked == []
    assert problem in str(told.value)
    assert "set crawl.conditional = false" in str(told.value)
    assert json.dumps(str(told.value)).count("\\n") == 0


def test_a_table_that_breaks_while_it_is_read_is_told(tmp_path: Path) -> None:
    folder = tmp_path / shard_name(0)
    names = [f"http://a/{number}" for number in range(2000)]
    write_log(folder, 1, [*names])
    write_pages(folder, "0/1", None, lambda _: 9)
    with contextlib.closing(previous_of(tmp_path)) as previous:
        assert previous.kept(names[0])
        for page in range(1, (folder / PAGES).stat().st_size // 4096):
            _put(folder / PAGES, page * 4096, b"\xff" * 4096)
        with pytest.raises(UserError, match=r"pages.sqlite cannot be read .*put it back"):
            list(previous.entries("0/1"))

"""The frontier: turns of hosts, scope, and a state that no kill can spoil."""

import contextlib
import datetime as dt
import gzip
import hashlib
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.frontier import Archived, Entry, Frontier, Scope, host_of
from pipeline.links import page_links, resolve, sitemap_links
from pipeline.warc import WarcResponse, iter_responses
from pipeline.warc_writer import Exchange, WarcSeries

SCOPE = Scope(frozenset({"a", "b", "c:81"}), max_depth=3)


Open = Callable[..., Frontier]


@pytest.fixture
def frontier(tmp_path: Path) -> Generator[Open]:
    """Opens the frontier of one log, again and again."""
    with contextlib.ExitStack() as stack:

        def open_it(max_pages: int = 1000, warc_bytes: int = 1 << 40) -> Frontier:
            opened = Frontier(tmp_path / "log", SCOPE, max_pages, lambda _name: warc_bytes)
            stack.callback(opened.close)
            return opened

        yield open_it


def done(number: int = 0) -> Archived:
    return Archived(200, "00", "x-00000.warc.gz", 100 + number)


def test_turns(frontier: Open) -> None:
    f = frontier()
    f.add(Entry(url, 0) for url in ["http://a/1", "http://a/2", "https://b/1", "http://c:81/1"])
    first = f.take(0.0)
    assert first == Entry("http://a/1", 0)
    assert f.take(0.0) == Entry("https://b/1", 0)
    assert f.take(0.0) == Entry("http://c:81/1", 0)
    assert f.take(100.0) is None  # a second request to `a` waits for the first
    assert f.next_turn() is None
    f.archive(first, done(), [])
    f.release(first, free_at=5.0)
    assert f.next_turn() == 5.0
    assert f.take(4.9) is None
    assert f.take(5.0) == Entry("http://a/2", 0)
    assert (f.num_known, f.num_finished, f.num_waiting) == (4, 1, 0)


def test_a_host_keeps_its_delay_when_its_queue_runs_dry(frontier: Open) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0)])
    first = f.take(0.0)
    assert first
    f.drop(first, "robots")
    f.release(first, free_at=9.0)
    f.add([Entry("http://a/2", 0)])
    assert f.take(8.9) is None
    assert f.take(9.0) == Entry("http://a/2", 0)


def test_scope_depth_and_doubles(frontier: Open) -> None:
    f = frontier()
    f.add([Entry("http://a/", 0), Entry("http://a/", 1), Entry("http://z/", 0)])
    f.add([Entry("http://c/", 0), Entry("http://c:81/", 0), Entry("http://a/deep", 4)])
    assert f.num_known == 2
    f.add([Entry("http://a/deep", 3)])
    assert f.num_known == 3
    assert host_of("http://a:80/") == "a"


def test_the_budget_counts_what_is_in_flight(frontier: Open) -> None:
    f = frontier(max_pages=2)
    f.add([Entry("http://a/1", 0), Entry("http://b/1", 0), Entry("http://c:81/1", 0)])
    first, second = f.take(0.0), f.take(0.0)
    assert first
    assert second
    assert f.take(0.0) is None
    f.drop(first, "timeout")
    f.release(first, 0.0)
    assert f.take(0.0) is not None


def test_replay_gives_the_same_state(frontier: Open) -> None:
    f = frontier()
    f.add(
        [Entry("http://a/1", 0), Entry("http://a/map", 0, is_sitemap=True), Entry("http://b/1", 0)]
    )
    one = f.take(0.0)
    assert one
    f.archive(one, done(), [Entry("http://a/ä\u2028\n", 1, hops=2), Entry("http://b/2", 1)])
    f.release(one, 0.0)
    two = f.take(0.0)  # http://b/1, in flight at the kill
    assert two
    g = frontier()
    assert g.archived == {"http://a/1": done()}
    left: list[Entry] = []
    while entry := g.take(0.0):
        left.append(entry)
        g.drop(entry, "x")
        g.release(entry, 0.0)
    assert sorted(left, key=str) == sorted(
        [
            Entry("http://a/map", 0, is_sitemap=True),
            Entry("http://a/ä\u2028\n", 1, hops=2),
            Entry("http://b/1", 0),
            Entry("http://b/2", 1),
        ],
        key=str,
    )
    assert [e.url for e in left if e.host == "b"] == ["http://b/1", "http://b/2"]


def test_damage_in_the_middle_is_told(frontier: Open, tmp_path: Path) -> None:
    log = tmp_path / "log"
    f = frontier()
    f.add([Entry("http://a/1", 0)])
    f.add([Entry("http://a/2", 0)])
    log.write_bytes(b"\x00\x00\n" + log.read_bytes())
    with pytest.raises(UserError, match=r"line 1 of .*log is damaged; delete"):
        frontier()


def test_a_page_that_the_warc_lost_waits_again(frontier: Open) -> None:
    f = frontier()
    f.add([Entry("http://a/1", 0), Entry("http://a/2", 0)])
    for number in range(2):
        entry = f.take(0.0)
        assert entry
        f.archive(entry, done(number), [Entry(f"http://b/{number}", 1)])
        f.release(entry, 0.0)
    g = frontier(warc_bytes=100)
    assert g.archived.keys() == {"http://a/1"}
    assert g.num_waiting == 3
    assert g.warc_ends() == {"x-00000.warc.gz": 100}


# A crawl without a network: a page is its number, and links to a few others.
PAGES = {i: [2 * i + 1, 2 * i + 2, i * 5 % 7] for i in range(7)}


def crawl_on(folder: Path, num_steps: int = 1 << 30) -> None:
    """The order of writes that pipeline/crawl.py keeps; ends after so many of them."""
    f = Frontier(folder / "log", SCOPE, 1000, lambda name: WarcSeries.size(folder, name))
    series = WarcSeries(folder, "x", "Test/1", 2500, f.warc_ends())
    try:
        f.add([Entry("http://a/0", 0)])
        while entry := f.take(0.0):
            number = int(entry.url.rpartition("/")[2])
            body = str(number).encode() * 50
            at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
            if (num_steps := num_steps - 1) < 0:
                return
            place = series.write(
                Exchange(entry.url, at, None, b"GET", b"HTTP/1.1 200 OK\r\n\r\n", body)
            )
            if (num_steps := num_steps - 1) < 0:
                return
            links = [Entry(f"http://a/{link}", 1) for link in PAGES.get(number, [])]
            digest = hashlib.sha256(body).hexdigest()
            f.archive(entry, Archived(200, digest, place.name, place.end), links)
            if (num_steps := num_steps - 1) < 0:
                return
            series.rotate_if_full()
            f.release(entry, 0.0)
        series.finish()
    finally:
        f.close()
        series.close()


def archive(folder: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.warc.gz")):
        for item in iter_responses(str(path)):
            assert isinstance(item, WarcResponse)
            found.append((item.url, item.payload_sha256))
    return found


def test_death_between_any_two_writes(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    crawl_on(whole)
    wanted = archive(whole)
    assert len(wanted) == len(set(wanted)) == 15
    assert len(list(whole.glob("*.warc.gz"))) > 2
    for step in range(3 * 15):
        folder = tmp_path / str(step)
        crawl_on(folder, step)
        crawl_on(folder, 3)  # and soon once more
        crawl_on(folder)
        assert archive(folder) == wanted, step
        assert not list(folder.glob("*.open"))


def test_death_in_the_middle_of_a_write(tmp_path: Path) -> None:
    crawl_on(tmp_path / "whole")
    wanted = archive(tmp_path / "whole")
    for cut in range(1, 60, 3):
        folder = tmp_path / str(cut)
        crawl_on(folder, 16)
        log = folder / "log"
        log.write_bytes(log.read_bytes()[:-cut])
        for path in folder.glob("*.open"):
            path.write_bytes(path.read_bytes()[: -7 * cut] if cut % 2 else path.read_bytes() + b"x")
        crawl_on(folder)
        crawl_on(folder)  # the log is readable again
        assert archive(folder) == wanted, cut


# ------------------------------------------------------------------------------------------ links


def test_links_of_a_page() -> None:
    page = """<html><head><base href="/base/"></head><body>
    <a href="x#frag">1</a> <a href="x">double</a> <a href=" y z?q=ü ">2</a>
    <a rel="ugc NoFollow" href="/no">3</a> <area href="//OTHER.example:80/%7ea/../b">
    <a href="javascript:alert(1)">4</a> <a href="mailto:a@b">5</a> <a href="http://[bad">6</a>
    <a name="anchor">7</a> <a href="ftp://h/">8</a> <a href="">9</a>
    <a href="http://bücher.example/">10</a></body></html>""".encode()
    assert page_links(page, "http://h/dir/page", "utf-8") == [
        "http://h/base/x",
        "http://h/base/y%20z?q=%C3%BC",
        "http://other.example/b",
        "http://xn--bcher-kva.example/",
    ]
    assert page_links(page, "http://h/", "no-such-charset")[0] == "http://h/base/x"


@pytest.mark.parametrize(
    "page",
    [b"", b"   ", b"\x00", b"\x00" * 1000, b"<!-- only -->", b"<a>", b"\xff\xfe<", b"<" * 10_000],
)
def test_pages_without_links(page: bytes) -> None:
    assert page_links(page, "http://h/", None) == []


def test_meta_nofollow_and_long_urls() -> None:
    page = b'<a href="/x">1</a>'
    assert (
        page_links(b'<meta name="ROBOTS" content="noindex, NoFollow">' + page, "http://h/", None)
        == []
    )
    assert resolve("/" + "x" * 5000, "http://h/") is None
    deep = b"<div>" * 20_000 + page
    assert isinstance(page_links(deep, "http://h/", None), list)


def test_sitemaps() -> None:
    urls = (
        b'<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        b"<url><loc> http://h/a?x=1&amp;y=2 </loc><lastmod>2026</lastmod></url>"
        b"<url><loc>/b</loc></url><url><loc>/b</loc></url></urlset>"
    )
    wanted = (["http://h/a?x=1&y=2", "http://h/b"], [])
    assert sitemap_links(urls, "http://h/map.xml") == wanted
    assert sitemap_links(gzip.compress(urls), "http://h/map.xml.gz") == wanted
    index = b"<sitemapindex><sitemap><loc>http://h/1.xml</loc></sitemap></sitemapindex>"
    assert sitemap_links(index, "http://h/") == ([], ["http://h/1.xml"])
    for nothing in (b"", b"\x1f\x8bjunk", b"<html><p>404</p>", b"plain", urls[:150]):
        assert sitemap_links(nothing, "http://h/")[1] == []
    lol = b'<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(8)
    )
    assert (
        sitemap_links(lol + b"]><urlset><url><loc>&i;</loc></url></urlset>", "http://h/")[1] == []
    )

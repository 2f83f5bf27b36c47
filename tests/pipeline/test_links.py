"""Links and words for crawlers in pages; against lxml's tree on real pages."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import html

from pipeline.links import (
    MAX_LINKS,
    charset_of,
    read_page,
)
from pipeline.urls import UrlRules, canonical

# ------------------------------------------------------------------------------------ of a page


def test_links_of_a_page() -> None:
    page = """<html><head><base href="/base/"></head><body>
    <a href="x#frag">1</a> <a href="x">double</a> <a href=" y z?q=ü ">2</a>
    <a rel="ugc NoFollow" href="/no">3</a> <area href="//OTHER.example:80/%7ea/../b">
    <a href="javascript:alert(1)">4</a> <a href="mailto:a@b">5</a> <a href="http://[bad">6</a>
    <a name="anchor">7</a> <a href="ftp://h/">8</a> <a href="">9</a>
    <a href="http://bücher.example/">10</a></body></html>""".encode()
    assert read_page(page, "http://h/dir/page", "utf-8").links == [
        "http://h/base/x",
        "http://h/base/y%20z?q=%C3%BC",
        "http://other.example/b",
        "http://xn--bcher-kva.example/",
    ]
    assert read_page(page, "http://h/", "no-such-charset").links[0] == "http://h/base/x"


@pytest.mark.parametrize(
    "page",
    [b"", b"   ", b"\x00", b"\x00" * 1000, b"<!-- only -->", b"<a>", b"\xff\xfe<", b"<" * 10_000],
)
def test_pages_without_links(page: bytes) -> None:
    assert read_page(page, "http://h/", None).links == []


def test_meta_nofollow_and_long_urls() -> None:
    page = b'<a href="/x">1</a>'
    assert (
        read_page(
            b'<meta name="ROBOTS" content="noindex, NoFollow">' + page, "http://h/", None
        ).links
        == []
    )
    assert canonical("/" + "x" * 5000, "http://h/") is None
    deep = b"<div>" * 20_000 + page
    assert read_page(deep, "http://h/", None).links == ["http://h/x"]


@pytest.mark.parametrize(
    ("markup", "hrefs"),
    [
        ("<a href=x>", ["x"]),
        ("<A\nHREF\t=\f'x'>", ["x"]),
        ("<a class=b/href=n><a/href=x/>", ["x/"]),
        ("<a href=x href=n>", ["x"]),
        ("<a href href=n>", []),
        ("<a xhref=n data-href='n' hrefs=n>", []),
        ("""<a title="href='n'>" href="x">""", ["x"]),
        ("<a title=it's href=x><a title=it's href=y>", ["x", "y"]),
        ("<a title='a\"b' href=\"x'y\">", ["x'y"]),
        ("""<p title="<a href='n'>">""", []),
        ('<b ="<a href=n>"><a href=x>', ["x"]),
        ("<!-- <a href=n> --><a href=x>", ["x"]),
        ("<!--><a href=x>-->", ["x"]),
        ("<!---><a href=x>-->", ["x"]),
        ("<!-- --!><a href=x>", ["x"]),
        ("<!-- -- > <a href=n> ---><a href=x>", ["x"]),
        ("<!doctype html><?xml a><a href=x></ b><a href=y>", ["x", "y"]),
        ("<script>if (a<b) '<a href=n>'</script><a href=x>", ["x"]),
        ("<script>'</scripty><a href=n>'</SCRIPT ><a href=x>", ["x"]),
        ("<style><a href=n></style><title><a href=n></title><a href=x>", ["x"]),
        ("<textarea><a href=n></textarea><noscript><a href=x></noscript>", ["x"]),
        ("<svg><title/><a href=x></svg>", ["x"]),
        ("<template><a href=x></template>", ["x"]),
        ("<table><a href=x><tr><select><option></table>", ["x"]),
        ("<abbr href=n><areas href=n><a- href=n>", []),
        ("1 < 2 <3 <> </> <a href=x>", ["x"]),
        ("<a href=x", []),
        ("<a href='x><a href=n>", []),
        ("<script><a href=n>", []),
        ("<!-- <a href=n>", []),
        (
            "<a href='?a=1&amp;b=2&copy=3&copy;&#x41;&#66;&lt&nosuch;'>",
            ["?a=1&b=2&copy=3©AB<&nosuch;"],
        ),
        ("<a href='?&#99999999999999999999;&#0;&#xD800;'>", ["?\ufffd\ufffd\ufffd"]),
        ("<a href='?x&#1;&#x7f;&#xfdd0;&#150;&#x81;'>", ["?x\x01\x7f\ufdd0\u2013\x81"]),
    ],
)
def test_markup(markup: str, hrefs: list[str]) -> None:
    wanted = [canonical(href, "http://h/d/") for href in hrefs]
    assert read_page(markup.encode(), "http://h/d/", "utf-8").links == wanted


def test_links_of_the_head() -> None:
    page = b"""<link rel=canonical href=/own?utm_source=x><link rel="Next" href=/2><link rel=prev href=/0>
    <link rel="alternate" hreflang="de" href="/de"><link rel=alternate type=text/xml href=/feed>
    <link rel=stylesheet href=/css><link rel="canonical nofollow" href=/no><link rel=next>
    <link rel=canonical href=/other>"""
    facts = read_page(page, "http://h/", None)
    assert facts.canonical == "http://h/own"
    assert facts.links == [f"http://h/{name}" for name in ("own", "2", "0", "de", "other")]
    rules = UrlRules(())
    assert read_page(page, "http://h/", None, rules).canonical == "http://h/own?utm_source=x"


def test_what_a_page_says_to_crawlers() -> None:
    page = b"""<meta name=robots content="NoIndex,noarchive"><meta NAME='Robots' content=noai>
    <meta name="robots" content="max-snippet: 5, unavailable_after: Wed, 01 Jan 2020 00:00:00 GMT">
    <meta name="FlywheelBot" content="noimageai"><meta name="otherbot" content="none">
    <meta name="TDM-Reservation" content=" 1 "><meta property=robots content=none><a href=/x>"""
    facts = read_page(page, "http://h/", None)
    said = {"noindex", "noarchive", "noai", "max-snippet: 5"}
    date = "unavailable_after: wed, 01 jan 2020 00:00:00 gmt"
    assert facts.robots_directives == said | {date}
    assert facts.tdm_reservation == "1"
    assert facts.links == ["http://h/x"]
    to_us = read_page(page, "http://h/", None, agent="FlywheelBot").robots_directives
    assert to_us == said | {date, "noimageai"}
    doubled = b"<meta name=robots name=x content=noai content=none>"  # the first of each counts
    assert read_page(doubled, "http://h/", None).robots_directives == {"noai"}
    none = read_page(b"<meta name=robots content=none><a href=/x>", "http://h/", None)
    assert none.robots_directives == {"none", "noindex", "nofollow"}
    assert (none.links, none.tdm_reservation) == ([], None)
    zero = read_page(b"<meta name=tdm-reservation content=0>", "http://h/", None)
    assert zero.tdm_reservation == "0"


@pytest.mark.parametrize(
    ("payload", "header", "wanted"),
    [
        (b"\xef\xbb\xbf<meta charset=koi8-r>", "iso-8859-1", "utf-8"),
        (b"\xff\xfe<\0", "utf-8", "utf-16-le"),
        (b"<meta charset=koi8-r>", " 'ISO-8859-1' ", "cp1252"),
        (b"<meta charset=koi8-r>", None, "koi8-r"),
        (b"<meta charset=koi8-r>", "no-such", "koi8-r"),
        (b"<meta http-equiv=x content='text/html; charset=Shift_JIS'>", None, "cp932"),
        (b"<meta charset=utf-16>", None, "utf-8"),
        (b" " * 1024 + b"<meta charset=koi8-r>", None, "utf-8"),
        (b"<meta charset=unicode_escape>", "rot13", "utf-8"),
        (b"<meta charset='gb2312'>", "\0", "gb18030"),
        (b"", None, "utf-8"),
    ],
)
def test_charsets(payload: bytes, header: str | None, wanted: str) -> None:
    assert charset_of(payload, header) == wanted


@pytest.mark.parametrize(
    ("charset", "query"),
    [
        ("utf-8", "%D1%84%E2%82%AC"),
        ("windows-1251", "%F4%88"),
        ("koi8-r", "%C6&#8364;"),  # no euro there: browsers send its reference
        ("utf-16-le", "%D1%84%E2%82%AC"),
        ("iso-2022-jp", "%D1%84&#8364;"),
    ],
)
def test_legacy_charsets_go_into_queries_as_browsers_send_them(charset: str, query: str) -> None:
    page = '<a href="/ф?q=ф€">'.encode(charset, "xmlcharrefreplace")
    found = read_page(page, "http://h/", charset).links
    wanted = canonical(f"/ф?q={query}".replace("&#8364;", "%E2%82%AC"), "http://h/")
    if charset == "koi8-r":
        wanted = "http://h/%D1%84?q=%C6&"  # behind "#" a fragment begins
    assert found == [wanted]


@pytest.mark.parametrize(
    ("content", "target"),
    [
        ("0;url=/x", "/x"),
        ("0; URL='/x?a=1&amp;b=2'", "/x?a=1&b=2"),
        ('5 , url = "/x" and more', "/x"),
        ("1.5;/x", "/x"),
        (".5;url=/x", "/x"),
        ("0 url=/x", "/x"),
        ("0;url=", None),
        ("30", None),
        ("url=/x", None),
        ("0url=/x", None),
        ("", None),
    ],
)
def test_a_refresh_is_a_link(content: str, target: str | None) -> None:
    quote = "'" if '"' in content else '"'
    page = f"<META HTTP-EQUIV=Refresh content={quote}{content}{quote}>".encode()
    assert read_page(page, "http://h/", None).links == ([f"http://h{target}"] if target else [])
    assert read_page(page + b"<meta name=robots content=nofollow>", "http://h/", None).links == []


def test_frames_are_links() -> None:
    page = b"<frameset cols='1,2'><frame src=a.html><FRAME name=x src='b.html'/></frameset>"
    assert read_page(page, "http://h/", None).links == ["http://h/a.html", "http://h/b.html"]


def test_links_of_real_pages_are_those_of_lxmls_tree(shared_data: Callable[[str], Path]) -> None:
    pages = sorted(shared_data("html/article-extraction-benchmark").rglob("*.html"))
    assert len(pages) > 150
    num_links = 0
    for page in pages:
        payload = page.read_bytes()
        tree = html.document_fromstring(payload, parser=html.HTMLParser(encoding="utf-8"))
        bases = [element.get("href") for element in tree.iter("base") if element.get("href")]
        base = canonical(bases[0] if bases else "", "http://h.example/a/b") or ""
        anchors = [
            canonical(element.get("href"), base)
            for element in tree.iter("a", "area")
            if element.get("href") and "nofollow" not in (element.get("rel") or "").lower().split()
        ]
        heads = {canonical(element.get("href", ""), base) for element in tree.iter("link")}
        heads |= {canonical(element.get("src", ""), base) for element in tree.iter("frame")}
        refreshed = [
            meta.get("content", "") for meta in tree.iter("meta") if meta.get("http-equiv")
        ]
        heads |= {canonical(said.partition("=")[2].strip("'\""), base) for said in refreshed}
        facts = read_page(payload, "http://h.example/a/b", "utf-8")
        wanted = set() if "nofollow" in facts.robots_directives else set(anchors) - {None}
        assert set(facts.links) - wanted <= heads, page.name
        assert wanted <= set(facts.links), page.name
        num_links += len(wanted)
    assert num_links > 5000


HOSTILE = [
    *(b"<div>", b"<a href=x>", b"<b><i><p>x</b>", b"<a><div></a>", b"<form><div></form>", b"<"),
    *(
        b"<a href='",
        b'<a "',
        b"<a =",
        b"<!--",
        b"<!-",
        b"--!",
        b"<script>",
        b"</script",
        b"<title/",
    ),
    *(
        b"<meta name=robots content=x>",
        b"<meta ",
        b"<link rel=next href=x>",
        b"<body a=1>",
        b"&amp",
    ),
    *(
        b"<svg><template>",
        b"<a " + b"b=1 " * 9,
        b"<meta charset",
        b"\0",
        b"<a href=x rel=nofollow>",
    ),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_with_the_page_and_no_faster(piece: bytes) -> None:
    """A tree builder takes minutes for some of these; pytest's own limit ends such a test."""
    assert len(read_page(piece * (3_000_000 // len(piece)), "http://h/", None).links) <= 1
    assert (
        read_page(b'<a title="' + piece * 300_000 + b'" href="/x">', "http://h/", None) is not None
    )


def test_no_page_has_endless_links() -> None:
    page = b"".join(b"<a href=/%d>" % n for n in range(MAX_LINKS + 10))
    assert len(read_page(page, "http://h/", None).links) == MAX_LINKS


def test_torn_and_mixed_markup_never_fails() -> None:
    rng = random.Random(7)
    pieces = [
        *HOSTILE,
        b'"',
        b"'",
        b">",
        b" ",
        b"href=",
        b"/",
        b"rel",
        b"content",
        b"\xff",
        b"&#x",
        b"?",
    ]
    for _ in range(3000):
        page = b"".join(rng.choices(pieces, k=rng.randrange(1, 30)))
        for charset in (None, "utf-16", "shift_jis"):
            read_page(page, "http://h/", charset)


def test_a_long_base_makes_no_endless_links() -> None:
    page = (
        b"<base href=/" + b"b" * 2000 + b"/>" + b"".join(b"<a href=%d>" % i for i in range(50_000))
    )
    links = read_page(page, "http://h/", None).links
    assert 4000 < len(links) < 6000

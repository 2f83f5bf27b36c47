"""Canonical URLs, owners of hosts, scope and traps, against the published vectors."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.urls import (
    MAX_URL_CHARS,
    Scope,
    UrlRules,
    canonical,
    registrable_domain,
    shard_of,
    suffix_list_digest,
    trap_of,
)

BASE = "https://h.example/dir/page?q=1#top"


# -------------------------------------------------------------------------------- canonical URLs


@pytest.mark.parametrize(
    ("href", "wanted"),
    [
        (" /a b\t\n", "https://h.example/a%20b"),
        ("HTTP://EXAMPLE.Org:80/%7ea/../B/./c#d", "http://example.org/B/c"),
        ("//bücher.example:443", "https://xn--bcher-kva.example/"),
        ("https://user:p%40ss@x.example/@me", "https://x.example/@me"),
        (r"\\x.example\a\b", "https://x.example/a/b"),
        ("?", "https://h.example/dir/page"),
        ("", "https://h.example/dir/page?q=1"),
        ("#x", "https://h.example/dir/page?q=1"),
        ("?a=1 #b", "https://h.example/dir/page?a=1%20"),  # as the standard says
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://[::1]:8080", "http://[::1]:8080/"),
        ("http://x.example./a./", "http://x.example/a./"),
        ("http://u@x.example.:81/", "http://x.example:81/"),
        ("//x.example%2e", "https://x.example/"),
        ("http://bücher。/", "http://xn--bcher-kva/"),
        ("http://x.example../", None),
        ("http://./", None),
        ("/a./b.:1", "https://h.example/a./b.:1"),
        ("\ud800", "https://h.example/dir/%EF%BF%BD"),
        ("x//y", "https://h.example/dir/x//y"),
        ("javascript:alert(1)", None),
        ("data:text/html,x", None),
        ("mailto:a@b", None),
        ("ftp://h/", None),
        ("file:///etc/passwd", None),
        ("http://[bad", None),
        ("http://a b/", None),
        ("x" * (MAX_URL_CHARS + 1), None),
        ("ü" * 1000, None),  # 6,000 characters when it is written out
    ],
)
def test_canonical_urls(href: str, wanted: str | None) -> None:
    assert canonical(href, BASE) == wanted


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("/?utm_source=a&id=1&UTM_Medium=b", "/?id=1"),
        ("/?fbclid=1", "/"),
        ("/?id=2&gclid=x&gclid", "/?id=2"),
        ("/?xutm_source=1&utm=2", "/?xutm_source=1&utm=2"),
        ("/?PHPSESSID=0&jsessionid=1&ASPSESSIONIDQQ=2&a", "/?a"),
        ("/?sid=0123456789abcdefABCDEF&b=1", "/?b=1"),
        ("/?sid=42&session=winter-2026", "/?sid=42&session=winter-2026"),
        ("/a;jsessionid=0F3?x=1", "/a?x=1"),
        ("/a;v=1;JSESSIONID=0F3;w=2/b", "/a;v=1;w=2/b"),
        ("/a/..;jsessionid=1/b", "/b"),
        ("/(S(lit3py55t21z5v55vlm25s55))/order.aspx", "/order.aspx"),
        ("/(X(1)S(lit3py55t21z5v55vlm25s55))/a", "/a"),
        ("/wiki/Mercury_(S(x))/a", "/wiki/Mercury_(S(x))/a"),
        ("/?a=1&&b=/(S(lit3py55t21z5v55vlm25s55))/;sid=1", None),
    ],
)
def test_what_says_nothing_about_the_page_goes(url: str, wanted: str | None) -> None:
    assert canonical(f"http://h{url}") == f"http://h{wanted or url}"


def test_rules_can_be_chosen() -> None:
    rules = UrlRules(("ref", "c?"), ("view*",), sort_parameters=True)
    url = "http://h/?z=2&Ref=1&c1=&c12=&views=3&z=1&utm_id=1&a"
    assert canonical(url, None, rules) == "http://h/?a&c12=&utm_id=1&z=2&z=1"
    assert canonical(url, None, UrlRules((), (), (), drop_path_sessions=False)) == url
    assert canonical("http://h/;sid=1", None, UrlRules(drop_path_sessions=False))[-2:] == "=1"
    for bad in ("", "a=b"):
        with pytest.raises(UserError, match=re.escape(repr(bad))):
            UrlRules((bad,))


def vectors(folder: Path) -> list[dict]:
    found = json.loads((folder / "wpt-url-vectors" / "wpt" / "urltestdata.json").read_text())
    return [vector for vector in found if isinstance(vector, dict)]


def test_whatwg_vectors(shared_data: Callable[[str], Path]) -> None:
    """Each parses or is refused as the standard says; what is added is not to be seen in them."""
    keep = UrlRules((), (), (), drop_path_sessions=False)
    num_web = num_dotted = 0
    for vector in vectors(shared_data("crawl/wpt-url-vectors")):
        if (base := vector["base"]) and not base.startswith("http"):
            continue  # no page of a crawl lies there
        found = canonical(vector["input"], base, keep)
        if vector.get("failure") or vector["protocol"] not in ("http:", "https:"):
            assert found is None, vector
            continue
        name, port = vector["hostname"], vector["port"]
        name = name.removesuffix(".")
        host = f"{name}:{port}" if port else name
        wanted = f"{vector['protocol']}//{host}{vector['pathname']}{vector['search']}"
        is_no_name = not name or name.endswith(".")
        assert found == (None if is_no_name else wanted), vector
        num_dotted += name != vector["hostname"]
        num_web += 1
        assert found is None or canonical(found) == canonical(canonical(found) or "")
    assert num_web > 200
    assert num_dotted > 0  # where we differ


PIECES = st.sampled_from(
    [
        *(
            "http://",
            "HTTPS://",
            "//",
            "/",
            "h.",
            "h..:1/",
            "\\",
            "..",
            ".",
            "%2e",
            "?",
            "&",
            "=",
            ";",
            "#",
            "@",
        ),
        *(
            ":",
            "a",
            "Ä",
            "é",
            " ",
            "\t",
            "%",
            "%C3%A9",
            "(",
            "S(",
            "))",
            "aspx",
            "x" * 24,
            "\ud83d",
        ),
        *(";jsessionid=", "sid=", "0123456789abcdef0", "utm_x=1", "phpsessid", "[::1]", "1.2"),
        *("/(S(lit3py55t21z5v55vlm25s55))", "http://h/"),
    ]
)


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=40), st.booleans())
@example("/..;jsessionid=1/;sid=2/(S(lit3py55t21z5v55vlm25s55));sid=/..", False)
@example("?&utm_x=1&", True)
def test_canonical_is_idempotent(href: str, sort: bool) -> None:
    rules = UrlRules(sort_parameters=sort)
    for base in (BASE, None):
        once = canonical(href, base, rules)
        if once is not None:
            assert canonical(once, None, rules) == once
            assert canonical(once, BASE, rules) == once
            assert "#" not in once


# ----------------------------------------------------------------------------------- who owns it


def test_public_suffix_vectors(shared_data: Callable[[str], Path]) -> None:
    """checkPublicSuffix: null means that nobody could register it, so it stands for itself."""
    folder = shared_data("crawl/publicsuffix") / "publicsuffix"
    text = (folder / "public_suffix_list.dat").read_text()
    private = text.partition("===BEGIN PRIVATE DOMAINS===")[2].split()
    checks = re.findall(
        r"^checkPublicSuffix\('([^']+)', (?:'([^']+)'|null)\);",
        (folder / "tests" / "test_psl.txt").read_text(),
        re.MULTILINE,
    )
    assert len(checks) > 70
    num_private = 0
    for host, owner in checks:
        found = registrable_domain(host)
        if any(
            host.lower().endswith(f".{rule}") or host == rule for rule in private if "." in rule
        ):
            num_private += 1
            assert found == ".".join(host.lower().split(".")[-2:])
        elif host.startswith("."):
            assert found in ("com", "example", "example.com", "example.example", host)
        else:
            wanted = owner or host
            assert found == registrable_domain(wanted), host
            assert found == wanted.lower().encode("idna").decode(), host
    assert 0 < num_private < 10


@pytest.mark.parametrize(
    ("host", "owner"),
    [
        ("www.b.co.uk", "b.co.uk"),
        ("bucket.s3.amazonaws.com", "amazonaws.com"),
        ("me.github.io", "github.io"),
        ("www.city.kobe.jp", "city.kobe.jp"),
        ("a.b.c.kobe.jp", "b.c.kobe.jp"),
        ("Example.ORG.:8080", "example.org"),
        ("127.0.0.1", "127.0.0.1"),
        ("[2001:db8::1]:81", "[2001:db8::1]"),
        ("localhost:8000", "localhost"),
        ("a.b.localhost", "b.localhost"),
        ("co.uk", "co.uk"),
        ("", ""),
        (".".join("a" * 127), "a.a"),
    ],
)
def test_owners(host: str, owner: str) -> None:
    assert registrable_domain(host) == owner


def test_shards_are_of_owners_and_what_they_were_in_the_first_release() -> None:
    assert shard_of("www.example.org", 64) == shard_of("EXAMPLE.org:81", 64)
    hosts = [f"site{n}.example{n}.com" for n in range(4000)]
    sizes = [[shard_of(host, 8) for host in hosts].count(shard) for shard in range(8)]
    assert min(sizes) > 400
    assert [shard_of(host, 1000) for host in ("example.org", "b.co.uk", "127.0.0.1")] == SHARDS
    assert re.fullmatch("[0-9a-f]{16}", suffix_list_digest())


SHARDS = [277, 235, 964]

# ----------------------------------------------------------------------------------------- traps


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 3000, "trap: long"),
        ("a/" * 21, "trap: too many segments"),
        ("a/b/a/b/a/b/a/b", "trap: repeated segments"),
        ("img/css/img/js/img/x/img/y", "trap: repeated segments"),
        ("x//////y", "trap: repeated segments"),
        ("?" + "&".join(f"f{n}=1" for n in range(21)), "trap: too many parameters"),
        ("calendar/2031/01/", "trap: calendar"),
        ("events?month=2040-11", "trap: calendar"),
        ("agenda?year=1902&month=3", "trap: calendar"),
        ("list/2077-05-30", "trap: calendar"),
        ("calendar/2028/03", "trap: calendar"),
        ("calendar/2028/march/", "trap: calendar"),
        ("calendar/Jan-2028", "trap: calendar"),
        ("kalender/03/2028", "trap: calendar"),
        ("calendar/2028", "trap: calendar"),
        ("calendar/week/20280301", "trap: calendar"),
        ("events/2028-03/", "trap: calendar"),
        ("events/month/2028-03/", "trap: calendar"),
        ("termine/2028/3", "trap: calendar"),
        ("x/events/list/?tribe-bar-date=2028-03-01", "trap: calendar"),
        ("x?start_date=1&month=202803", "trap: calendar"),
        ("?page=cal&yr=1&year=2028&month=3", "trap: calendar"),
        ("", None),
        ("1/1/1/1/1/1", None),
        ("a/b/a/b/a/b", None),
        ("calendar/2027/12", None),
        ("calendar/1998/03", None),
        ("events/2027-12/", None),
        ("events/2028/03/world-congress-of-bees", None),
        ("events/2028-03-games", None),
        ("calendar/event/203112", None),
        ("agenda/item-4052", None),
        ("calendar-2050-model/12", None),
        ("product?date=2050", None),
        ("strategy-2040/may-plan", None),
        ("news/2026/11/2030-agenda-for-development", None),
        ("agenda-2030/11-goals", None),
        ("2019/03/14/todays-agenda", None),
        ("archive/1931-03", None),
        ("archive?date=1931-03-02", None),
        ("issue/1850/12/agenda-of-the-senate.html", None),
        ("events/1931-03/", None),
        ("2009/11/11/news", None),
        ("1865/04/15/archives/lincoln", None),
        ("events/1969/07/20", None),
        ("item/5012/10/12", None),
        ("item/9999-12-31", None),
        ("vision/2050/12/report", None),
        ("?" + "&".join(f"f{n}=1" for n in range(20)), None),
    ],
)
def test_traps(path: str, reason: str | None) -> None:
    assert trap_of(f"https://h.example/{path}", year=2026) == reason


def test_links_of_real_pages_are_no_traps(shared_data: Callable[[str], Path]) -> None:
    pages = sorted((shared_data("html/article-extraction-benchmark")).rglob("*.html*"))
    assert len(pages) > 100
    found: set[str] = set()
    for page in pages:
        data = page.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        hrefs = re.findall(rb'href="([^"&]+)"', data)
        urls = (canonical(href.decode("utf-8", "replace"), "https://h.example/") for href in hrefs)
        found.update(url for url in urls if url)
    refused = [url for url in found if trap_of(url, year=2026)]
    assert len(found) > 10_000
    assert len(refused) <= len(found) / 1000, refused


# ----------------------------------------------------------------------------------------- scope


def test_scope() -> None:
    scope = Scope(
        allowed_hosts=["Solo.example", "dev.example:8080"],
        allowed_domains=["example.org", "bücher.example"],
        blocked_domains=["bad.example.org"],
        exclude=["/private/", r"\.zip$"],
        include=[r"^/(docs|private)/", r"\?print=1"],
        max_depth=3,
    )
    for url, reason in {
        "http://solo.example/docs/": None,
        "https://a.b.example.org/docs/?x=1": None,
        "https://example.org:444/docs/": None,
        "http://xn--bcher-kva.example/x?print=1": None,
        "http://dev.example:8080/docs/": None,
        "http://dev.example/docs/": "scope: host",
        "http://sub.solo.example/docs/": "scope: host",
        "http://notexample.org/docs/": "scope: host",
        "http://example.org.evil.example/docs/": "scope: host",
        "http://bad.example.org/docs/": "scope: blocked domain",
        "http://x.bad.example.org:81/docs/": "scope: blocked domain",
        "http://example.org/": "scope: path not included",
        "http://example.org/private/": "scope: path excluded",
        "http://example.org/docs/a.zip": "scope: path excluded",
        "ftp://example.org/docs/": "scope: scheme",
    }.items():
        assert scope.refusal(url, 3) == reason, url
    assert scope.refusal("http://solo.example/docs/", 4) == "scope: depth"


def test_empty_lists_allow_all_but_what_is_blocked() -> None:
    scope = Scope(blocked_domains=["x.example", "10.0.0.1"], schemes=["https"], ports=[443, 8443])
    assert scope.refusal("https://any.example/", 0) is None
    assert scope.refusal("https://[::1]:8443/", 0) is None
    assert scope.refusal("https://any.example:444/", 0) == "scope: port"
    assert scope.refusal("http://any.example/", 0) == "scope: scheme"
    assert scope.refusal("https://a.x.example./", 0) == "scope: blocked domain"
    assert scope.refusal("https://10.0.0.1/", 0) == "scope: blocked domain"
    assert Scope(include=["(?i)^/A", "(?P<n>b)", "(?P<n>c)"]).refusal("http://h/a", 0) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed_hosts": ["http://h/"]},
        {"allowed_hosts": ["h/path"]},
        {"allowed_hosts": [""]},
        {"allowed_domains": ["h:80x"]},
        {"allowed_domains": ["example.org:8080"]},
        {"blocked_domains": ["*.example.org"]},
        {"schemes": ["ftp"]},
        {"ports": [0]},
        {"ports": [65536]},
        {"include": ["ok", "(["]},
        {"exclude": ["*"]},
    ],
)
def test_mistakes_in_a_scope_are_named(wrong: dict) -> None:
    (values,) = wrong.values()
    with pytest.raises(UserError, match=re.escape(repr(values[-1]))):
        Scope(**wrong)

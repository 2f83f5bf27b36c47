"""robots.txt: RFC 9309 against a second implementation, hostile files, real files."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego

from pipeline.robots import (
    MAX_ROBOTS_BYTES,
    MAX_RULE_CHARS,
    MAX_WILDCARDS,
    binding_text,
    product_token,
    robots_url,
    rules_for,
)

AGENT = "FlywheelBot"
AI_AGENTS = ("CCBot", "GPTBot", "Google-Extended")


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        *((status, False) for status in (200, 204, 500, 503, 100, 429)),
        *((status, True) for status in (400, 401, 403, 404, 410, 301)),
    ],
)
def test_the_status_decides_first(status: int, allowed: bool) -> None:
    rules = rules_for(status, b"User-agent: *\nDisallow: /", AGENT)
    assert rules.allows("http://h/x") is allowed
    assert rules.retry_at is None


def test_groups_longest_match_and_wildcards() -> None:
    body = b"""\xef\xbb\xbfUser-agent: *
Disallow: /

User-agent: flywheelbot
Disallow: /a
Allow: /a/b
Disallow: /*.pdf$
Crawl-delay: 2.5
Sitemap: http://h/map.xml
Sitemap: /other.xml
"""
    rules = rules_for(200, body, AGENT)
    paths = {"/": True, "/a/x": False, "/a/b/c": True, "/x.pdf": False, "/x.pdf?y": True}
    assert {path: rules.allows(f"http://h{path}") for path in paths} == paths
    assert rules.delay_s == 2.5
    assert rules.sitemaps == ("http://h/map.xml", "/other.xml")
    assert not rules_for(200, body, "OtherBot").allows("http://h/")


def test_the_examples_of_rfc_9309() -> None:
    simple = b"""User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""  # §5.1

    def allowed(agent: str, *paths: str) -> list[bool]:
        rules = rules_for(200, simple, agent)
        return [rules.allows(f"https://www.example.com{path}") for path in paths]

    paths = ("/", "/example/page.html", "/example/allowed.gif", "/x.gif", "/publications/")
    assert allowed("foobot", *paths) == [False, True, True, False, False]
    assert allowed("barbot", *paths) == allowed("bazbot", *paths) == [True, False, True, True, True]
    assert allowed("quxbot", *paths) == [True] * 5
    assert allowed("other", *paths) == [True, False, False, False, True]

    longest = b"User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n"
    rules = rules_for(200, longest, "foobot")  # §5.2
    assert rules.allows("http://h/example/page/")
    assert not rules.allows("http://h/example/page/disallowed.gif")

    two = b"user-agent: FooBot\nDisallow: /a\nuser-agent: *\nDisallow: /b\nuser-agent: foobot\nDisallow: /c\n"
    rules = rules_for(200, two, "FOOBOT")  # §2.2.1: groups of one name are one
    assert [rules.allows(f"http://h/{path}") for path in "abc"] == [False, True, False]


@pytest.mark.parametrize(
    ("heading", "binds"),
    [
        ("User-agent: FlywheelBot", True),
        ("user agent : FLYWHEELBOT", True),
        ("User-agent: FlywheelBot/2.0 (the crawler)", True),
        ("User-agent: FlywheelBot*  # comment", True),
        ("User-agent: Flywheel", False),  # a part of our name is not our name
        ("User-agent: FlywheelBot-News", False),
        ("User-agent: NotFlywheelBot", False),
        ("User-agent: *", True),
        ("User-agent: a\nSitemap: http://h/s\nX-Unknown: y\n\nUser-agent: *", True),
        ("User-agent: *\nUser-agent: b", True),
        ("User-agent: *\xa0", True),
        ("User-agent: *bot", False),
        ("User-agent: *\nDisallow:\nUser-agent: b", False),
        ("", False),
    ],
)
def test_whom_a_group_binds(heading: str, binds: bool) -> None:
    rules = rules_for(200, f"{heading}\nDisallow: /\n".encode(), AGENT)
    assert rules.allows("http://h/x") is not binds


def test_ai_opt_outs_bind_where_no_group_is_our_own() -> None:
    body = (
        b"User-agent: *\nDisallow: /private\n\nUser-agent: GPTBot\nUser-agent: CCBot\nDisallow: /\n"
    )

    def refusals(body: bytes, also_obey: tuple[str, ...]) -> list[str | None]:
        rules = rules_for(200, body, AGENT, also_obey)
        return [rules.refusal(f"http://h/{path}") for path in ("", "private")]

    assert refusals(body, ()) == [None, "robots"]
    assert refusals(body, ("Google-Extended",)) == [None, "robots"]
    assert refusals(body, ("ccbot",)) == ["ai opt-out: robots", "robots"]
    ours = body + b"\nUser-agent: FlywheelBot\nDisallow: /private\n"
    assert refusals(ours, AI_AGENTS) == [None, "robots"]
    only = b"User-agent: GPTBot\nDisallow: /private\n"
    assert refusals(only, AI_AGENTS) == [None, "ai opt-out: robots"]
    empty = b"User-agent: *\nAllow: /%s\n\nUser-agent: GPTBot\nDisallow: /\n" % (b"a" * 5000)
    assert refusals(empty, AI_AGENTS) == ["ai opt-out: robots"] * 2
    assert refusals(empty, ()) == [None, None]


def test_delays() -> None:
    def delay(text: str) -> float:
        return rules_for(200, f"User-agent: *\n{text}\n".encode(), AGENT).delay_s

    assert delay("Request-rate: 1/10") == 10.0
    assert delay("Request-rate: 2/1m") == 30.0
    assert delay("Crawl-delay: 20\nRequest-rate: 1/10") == 20.0
    for nonsense in ("soon", "nan", "inf", "-1", ""):
        assert delay(f"Crawl-delay: {nonsense}") == 0.0
    for too_slow in ("Crawl-delay: 7200", "Crawl-delay: 1e308", f"Request-rate: 1/{'9' * 400}"):
        rules = rules_for(200, f"User-agent: *\n{too_slow}\n".encode(), AGENT)
        assert rules.refusal("http://h/") == "robots crawl-delay"


def test_only_the_first_500_kb_count_and_whole_lines_of_them() -> None:
    start = b"User-agent: *\nDisallow: /a\n"
    filler = b"# x\n" * (MAX_ROBOTS_BYTES // 4)
    rules = rules_for(200, start + filler + b"Disallow: /b\n", AGENT)
    assert not rules.allows("http://h/a")
    assert rules.allows("http://h/b")
    assert rules.oddities == ("cut",)
    half = start + b"#" * (MAX_ROBOTS_BYTES - len(start) - 13) + b"\nDisallow: /bcd\n"
    assert half[:MAX_ROBOTS_BYTES].endswith(b"\nDisallow: /b")
    assert rules_for(200, half, AGENT).allows("http://h/b")


def test_names() -> None:
    assert robots_url("https://h:8443/a/b?c") == "https://h:8443/robots.txt"
    assert robots_url("http://h/") == "http://h/robots.txt"
    assert product_token("FlywheelBot/0.1 (+http://h)") == "FlywheelBot"
    assert product_token("FlywheelBot x") == "FlywheelBot"


@pytest.mark.parametrize(
    ("body", "oddities"),
    [
        (b"", ()),
        (b"\x00\xff\xfe" * 100, ("binary",)),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03" * 9, ("binary",)),
        (b"<html>404</html>", ("html",)),
        (b"\n<!DOCTYPE html>\n<pre>\nUser-agent: *\nDisallow: /\n", ("html",)),
        (b"Disallow: /", ()),
        (b"User-agent", ()),
        (b"\r\r\n:::\n", ()),
    ],
)
def test_nonsense_allows_all(body: bytes, oddities: tuple[str, ...]) -> None:
    rules = rules_for(200, body, AGENT)
    assert rules.allows("http://h/x")
    assert rules.oddities == oddities


def test_other_encodings_and_line_ends() -> None:
    text = "User-agent: *\rDisallow: /a\r\nDisallow: /é\u2028Allow: /\nDisallow: /b\x00"
    for body in (text.encode(), text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode()):
        rules = rules_for(200, body, AGENT)
        assert not rules.allows("http://h/a")
        assert not rules.allows("http://h/%C3%A9%E2%80%A8Allow:%20/x")
        assert rules.allows("http://h/%C3%A9x")
        assert rules.allows("http://h/b")
    with_word = b"# for <html> pages\nUser-agent: *\nDisallow: /a\n"
    assert not rules_for(200, with_word, AGENT).allows("http://h/a")
    with_comment = b"<!-- $Id$ -->\nUser-agent: *\nDisallow: /a\n"  # www.uspto.gov has one
    assert not rules_for(200, with_comment, AGENT).allows("http://h/a")


_STAR = b"User-agent: *\n"
_HOSTILE = {
    "10 MB": _STAR + b"Disallow: /a\n" * 800_000,
    "one line of 10 MB": _STAR + b"Disallow: /" + b"a" * 10_000_000,
    "one field of 10 MB": b"User-agent" + b" " * 10_000_000,
    "NULs": b"\0" * 10_000_000,
    "line ends": b"\r" * 10_000_000,
    "1e5 groups": b"".join(b"User-agent: b%d\nDisallow: /\n" % i for i in range(100_000)),
    "1e5 groups of ours": b"User-agent: *\nDisallow: /\n" * 100_000,
    "agents x rules": b"".join(b"User-agent: b%d\n" % i for i in range(12_000))
    + b"Allow: /\n" * 30_000,
    "our name x rules": b"User-agent:*\n" * 18_000 + b"Allow:/a\n" * 30_000,
    "opt-outs x rules": b"User-agent:ccbot\nUser-agent:*\n" + b"Allow:/\n" * 60_000,
    "one rule of wildcards": _STAR + b"Disallow: /" + b"*a" * 200_000 + b"b$\n",
    "rules of wildcards": _STAR + (b"Disallow: /" + b"*a" * 1000 + b"b$\n") * 250,
    "wildcard rules": _STAR + b"".join(b"Allow:/*aaaaaaaab%d\n" % i for i in range(20_000)),
    "anchors": _STAR + b"".join(b"Allow:/a%d$\n" % i for i in range(40_000)),
    "breaks": _STAR + "Disallow: \u2028\n".encode() * 40_000,
}


@pytest.mark.timeout(30)  # exponential or quadratic, each would take minutes; it takes 0.5 s
@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_files_cost_little(name: str) -> None:
    rules = rules_for(200, _HOSTILE[name], AGENT, AI_AGENTS)
    urls = ["http://h/" + "a" * 4000, "http://h/" + "ab" * 2000 + "?c"]
    for url in urls * 20:
        rules.allows(url)
    text, _ = binding_text(_HOSTILE[name], AGENT, AI_AGENTS)
    assert len(text) < 4 * MAX_ROBOTS_BYTES


def test_a_rule_too_many_forbids_more_and_never_less() -> None:
    stars = "/x" + "*a" * (MAX_WILDCARDS // 2)
    text = f"User-agent: *\nDisallow: {stars}b\nAllow: /x*c\nDisallow: {stars}d\nAllow: /x{stars}"
    rules = rules_for(200, text.encode(), AGENT)
    assert rules.oddities == ("rules cut",)
    assert not rules.allows("http://h/x")
    assert rules.allows("http://h/xc")  # within the limit still
    assert rules.allows("http://h/y")
    everywhere = f"User-agent: *\nDisallow: {'*a' * MAX_WILDCARDS}*"
    assert not rules_for(200, everywhere.encode(), AGENT).allows("http://h/")
    for allow in ("/x" + "*a" * (MAX_WILDCARDS + 1), "/x" + "a" * MAX_RULE_CHARS):
        text = f"User-agent: *\nDisallow: /\nAllow: {allow}"
        assert not rules_for(200, text.encode(), AGENT).allows("http://h/x" + "a" * 5000)


# RFC 9309 once more, from its text: groups by product token, the longest pattern wins and Allow
# wins a tie, `*` and a final `$`. It knows none of protego's leniencies.
def _reference(body: bytes, agent: str) -> Callable[[str], bool]:
    groups: dict[str, list[tuple[str, str]]] = {}
    current: list[str] = []
    had_rule = True
    text = body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", errors="replace")
    for line in re.split("[\r\n]+", text):
        field, colon, value = line.partition("#")[0].partition(":")
        field, value = field.strip().lower(), value.strip()
        if not colon:
            continue
        if field in ("user-agent", "user agent", "useragent"):
            if had_rule:
                current, had_rule = [], False
            current.append(re.match(r"\*|[a-z0-9_-]*", value.lower())[0])
            groups.setdefault(current[-1], [])
        elif field in ("allow", "disallow", "crawl-delay", "request-rate", "dissallow", "disalow"):
            had_rule = True
            for name in current:
                if value and not field.startswith(("crawl", "request")):
                    groups[name].append((field, value))
    rules: list[tuple[int, bool, re.Pattern[str]]] = []
    for field, pattern in groups.get(agent.lower(), groups.get("*", [])):
        expression = ".*".join(map(re.escape, re.split(r"\*+", pattern.removesuffix("$"))))
        expression += "$" if pattern.endswith("$") else ""
        rules.append((len(pattern), field == "allow", re.compile(expression)))

    def allows(path: str) -> bool:
        found = ((length, allow) for length, allow, pattern in rules if pattern.match(path))
        return max(found, default=(0, True))[1]

    return allows


def _paths_to_try(body: bytes) -> list[str]:
    """Paths that the file's own rules are about, and some that any site has."""
    found = re.findall(rb"(?i)allow\s*:\s*(/[!-~]{0,80})", body)
    own = [value.decode().replace("*", "x").rstrip("$") for value in found[:: len(found) // 20 + 1]]
    plain = [path for path in own if re.fullmatch(r"[A-Za-z0-9_./=-]+", path)]
    return [*plain, *(f"{path}z" for path in plain), *_COMMON]


_COMMON = ["/", "/search", "/a/b/c.html", "/images/x.jpg", "/wp-admin/x", "/cgi-bin/y", "/x.pdf"]


def _real_files(shared_data: Callable[[str], Path]) -> list[Path]:
    folder = shared_data("crawl/robots")
    files = [path for path in folder.rglob("*") if path.is_file() and "LICENSE" not in path.name]
    assert len(files) == 2116
    return sorted(files)


# What the reference above does not know, each looked at.
_DIFFER = {
    "www.cmegroup.com": "it forbids /robots.txt, which is always allowed (§2.2.2)",
    "www.telstra.com.au": "protego, as Google: Allow: /x/index.html allows /x/ too",
    "www.toyoko-inn.com": "the same, with Disallow: /x/$ beside it",
}
# And what protego alone does not read, and we do: a path that each of these forbids.
_WE_READ_MORE = {
    "store.usps.com": "/store/cart/",  # UTF-16
    "www.myvue.com": "/login",  # UTF-16
    # `User-agent: *`, then a no-break space in Latin-1
    "www.turktelekom.com.tr": "/destek/Sayfalar/gizlilik-guvenlik.aspx",
}


def test_real_files_as_the_reference_says(shared_data: Callable[[str], Path]) -> None:
    differ: Counter[str] = Counter()
    compared = forbidden = 0
    for path in _real_files(shared_data):
        body = path.read_bytes()
        rules = rules_for(200, body, AGENT)
        reference = _reference(body, AGENT)
        for url_path in _paths_to_try(body):
            compared += 1
            forbidden += not reference(url_path)
            if rules.allows(f"http://h{url_path}") != reference(url_path):
                differ[path.name] += 1
    assert set(differ) == set(_DIFFER)
    assert compared > 20_000
    assert forbidden > 3000


def test_real_files_whole_and_cut_to_what_binds_us_say_the_same(
    shared_data: Callable[[str], Path],
) -> None:
    """protego over the whole file is the second opinion on our choice of groups."""
    oddities: Counter[str] = Counter()
    for path in _real_files(shared_data):
        body = path.read_bytes()
        rules = rules_for(200, body, AGENT)
        oddities.update(rules.oddities)
        whole = Protego.parse(body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", errors="replace"))
        if path.name in _WE_READ_MORE:
            url = f"http://h{_WE_READ_MORE[path.name]}"
            assert whole.can_fetch(url, AGENT)
            assert not rules.allows(url)
            continue
        urls = [f"http://h{url_path}" for url_path in _paths_to_try(body)[::4]]
        assert [whole.can_fetch(url, AGENT) for url in urls] == [rules.allows(u) for u in urls]
        assert list(dict.fromkeys(whole.sitemaps)) == list(rules.sitemaps)
        text, _ = binding_text(body, AGENT, AI_AGENTS)
        assert binding_text(text.encode(), AGENT, AI_AGENTS)[0] == text
        with_ai = rules_for(200, body, AGENT, AI_AGENTS)
        for url in urls:
            names = [AGENT] if _names_us(whole) else [AGENT, *AI_AGENTS]
            assert with_ai.allows(url) == all(whole.can_fetch(url, name) for name in names)
    assert oddities == {"html": 80, "cut": 1, "binary": 1}


def _names_us(whole: Protego) -> bool:
    return AGENT.lower() in whole._user_agents


_LINES = st.sampled_from(
    [
        *("User-agent: *", "User-agent: FlywheelBot", "User-agent: CCBot", "User-agent: x"),
        *("Disallow: /a", "Allow: /a/b", "Disallow:", "Disallow: /", "Allow: /*b$", "Disallow: *c"),
        *("Crawl-delay: 3", "Sitemap: http://h/s", "# c", "", "Unknown: y", "nonsense"),
    ]
)


@given(st.lists(_LINES, max_size=12).map("\n".join))
def test_a_binding_text_is_its_own_and_means_the_same(text: str) -> None:
    once, _ = binding_text(text.encode(), AGENT, AI_AGENTS)
    assert binding_text(once.encode(), AGENT, AI_AGENTS)[0] == once
    reference = _reference(text.encode(), AGENT)
    rules = rules_for(200, text.encode(), AGENT)
    for path in ("/", "/a", "/a/b", "/b", "/c", "/a/c"):
        assert rules.allows(f"http://h{path}") == reference(path)

"""What owners say of their pages, and the pace at which hosts and addresses are asked."""

import datetime as dt
import heapq
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.politeness import (
    MAX_HINT_S,
    MAX_RETRY_AFTER_S,
    MAX_TDM_BYTES,
    AddressLimit,
    HostPace,
    PaceLimits,
    PagePolicy,
    ai_txt_refusal,
    page_policy,
    parse_tdmrep,
    refusal,
    retry_after_s,
    robots_directives,
)
from pipeline.robots import rules_for

AGENT = "FlywheelBot"
NOW = dt.datetime(2026, 11, 21, 12, 0, 0, tzinfo=dt.UTC)


def _directives(*values: str) -> set[str]:
    return set(robots_directives(values, agent=AGENT, now=NOW, also_obey=("GPTBot",)))


@pytest.mark.parametrize(
    ("values", "directives"),
    [
        # Google's examples (developers.google.com, "Robots meta tag, X-Robots-Tag")
        (["noindex"], {"noindex"}),
        (["noarchive", "unavailable_after: 25 Jun 2010 15:00:00 PST"], {"noarchive", "unavailable_after"}),
        (["googlebot: nofollow", "otherbot: noindex, nofollow"], set()),
        (["noindex, nofollow"], {"noindex", "nofollow"}),
        (["none"], {"noindex", "nofollow"}),
        (["NoIndex,NoArchive"], {"noindex", "noarchive"}),
        (["max-snippet:-1, max-image-preview:large, noindex"], {"noindex"}),
        (["all", "index, follow", "nosnippet", ""], set()),
        # for us, for all, for others
        (["flywheelbot: noindex"], {"noindex"}),
        (["googlebot: nofollow, FlywheelBot: noarchive"], {"noarchive"}),
        (["googlebot: noindex, nofollow"], set()),
        (["googlebot: noindex\nnofollow"], {"nofollow"}),
        (["*: noindex"], {"noindex"}),
        (["gptbot: noindex"], {"noai"}),
        (["GPTBot: none"], {"noai"}),
        (["gptbot: nofollow"], set()),
        # dates: RFC 822, RFC 850, ISO 8601; past or to come
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, nofollow"], {"unavailable_after", "nofollow"}),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 PST"], {"unavailable_after"}),
        (["unavailable_after: 2026-11-21T13:59:59+02:00"], {"unavailable_after"}),
        (["unavailable_after: 2026-11-21T14:00:01+02:00"], set()),
        (["unavailable_after: 2026-11-20"], {"unavailable_after"}),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST"], set()),
        (["unavailable_after: soon", "unavailable_after:", "unavailable_after"], set()),
        # AI, and the separators that people use
        (["noai, noimageai"], {"noai", "noimageai"}),
        (["noindex nofollow", "noarchive;noai"], {"noindex", "nofollow", "noarchive", "noai"}),
        (["x" * 100_000 + ",noindex", ":" * 9000, "," * 9000, "a:b:c:noindex"], set()),
    ],
)  # fmt: skip
def test_directives(values: list[str], directives: set[str]) -> None:
    assert _directives(*values) == directives


@pytest.mark.parametrize(
    ("headers", "meta", "reason", "reason_without_ai"),
    [
        ([], [], None, None),
        ([("X-Robots-Tag", "noindex")], [], "noindex", "noindex"),
        (
            [("x-robots-tag", "nofollow"), ("X-Robots-Tag", "noarchive")],
            [],
            "noarchive",
            "noarchive",
        ),
        ([("X-Robots-Tag", "unavailable_after: 2020-01-01")], [], *["unavailable_after"] * 2),
        ([("X-Robots-Tag", "nofollow")], ["nosnippet"], None, None),
        ([], ["noai"], "ai opt-out: noai", None),
        ([("X-Robots-Tag", "noai")], ["noindex"], "noindex", "noindex"),
        ([], ["noimageai"], None, None),
        ([("TDM-Reservation", "1")], [], "ai opt-out: tdm-reservation", None),
        ([("tdm-reservation", "0")], [], None, None),
        ([("tdm-reservation", "2")], [], None, None),
        ([("Robots", "noindex")], [], None, None),
    ],
)
def test_refusals(
    headers: list[tuple[str, str]],
    meta: list[str],
    reason: str | None,
    reason_without_ai: str | None,
) -> None:
    policy = page_policy(headers, meta, agent=AGENT, now=NOW)
    assert refusal(policy, True) == reason
    assert refusal(policy, False) == reason_without_ai
    assert page_policy(dict(headers), meta, agent=AGENT, now=NOW) == policy or len(headers) > 1


def test_what_no_text_refuses_and_what_follows() -> None:
    assert (
        refusal(PagePolicy(frozenset({"noimageai"})), True, "image/png") == "ai opt-out: noimageai"
    )
    assert PagePolicy(frozenset({"noindex"})).follow
    assert not page_policy([], ["none"], agent=AGENT, now=NOW).follow


@pytest.mark.parametrize("meta", [None, "0", "1", "x"])
@pytest.mark.parametrize("header", [None, "0", "1", "x"])
@pytest.mark.parametrize("origin", [None, False, True])
def test_tdmrep_the_nearest_word_counts(
    meta: str | None, header: str | None, origin: bool | None
) -> None:
    headers = [("tdm-reservation", header)] if header else []
    policy = page_policy(headers, agent=AGENT, now=NOW, tdm_meta=meta, tdm_origin=origin)
    if meta in ("0", "1"):
        assert policy.is_tdm_reserved == (meta == "1")
    elif header in ("0", "1"):
        assert policy.is_tdm_reserved == (header == "1")
    else:
        assert policy.is_tdm_reserved == bool(origin)


def test_tdmrep_json() -> None:
    body = b"""[
      {"location": "/free/", "tdm-reservation": 0},
      {"location": "/docs/*.pdf$", "tdm-reservation": "1", "tdm-policy": "https://h/p.json"},
      {"location": "/directory-a/", "tdm-reservation": 1},
      {"location": "/free/but-not-this", "tdm-reservation": 1},
      {"location": "/odd", "tdm-reservation": 7},
      {"tdm-reservation": 1}, {"location": "/no"}, {"location": "", "tdm-reservation": 1}, 3
    ]"""
    tdmrep = parse_tdmrep(body)
    expected = {
        "/": None,
        "/directory-a/x.html": True,
        "/directory-A/": None,
        "/docs/a/b.pdf": True,
        "/docs/a/b.pdf?x": None,
        "/free/but-not-this": False,  # the first in sequence
        "/odd": None,
        "/no": None,
    }
    assert {path: tdmrep.reserved(f"https://h{path}") for path in expected} == expected
    everything = parse_tdmrep(b'[{"location": "/", "tdm-reservation": 1}]')
    assert everything.reserved("https://h/x?y")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"null", b"<html>", b"\x00", b"[" * 60_000, b"9" * 60_000, b"[[], 1, null]"),
        b'[{"location": {"a": 1}, "tdm-reservation": [1]}]',
        b'[{"location": "\\ud800\\n# /", "tdm-reservation": 1}]',
        b'[{"location": "/", "tdm-reservation": 1}]' + b" " * MAX_TDM_BYTES,
    ],
)
def test_what_is_no_tdmrep_says_nothing(body: bytes) -> None:
    assert parse_tdmrep(body).reserved("https://h/x") is None


@pytest.mark.timeout(30)
def test_a_hostile_tdmrep_costs_little_and_reserves_more() -> None:
    rule = {"location": "/a" + "*a" * 300 + "b", "tdm-reservation": 1}
    tdmrep = parse_tdmrep(json.dumps([{**rule, "tdm-reservation": 0}, *[rule] * 100]).encode())
    assert tdmrep.reserved("https://h/aX") is True
    assert [tdmrep.reserved("https://h/c" + "a" * 4000) for _ in range(100)] == [None] * 100


def test_ai_txt() -> None:
    # What Spawning's generator writes for "no text, images yes"
    text = b"# Spawning AI\nUser-Agent: *\nDisallow: *.txt\nDisallow: *.pdf\nDisallow: *.html\nAllow: *.jpg\n"
    rules = rules_for(200, text, AGENT)
    refused = "ai opt-out: ai.txt"
    assert ai_txt_refusal(rules, "https://h/a.html") == refused
    assert ai_txt_refusal(rules, "https://h/about") == refused
    assert ai_txt_refusal(rules, "https://h/about?q=1") == refused
    assert ai_txt_refusal(rules, "https://h/") == refused
    assert ai_txt_refusal(rules, "https://h/paper", "application/pdf") == refused
    assert ai_txt_refusal(rules, "https://h/x.jpg", "image/jpeg") is None
    assert ai_txt_refusal(rules, "https://h/data", "application/json") is None
    everything = rules_for(200, b"User-Agent: *\nDisallow: /\nDisallow: *\n", AGENT)
    assert ai_txt_refusal(everything, "https://h/x.jpg", "image/jpeg") == refused
    images = rules_for(200, b"User-Agent: *\nDisallow: *.jpg\nAllow: *.html\n", AGENT)
    assert ai_txt_refusal(images, "https://h/about") is None
    assert ai_txt_refusal(rules_for(404, b"", AGENT), "https://h/") is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        # RFC 9110 §10.2.3
        ("120", 120.0),
        ("Sat, 21 Nov 2026 12:02:00 GMT", 120.0),
        ("Saturday, 21-Nov-26 12:02:00 GMT", 120.0),
        ("Sat Nov 21 12:02:00 2026", 120.0),
        (" 0 ", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("9" * 5000, MAX_RETRY_AFTER_S),
        ("Fri, 31 Dec 9999 23:59:59 -1200", MAX_RETRY_AFTER_S),
        *(
            (value, None)
            for value in ("", "-1", "1.5", "1e9", "inf", "soon", "١٢", "²", "x" * 9999)
        ),
        ("Fri, 99 Jun 2027 15:00:00 GMT", None),
        ("Fri, 25 Jun 2027 15:00:00 +999999999999", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


@given(st.text())
def test_retry_after_takes_anything(value: str) -> None:
    found = retry_after_s(value, NOW)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_S
    page_policy([("X-Robots-Tag", value)], [value], agent=AGENT, now=NOW, tdm_meta=value)


def test_a_pace_adapts() -> None:
    pace = HostPace(PaceLimits(delay_s=1.0, max_delay_s=60.0, latency_factor=2.0))
    assert pace.delay_s == 1.0
    pace.succeeded(0.1)
    assert pace.delay_s == 1.0
    pace.succeeded(5.1)  # 0.1 + 0.3 * 5.0
    assert pace.delay_s == pytest.approx(3.2)
    pace.robots_delay_s = 10.0
    assert pace.delay_s == 10.0
    pace.succeeded(1e9)
    assert pace.delay_s == 60.0


def test_back_off_doubles_and_halves() -> None:
    pace = HostPace(PaceLimits(delay_s=2.0, max_delay_s=60.0))

    def after(*events: bool) -> list[float]:
        delays: list[float] = []
        for is_good in events:
            pace.succeeded(0.1) if is_good else pace.failed()
            delays.append(pace.delay_s)
        return delays

    assert after(*[False] * 6) == [4, 8, 16, 32, 60, 60]
    assert after(*[True] * 6) == [30, 15, 7.5, 3.75, 2, 2]
    assert after(False) == [4]
    pace.failed(retry_after_s=50.0)
    assert pace.delay_s == 50.0
    pace.failed(retry_after_s=1e9)
    assert pace.delay_s == 60.0
    pace.succeeded(0.1)
    assert pace.delay_s == 8.0


def test_what_is_asked_for_is_kept_above_the_limit_too() -> None:
    pace = HostPace(PaceLimits(delay_s=0.0, max_delay_s=60.0))
    pace.robots_delay_s = 600.0
    pace.failed()
    assert pace.delay_s == 600.0
    assert HostPace(PaceLimits(delay_s=90.0, max_delay_s=60.0)).delay_s == 90.0


_SECONDS = st.floats(min_value=0, max_value=1e4) | st.sampled_from(
    [float("nan"), float("inf"), -1.0]
)


@given(
    st.floats(0, 100),
    st.floats(0, 100),
    st.floats(0, 1000),
    st.lists(st.tuples(st.booleans(), _SECONDS), max_size=30),
)
def test_no_pause_is_below_what_was_configured(
    delay_s: float, max_delay_s: float, robots_s: float, events: list[tuple[bool, float]]
) -> None:
    pace = HostPace(PaceLimits(delay_s, max_delay_s, 1.0))
    pace.robots_delay_s = robots_s
    least = max(delay_s, robots_s)
    for is_good, seconds in events:
        if is_good:
            pace.succeeded(seconds)
        else:
            pace.failed(seconds)
        assert least <= pace.delay_s <= max(least, max_delay_s)


def test_an_address_has_so_many_connections_and_a_gap() -> None:
    limit = AddressLimit(connections_per_ip=2, delay_per_ip_s=1.0)
    assert limit.try_start("a", "h1", 10.0) == 0.0
    assert limit.try_start("b", "h2", 10.0) == 0.0
    assert limit.try_start("a", "h3", 10.5) == 11.0
    assert limit.try_start("a", "h3", 11.0) == 0.0
    again = limit.try_start("a", "h4", 12.5)
    assert 12.5 < again < 13.0
    limit.end("a", 13.0)
    assert limit.try_start("a", "h4", 13.0) == 0.0
    limit.end("b", 13.0)


def test_who_has_waited_longest_is_next() -> None:
    limit = AddressLimit(connections_per_ip=1, delay_per_ip_s=0.0)
    assert limit.try_start("a", "busy", 0.0) == 0.0
    hints = [limit.try_start("a", who, 0.0) for who in ("first", "second", "third")]
    assert hints == sorted(hints)
    limit.end("a", 0.1)
    assert limit.try_start("a", "newcomer", 0.1) > 0.1
    assert limit.try_start("a", "second", 0.1) > 0.1
    assert limit.try_start("a", "first", 0.1) == 0.0
    limit.end("a", 0.2)
    assert limit.try_start("a", "newcomer", 0.2) > 0.2
    assert limit.try_start("a", "second", 0.2) == 0.0


def test_who_does_not_come_back_keeps_nobody_waiting() -> None:
    limit = AddressLimit(connections_per_ip=1, delay_per_ip_s=0.0)
    limit.try_start("a", "busy", 0.0)
    limit.try_start("a", "gone", 0.0)
    limit.end("a", 1.0)
    assert limit.try_start("a", "new", 1.0) > 1.0
    assert limit.try_start("a", "new", 6.0) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_hosts_of_unequal_speed_share_an_address_fairly(seed: int) -> None:
    """400 hosts, each asked again 5 s after its last answer; latencies from 10 ms to 10 s."""
    chance = random.Random(seed)
    limit = AddressLimit(8, 0.0)
    latency = [0.01 * 1000 ** chance.random() for _ in range(400)]
    events = [(chance.random(), host, False) for host in range(400)]
    heapq.heapify(events)
    served = [0] * 400
    while events and events[0][0] < 600:
        now, host, is_end = heapq.heappop(events)
        if is_end:
            limit.end("ip", now)
            served[host] += 1
            heapq.heappush(events, (now + 5, host, False))
            continue
        again = limit.try_start("ip", str(host), now)
        heapq.heappush(events, (again, host, False) if again else (now + latency[host], host, True))
    possible = 600 * 8 / (sum(latency) / 400)
    assert sum(served) > 0.8 * possible  # slots are not left empty
    assert min(served) >= 0.6 * sum(served) / 400  # and nobody starves


@pytest.mark.parametrize(("connections", "gap_s"), [(4, 0.0), (1, 0.0), (100, 0.1), (2, 0.05)])
def test_a_thousand_hosts_on_one_address_all_get_their_turn(connections: int, gap_s: float) -> None:
    limit = AddressLimit(connections, gap_s)
    took_s = 0.08
    events = [(0.0, host, False) for host in range(1000)]
    num_tries = 0
    now = 0.0
    while events:
        now, host, is_end = heapq.heappop(events)
        if is_end:
            limit.end("ip", now)
            continue
        num_tries += 1
        again = limit.try_start("ip", str(host), now)
        heapq.heappush(events, (again, host, False) if again else (now + took_s, host, True))
    best_s = 1000 * max(gap_s, took_s / connections)
    assert now < 1.3 * best_s  # what the limits allow is used
    assert num_tries < 20_000  # and not by asking all the time


_IPS = st.sampled_from(["10.0.0.1", "10.0.0.2", "::1"])


@given(
    st.integers(1, 4),
    st.floats(0, 3),
    st.lists(st.tuples(_IPS, st.booleans(), st.floats(0, 2)), max_size=60),
)
def test_no_address_is_asked_more_than_allowed(
    connections: int, gap_s: float, events: list[tuple[str, bool, float]]
) -> None:
    limit = AddressLimit(connections, gap_s)
    running = dict.fromkeys(["10.0.0.1", "10.0.0.2", "::1"], 0)
    starts: dict[str, list[float]] = {ip: [] for ip in running}
    now = 1000.0
    for ip, is_start, wait_s in events:
        now += wait_s
        if is_start:
            again = limit.try_start(ip, "h", now)
            if again == 0.0:
                running[ip] += 1
                starts[ip].append(now)
            else:
                assert now < again <= now + MAX_HINT_S
        elif running[ip]:
            limit.end(ip, now)
            running[ip] -= 1
        assert max(running.values()) <= connections
    for times in starts.values():
        assert all(b >= a + gap_s for a, b in zip(times, times[1:], strict=False))


def test_idle_addresses_are_forgotten() -> None:
    limit = AddressLimit(connections_per_ip=1, delay_per_ip_s=1.0)
    limit.try_start("busy", "h", 0.0)
    most = 0
    for i in range(20_000):
        now = i * 0.01
        assert limit.try_start(f"ip{i}", "h", now) == 0.0
        limit.end(f"ip{i}", now)
        most = max(most, len(limit))
    assert most < 250  # 100 of them in any second
    assert limit.try_start("busy", "g", 1000.0) > 1000.0

"""Mistakes in the seeds, told before the first request."""

import asyncio
import time
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.crawl import run_crawl
from pipeline.seeds import check_addresses, check_scope, read_scope, read_seeds
from tests.pipeline import small_site
from tests.pipeline.small_site import config, html

serve = small_site.serve  # the fixture
LOCAL = "http://127.0.0.1:9/"


@pytest.mark.parametrize(
    ("seed", "changes", "message"),
    [
        ("x.html", {"include_paths": ["^/docs/"]}, "path not included); change crawl.include_path"),
        ("x.html", {"exclude_paths": ["html$"]}, "path excluded); change crawl.exclude_paths"),
        ("a/a/a/a/", {}, "(trap: repeated segments); change crawl.traps = false, or the seed"),
        ("", {"blocked_domains": ["127.0.0.1"]}, "(scope: blocked domain); change crawl.blocked"),
        ("", {"ports": [443]}, "(scope: port); change crawl.ports"),
    ],
)
def test_a_seed_that_the_rules_refuse_is_named_with_the_reason(
    run: RunConfig, seed: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        run_crawl(config(LOCAL + seed, **changes), run)
    assert f"crawl.seeds: {LOCAL}{seed} is refused by the crawl's own rules" in str(raised.value)
    assert message in str(raised.value)


def test_some_refused_seeds_are_warned_of(
    serve: Any, run: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    site = serve({"/": html("home")})
    manifest = run_crawl(config(site.url, site.url + "no", exclude_paths=["no"]), run)
    assert manifest.counts.rows_in == 1
    assert f"warning: crawl.seeds: {site.url}no is refused" in capsys.readouterr().err
    wish = config(LOCAL, *[f"{LOCAL}no{n}" for n in range(9)], exclude_paths=["no"])
    seeds = read_seeds(wish)
    said = check_scope(wish, seeds, read_scope(wish, seeds), 2026)
    assert len(said) == 6
    assert said[-1] == "… and 4 more of crawl.seeds"


@pytest.mark.parametrize("contact", ["me", "example.org/bot", "ftp://x.org"])
def test_a_contact_that_is_none_is_named(contact: str) -> None:
    with pytest.raises(UserError, match=rf"an e-mail address .*; '{contact}' is neither"):
        read_seeds(config("https://example.org/", contact=contact))


class Silent:
    """Answers for the names with "good" in them."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        if "good" not in host:
            await asyncio.sleep(3600)
        base = {"hostname": host, "port": port, "family": 2, "proto": 6, "flags": 0}
        return [{**base, "host": "192.0.2.1" if "bad" in host else "8.8.8.8"}]

    async def close(self) -> None:
        pass


def test_seeds_whose_names_give_no_answer_are_not_waited_for() -> None:
    seeds = [f"http://s{n}.example/" for n in range(600)]
    seeds[:2] = ["http://good.example/", "http://bad-good.example/"]
    wish = config(*seeds, contact="a@b", allow_private=False)
    resolver: Any = Silent()
    started = time.monotonic()
    said = asyncio.run(check_addresses(wish, seeds, resolver, timeout_s=0.2))
    assert time.monotonic() - started < 60, "not an hour"
    assert len(said) == 2
    assert "bad-good.example is 192.0.2.1, an address that is not public" in said[0]
    assert "no answer on 598 of 600 hosts' addresses within 0.2 s" in said[1]

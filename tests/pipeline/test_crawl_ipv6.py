"""A site that is named by its IPv6 address."""

import socket
from typing import Any

import pytest

from pipeline.core.config import RunConfig
from pipeline.crawl import run_crawl
from tests.pipeline.small_site import QuietHandler, QuietServer, config, html, responses


class Server6(QuietServer):
    address_family = socket.AF_INET6


class Page(QuietHandler):
    def do_GET(self) -> None:
        known: dict[str, Any] = {"/": html("home", "/1"), "/1": html("one")}
        self.answer(*known.get(self.path, (404, {}, b"")))


def test_a_site_at_an_ipv6_address(run: RunConfig) -> None:
    try:
        server = Server6(Page, "::1")
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    try:
        site = f"http://[::1]:{server.server_address[1]}/"
        manifest = run_crawl(config(site), run)
    finally:
        server.close()
    assert [item.url for item in responses(manifest)] == [site, f"{site}1"]

"""Asks the demo site over HTTP, for its tests; and waits for its children to end."""

import html
import http.client
import re
import time
from dataclasses import dataclass

import psutil

from infra.demo_site import DemoSite


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(site: DemoSite, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    try:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=sent, body=b"x" if method == "POST" else None)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def links(page: str) -> set[str]:
    return {html.unescape(link) for link in re.findall(r'<a href="([^"]*)"', page)}


def plain(page: str) -> str:
    return html.unescape(re.sub("<[^>]+>", "", page))


def ended(pid: int | None) -> bool:
    """Whether a process is gone, or goes within seconds: a killed one takes a moment."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False

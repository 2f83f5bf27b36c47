"""A real headless Chromium at a real app: what the browser tests share."""

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from labeling_app.app_settings import AppSettings
from labeling_app.launch import start_app, stop_app

PASSWORD = "correct horse battery"
CHROMIUM = next(
    (path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()),
    None,
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RunningApp:
    """The app as a process of its own, to be killed and started again at the same address."""

    def __init__(self, settings: AppSettings) -> None:
        self.settings, self.port = settings, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = start_app(self.settings, self.port)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=5).close()
                return
            except urllib.error.URLError:
                assert self.process.poll() is None, "the app ended"
                assert time.monotonic() < deadline, "the app did not start"
                time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        stop_app(self.process)


@contextlib.contextmanager
def running(settings: AppSettings) -> Iterator[RunningApp]:
    app = RunningApp(settings)
    try:
        yield app
    finally:
        app.stop()


@contextlib.contextmanager
def chromium() -> Iterator:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium at /usr/bin/chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def watched(page) -> list[str]:
    """What the page complains of, from now on: errors of scripts, loads that were refused."""
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "console", lambda line: said.append(line.text) if "Content Security" in line.text else None
    )
    return said


def expect(locator):
    """What a locator must come to within its time; to look once is to race with the page."""
    from playwright.sync_api import expect as within

    within.set_options(timeout=30_000)
    return within(locator)


def sign_in(page, url: str, name: str, password: str = PASSWORD) -> None:
    page.goto(url)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()

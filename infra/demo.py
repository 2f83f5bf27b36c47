"""`flywheel demo`: one whole turn on one machine, as the commands that anyone can type."""

import contextlib
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path

from infra import cli, settings
from infra.demo_site import DemoSite
from pipeline.core.config import Config, Section, operational
from pipeline.core.errors import UserError

LABELS = Path(__file__).parent / "demo_labels"
PROMPTS = Path(__file__).parent / "demo_prompts.jsonl"
QUESTION = "How do I add an item to a heap?"


class SiteConfig(Section):
    """[site]"""

    port: int = operational(8700, ge=1, le=65535, description="of the demo's web site")


def run_demo(config_path: str, overrides: Sequence[str]) -> None:
    """Print each command and run it. Raises UserError as soon as one of them fails."""
    from infra.serve import ServeConfig  # loads torch, which `flywheel site` need not wait for

    config = settings.load_run(config_path, overrides)
    settings.check_all(config)
    common = ["--config", config_path, *overrides]
    files = [arg for f in sorted(LABELS.glob("*.jsonl")) for arg in ("--file", str(f))]
    serve = config.section("serve", ServeConfig)
    with _background("site", common, f"http://127.0.0.1:{_site_port(config)}/robots.txt"):
        _foreground("corpus", common)
    _foreground("pretrain", common)
    _foreground("labels", common, "import", *files)
    _foreground("labels", common, "prompts", "--file", str(PROMPTS))
    _foreground("weekly", common)
    with _background("serve", common, f"http://{serve.host}:{serve.port}/health"):
        _foreground("chat", common, "--ask", QUESTION, "--thumbs-down", "demo-1")
    _foreground("labels", common, "queue")
    _foreground("report", common)


def run_site(config: Config) -> None:
    """Serve until Ctrl-C."""
    with DemoSite(_site_port(config)) as site:
        print(f"{len(site.modules)} pages at {site.url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def _site_port(config: Config) -> int:
    return config.section("site", SiteConfig).port


def _foreground(command: str, common: Sequence[str], *more: str) -> None:
    """In this process: torch is loaded once for the whole demo."""
    deed = more[:1] if command == "labels" else ()
    argv = [command, *deed, *common, *more[len(deed) :]]
    print(f"\n$ {shlex.join(['flywheel', *argv])}", flush=True)
    if status := cli.main(argv):
        if status == 130:
            raise KeyboardInterrupt
        raise UserError(f"`flywheel {command}` ended with status {status}; see its line above")


@contextlib.contextmanager
def _background(command: str, common: Sequence[str], url: str) -> Generator[None]:
    """As a child of this process, ended behind you."""
    argv = [command, *common]
    print(f"\n$ {shlex.join(['flywheel', *argv])} &", flush=True)
    _check_free(url, command)
    child = subprocess.Popen([sys.executable, "-m", "infra.cli", *argv], stdin=subprocess.DEVNULL)
    try:
        _wait_until_it_answers(url, command, child)
        yield
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _check_free(url: str, command: str) -> None:
    """Raises UserError if something listens there already: it would be taken for ours."""
    address = urllib.parse.urlsplit(url)
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex((address.hostname or "127.0.0.1", address.port or 80)) == 0:
            raise UserError(
                f"port {address.port} is in use; end what listens there, or choose another"
                f" with {command}.port=NUMBER"
            )


def _wait_until_it_answers(
    url: str, command: str, child: "subprocess.Popen[bytes]", limit_s: float = 60
) -> None:
    deadline = time.monotonic() + limit_s
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if child.poll() is not None:
            raise UserError(f"`flywheel {command}` ended at once; see its line above")
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise UserError(f"`flywheel {command}` does not answer at {url}") from None
            time.sleep(0.05)

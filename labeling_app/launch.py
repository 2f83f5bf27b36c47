"""Starts the Streamlit app as a child process, bound to one address and calling nobody home."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from labeling_app.chat import ENDPOINT_VARIABLE
from labeling_app.guidelines import publish_default
from labeling_app.store import STORE_VARIABLE, database_url, open_store
from pipeline.core.errors import UserError

_LOOPBACK = ("127.0.0.1", "localhost")
_STOP_TIMEOUT_S = 10.0


def start_app(
    store_url: str, endpoint: str, port: int, host: str = "127.0.0.1"
) -> subprocess.Popen[bytes]:
    """Serve the app; the caller waits for it and ends it with `stop_app`.

    Raises UserError if the store cannot be opened or the port is in use.
    """
    store = open_store(store_url)
    publish_default(store)
    store.close()
    _check_port(host, port)
    package = Path(__file__).resolve().parent
    python_path = os.pathsep.join([str(package.parent), *filter(None, [_python_path()])])
    environment = {
        **os.environ,
        STORE_VARIABLE: database_url(store_url),
        ENDPOINT_VARIABLE: endpoint,
        "PYTHONPATH": python_path,
    }
    command = [sys.executable, "-m", "streamlit", "run", str(package / "app.py")]
    command += [f"--{name}={value}" for name, value in _flags(host, port).items()]
    if host in _LOOPBACK:  # another host name that leads here is an attack (DNS rebinding)
        command += [f"--server.allowedHosts={name}" for name in _LOOPBACK]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)


def stop_app(app: subprocess.Popen[bytes]) -> None:
    """End the child and wait for it, by force if it does not go by itself."""
    app.terminate()  # nothing happens if it has ended
    try:
        app.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        app.kill()
        app.wait()


def _python_path() -> str:
    return os.environ.get("PYTHONPATH", "")


def _flags(host: str, port: int) -> dict[str, str]:
    return {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": "1",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showSidebarNavigation": "false",
        "theme.light.primaryColor": "#2f6f8f",
        "theme.dark.primaryColor": "#33789a",
        "theme.baseRadius": "6px",
        "logger.level": "warning",
    }


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot serve the labeling app at {host}:{port} ({error.strerror}); "
                "end what uses the port, or set labels.port to another"
            ) from None

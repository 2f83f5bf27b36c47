"""Starts the Streamlit app as a child process, bound to one address and calling nobody home."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from labeling_app.app_settings import VARIABLE, AppSettings
from labeling_app.store import open_store
from pipeline.core.errors import UserError

# Read by labeling_app/app.py, which alone may import streamlit.
HOST_VARIABLE, PORT_VARIABLE = "FLYWHEEL_APP_HOST", "FLYWHEEL_APP_PORT"
_STOP_TIMEOUT_S = 10.0


def start_app(settings: AppSettings, port: int, host: str = "127.0.0.1") -> subprocess.Popen[bytes]:
    """Serve the app; the caller waits for it and ends it with `stop_app`.

    Raises UserError if the store cannot be opened or the port is in use.
    """
    open_store(settings.store).close()
    _check_port(host, port)
    root = str(Path(__file__).resolve().parents[1])
    environment = {
        **os.environ,
        VARIABLE: settings.model_dump_json(),
        HOST_VARIABLE: host,
        PORT_VARIABLE: str(port),
        "FORWARDED_ALLOW_IPS": "",  # uvicorn believes nobody; trusted_proxies says whom we do
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH", "")])]),
    }
    command = [sys.executable, "-m", "labeling_app.app"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)


def stop_app(app: subprocess.Popen[bytes]) -> None:
    """End the child and wait for it, by force if it does not go by itself."""
    app.terminate()  # nothing happens if it has ended
    try:
        app.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        app.kill()
        app.wait()


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

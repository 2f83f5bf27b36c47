"""An S3 endpoint on loopback (moto's server), and what it was asked for."""

import contextlib
import logging
import threading
import urllib.request
from collections.abc import Callable, Generator, Iterable
from typing import Any

import fsspec
import pytest

Answer = tuple[str, list[tuple[str, str]], bytes]
SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
BUSY: Answer = ("503 Slow Down", [("Content-Type", "application/xml")], SLOW_DOWN)


class ObjectStore:
    """`asked` holds (method, path, Range header) of each request; what `refuse` returns, if it is
    set and returns something, is sent in place of the store's answer."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self.asked: list[tuple[str, str, str]] = []
        self.refuse: Callable[[str, str], Answer | None] | None = None
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append((method, path, environ.get("HTTP_RANGE", "")))
        answer = self.refuse(method, path) if self.refuse else None
        if answer is None:
            return self._moto(environ, start_response)
        status, headers, body = answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Generator[ObjectStore]:
    """With a bucket `flywheel`; the environment leads there."""
    pytest.importorskip("moto", reason="needs moto[server] and s3fs")
    s3 = fsspec.get_filesystem_class("s3")
    store = ObjectStore()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3.clear_instance_cache()
    with contextlib.closing(store):
        urllib.request.urlopen(f"{store.url}/moto-api/reset", b"").close()  # it outlives its server
        s3().mkdir("flywheel")
        store.asked.clear()
        yield store
    s3.clear_instance_cache()

"""The endpoint's client against a real server on loopback: streams, and every way to fail."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from labeling_app.chat import ANSWER_TIMEOUT_S, ChatClient, EndpointError
from pipeline.core.records import Message

ASK = [Message.of("user", "Hi")]


def _event(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n\n"


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with what the test put into `reply` and `models`; keeps what it was asked."""

    reply = ""
    models = json.dumps({"data": [{"id": "tiny"}]})
    status = 200
    asked: dict

    def do_GET(self) -> None:
        self._send(self.models)

    def do_POST(self) -> None:
        type(self).asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(self.reply)

    def _send(self, body: str) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[type[Server], str]]:
    handler = type("Scripted", (Server,), {})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    yield handler, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def client(server) -> Iterator[ChatClient]:
    client = ChatClient(server[1] + "/v1/")
    yield client
    client.close()


def test_a_stream_comes_in_pieces(server, client):
    server[0].reply = (
        ": a comment\n\n"
        'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
        + _event("Hé")
        + _event("<b>llo\n")
        + 'data: {"choices": []}\n\n'
        + "data: [DONE]\n\n"
        + _event("after the end")
    )
    assert client.models() == ["tiny"]
    assert list(client.stream("tiny", ASK)) == ["Hé", "<b>llo\n"]
    assert server[0].asked == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (_event("half an ans"), "broke off before the end"),
        ("data: {oops\n\n", "no answer"),
        ("data: [1]\n\n", "no answer"),
        ('data: {"choices": [7]}\n\n', "no answer"),
        ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        ("", "broke off"),
        (_event("x" * 300_000) + "data: [DONE]\n\n", "did not come to an end"),
    ],
    ids=["cut", "not-json", "list", "no-delta", "error", "nothing", "endless"],
)
def test_a_stream_that_goes_wrong_is_said(server, client, reply, why):
    server[0].reply = reply
    with pytest.raises(EndpointError, match=why):
        list(client.stream("tiny", ASK))


def test_an_answer_that_takes_for_ever_is_ended(server):
    server[0].reply = _event("a") + _event("b") + _event("c") + "data: [DONE]\n\n"
    times = iter([0.0, 1.0, ANSWER_TIMEOUT_S + 1])
    client = ChatClient(server[1], monotonic=lambda: next(times))
    stream = client.stream("tiny", ASK)
    assert next(stream) == "a"
    with pytest.raises(EndpointError, match="did not come to an end"):
        next(stream)
    client.close()


def test_a_refusal_is_said(server, client):
    server[0].status, server[0].reply = 404, "no such model"
    with pytest.raises(EndpointError, match="refused with status 404: no such model"):
        list(client.stream("tiny", ASK))


@pytest.mark.parametrize(
    ("models", "why"),
    [("<html>", "not as an OpenAI"), ("{}", "not as an OpenAI"), ('{"data": []}', "no model")],
)
def test_another_kind_of_server_is_noticed(server, client, models, why):
    server[0].models = models
    with pytest.raises(EndpointError, match=why):
        client.models()


@pytest.mark.parametrize("status", [404, 501])
def test_a_page_for_a_browser_is_not_printed(server, client, status):
    server[0].status = status
    server[0].models = server[0].reply = "<!DOCTYPE HTML>\n<html><h1>Error</h1>\x1b[31m</html>"
    for ask in (client.models, lambda: list(client.stream("tiny", ASK))):
        with pytest.raises(EndpointError, match=f"status {status}.*`flywheel serve`") as caught:
            ask()
        assert client.url in str(caught.value)
        assert not set("<\n\x1b") & set(str(caught.value))


def test_a_refusal_of_openais_shape_is_one_line(server, client):
    server[0].status = 503
    server[0].reply = json.dumps({"error": {"message": "16 requests\nare being answered"}})
    with pytest.raises(EndpointError, match=r"status 503: 16 requests are being answered$"):
        list(client.stream("tiny", ASK))


def test_what_does_not_speak_http_is_no_server_of_ours():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        client = ChatClient(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(EndpointError, match=r"answers, but not as .*`flywheel serve`"):
            client.models()
        client.close()
        thread.join()


def test_a_server_that_is_down_is_said_at_once():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = ChatClient(f"http://127.0.0.1:{port}")
    with pytest.raises(EndpointError, match="flywheel serve"):
        client.models()
    with pytest.raises(EndpointError, match="flywheel serve"):
        list(client.stream("tiny", ASK))
    client.close()


@pytest.mark.parametrize("endpoint", ["", "localhost:8000", "ftp://h", "http://", "http://h:port"])
def test_a_bad_address_is_named(endpoint):
    with pytest.raises(EndpointError, match="not a URL"):
        ChatClient(endpoint)

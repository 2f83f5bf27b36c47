"""One person's first visit, in a real headless Chromium against a real `streamlit run`."""

import http.server
import json
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from labeling_app import auth
from labeling_app.assignment import NewAnswer, NewTask, add_tasks
from labeling_app.export import export_labels
from labeling_app.launch import start_app, stop_app
from pipeline.core.errors import UserError
from pipeline.core.records import Comparison, Conversation, Message, read_records

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()),
    None,
)
if CHROMIUM is None:
    pytest.skip("no Chromium at /usr/bin/chromium", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "correct horse battery"
REPLY = "It is **bold** <img src=x onerror=alert(1)> text.\n\nThe end."
ANSWERS = [f"<b>Answer</b> {name}." for name in ("one", "two", "three", "four")]


class Endpoint(http.server.BaseHTTPRequestHandler):
    """The smallest OpenAI-compatible server: it streams REPLY, word by word."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        for word in REPLY.split(" "):
            piece = {"choices": [{"delta": {"content": word + " "}}]}
            self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def app_url(store, endpoint) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = start_app(store.url, endpoint, port)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url)
        yield url
    finally:
        stop_app(app)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "the app did not start"
            time.sleep(0.1)


@pytest.fixture
def page(app_url):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(30_000)
        page.goto(app_url)
        yield page
        browser.close()


def _sign_in(page, password: str) -> None:
    page.get_by_label("Name").fill("kaya")
    page.get_by_label("Password").first.fill(password)
    page.get_by_role("button", name="Sign in").click()


def _rank(page, place: int, rank: int) -> None:
    control = page.get_by_test_id("stButtonGroup").nth(place)
    control.get_by_text(str(rank), exact=True).click()


def _add_work(store, lead) -> None:
    prompt = (Message.of("user", "How do I read <i>a file</i>?"),)
    choices = tuple(NewAnswer(f"secret-model-{n}", text) for n, text in enumerate(ANSWERS))
    add_tasks(
        store,
        lead,
        [
            NewTask("write", "demo", prompt, "test"),
            NewTask("skipped", "demo", (Message.of("user", "Unclear?"),), "test", priority=-1),
            NewTask("rank", "compare", prompt, "test", choices),
        ],
    )


def _handshake(app_url: str, host: str) -> str:
    """The status line of a websocket's handshake that names `host`."""
    port = int(app_url.rsplit(":", 1)[1])
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.encode())
        return connection.recv(1000).decode().split("\r\n")[0]


def test_first_visit(store, lead, app_url, page, tmp_path):
    assert "101" in _handshake(app_url, "localhost")
    assert "403" in _handshake(app_url, "rebound.example")
    _add_work(store, lead)
    one_time = auth.create_account(store, "kaya", "labeler")
    expect = playwright.expect

    _sign_in(page, one_time)
    page.get_by_label("New password", exact=False).first.fill(PASSWORD)
    page.get_by_label("The same again").first.fill(PASSWORD)
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("heading", name="Labeling instructions").wait_for()
    page.get_by_role("button", name="I have read these").click()

    answer = page.get_by_label("Your answer")
    answer.fill("Half an answer")
    answer.press("Tab")  # leaving the box saves the draft
    page.get_by_text("saved", exact=False).wait_for()
    page.reload()
    _sign_in(page, PASSWORD)
    expect(answer).to_have_value("Half an answer")
    assert page.get_by_text("How do I read <i>a file</i>?").is_visible()  # shown as it is
    answer.fill("A whole answer, not yet saved")
    answer.press("Control+Enter")  # text still in the box goes along
    page.get_by_text("task 1 submitted").wait_for()

    page.keyboard.press("Shift+F8")  # works while the text box has the focus
    page.get_by_role("button", name="Skip this task").click()
    page.get_by_text("Nothing for you now").wait_for()

    page.get_by_role("link", name="Compare").click()
    page.get_by_text("compare 4").wait_for()
    assert "secret-model" not in page.content()
    submit = page.get_by_role("button", name="Submit")
    expect(submit).to_be_disabled()
    said = ["A.", "A, then B.", "A, then B and C tie.", "A, then B and C tie, then D."]
    for place, rank in enumerate([1, 2, 2, 4]):
        _rank(page, place, rank)
        page.get_by_text(said[place], exact=False).first.wait_for()
    _rank(page, 0, 1)  # a second click on a rank keeps it
    page.get_by_text("fairly", exact=True).click()
    expect(submit).to_be_enabled()
    submit.click()
    page.get_by_text("Nothing for you now").wait_for()

    page.get_by_role("link", name="Chat").click()
    message = page.get_by_placeholder("Your message")
    message.fill("Hello?")
    message.press("Enter")
    page.get_by_role("button", name="Regenerate").wait_for()
    assert page.get_by_text("It is **bold** <img src=x onerror=alert(1)> text.").is_visible()
    down = page.get_by_role("radio", name="Thumbs down")
    down.click()
    page.get_by_text("Thank you: it is task 4 now.").wait_for()
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_text("Thank you: it is task 4 now.")).to_have_count(0)
    down.click()  # the same words again: the same task
    page.get_by_text("Thank you: it is task 4 now.").wait_for()
    page.get_by_role("link", name="Write").click()
    page.get_by_text("A user marked this as bad", exact=False).wait_for()

    _check_store(store, tmp_path)


def _check_store(store, folder: Path) -> None:
    report = export_labels(store, str(folder / "out"))
    [conversation] = read_records(report.conversations_url, Conversation)
    assert conversation.messages[-1].text == "A whole answer, not yet saved"
    assert conversation.labeler.startswith("person-")
    [comparison] = read_records(report.comparisons_url, Comparison)
    ranks = [comparison.responses[place].rank for place in comparison.shown_order]
    assert ranks == [1, 2, 2, 4]
    assert [response.text for response in comparison.responses] == ANSWERS
    assert comparison.confidence == "fairly"
    database = sqlite3.connect(store.url.removeprefix("sqlite:///"))
    tasks = database.execute("SELECT kind, source, state FROM tasks WHERE id >= 4").fetchall()
    thumbs = database.execute("SELECT rating FROM feedback").fetchall()
    database.close()
    assert tasks == [("demo", "feedback", "open")]
    assert thumbs == [(-1,), (-1,)]


def test_a_port_in_use_is_named(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=f"127.0.0.1:{taken.getsockname()[1]}.*labels.port"):
            start_app(store.url, "", taken.getsockname()[1])

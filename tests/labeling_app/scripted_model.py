"""An OpenAI-compatible server that says what its script says: for the assists and the chat."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator


class ScriptedModel:
    """`replies`: what is said to a prompt that holds the key; `asked`: every request's body.
    `delay_s`: before each answer; `status`: other than 200 refuses."""

    def __init__(self, abilities: list[str], replies: dict[str, str], delay_s: float = 0) -> None:
        self.abilities, self.replies, self.delay_s = abilities, replies, delay_s
        self.status = 200
        self.asked: list[dict] = []
        self.url = ""

    def reply_to(self, body: dict) -> str:
        said = "\n".join(message["content"] for message in body["messages"])
        return next((reply for key, reply in self.replies.items() if key in said), "Hm.")


@contextlib.contextmanager
def serve(model: ScriptedModel) -> Iterator[ScriptedModel]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            card = {"id": "tiny", "abilities": model.abilities}
            self._send(200, json.dumps({"data": [card]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model.asked.append(body)
            time.sleep(model.delay_s)
            if model.status != 200:
                self._send(model.status, b'{"error": {"message": "overloaded"}}')
                return
            pieces = [
                {"choices": [{"delta": {"content": w + " "}}]}
                for w in model.reply_to(body).split(" ")
            ]
            lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces] + ["data: [DONE]\n\n"]
            self._send(200, "".join(lines).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    model.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield model
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

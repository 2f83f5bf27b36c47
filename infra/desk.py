"""The app and the chat of the command line."""

import datetime as dt
import signal
import sys

from infra.labels import open_labels, publish
from infra.serve import ServeConfig
from infra.tables import printable
from labeling_app import feedback, launch
from labeling_app.chat import ChatClient
from labeling_app.store import LabelsConfig
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.identity import prompt_id
from pipeline.core.records import Feedback, Message


def _endpoint(config: Config) -> str:
    serve = config.section("serve", ServeConfig)
    return f"http://{serve.host}:{serve.port}"


def run_app(config: Config) -> None:
    labels = config.section("labels", LabelsConfig)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the app ends with us
    publish(config, open_labels(config))
    app = launch.start_app(
        labels.app_settings(config.run, _endpoint(config)), labels.port, labels.host
    )
    try:
        print(f"labeling app: http://{labels.host}:{labels.port}/  (Ctrl-C ends it)", flush=True)
        app.wait()
    finally:
        launch.stop_app(app)


def chat(config: Config, question: str, thumbs_down: str | None) -> None:
    """Print the served model's answer as it comes; a thumbs-down stores it as a task, once.
    Raises UserError for an empty question or key, before anything is asked."""
    if not question.strip():
        raise UserError("--ask is empty; write a question")
    if thumbs_down is not None and not thumbs_down.strip():
        raise UserError("--thumbs-down is empty; give the key under which it counts once")
    client = ChatClient(_endpoint(config))
    model = client.models()[0]
    _check_ours(config, model)
    prompt = Message.of("user", question)
    pieces: list[str] = []
    for piece in client.stream(model, [prompt]):
        pieces.append(piece)
        print(printable(piece), end="", flush=True)
    print()
    if thumbs_down is None:
        return
    rated = (prompt, Message.of("assistant", "".join(pieces)))
    click = Feedback(
        thumbs_down, prompt_id([prompt]), rated, model, -1, "", dt.datetime.now(dt.UTC)
    )
    receipt = feedback.record_feedback(
        open_labels(config), click, project=config.section("labels", LabelsConfig).project
    )
    if receipt.repeated:
        print(f"thumbs-down {thumbs_down!r} was given before: it is task {receipt.task_id}")
    else:
        print(f"thumbs-down {thumbs_down!r} is task {receipt.task_id} in the queue")


def _check_ours(config: Config, model: str) -> None:
    """All configs have the same ports by default: another run's server is not to be taken for
    ours."""
    if storage.is_local(config.run.root):
        folder = storage.local_path(config.run.root) / "models" / model
        if not folder.is_dir():
            raise UserError(
                f"{_endpoint(config)} serves a model that is not of run.root ="
                f" {config.run.root!r}; start `flywheel serve` with this config, on a serve.port"
                " of its own"
            )

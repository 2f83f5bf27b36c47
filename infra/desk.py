"""The labelers' side of the command line: accounts, imports, exports, the queue, the chat."""

import datetime as dt
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.serve import ServeConfig
from infra.tables import table
from labeling_app import auth, export, feedback, imports, launch
from labeling_app.backlog import open_tasks
from labeling_app.chat import ChatClient
from labeling_app.guidelines import publish_default
from labeling_app.store import LabelsConfig, Store, open_store
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.errors import UserError, is_disk_full
from pipeline.core.identity import prompt_id
from pipeline.core.records import Feedback, Message


def _store(config: Config) -> Store:
    return open_store(config.section("labels", LabelsConfig).store_url(config.run))


def _endpoint(config: Config) -> str:
    serve = config.section("serve", ServeConfig)
    return f"http://{serve.host}:{serve.port}"


def import_files(config: Config, files: Sequence[str]) -> None:
    labels = config.section("labels", LabelsConfig)
    store = _store(config)
    _publish(config, store)
    report = imports.import_labels(store, files, labels.overlap, labels.project)
    rows = [(f.name, f.lines, f.demonstrations, f.comparisons, f.already) for f in report.files]
    print(table(("file", "lines", "answers", "rankings", "already there"), rows))


def export_to(config: Config, folder: str) -> None:
    """Raises UserError for a place that cannot be written to."""
    if not folder:
        raise UserError("--to is empty; name a folder")
    try:
        report = export.export_labels(
            _store(config), folder, config.section("labels", LabelsConfig).project
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        if is_disk_full(error):
            raise
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write labels to {folder!r}: {why}; name a folder") from None
    print(f"{report.num_conversations} conversations and {report.num_comparisons} comparisons")
    print(f"{report.conversations_url}\n{report.comparisons_url}")


def _publish(config: Config, store: Store) -> None:
    """The instructions that the config names, in a project that has none."""
    labels = config.section("labels", LabelsConfig)
    body = None
    if labels.instructions:
        try:
            body = _here_or_shipped(labels.instructions).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"labels.instructions = {labels.instructions!r} cannot be read ({error}); name a"
                " Markdown file"
            ) from None
    publish_default(store, body, labels.project)


def _here_or_shipped(path: str) -> Path:
    """The path from the current folder, or else from that of the installed packages."""
    shipped = Path(__file__).parents[1] / path
    return shipped if not Path(path).exists() and shipped.exists() else Path(path)


def make_account(config: Config, name: str, role: str) -> None:
    store = _store(config)
    _publish(config, store)
    project = config.section("labels", LabelsConfig).project
    password = auth.create_account(store, name, role, project)
    print(f"{name} ({role}); one-time password, shown only now: {password}")


def show_queue(config: Config) -> None:
    labels = config.section("labels", LabelsConfig)
    place = labels.store_url(config.run)
    if "://" not in place and not Path(place).exists():  # opening it would make an empty one
        raise UserError(
            f"no labels at {place}; `flywheel labels import` or `flywheel labels account` with this"
            " config makes the store (a relative run.root begins in the current folder)"
        )
    rows = [
        (task.id, task.kind, task.source, task.priority, task.open_slots, _short(task.prompt))
        for task in open_tasks(_store(config), labels.project)
    ]
    print(table(("task", "kind", "source", "priority", "open", "prompt"), rows))
    print(f"{len(rows)} open tasks; `flywheel app` is where people take them")


def run_app(config: Config) -> None:
    labels = config.section("labels", LabelsConfig)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the app ends with us
    _publish(config, _store(config))
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
        print(_printable(piece), end="", flush=True)
    print()
    if thumbs_down is None:
        return
    rated = (prompt, Message.of("assistant", "".join(pieces)))
    click = Feedback(
        thumbs_down, prompt_id([prompt]), rated, model, -1, "", dt.datetime.now(dt.UTC)
    )
    receipt = feedback.record_feedback(_store(config), click)
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


def _printable(text: str) -> str:
    """What models and users wrote must not drive this terminal."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text
    )


def _short(text: str) -> str:
    line = _printable(" ".join(text.split()))
    return line if len(line) <= 60 else line[:57] + "..."

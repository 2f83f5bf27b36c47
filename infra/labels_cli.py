"""`flywheel labels DEED`: its deeds and their options."""

import argparse
from collections.abc import Callable

_ROLES = ("labeler", "reviewer", "lead", "engineer")
_SHAPES = """\
Answers and rankings from JSON Lines files, one object a line; an id is optional. An answer:
  {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
Answers that were ranked (1 is the best, ties share a number), by one labeler or by several:
  {"prompt": "…", "responses": ["…", "…"], "ranks": [1, 2]}
  {"prompt": "…", "responses": [{"model": "…", "text": "…"}, …], "ranks": {"sim-a": [1, 2], …}}
A question with four answers of known quality, which is both; and a canary or its control:
  {"question": "…", "answers": {"right": "…", "partly": "…", "wrong": "…", "evasive": "…"},
   "ranks": [1, 2, 3, 4]}
  {"question": "…", "answer": "…", "kind": "refusal"}        (or "benign")
And OpenAssistant's message trees. Nobody signed in to write these, so all count as simulated
accounts (sim-…), whoever wrote them; --no-simulated leaves them out of an export."""
Common = Callable[[argparse.ArgumentParser], None]


def add_deeds(labels: argparse.ArgumentParser, common: Common) -> None:
    """`common` adds --config and overrides to each."""
    deeds = labels.add_subparsers(metavar="DEED", required=True)

    def deed(name: str, run: str, text: str) -> argparse.ArgumentParser:
        added = deeds.add_parser(name, help=text, description=text)
        common(added)
        added.set_defaults(handler=_run, deed=run)
        return added

    _add_work(deed)
    _add_people(deed)
    _add_store(deed)


def _run(arguments: argparse.Namespace) -> None:
    """The deed's function in infra/labels.py, with its options by name."""
    from infra import labels, settings

    options = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("handler", "deed", "config", "overrides")
    }
    if arguments.deed == "import_prompts":
        options = _prompt_options(options)
    getattr(labels, arguments.deed)(settings.load(arguments), **options)


def _prompt_options(options: dict[str, object]) -> dict[str, object]:
    from labeling_app.prompt_files import Defaults

    chosen = {name: options[name] for name in ("source", "kind", "priority", "skill", "overlap")}
    return {
        "files": options["files"],
        "defaults": Defaults(**chosen),  # type: ignore[arg-type]  # argparse has typed them
        "dedupe": not options["keep_similar"],
        "rejects": options["rejects"],
    }


def _add_work(deed: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    imported = deed("import", "import_files", "answers and rankings from JSON Lines files")
    imported.description = _SHAPES
    imported.formatter_class = argparse.RawDescriptionHelpFormatter
    _files(imported)
    prompts = deed(
        "prompts",
        "import_prompts",
        "prompts into the queue, from JSON Lines, Parquet, or shards of a corpus",
    )
    _files(prompts)
    prompts.add_argument("--source", default="import", help="where they come from")
    prompts.add_argument("--kind", choices=["demo", "question", "compare"], help="of lines without")
    prompts.add_argument("--priority", type=int, default=0, help="higher comes first")
    prompts.add_argument("--skill", default="", help="only people with this skill get them")
    prompts.add_argument("--overlap", type=int, default=1, help="labels asked for of each")
    prompts.add_argument("--keep-similar", action="store_true", help="no search for duplicates")
    prompts.add_argument("--rejects", default="", metavar="FILE", help="where refused lines go")
    exported = deed("export", "export_to", "labels as Parquet and JSON Lines, with a manifest")
    exported.add_argument("--to", required=True, metavar="FOLDER", dest="folder")
    exported.add_argument(
        "--format",
        action="append",
        choices=["records", "trl", "llama-factory"],
        dest="formats_wanted",
        help="repeatable; default: all",
    )
    exported.add_argument("--since", default="", metavar="DATE", help="handed in on or after it")
    exported.add_argument("--until", default="", metavar="DATE", help="handed in before it")
    exported.add_argument("--no-simulated", action="store_true", help="people's labels alone")
    deed("queue", "show_queue", "list the open tasks, most urgent first")
    order = deed("order", "order_queue", "comparisons the reward model is least sure of come first")
    order.add_argument("--scores", required=True, metavar="PARQUET", help="response_id, score")
    out = deed("vendor-out", "vendor_out", "a batch for a hired workforce, with known answers")
    out.add_argument("--vendor", required=True)
    out.add_argument("--work", default="compare", choices=["write", "compare"], dest="area")
    out.add_argument("--count", type=int, required=True)
    out.add_argument("--to", required=True, metavar="FOLDER", dest="folder")
    out.add_argument("--gold", type=float, default=0.1, help="share of known answers")
    back = deed("vendor-in", "vendor_in", "a batch that came back: taken if enough gold is right")
    back.add_argument("--batch", type=int, required=True)
    back.add_argument("--file", required=True)
    gone = deed("vendor-withdraw", "vendor_withdraw", "a batch that will not come back")
    gone.add_argument("--batch", type=int, required=True)


def _add_people(deed: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    account = deed("account", "make_account", "make an account; prints its one-time password")
    account.add_argument("--name", required=True)
    account.add_argument("--role", required=True, choices=_ROLES)
    invited = deed("invite", "invite", "a link by which somebody joins, good once")
    invited.add_argument("--role", required=True, choices=_ROLES)
    invited.add_argument("--skills", default="", help="with commas")
    invited.add_argument("--note", default="", help="for whom")
    closed = deed("close", "close", "close an account and all its sessions now")
    closed.add_argument("--name", required=True)
    closed.add_argument("--erase", action="store_true", help="forget who it was; the labels stay")
    reset = deed("password", "reset_password", "a new one-time password; all sessions end")
    reset.add_argument("--name", required=True)


def _add_store(deed: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    project = deed("project", "make_project", "make another project in the same store")
    project.add_argument("--name", required=True)
    chosen = deed("settings", "change_settings", "show or change the project's settings")
    chosen.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes")
    token = deed("token", "make_token", "a token for the HTTP API")
    token.add_argument("--name", required=True)
    token.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=["import", "export", "progress"],
        dest="scopes",
    )
    token.add_argument("--days", type=int, default=90)
    saved = deed("backup", "back_up", "the whole store in one file")
    saved.add_argument("--to", required=True, metavar="FILE", dest="path")
    restored = deed("restore", "restore", "an empty store from a backup")
    restored.add_argument("--from", required=True, metavar="FILE", dest="path")
    deed("upgrade", "upgrade", "bring an older PostgreSQL store to this release")


def _files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file", action="append", required=True, metavar="FILE", dest="files", help="repeatable"
    )

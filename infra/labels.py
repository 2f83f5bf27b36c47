"""The labels' side of the command line: the store, its people, what goes in and what comes out."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from infra.tables import printable, short, table
from labeling_app import (
    auth,
    backup,
    formats,
    imports,
    invitations,
    projects,
    prompt_import,
    selection,
    sessions,
    vendors,
)
from labeling_app.backlog import open_tasks
from labeling_app.export import Filters, count_labels
from labeling_app.guidelines import publish_default
from labeling_app.prompt_files import Defaults, Reject, count_lines
from labeling_app.store import LabelsConfig, Store, open_store
from pipeline.core.config import Config
from pipeline.core.errors import UserError, is_disk_full
from pipeline.core.progress import Progress

_SHOWN_REJECTS = 10


def open_labels(config: Config, *, upgrade: bool = False) -> Store:
    return open_store(_section(config).store_url(config.run), upgrade=upgrade)


def _section(config: Config) -> LabelsConfig:
    return config.section("labels", LabelsConfig)


def _as_lead(config: Config, store: Store) -> auth.Account:
    return auth.command_line(store, _section(config).project)


def import_files(config: Config, files: Sequence[str]) -> None:
    labels = config.section("labels", LabelsConfig)
    store = open_labels(config)
    publish(config, store)
    report = imports.import_labels(store, files, labels.overlap, labels.project, keep_good=True)
    rows = [
        (f.name, f.lines, f.demonstrations, f.comparisons, f.already, len(f.refused))
        for f in report.files
    ]
    print(table(("file", "lines", "answers", "rankings", "already there", "refused"), rows))
    refused = [why for file in report.files for why in file.refused]
    for why in refused[:_SHOWN_REJECTS]:
        print(printable(why))
    if len(refused) > _SHOWN_REJECTS:
        print(f"and {len(refused) - _SHOWN_REJECTS:,} more lines that cannot be used")


def publish(config: Config, store: Store) -> None:
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
    store = open_labels(config)
    publish(config, store)
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
        (task.id, task.kind, task.source, task.priority, task.open_slots, short(task.prompt))
        for task in open_tasks(open_labels(config), labels.project)
    ]
    print(table(("task", "kind", "source", "priority", "open", "prompt"), rows))
    print(f"{len(rows)} open tasks; `flywheel app` is where people take them")


def export_to(
    config: Config,
    folder: str,
    formats_wanted: Sequence[str],
    since: str,
    until: str,
    no_simulated: bool,
) -> None:
    """Raises UserError for a place that cannot be written to, and for a date that is none."""
    if not folder:
        raise UserError("--to is empty; name a folder")
    filters = Filters(since=_day(since), until=_day(until), simulated=not no_simulated)
    store, project = open_labels(config), _section(config).project
    chosen = formats_wanted or formats.FORMATS
    try:
        with Progress("export", count_labels(store, project), "labels") as shown:
            last = 0

            def told(done: int) -> None:
                nonlocal last
                shown.advance(done - last)
                last = done

            done = formats.export(store, folder, project, filters, chosen, told)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        if is_disk_full(error):
            raise
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write labels to {folder!r}: {why}; name a folder") from None
    rows = [(name, entry["rows"]) for name, entry in done.manifest["files"].items()]
    print(table(("file", "rows"), rows))
    print(f"{done.folder}/{formats.MANIFEST}")


def import_prompts(
    config: Config, files: Sequence[str], defaults: Defaults, dedupe: bool, rejects: str
) -> None:
    """Bad lines are shown by number and kept in the file `rejects`; the good ones go in."""
    store = open_labels(config)
    publish(config, store)
    kept = Path(rejects) if rejects else None
    total = sum(count_lines(Path(file)) for file in files)
    with Progress("prompts", total, "lines") as shown:
        last = 0

        def told(done: int) -> None:
            nonlocal last
            shown.advance(done - last)
            last = done

        report = prompt_import.import_prompts(
            store,
            _as_lead(config, store),
            [Path(file) for file in files],
            defaults,
            dedupe=dedupe,
            rejects_to=kept,
            progress=told,
        )
    heads = ("lines", "added", "there already", "almost the same", "refused")
    counts = (report.lines, report.added, report.known, report.similar, len(report.rejects))
    print(table(heads, [counts]))
    _show_rejects(report.rejects, kept)


def make_project(config: Config, name: str) -> None:
    store = open_labels(config)
    number = projects.create_project(store, name)
    publish_default(store, project=name)
    print(f"project {name} is number {number}; use it with labels.project={name}")


def invite(config: Config, role: str, skills: str, note: str) -> None:
    store = open_labels(config)
    publish(config, store)
    section = _section(config)
    named = tuple(part.strip() for part in skills.split(",") if part.strip())
    token = invitations.invite(store, _as_lead(config, store), role, named, note)
    print("good once, for seven days, shown only now:")
    print(f"http://{section.host}:{section.port}/invitation?token={token}")


def change_settings(config: Config, changes: Sequence[str]) -> None:
    """Show the project's settings, changed by `name=value` first."""
    store = open_labels(config)
    who = _as_lead(config, store)
    values: dict[str, object] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"{change!r} is not of the form name=value")
        values[name.strip()] = value.split(";") if name.strip() == "flags" else value
    if values:
        projects.configure(store, who, **values)
    view = projects.project(store, who)
    fields = projects.Settings.model_fields
    rows = [
        (name, short(str(getattr(view.settings, name)), 40), field.description or "")
        for name, field in fields.items()
    ]
    print(table(("setting", "value", "meaning"), rows))


def make_token(config: Config, name: str, scopes: Sequence[str], days: int) -> None:
    store = open_labels(config)
    if not 1 <= days <= 3650:
        raise UserError(f"--days {days}; 1 to 3650 will do")
    lasts = dt.timedelta(days=days)
    made = sessions.create_api_token(store, _as_lead(config, store), name, tuple(scopes), lasts)
    print(f"API token {made.id}, until {made.expires:%d %b %Y}, shown only now: {made.token}")


def back_up(config: Config, path: str) -> None:
    if not path or Path(path).is_dir():
        raise UserError(f"cannot write a backup to {path}: it is a folder; name a file")
    report = backup.back_up(open_labels(config), Path(path))
    print(f"{report.rows:,} rows of {report.tables} tables are in {path}; keep it safe")


def restore(config: Config, path: str) -> None:
    store = open_labels(config)
    report = backup.restore(store, Path(path))
    print(f"{report.rows:,} rows of {report.tables} tables are in {store}")


def upgrade(config: Config) -> None:
    print(f"{open_labels(config, upgrade=True)} is of this release")


def close(config: Config, name: str, erase: bool) -> None:
    store = open_labels(config)
    if erase:
        print(f"{name} is forgotten; the labels stay under {auth.erase_account(store, name)}")
    else:
        auth.close_account(store, name)
        print(f"{name} is closed, with all sessions; the labels stay")


def reset_password(config: Config, name: str) -> None:
    password = auth.reset_password(open_labels(config), name)
    print(f"{name}; one-time password, shown only now: {password}")


def order_queue(config: Config, scores: str) -> None:
    store = open_labels(config)
    report = selection.order_by_uncertainty(store, _as_lead(config, store), Path(scores))
    print(f"{report.ordered} comparisons ordered, the least sure first; {report.unscored} unscored")


def vendor_out(
    config: Config, vendor: str, area: str, count: int, folder: str, gold: float
) -> None:
    store = open_labels(config)
    if area not in ("write", "compare"):
        raise UserError(f"work {area!r}; write or compare will do")
    who = _as_lead(config, store)
    sent = vendors.send_out(store, who, vendor, area, count, Path(folder), gold)
    print(f"batch {sent.batch}: {sent.items} tasks and {sent.gold} known answers in {folder}")


def vendor_in(config: Config, batch: int, file: str) -> None:
    store = open_labels(config)
    back = vendors.take_back(store, _as_lead(config, store), batch, Path(file))
    said = "no known answers" if back.agreement is None else f"{back.agreement:.0%} of gold right"
    _show_rejects(back.rejects, None)
    if not back.accepted:
        raise UserError(
            f"batch {batch} is refused ({said}): none of its labels came in; its tasks are open,"
            " send them out anew"
        )
    print(f"batch {batch} is accepted: {back.labels} labels ({said})")


def vendor_withdraw(config: Config, batch: int) -> None:
    store = open_labels(config)
    vendors.withdraw(store, _as_lead(config, store), batch)
    print(f"batch {batch} is withdrawn; its tasks are open")


def _show_rejects(rejects: Sequence[Reject], kept: Path | None) -> None:
    for reject in rejects[:_SHOWN_REJECTS]:
        print(printable(f"{reject.file}:{reject.line}: {reject.why}"))
    if len(rejects) > _SHOWN_REJECTS:
        print(f"and {len(rejects) - _SHOWN_REJECTS:,} more")
    if rejects and kept is not None:
        print(f"all {len(rejects):,} refused lines, with reasons: {kept}")


def _day(text: str) -> dt.datetime | None:
    if not text:
        return None
    try:
        day = dt.date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{text!r} is no date; write it like 2026-03-02") from None
    return dt.datetime.combine(day, dt.time(), dt.UTC)

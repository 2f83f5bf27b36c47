"""A whole store in one file, and back: a zip of one JSON Lines file a table, with counts and
digests, the same from SQLite and PostgreSQL, so it also moves a store from one to the other."""

import base64
import dataclasses
import datetime as dt
import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, exists, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from labeling_app import upgrades
from labeling_app.schema import APPEND_ONLY, Base, Project, refuse_changes
from labeling_app.store import Store
from pipeline.core import storage
from pipeline.core.errors import UserError

VERSION = 1
_CONTENTS = "contents.json"
_BATCH = 1000
_MAX_LINE = 64 << 20

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class BackupReport:
    rows: int
    tables: int


def back_up(store: Store, path: Path, progress: Progress | None = None) -> BackupReport:
    """Write everything, of one moment, into a zip file; whole or not at all. It holds password
    hashes and the keys of the pseudonyms: keep it as safe as the store. Raises UserError for a
    file that is there and is no backup."""
    if path.exists() and not _is_backup(path):
        raise UserError(f"{str(path)!r} is there and is no backup; name another file")
    tables: dict[str, Any] = {}
    total = 0
    with (
        storage.atomic_file(str(path)) as part,
        store.read() as session,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        connection = session.connection()
        for table in Base.metadata.sorted_tables:
            digest, rows = hashlib.sha256(), 0
            with archive.open(f"{table.name}.jsonl", "w", force_zip64=True) as file:
                for line in _lines(connection, table):
                    digest.update(line)
                    file.write(line)
                    rows += 1
                    total += 1
                    if progress is not None and total % _BATCH == 0:
                        progress(total)
            tables[table.name] = {"rows": rows, "sha256": digest.hexdigest()}
        contents = {"version": VERSION, "revision": upgrades.HEAD, "tables": tables}
        archive.writestr(_CONTENTS, json.dumps(contents, indent=1))
    return BackupReport(total, len(tables))


def restore(store: Store, path: Path, progress: Progress | None = None) -> BackupReport:
    """Fill an empty store from a backup, all of it or nothing. Raises UserError for a store that
    has work in it, and for a file that is damaged, no backup, or of another release."""
    try:
        with zipfile.ZipFile(path) as archive:
            contents = _contents(archive, path)
            _check_whole(archive, contents, path)
            with store.write() as session:
                connection = session.connection()
                _check_empty(connection, store)
                _drop_guards(connection)
                for table in reversed(Base.metadata.sorted_tables):
                    connection.execute(table.delete())
                total = 0
                for table in Base.metadata.sorted_tables:
                    total += _fill(connection, table, archive)
                    if progress is not None:
                        progress(total)
                _advance_sequences(connection)
                refuse_changes(connection, APPEND_ONLY)
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise UserError(f"cannot read the backup {str(path)!r}: {error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, SQLAlchemyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged: {why}") from None
    store.forget_keys()
    return BackupReport(total, len(contents["tables"]))


def _is_backup(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return _CONTENTS in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _lines(connection: Connection, table: Table) -> Iterator[bytes]:
    query = select(table).order_by(*table.primary_key.columns)
    names = [column.name for column in table.columns]
    with connection.execute(query.execution_options(yield_per=_BATCH)) as rows:
        for row in rows:
            values = {name: _plain(value) for name, value in zip(names, row, strict=True)}
            yield json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return {"time": value.isoformat()}
    if isinstance(value, bytes | memoryview):
        return {"bytes": base64.b64encode(bytes(value)).decode()}
    return {"json": value} if isinstance(value, dict | list) else value


def _typed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    if kind == "time":
        return dt.datetime.fromisoformat(str(inner))
    return base64.b64decode(str(inner)) if kind == "bytes" else inner


def _contents(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        contents: dict[str, Any] = json.loads(archive.read(_CONTENTS))
        version, revision = contents["version"], contents["revision"]
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path} is no backup of a labeling store") from None
    if (version, revision) != (VERSION, upgrades.HEAD):
        raise UserError(
            f"{path} is a backup of revision {revision}, this code restores {upgrades.HEAD};"
            " restore it with the release that made it, then upgrade"
        )
    return contents


def _check_whole(archive: zipfile.ZipFile, contents: dict[str, Any], path: Path) -> None:
    """Before anything is written. Raises UserError if a table is not what was backed up."""
    for table in Base.metadata.sorted_tables:
        wanted = contents["tables"].get(table.name)
        digest, rows = hashlib.sha256(), 0
        with archive.open(f"{table.name}.jsonl") as file:
            while line := file.readline(_MAX_LINE):
                digest.update(line)
                rows += 1
        if wanted is None or (rows, digest.hexdigest()) != (wanted["rows"], wanted["sha256"]):
            raise UserError(f"{path} is damaged: {table.name} is not what was backed up")


def _check_empty(connection: Connection, store: Store) -> None:
    for name in ("tasks", "users", "prompts", "feedback"):
        table = Base.metadata.tables[name]
        if connection.scalar(select(func.count()).select_from(table)):
            raise UserError(f"the store {store} has {name} in it; restore into an empty one")
    if connection.scalar(select(exists().where(Project.name != "default"))):
        raise UserError(f"the store {store} has projects in it; restore into an empty one")


def _drop_guards(connection: Connection) -> None:
    for table in APPEND_ONLY:
        if connection.dialect.name == "sqlite":
            for deed in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER {table}_no_{deed}"))
        else:
            connection.execute(text(f"DROP TRIGGER {table}_append_only ON {table}"))


def _fill(connection: Connection, table: Table, archive: zipfile.ZipFile) -> int:
    rows = 0
    batch: list[dict[str, Any]] = []
    with archive.open(f"{table.name}.jsonl") as file:
        while line := file.readline(_MAX_LINE):
            batch.append({name: _typed(value) for name, value in json.loads(line).items()})
            rows += 1
            if len(batch) == _BATCH:
                connection.execute(insert(table), batch)
                batch = []
    if batch:
        connection.execute(insert(table), batch)
    return rows


def _advance_sequences(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        return
    for table in Base.metadata.sorted_tables:
        if "id" in table.columns:
            connection.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'),"  # noqa: S608
                    f" (SELECT max(id) FROM {table.name}))"
                    f" WHERE EXISTS (SELECT 1 FROM {table.name})"
                )
            )

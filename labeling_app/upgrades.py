"""Brings a store's tables to this release, by alembic, inside the caller's transaction."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from pipeline.core.errors import UserError

HEAD = "0002"
OLDER = ("0001",)
_FIRST = "0001"  # the store as it was before alembic: its schema version was 1
_OLD_TABLE = "schema_version"


def revision(connection: Connection) -> str | None:
    """The revision of the tables, None if there are none. Raises UserError for unknown tables."""
    inspector = inspect(connection)
    if inspector.has_table("alembic_version"):
        return connection.scalar(text("SELECT version_num FROM alembic_version"))
    if not inspector.has_table(_OLD_TABLE):
        return None
    found = connection.scalar(text(f"SELECT version FROM {_OLD_TABLE}"))  # noqa: S608 (a constant)
    if found != 1:
        raise UserError(
            f"this labeling store has schema version {found}, this code knows 1; run the matching"
            " release, or name another store with labels.store"
        )
    return _FIRST


def upgrade(connection: Connection, to: str = HEAD) -> None:
    """All of it or, with the caller's transaction, nothing."""
    from alembic import command  # 0.2 s, and needed once in a store's life
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    found = revision(connection)
    if found is not None and not inspect(connection).has_table("alembic_version"):
        command.stamp(config, found)
    command.upgrade(config, to)

"""What all tables stand on: column types that mean the same on SQLite and PostgreSQL."""

import datetime as dt
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite counts rows in an INTEGER key alone; PostgreSQL gets 64 bits.
Id = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware time, stored in UTC; SQLite, which knows no zones, keeps the UTC reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        assert value.tzinfo is not None, value
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads a plain class attribute)
        dt.datetime: UtcDateTime,
        list[dict[str, Any]]: JSON,
        dict[str, Any]: JSON,
        list[int]: JSON,
        list[str]: JSON,
        str: Text,
        bytes: LargeBinary,
    }


class Secret(Base):
    """What the store keeps to itself: the keys of pseudonyms and of page tokens."""

    __tablename__ = "secrets"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[bytes]


class EventRow(Base):
    """Who did what to what, and when: written in the transaction of the deed itself.

    `actor` is a pseudonym, so that erasing a person leaves no name here.
    """

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    at: Mapped[dt.datetime]
    actor: Mapped[str] = mapped_column(String(64))
    verb: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(200))
    payload: Mapped[dict[str, Any]]

"""The four records that pass between rooms, each beside its Arrow schema and version.

A schema changes together with its version, its reader and the round-trip test.
"""

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import storage
from pipeline.core.errors import UserError
from pipeline.core.manifest import open_checked

_STRING_LIST = pa.list_(pa.string())
_MESSAGES = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field(
                "content",
                pa.list_(
                    pa.struct(
                        [
                            pa.field("type", pa.string(), nullable=False),
                            pa.field("text", pa.string()),
                            pa.field("ref", pa.string()),
                        ]
                    )
                ),
                nullable=False,
            ),
        ]
    )
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a message. Text today; images and tool calls come as other types with a ref."""

    type: str
    text: str | None = None
    ref: str | None = None


@dataclasses.dataclass(frozen=True)
class Message:
    role: str
    content: tuple[Part, ...]

    @staticmethod
    def of(role: str, text: str) -> "Message":
        return Message(role, (Part("text", text),))

    @property
    def text(self) -> str:
        """The text parts, joined; a part of another type has none."""
        return "".join(part.text or "" for part in self.content if part.type == "text")


@dataclasses.dataclass(frozen=True)
class Document:
    """One fetched page with its whole provenance. `drop_reason` None: it is kept.

    As the page itself declares them, and empty where it does not: `published` (a date, ISO 8601),
    `declared_language` (BCP 47), `license` (a URL, or its words).
    """

    NAME: ClassVar[str] = "Document"
    VERSION: ClassVar[int] = 2
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("url", pa.string(), nullable=False),
            pa.field("fetched_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("warc_file", pa.string(), nullable=False),
            pa.field("warc_offset", pa.int64(), nullable=False),
            pa.field("payload_sha256", pa.string(), nullable=False),
            pa.field("http_status", pa.int32(), nullable=False),
            pa.field("content_type", pa.string(), nullable=False),
            pa.field("extractor", pa.string(), nullable=False),
            pa.field("extractor_version", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("published", pa.string(), nullable=False),
            pa.field("declared_language", pa.string(), nullable=False),
            pa.field("license", pa.string(), nullable=False),
            pa.field("language", pa.string(), nullable=False),
            pa.field("signals", pa.map_(pa.string(), pa.float64()), nullable=False),
            pa.field("drop_reason", pa.string()),
        ]
    )

    doc_id: str
    url: str
    fetched_at: dt.datetime
    warc_file: str
    warc_offset: int
    payload_sha256: str
    http_status: int
    content_type: str
    extractor: str
    extractor_version: str
    title: str
    text: str
    published: str = ""
    declared_language: str = ""
    license: str = ""
    language: str = ""
    signals: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    drop_reason: str | None = None

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> "Document":
        fields: dict[str, Any] = {**row, "signals": dict(row["signals"])}
        return Document(**fields)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """An ideal conversation that a person wrote or approved: what SFT learns from.

    `origin`: human, edited or accepted, of an LLM's draft; `edit_chars` then is the edit distance
    from it. `assisted`: help was offered. `vendor` is "" for one's own people.
    """

    NAME: ClassVar[str] = "Conversation"
    VERSION: ClassVar[int] = 2
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("conversation_id", pa.string(), nullable=False),
            pa.field("prompt_id", pa.string(), nullable=False),
            pa.field("messages", _MESSAGES, nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("origin", pa.string(), nullable=False),
            pa.field("labeler", pa.string(), nullable=False),
            pa.field("instruction_version", pa.int32(), nullable=False),
            pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("assisted", pa.bool_(), nullable=False),
            pa.field("edit_chars", pa.int32()),
            pa.field("pasted_chars", pa.int32(), nullable=False),
            pa.field("active_ms", pa.int64(), nullable=False),
            pa.field("vendor", pa.string(), nullable=False),
        ]
    )

    conversation_id: str
    prompt_id: str
    messages: tuple[Message, ...]
    source: str
    origin: str
    labeler: str
    instruction_version: int
    created_at: dt.datetime
    assisted: bool = False
    edit_chars: int | None = None
    pasted_chars: int = 0
    active_ms: int = 0
    vendor: str = ""

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> "Conversation":
        fields: dict[str, Any] = {**row, "messages": _messages(row["messages"])}
        return Conversation(**fields)


@dataclasses.dataclass(frozen=True)
class RankedResponse:
    """An answer and the rank one person gave it: 1 is best, equal ranks are a tie."""

    response_id: str
    model: str
    text: str
    rank: int
    likert: int | None = None
    flags: tuple[str, ...] = ()


# How much better the better of two answers is (Touvron et al. 2023, table 27, "margin small").
DEGREE_MARGINS = {"significantly": 1.0, "clearly": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One person's ranking of K answers to one prompt, as it was shown.

    `shown_order` holds indices into `responses`, in the order on the screen. `labeler` is a
    pseudonym. `degree`: of two answers, how much the better one is better. Pairs are derived from
    this, never stored in its place.
    """

    NAME: ClassVar[str] = "Comparison"
    VERSION: ClassVar[int] = 2
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("comparison_id", pa.string(), nullable=False),
            pa.field("prompt_id", pa.string(), nullable=False),
            pa.field("prompt", _MESSAGES, nullable=False),
            pa.field(
                "responses",
                pa.list_(
                    pa.struct(
                        [
                            pa.field("response_id", pa.string(), nullable=False),
                            pa.field("model", pa.string(), nullable=False),
                            pa.field("text", pa.string(), nullable=False),
                            pa.field("rank", pa.int32(), nullable=False),
                            pa.field("likert", pa.int32()),
                            pa.field("flags", _STRING_LIST, nullable=False),
                        ]
                    )
                ),
                nullable=False,
            ),
            pa.field("shown_order", pa.list_(pa.int32()), nullable=False),
            pa.field("not_rankable", pa.bool_(), nullable=False),
            pa.field("confidence", pa.string()),
            pa.field("labeler", pa.string(), nullable=False),
            pa.field("instruction_version", pa.int32(), nullable=False),
            pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("degree", pa.string()),
            pa.field("comment", pa.string(), nullable=False),
            pa.field("not_rankable_reason", pa.string(), nullable=False),
            pa.field("assisted", pa.bool_(), nullable=False),
            pa.field("active_ms", pa.int64(), nullable=False),
            pa.field("vendor", pa.string(), nullable=False),
        ]
    )

    comparison_id: str
    prompt_id: str
    prompt: tuple[Message, ...]
    responses: tuple[RankedResponse, ...]
    shown_order: tuple[int, ...]
    not_rankable: bool
    confidence: str | None
    labeler: str
    instruction_version: int
    created_at: dt.datetime
    source: str = ""
    degree: str | None = None
    comment: str = ""
    not_rankable_reason: str = ""
    assisted: bool = False
    active_ms: int = 0
    vendor: str = ""

    def pairs(self) -> Iterator[tuple[RankedResponse, RankedResponse]]:
        """(better, worse) for each two answers of different rank; a tie gives no pair."""
        if self.not_rankable:
            return
        for better in self.responses:
            for worse in self.responses:
                if better.rank < worse.rank:
                    yield better, worse

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> "Comparison":
        fields: dict[str, Any] = {
            **row,
            "prompt": _messages(row["prompt"]),
            "responses": tuple(_response(response) for response in row["responses"]),
            "shown_order": tuple(row["shown_order"]),
        }
        return Comparison(**fields)


@dataclasses.dataclass(frozen=True)
class Feedback:
    """A user's thumb on a deployed answer. `feedback_id` is the idempotency key of the click.

    The rated answer is the last message of `messages`; `rating` is 1 or -1.
    """

    NAME: ClassVar[str] = "Feedback"
    VERSION: ClassVar[int] = 1
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("feedback_id", pa.string(), nullable=False),
            pa.field("prompt_id", pa.string(), nullable=False),
            pa.field("messages", _MESSAGES, nullable=False),
            pa.field("model_id", pa.string(), nullable=False),
            pa.field("rating", pa.int32(), nullable=False),
            pa.field("comment", pa.string(), nullable=False),
            pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
        ]
    )

    feedback_id: str
    prompt_id: str
    messages: tuple[Message, ...]
    model_id: str
    rating: int
    comment: str
    created_at: dt.datetime

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> "Feedback":
        fields: dict[str, Any] = {**row, "messages": _messages(row["messages"])}
        return Feedback(**fields)


class Record(Protocol):
    """What the readers and writers below need of a record's class."""

    NAME: ClassVar[str]
    VERSION: ClassVar[int]
    SCHEMA: ClassVar[pa.Schema]

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Any: ...


R = TypeVar("R", Document, Conversation, Comparison, Feedback)
_SCHEMAS = {kind.NAME: kind.SCHEMA for kind in (Document, Conversation, Comparison, Feedback)}


def schema_of(kind: type[Record]) -> pa.Schema:
    """The schema as it stands in files: with the record's name and version in its metadata."""
    return with_version(kind.SCHEMA, kind.NAME, kind.VERSION)


def with_version(schema: pa.Schema, name: str, version: int) -> pa.Schema:
    return schema.with_metadata({"flywheel.record": name, "flywheel.version": str(version)})


def to_table(records: Sequence[R], kind: type[R]) -> pa.Table:
    """Rows in the given order. A map's entries are sorted, so equal records give equal bytes."""
    rows = [_row(record) for record in records]
    return pa.Table.from_pylist(rows, schema=schema_of(kind))


def write_table(table: pa.Table, url: str) -> None:
    """Write one Parquet file, whole or not at all; the same table gives the same bytes."""
    with storage.atomic_file(url) as path:
        pq.write_table(table, path, compression="zstd", write_statistics=True, version="2.6")


def read_table(url: str, name: str, version: int) -> pa.Table:
    """One Parquet file whose record and version are as asked, compared with its stage's manifest.
    Raises UserError if it is not, DamagedOutput if it is not what the manifest says."""
    with _opened(url) as file:
        # With threads, reading through Python may abort at the interpreter's end (arrow#34314).
        table = pq.read_table(pa.PythonFile(file, mode="r"), use_threads=False)
    _check_version(url, table.schema, name, version)
    _check_columns(url, table.schema, _SCHEMAS[name].names if name in _SCHEMAS else ())
    return table


def read_columns(url: str, name: str, version: int, columns: Sequence[str]) -> pa.Table:
    """These columns of the same file. Raises UserError if it lacks one."""
    with open_table(url, name, version, columns) as file:
        return file.read(columns=list(columns), use_threads=False)


@contextlib.contextmanager
def open_table(
    url: str, name: str, version: int, columns: Sequence[str] = ()
) -> Generator[pq.ParquetFile]:
    """The same file, to be read in parts, about 1 MB of a column at a time. Raises UserError, also
    if it lacks one of `columns` or if reading it inside fails."""
    with _opened(url) as opened, contextlib.ExitStack() as stack:
        source: Any = pa.PythonFile(opened, mode="r")
        if storage.is_local(url):
            source = stack.enter_context(pa.OSFile(str(storage.local_path(url))))
        file = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        _check_version(url, file.schema_arrow, name, version)
        _check_columns(url, file.schema_arrow, columns)
        yield file


@contextlib.contextmanager
def _opened(url: str) -> Generator[IO[bytes]]:
    try:
        with open_checked(url) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"no file at {url}; run the stage that makes it first") from None
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk's or the network's, not the file's
        raise UserError(f"{url} is not a whole Parquet file ({error})") from None


def _check_version(url: str, schema: pa.Schema, name: str, version: int) -> None:
    metadata = schema.metadata or {}
    found = (
        metadata.get(b"flywheel.record", b"?").decode(),
        metadata.get(b"flywheel.version", b"?").decode(),
    )
    if found != (name, str(version)):
        raise UserError(
            f"{url} holds {found[0]} version {found[1]}, this code reads {name} version {version};"
            " run the stage that makes it again"
        )


def _check_columns(url: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in schema.names]:
        raise UserError(f"{url} has no column {missing[0]!r}; run the stage that makes it again")


def read_records(url: str, kind: type[R]) -> list[R]:
    return list(iter_records(read_table(url, kind.NAME, kind.VERSION), kind))


def iter_records(table: pa.Table, kind: type[R]) -> Iterator[R]:
    for batch in table.to_batches():
        for row in batch.to_pylist():
            yield kind.from_row(row)


def _messages(rows: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(
        Message(row["role"], tuple(Part(**part) for part in row["content"])) for row in rows
    )


def _response(row: Mapping[str, Any]) -> RankedResponse:
    fields: dict[str, Any] = {**row, "flags": tuple(row["flags"])}
    return RankedResponse(**fields)


def _row(record: Document | Conversation | Comparison | Feedback) -> dict[str, Any]:
    row = dataclasses.asdict(record)
    if isinstance(record, Document):
        row["signals"] = sorted(record.signals.items())
    return row

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import UserError
from pipeline.core.records import (
    Comparison,
    Conversation,
    Document,
    Feedback,
    Message,
    Part,
    RankedResponse,
    read_records,
    schema_of,
    to_table,
    write_table,
)

WHEN = dt.datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=dt.UTC)
TALK = (
    Message.of("user", "Grüße ☃ 𝄞 \x00"),
    Message("assistant", (Part("image", ref="s3://b/k"),)),
)
DOCUMENT = Document(
    "d1",
    "https://example.org/",
    WHEN,
    "w.warc.gz",
    17,
    "ab",
    200,
    "text/html",
    "trafilatura",
    "2.3",
    "T",
    "line\nline",
    "2026-02-28",
    "en-GB",
    "https://creativecommons.org/licenses/by/4.0/",
    "en",
    {"words": 2.0, "a": 1.5},
    "too-short",
)
CONVERSATION = Conversation("c1", "p1", TALK, "demo", "human", "sim-a", 3, WHEN)
COMPARISON = Comparison(
    "k1",
    "p1",
    TALK,
    (
        RankedResponse("r1", "m1", "x", 1, 7, ("fails-task",)),
        RankedResponse("r2", "m2", "y", 2),
        RankedResponse("r3", "m2", "z", 2),
    ),
    (2, 0, 1),
    False,
    "very",
    "sim-b",
    3,
    WHEN,
)
FEEDBACK = Feedback("f1", "p1", TALK, "model", -1, "", WHEN)
ALL = [
    (DOCUMENT, Document),
    (CONVERSATION, Conversation),
    (COMPARISON, Comparison),
    (FEEDBACK, Feedback),
]


@pytest.mark.parametrize(("record", "kind"), ALL)
def test_a_record_survives_the_file(record, kind, tmp_path) -> None:
    url = str(tmp_path / "r.parquet")
    write_table(to_table([record, record], kind), url)
    assert read_records(url, kind) == [record, record]
    found = pq.read_schema(url)  # Parquet calls a list's field "element", Arrow "item"
    assert found.names == schema_of(kind).names
    assert found.metadata == schema_of(kind).metadata
    assert [f.nullable for f in found] == [f.nullable for f in schema_of(kind)]


@pytest.mark.parametrize(("record", "kind"), ALL)
def test_no_rows_are_a_file_too(record, kind, tmp_path) -> None:
    url = str(tmp_path / "r.parquet")
    write_table(to_table([], kind), url)
    assert read_records(url, kind) == []


def test_equal_records_give_equal_bytes(tmp_path) -> None:
    twin = Document.from_row(to_table([DOCUMENT], Document).to_pylist()[0])
    reordered = Document(**{**DOCUMENT.__dict__, "signals": {"a": 1.5, "words": 2.0}})
    urls = [tmp_path / name for name in ("a", "b", "c")]
    for url, document in zip(urls, (DOCUMENT, twin, reordered), strict=True):
        write_table(to_table([document], Document), str(url))
    assert urls[0].read_bytes() == urls[1].read_bytes() == urls[2].read_bytes()


def test_another_version_or_record_is_refused_by_name(tmp_path) -> None:
    url = str(tmp_path / "r.parquet")
    write_table(to_table([FEEDBACK], Feedback), url)
    with pytest.raises(UserError, match="holds Feedback version 1, this code reads Document"):
        read_records(url, Document)
    newer = schema_of(Feedback).with_metadata(
        {"flywheel.record": "Feedback", "flywheel.version": "2"}
    )
    write_table(pa.Table.from_pylist([], schema=newer), url)
    with pytest.raises(UserError, match="Feedback version 2"):
        read_records(url, Feedback)


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"garbage" * 100])
def test_a_file_that_is_not_parquet_is_named(damage, tmp_path) -> None:
    path = tmp_path / "r.parquet"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"r\.parquet is not a whole Parquet file"):
        read_records(str(path), Document)


def test_pairs_come_from_ranks_and_a_tie_gives_none() -> None:
    assert [(a.response_id, b.response_id) for a, b in COMPARISON.pairs()] == [
        ("r1", "r2"),
        ("r1", "r3"),
    ]
    assert list(Comparison(**{**COMPARISON.__dict__, "not_rankable": True}).pairs()) == []


def test_the_text_of_a_message_is_its_text_parts() -> None:
    message = Message("user", (Part("text", "a"), Part("image", ref="x"), Part("text", "b")))
    assert message.text == "ab"

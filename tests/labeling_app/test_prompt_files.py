"""Files of prompts: every form, every broken line, what cannot be read."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling_app.prompt_files import Defaults, Reject, count_lines, read_prompts
from labeling_app.tasks import NewAnswer, NewTask
from pipeline.core.errors import UserError
from pipeline.core.records import Message

DEFAULTS = Defaults("import")
PAIR = {"prompt": "Pick.", "responses": ["a", "b"]}
GOOD = {"id": "good", "prompt": "A good one?"}


def line(row: object) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, rows: list) -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(line(row) + b"\n" for row in rows))
        return path

    return to_file


def user(text: str) -> tuple[Message, ...]:
    return (Message.of("user", text),)


FORMS = [
    ({"prompt": "Hi?"}, "demo", user("Hi?")),
    ({"question": "Hi?"}, "demo", user("Hi?")),
    ({"instruction": "Hi?", "kind": "question"}, "question", user("Hi?")),
    ({"messages": [{"role": "user", "content": "Hi?"}]}, "demo", user("Hi?")),
    (
        {
            "messages": [
                {"role": "system", "content": [{"kind": "text", "text": "Be brief."}]},
                {"role": "user", "content": [{"kind": "text", "text": "H"}, {"text": "i?"}]},
                {"role": "assistant", "content": [{"text": "This is to be written anew."}]},
            ]
        },
        "demo",
        (Message.of("system", "Be brief."), *user("Hi?")),
    ),
    ({"prompt": "Hi?", "responses": ["a", "b"]}, "compare", user("Hi?")),
    ({"prompt": "Hi?", "answers": [{"model": "m", "text": "a"}, "b"]}, "compare", user("Hi?")),
    ({"prompt": "Hi?", "answers": ["a bad one"], "kind": None}, "demo", user("Hi?")),
]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(("row", "kind", "prompt"), FORMS)
def test_every_form_of_a_prompt(tmp_path, write, form, row, kind, prompt):
    path = write("p.jsonl", [row])
    if form == "parquet" and {type(each) for each in row.get("answers", [])} != {dict, str}:
        path = tmp_path / "p.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
    [task] = read_prompts(path, DEFAULTS)
    assert isinstance(task, NewTask), task
    assert (task.kind, task.prompt, task.source) == (kind, prompt, "import")
    assert (task.overlap, task.priority, task.skill, task.purpose) == (1, 0, "", "work")
    assert count_lines(path) == 1


def test_what_a_line_says_goes_before_the_defaults(write):
    own = {"priority": -3, "skill": "law", "overlap": 4, "source": "site", "id": "x"}
    path = write("p.jsonl", [{**PAIR, **own}, PAIR])
    one, other = read_prompts(path, Defaults("import", "compare", 7, "art", 2))
    assert (one.key, one.source, one.priority, one.skill, one.overlap) == (
        "site:x", "site", -3, "law", 4,
    )  # fmt: skip
    assert (other.source, other.priority, other.skill, other.overlap) == ("import", 7, "art", 2)
    assert other.key.startswith("p:")
    assert other.answers == (NewAnswer("unknown", "a"), NewAnswer("unknown", "b"))


def test_shards_of_a_corpus_give_questions(tmp_path):
    long = "First line.\n" + "word " * 500
    rows = [{"doc_id": "d1", "text": "Short."}, {"doc_id": "d2", "text": long, "url": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shard-0.parquet")
    one, other = read_prompts(tmp_path / "shard-0.parquet", DEFAULTS)
    assert (one.key, one.kind, one.source) == ("corpus:d1", "question", "corpus")
    assert one.prompt[0].text.endswith("\n\nShort.")
    assert other.prompt[0].text.endswith("\n\nFirst line.")  # cut at a line's end


def test_an_excerpt_is_never_empty(write):
    [task] = read_prompts(write("d.jsonl", [{"doc_id": "d", "text": "\n" + "x" * 3000}]), DEFAULTS)
    assert "xxx" in task.prompt[0].text


DEEP = b'{"prompt": ' + b"[" * 100_000
HALF = json.dumps({"prompt": "A long enough line"}).encode()[:-5]
BROKEN = [
    (b"not json", "not JSON"),
    (b"[1]", "not a JSON object"),
    (b'"x"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"prompt": "caf\xe9"}', "not UTF-8"),
    (b'{"prompt": "a\0b"}', "not JSON"),
    ({"prompt": "a\0b"}, "NUL"),
    ({"prompt": "a", "id": "a\0b"}, "NUL"),
    ({"prompt": "\ud800", "id": "1"}, "Unicode"),
    ({"prompt": "a", "id": "\ud800"}, "Unicode"),
    ({"prompt": "\ud800"}, "Unicode"),
    ({"prompt": "a", "responses": ["\ud800", "b"]}, "Unicode"),
    (DEEP, "JSON that cannot be read"),
    (b'{"prompt": "' + b"x" * (17 << 20) + b'"}', "a line over 16,777,216 bytes"),
    ({"prompt": "x" * ((1 << 20) + 1)}, "1,048,577 bytes"),
    (b'{"prompt": "a", "prompt": "b"}', "'prompt' comes twice"),
    (b'{"prompt": "a", "priority": 1e400}', "too large a number"),
    (b'{"prompt": "a", "priority": NaN}', "NaN is no JSON value"),
    (b'{"prompt": "a", "overlap": Infinity}', "Infinity is no JSON value"),
    ({"prompt": "a", "colour": "red"}, "unknown key 'colour'"),
    ({}, "has no prompt"),
    ({"prompt": ""}, "empty"),
    ({"prompt": " \n"}, "empty"),
    ({"prompt": 5}, "has no prompt"),
    ({"prompt": {"a": 1}}, "has no prompt"),
    ({"prompt": []}, "has no prompt"),
    ({"messages": ["x"]}, "a turn of the prompt"),
    ({"messages": [{"role": "user"}]}, "a turn of the prompt"),
    ({"messages": [{"role": 5, "content": "x"}]}, "a turn of the prompt"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "user's message"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "user's message"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "a turn of the prompt"),
    ({**PAIR, "responses": "ab"}, "must be a list"),
    ({**PAIR, "responses": [1, 2]}, "an answer is a text"),
    ({**PAIR, "responses": [{"model": 1, "text": "a"}, "b"]}, "an answer is a text"),
    ({**PAIR, "responses": [{"text": ""}, "b"]}, "empty"),
    ({**PAIR, "responses": ["a", "a"]}, "the same"),
    ({**PAIR, "responses": ["a"], "kind": "compare"}, "2 to 9"),
    ({**PAIR, "responses": list("abcdefghij")}, "2 to 9"),
    ({**PAIR, "kind": "demo"}, "0 to 1"),
    ({"prompt": "a", "kind": "rank"}, "kind 'rank'"),
    ({"prompt": "a", "kind": ["demo"]}, "kind"),
    ({"prompt": "a", "kind": 0}, "kind"),
    ({"prompt": "a", "priority": "high"}, "priority = 'high'"),
    ({"prompt": "a", "priority": True}, "priority = True"),
    ({"prompt": "a", "priority": 2**40}, "2^31"),
    ({"prompt": "a", "overlap": 0}, "overlap 0"),
    ({"prompt": "a", "overlap": 1.0}, "overlap = 1.0"),
    ({"prompt": "a", "skill": "x" * 65}, "64"),
    ({"prompt": "a", "skill": "a\0b"}, "NUL"),
    ({"prompt": "a", "skill": "\ud800"}, "Unicode"),
    ({"prompt": "a", "skill": {"a": 1}}, "skill"),
    ({"prompt": "a", "source": ["web"]}, "source"),
    ({"prompt": "a", "source": "x" * 65}, "64"),
    ({"prompt": "a", "id": "x" * 200}, "at most 200"),
    ({"prompt": "a", "id": {"a": 1}}, "id"),
    ({**PAIR, "gold": [1, 2, 3]}, "3 ranks for 2"),
    ({**PAIR, "gold": [1, 1]}, "tells nothing"),
    ({**PAIR, "gold": [1, "2"]}, "rank '2'"),
    ({**PAIR, "gold": 5}, "known ranks"),
    ({**PAIR, "gold": [1, 2], "purpose": "work"}, "known ranks"),
    ({**PAIR, "purpose": "qualification"}, "known ranks"),
    ({"prompt": "a", "gold": [1, 2]}, "only rankings"),
    ({**PAIR, "gold": [1, 2], "purpose": "goldd"}, "purpose 'goldd'"),
    ({**PAIR, "gold": [1, 2], "purpose": ["gold"]}, "purpose"),
    ({"doc_id": "d", "text": " "}, "no text"),
    ({"doc_id": "d", "text": 5}, "no text"),
    (HALF, "not JSON"),
]


@pytest.mark.parametrize(("row", "why"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_is_named_and_the_others_are_kept(write, row, why):
    found = list(read_prompts(write("p.jsonl", [GOOD, b"  ", row, {**GOOD, "id": 2}]), DEFAULTS))
    assert [type(each) for each in found] == [NewTask, Reject, NewTask]
    assert (found[1].file, found[1].line) == ("p.jsonl", 3)
    assert why in found[1].why
    assert len(found[1].text) <= 200


def test_nothing_that_json_can_nest_ends_an_import(write):
    rows = [
        (b'{"prompt": "x", "priority": ' + b"[" * depth + b"]" * depth + b"}")
        for depth in range(50, 1500, 7)
    ]
    found = list(read_prompts(write("p.jsonl", rows), DEFAULTS))
    assert [each.line for each in found] == list(range(1, len(rows) + 1))


def test_a_truncated_last_line_and_a_byte_order_mark(write, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line(GOOD) + b"\r\n" + HALF)
    good, bad = read_prompts(path, DEFAULTS)
    assert good.prompt == user("A good one?")
    assert (bad.line, bad.why[:8]) == (2, "not JSON")


def test_a_field_that_is_null_is_not_there(write):
    row = {"prompt": None, "messages": [{"role": "user", "content": "Hi?"}]}
    assert [each.prompt for each in read_prompts(write("p.jsonl", [row]), DEFAULTS)] == [
        user("Hi?")
    ]


@pytest.mark.parametrize(
    ("data", "lines"),
    [(b"", 0), (b"{}", 1), (b"{}\n", 1), (b"{}\n{}", 2), (b"\n" * (3 << 20), 3 << 20)],
)
def test_lines_are_counted_with_the_last_one_whole_or_not(tmp_path, data, lines):
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    assert count_lines(path) == lines


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_files_that_cannot_be_read(tmp_path, name):
    for deed in (lambda path: list(read_prompts(path, DEFAULTS)), count_lines):
        with pytest.raises(UserError, match="no prompt file"):
            deed(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"cannot read|whole Parquet"):
        list(read_prompts(tmp_path / name, DEFAULTS))
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD] * 1000), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet is not a whole Parquet file"):
        list(read_prompts(tmp_path / "cut.parquet", DEFAULTS))

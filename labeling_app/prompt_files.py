"""Prompts as they lie in files: JSONL, Parquet, shards of a corpus, users' feedback. One line in,
one task or one named reject out."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from labeling_app.json_objects import bounded_lines, load_object
from labeling_app.store import MAX_TEXT_BYTES, check_text
from labeling_app.tasks import KINDS, Kind, NewAnswer, NewTask, Purpose, check_task
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text
from pipeline.core.records import Message

MAX_LINE_BYTES = 16 * MAX_TEXT_BYTES
_EXCERPT_CHARS = 2000  # of a corpus document, for a question task
_PROMPT_KEYS = ("prompt", "messages", "question", "instruction")
_ANSWER_KEYS = ("responses", "answers")
_OTHER_KEYS = ("id", "kind", "priority", "skill", "overlap", "gold", "purpose", "source")
_KEYS = frozenset((*_PROMPT_KEYS, *_ANSWER_KEYS, *_OTHER_KEYS))
TOPIC = "Write a question that this text answers, and the ideal answer to it.\n\n"


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a line does not say. `kind` "": compare where there are answers, else demo."""

    source: str
    kind: Kind | None = None
    priority: int = 0
    skill: str = ""
    overlap: int = 1


@dataclasses.dataclass(frozen=True)
class Reject:
    """`line` counts from 1; of a Parquet file it is the row."""

    file: str
    line: int
    why: str
    text: str


def read_prompts(path: Path, defaults: Defaults) -> Iterator[NewTask | Reject]:
    """The file's tasks in their order, and what cannot be one. Raises UserError for a file that
    cannot be read at all."""
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)
    for number, row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        try:
            task = task_of(row, path.stem, defaults)
            check_task(task)
        except UserError as error:
            yield Reject(path.name, number, str(error), _short(row))
        else:
            yield task


def count_lines(path: Path) -> int:
    """How much there is to do, for whoever waits. Raises UserError for a file that is not there."""
    try:
        if path.suffix == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        lines, last = 0, b"\n"
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                lines, last = lines + chunk.count(b"\n"), chunk[-1:]
        return lines + (last != b"\n")
    except FileNotFoundError:
        raise UserError(f"no prompt file {str(path)!r}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"cannot read the prompt file {str(path)!r}: {error}") from None


def task_of(row: dict[str, Any], stem: str, defaults: Defaults) -> NewTask:
    """One line as a task. Raises UserError naming what is missing or wrong."""
    if "doc_id" in row and "text" in row:
        return _of_document(row, defaults)
    unknown = sorted(set(row) - _KEYS)
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    prompt = _prompt(row)
    answers = tuple(_answer(each) for each in _list(row, *_ANSWER_KEYS))
    kind = _word(row, "kind") or defaults.kind or ("compare" if len(answers) > 1 else "demo")
    if kind not in KINDS:
        raise UserError(f"kind {kind!r}; one of {', '.join(KINDS)} will do")
    gold: Any = row.get("gold")
    for text in (*(turn.text for turn in prompt), *(answer.text for answer in answers)):
        check_text(text, "a text")
    identity = row.get("id")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        raise UserError(f"id = {identity!r}; a text or a whole number will do")
    if identity is None:
        turns = [[message.role, message.text] for message in prompt]
        identity = sha256_text(canonical_json([kind, turns, [a.text for a in answers]]))[:32]
    return NewTask(
        key=f"{_word(row, 'source') or stem}:{identity}",
        kind=kind,
        prompt=prompt,
        source=_word(row, "source") or defaults.source,
        answers=answers,
        overlap=_number(row, "overlap", defaults.overlap),
        priority=_number(row, "priority", defaults.priority),
        skill=_word(row, "skill") or defaults.skill,
        purpose=cast(Purpose, _word(row, "purpose") or ("gold" if gold is not None else "work")),
        gold=_known_ranks(gold),
    )


def _of_document(row: dict[str, Any], defaults: Defaults) -> NewTask:
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise UserError("the document has no text")
    cut = text[:_EXCERPT_CHARS]
    end = cut.rfind("\n")
    excerpt = cut[:end] if len(text) > _EXCERPT_CHARS and cut[:end].strip() and end > 0 else cut
    return NewTask(
        key=f"corpus:{row['doc_id']}",
        kind="question",
        prompt=(Message.of("user", TOPIC + excerpt),),
        source="corpus",
        overlap=defaults.overlap,
        priority=defaults.priority,
        skill=defaults.skill,
    )


def _prompt(row: dict[str, Any]) -> tuple[Message, ...]:
    given: Any = next((row[key] for key in _PROMPT_KEYS if row.get(key) is not None), None)
    if isinstance(given, str):
        return (Message.of("user", given),)
    if not isinstance(given, list) or not given:
        raise UserError("has no prompt; give a text, or a list of {role, content}")
    turns: list[Message] = []
    for turn in cast(list[Any], given):
        content: Any = turn.get("content") if isinstance(turn, dict) else None
        role: Any = cast(dict[str, Any], turn).get("role") if isinstance(turn, dict) else None
        if isinstance(content, list):  # as Flywheel's own records have it
            content = _joined(cast(list[Any], content))
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError("a turn of the prompt is {role, content}, both texts")
        turns.append(Message.of(role, content))
    while turns and turns[-1].role == "assistant":
        turns.pop()  # a whole conversation: its last answer is what people are to write
    return tuple(turns)


def _joined(parts: list[Any]) -> str:
    texts: list[str] = []
    for part in parts:
        text: Any = cast(dict[str, Any], part).get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise UserError("a turn of the prompt has parts {type, text}, no others")
        texts.append(text)
    return "".join(texts)


def _answer(value: Any) -> NewAnswer:
    if isinstance(value, str):
        return NewAnswer("unknown", value)
    if isinstance(value, dict):
        row = cast(dict[str, Any], value)
        model, text = row.get("model", "unknown"), row.get("text")
        if isinstance(model, str) and isinstance(text, str):
            return NewAnswer(model, text)
    raise UserError("an answer is a text, or {model, text}")


def _list(row: dict[str, Any], *keys: str) -> list[Any]:
    value: Any = next((row[key] for key in keys if row.get(key) is not None), [])
    if not isinstance(value, list):
        raise UserError(f"{keys[0]} must be a list")
    return cast(list[Any], value)


def _word(row: dict[str, Any], key: str) -> str:
    """ "" if it is not there."""
    value: Any = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{key} = {value!r}; a text will do")
    return value


def _known_ranks(gold: Any) -> tuple[int, ...] | None:
    if gold is None:
        return None
    if not isinstance(gold, list):
        raise UserError(f"gold = {gold!r}; a list of known ranks will do")
    return tuple(cast(list[int], gold))


def _number(row: dict[str, Any], key: str, default: int) -> int:
    value: Any = row.get(key)
    if value is None:
        return default
    if type(value) is not int:
        raise UserError(f"{key} = {value!r}; a whole number will do")
    return value


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    try:
        with path.open("rb") as file:
            for number, data in bounded_lines(file, MAX_LINE_BYTES):
                if len(data) > MAX_LINE_BYTES:
                    why = f"a line over {MAX_LINE_BYTES:,} bytes"
                    yield number, Reject(path.name, number, why, "")
                elif data.strip():
                    yield number, _object(path.name, number, data)
    except FileNotFoundError:
        raise UserError(f"no prompt file {str(path)!r}") from None
    except OSError as error:
        raise UserError(f"cannot read the prompt file {str(path)!r}: {error.strerror}") from None


def _object(name: str, number: int, data: bytes) -> dict[str, Any] | Reject:
    try:
        return load_object(data)
    except UserError as error:
        text = data.decode("utf-8", "replace").strip()
        return Reject(name, number, str(error)[:200], text[:200])


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    try:
        with pq.ParquetFile(path) as file:
            wanted = [n for n in file.schema_arrow.names if n in _KEYS | {"doc_id", "text"}]
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=wanted):
                for place in range(batch.num_rows):
                    number += 1
                    yield number, _parquet_row(path.name, number, batch.slice(place, 1))
    except FileNotFoundError:
        raise UserError(f"no prompt file {str(path)!r}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a whole Parquet file ({error})") from None


def _parquet_row(name: str, number: int, batch: pa.RecordBatch) -> dict[str, Any] | Reject:
    """The one row of a batch, without what is null."""
    try:
        (row,) = batch.to_pylist()
    except UnicodeDecodeError:
        return Reject(name, number, "a text is not UTF-8", "")
    except (OverflowError, ValueError, pa.ArrowInvalid) as error:  # a time out of range, say
        return Reject(name, number, f"cannot be read ({error})"[:200], "")
    return {key: value for key, value in row.items() if value is not None}


def _short(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=True, default=str)[:200]

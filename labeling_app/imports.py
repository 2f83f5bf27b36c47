"""Labels from JSONL files, brought in through the very calls that the app makes.

Lines are written answers or rankings by simulated accounts. A file is read and checked whole
before its first label is stored; a rerun finds what is there by its keys and adds the rest. A line
that cannot be used stops the file, or, with `keep_good`, is told by number beside the others.
"""

import codecs
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from labeling_app import auth, guidelines, message_trees
from labeling_app.assignment import take_task
from labeling_app.auth import Account
from labeling_app.ranking import check_ranks
from labeling_app.store import MAX_TEXT_BYTES, Store, check_text
from labeling_app.submissions import (
    Verdict,
    demonstration_digest,
    recorded,
    submit_comparison,
    submit_demonstration,
)
from labeling_app.tasks import MAX_OVERLAP, NewAnswer, NewTask, add_tasks, check_task
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text
from pipeline.core.records import Message

IMPORTER = "sim-importer"
WRITER, CANARY_WRITER = "sim-a", "sim-b"
QUALITIES = ("right", "partly", "wrong", "evasive")
MAX_LINE_BYTES = 16 * MAX_TEXT_BYTES
_LABELER = re.compile(r"sim-[a-z0-9-]{1,30}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclasses.dataclass(frozen=True)
class FileReport:
    """`already`: labels of this file that an earlier run had stored. `refused`: why lines were left
    out, each with its number."""

    name: str
    lines: int
    demonstrations: int
    comparisons: int
    already: int
    refused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImportReport:
    files: tuple[FileReport, ...]

    @property
    def demonstrations(self) -> int:
        return sum(file.demonstrations for file in self.files)

    @property
    def comparisons(self) -> int:
        return sum(file.comparisons for file in self.files)

    @property
    def already(self) -> int:
        return sum(file.already for file in self.files)


@dataclasses.dataclass(frozen=True)
class _Written:
    task: NewTask
    labeler: str
    answer: str

    @property
    def digest(self) -> str:
        return demonstration_digest(self.answer)

    def submit(self, store: Store, who: Account, token: str, idem_key: str) -> None:
        submit_demonstration(store, who, token, self.answer, idem_key)


@dataclasses.dataclass(frozen=True)
class _Ranked:
    task: NewTask
    labeler: str
    ranks: tuple[int, ...]

    @property
    def digest(self) -> str:
        return Verdict(self.ranks).digest([answer.text for answer in self.task.answers])

    def submit(self, store: Store, who: Account, token: str, idem_key: str) -> None:
        submit_comparison(store, who, token, Verdict(self.ranks), idem_key)


_Label = _Written | _Ranked


@dataclasses.dataclass(frozen=True)
class _Line:
    """`open_tasks`: what the line asks people for, beside the labels that it brings."""

    where: str
    labels: tuple[_Label, ...]
    open_tasks: tuple[NewTask, ...] = ()


def import_labels(
    store: Store,
    files: Sequence[str | Path],
    overlap: int = 2,
    project: str = "default",
    keep_good: bool = False,
) -> ImportReport:
    """Bring in JSONL files of labels; each comparison asks for `overlap` rankings or as many as
    the file holds, whichever is more.

    A label that is there already is not touched. Raises UserError naming file, line and mend for
    a line that cannot be used, and then nothing of that file is stored; with `keep_good` only that
    line is not.
    """
    parsed = [(Path(file), *_read(Path(file), overlap, keep_good)) for file in files]
    guidelines.publish_default(store, project=project)
    return ImportReport(tuple(_store(store, project, *each, keep_good) for each in parsed))


def _store(
    store: Store,
    project: str,
    path: Path,
    lines: Sequence[_Line],
    refused: list[str],
    keep_good: bool,
) -> FileReport:
    there, lines = _already_there(store, lines, refused if keep_good else None)
    labels = [label for line in lines for label in line.labels]
    tasks = {label.task.key: label.task for label in labels}
    tasks |= {task.key: task for line in lines for task in line.open_tasks}
    add_tasks(store, _importer(store, project), list(tasks.values()))
    people = {
        name: _labeler(store, project, name) for name in sorted({label.labeler for label in labels})
    }
    new: list[_Label] = []
    for label in labels:
        if _idem_key(label) in there:
            continue
        who = people[label.labeler]
        work = take_task(store, who, label.task.key)
        if work is None:
            full = (
                f"{path}: all rankings of {label.task.key!r} are collected; "
                "raise labels.overlap before its first import"
            )
            if not keep_good:
                raise UserError(full)
            refused.append(full)
            continue
        label.submit(store, who, work.token, _idem_key(label))
        new.append(label)
    demonstrations = sum(isinstance(label, _Written) for label in new)
    already = sum(_idem_key(label) in there for label in labels)
    return FileReport(
        path.name,
        len(lines),
        demonstrations,
        len(new) - demonstrations,
        already,
        tuple(refused),
    )


def _already_there(
    store: Store, lines: Sequence[_Line], refused: list[str] | None
) -> tuple[set[str], list[_Line]]:
    """The keys of the labels that are there, and the lines that do not contradict them; the others
    go to `refused`, or raise UserError."""
    digests = recorded(store, [_idem_key(label) for line in lines for label in line.labels])
    good: list[_Line] = []
    for line in lines:
        if all(
            digests.get(_idem_key(label), label.digest) == label.digest for label in line.labels
        ):
            good.append(line)
            continue
        changed = (
            f"{line.where}: was imported before with other content; labels are never "
            "changed, so give the line a new id"
        )
        if refused is None:
            raise UserError(changed)
        refused.append(changed)
    return set(digests), good


def _idem_key(label: _Label) -> str:
    return f"{label.labeler}:{label.task.key}"


def _importer(store: Store, project: str) -> Account:
    auth.create_simulated(store, IMPORTER, "engineer", project)
    return auth.act_as(store, IMPORTER, project)


def _labeler(store: Store, project: str, name: str) -> Account:
    auth.create_simulated(store, name, "labeler", project)
    who = auth.act_as(store, name, project)
    guidelines.acknowledge(store, who, guidelines.newest(store, who).n)
    return who


def _read(path: Path, overlap: int, keep_good: bool) -> tuple[list[_Line], list[str]]:
    """The lines, and why others are refused."""
    lines: list[_Line] = []
    refused: list[str] = []
    seen: dict[str, str] = {}
    for where, data in _rows(path):
        try:
            lines.append(_line(where, data, path.stem, overlap, seen))
        except UserError as error:
            if not keep_good:
                raise
            refused.append(str(error))
    if not lines and not refused:
        raise UserError(f"{path} holds no labels; write one JSON object a line")
    return lines, refused


def _line(where: str, data: bytes, stem: str, overlap: int, seen: dict[str, str]) -> _Line:
    if len(data) > MAX_LINE_BYTES:
        raise UserError(f"{where}: a line over {MAX_LINE_BYTES:,} bytes; split it")
    row = _object(data, where)
    try:
        labels, asked = _content(row, stem, overlap)
        for task in (*(label.task for label in labels), *asked):
            check_task(task)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    keys = {label.task.key for label in labels} | {task.key for task in asked}
    if twice := sorted(keys & set(seen)):
        raise UserError(f"{where}: the same id as {seen[twice[0]]}; give it another")
    seen.update(dict.fromkeys(keys, where))
    return _Line(where, labels, asked)


def _rows(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank; of one that is too long only its beginning."""
    try:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    data = data.removeprefix(codecs.BOM_UTF8)  # editors on Windows put it there
                if data.strip():
                    yield f"{path}:{number}", data
                rest = data
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"no label file {str(path)!r}") from None
    except OSError as error:
        raise UserError(f"cannot read the label file {str(path)!r}: {error.strerror}") from None


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        row: Any = json.loads(
            data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_once_each
        )
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # too deep; a number of thousands of digits
        raise UserError(f"{where}: JSON that cannot be read ({error}); mend the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; write {{…}}")
    return cast(dict[str, Any], row)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key that comes twice: one of the two would be lost in silence."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} comes twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _content(
    row: dict[str, Any], stem: str, overlap: int
) -> tuple[tuple[_Label, ...], tuple[NewTask, ...]]:
    if "message_tree_id" not in row:
        return tuple(_labels(row, stem, overlap)), ()
    labels: list[_Label] = []
    asked: list[NewTask] = []
    for piece in message_trees.pieces(row, stem, overlap):
        if isinstance(piece, message_trees.RankedReplies):
            labels.append(_Ranked(piece.task, message_trees.LABELER, piece.ranks))
        elif isinstance(piece, message_trees.OneReply):
            labels.append(_Written(piece.task, message_trees.LABELER, piece.answer))
        else:
            asked.append(piece)
    return tuple(labels), tuple(asked)


def _labels(row: dict[str, Any], stem: str, overlap: int) -> list[_Label]:
    kinds: list[tuple[set[str], Callable[[dict[str, Any], str, int], list[_Label]]]] = [
        ({"question", "answers", "ranks"}, _question),
        ({"question", "answer"}, _canary),
        ({"prompt", "responses", "ranks"}, _comparison),
        ({"messages"}, _conversation),
    ]
    for needed, read in kinds:
        if needed <= set(row):
            return read(row, stem, overlap)
    shapes = "; ".join(", ".join(sorted(needed)) for needed, _ in kinds)
    shapes += "; message_tree_id, prompt"
    raise UserError(f"has {', '.join(sorted(row)) or 'no keys'}; a line has one of: {shapes}")


def _question(row: dict[str, Any], stem: str, overlap: int) -> list[_Label]:
    """A question with four answers of known quality, ranked: an answer and its comparison."""
    key = f"{stem}:{_identity(row)}"
    prompt = (Message.of("user", _text(row, "question")),)
    answers = _mapping(row, "answers")
    if set(answers) != set(QUALITIES):
        raise UserError(f"answers has {', '.join(sorted(answers))}; write {', '.join(QUALITIES)}")
    texts = {quality: _text(answers, quality) for quality in QUALITIES}
    choices = tuple(NewAnswer(f"hand-written/{name}", text) for name, text in texts.items())
    written = NewTask(f"{key}:write", "demo", prompt, stem)
    return [
        _Written(written, WRITER, texts["right"]),
        *_rankings(f"{key}:rank", prompt, choices, stem, row["ranks"], overlap),
    ]


def _canary(row: dict[str, Any], stem: str, _overlap: int) -> list[_Label]:
    """A canary or its benign control, with the one answer it should get."""
    kind: Any = row.get("kind")
    if kind not in ("refusal", "benign"):
        raise UserError(f"kind is {kind!r}; write refusal or benign")
    prompt = (Message.of("user", _text(row, "question")),)
    task = NewTask(f"{stem}:{_identity(row)}:write", "demo", prompt, f"{stem}-{kind}")
    return [_Written(task, CANARY_WRITER, _text(row, "answer"))]


def _conversation(row: dict[str, Any], stem: str, _overlap: int) -> list[_Label]:
    messages = _messages(row["messages"])
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise UserError("messages must end with an assistant's message; add the answer")
    task = NewTask(f"{stem}:{_identity(row)}:write", "demo", messages[:-1], stem)
    return [_Written(task, WRITER, messages[-1].text)]


def _comparison(row: dict[str, Any], stem: str, overlap: int) -> list[_Label]:
    given: Any = row["prompt"]
    prompt = (
        (Message.of("user", _text(row, "prompt")),) if isinstance(given, str) else _messages(given)
    )
    key = f"{stem}:{_identity(row)}:rank"
    responses: Any = row["responses"]
    if not isinstance(responses, list):
        raise UserError("responses must be a list of answers")
    choices = tuple(_response(each) for each in cast(list[Any], responses))
    return _rankings(key, prompt, choices, stem, row["ranks"], overlap)


def _rankings(
    key: str,
    prompt: tuple[Message, ...],
    answers: tuple[NewAnswer, ...],
    source: str,
    ranks: Any,
    overlap: int,
) -> list[_Label]:
    by_labeler: Mapping[str, Any] = ranks if isinstance(ranks, dict) else {WRITER: ranks}
    if not 1 <= len(by_labeler) <= MAX_OVERLAP:
        raise UserError(f"ranks of {len(by_labeler)} labelers; 1 to {MAX_OVERLAP} will do")
    task = NewTask(key, "compare", prompt, source, answers, max(overlap, len(by_labeler)))
    labels: list[_Label] = []
    for labeler, given in by_labeler.items():
        if not _LABELER.fullmatch(labeler):
            raise UserError(f"labeler {labeler!r}; an imported one is named sim-…")
        if not isinstance(given, list):
            raise UserError(f"ranks of {labeler} must be a list of numbers")
        numbers = cast(list[int], given)
        check_ranks(numbers, len(answers))
        labels.append(_Ranked(task, labeler, tuple(numbers)))
    return labels


def _response(value: Any) -> NewAnswer:
    if isinstance(value, str):
        return NewAnswer("unknown", check_text(value, "an answer"))
    if isinstance(value, dict):
        row = cast(dict[str, Any], value)
        return NewAnswer(_text(row, "model"), _text(row, "text"))
    raise UserError("each of responses must be a text, or an object of model and text")


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UserError("messages must be a list of objects of role and content")
    turns: list[Message] = []
    for turn in cast(list[Any], value):
        if not isinstance(turn, dict):
            raise UserError("messages must be a list of objects of role and content")
        row = cast(dict[str, Any], turn)
        turns.append(Message.of(_text(row, "role"), _text(row, "content")))
    return tuple(turns)


def _identity(row: dict[str, Any]) -> str:
    """The line's id; without one, a digest of the line, so that the same line is the same label."""
    given: Any = row.get("id")
    if given is None:
        try:
            return sha256_text(canonical_json(row))[:32]
        except UnicodeEncodeError as error:
            raise UserError(f"a text is not valid Unicode ({error.reason})") from None
    if not isinstance(given, str) or not _ID.fullmatch(given):
        raise UserError(f"id {given!r}; use 1 to 80 letters, digits, dots, dashes, underscores")
    return given


def _mapping(row: dict[str, Any], key: str) -> dict[str, Any]:
    value = row.get(key)
    if not isinstance(value, dict):
        raise UserError(f"{key} must be an object")
    return cast(dict[str, Any], value)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{key} must be a text")
    return check_text(value, key)

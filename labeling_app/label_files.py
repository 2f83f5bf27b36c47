"""Labels as they lie in files: JSON Lines of written answers and rankings by simulated accounts.
One line in, its labels out, checked; or why it cannot be used, with its number."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from labeling_app import message_trees
from labeling_app.json_objects import bounded_lines, load_object
from labeling_app.ranking import check_ranks
from labeling_app.store import MAX_TEXT_BYTES, check_text
from labeling_app.submissions import demonstration_digest
from labeling_app.tasks import MAX_OVERLAP, NewAnswer, NewTask, check_task
from labeling_app.verdicts import Verdict
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
class Written:
    task: NewTask
    labeler: str
    answer: str

    @property
    def digest(self) -> str:
        return demonstration_digest(self.answer)


@dataclasses.dataclass(frozen=True)
class Ranked:
    task: NewTask
    labeler: str
    ranks: tuple[int, ...]

    @property
    def digest(self) -> str:
        return Verdict(self.ranks).digest([answer.text for answer in self.task.answers])


Label = Written | Ranked


@dataclasses.dataclass(frozen=True)
class LabelLine:
    """`open_tasks`: what the line asks people for, beside the labels that it brings."""

    where: str
    labels: tuple[Label, ...]
    open_tasks: tuple[NewTask, ...] = ()

    @property
    def tasks(self) -> dict[str, NewTask]:
        asked = (*(label.task for label in self.labels), *self.open_tasks)
        return {task.key: task for task in asked}


def read_label_file(path: Path, overlap: int, keep_good: bool) -> tuple[list[LabelLine], list[str]]:
    """The lines, and why others are refused. Raises UserError for a file without labels, and,
    without `keep_good`, for the first line that cannot be used."""
    lines: list[LabelLine] = []
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


def _line(where: str, data: bytes, stem: str, overlap: int, seen: dict[str, str]) -> LabelLine:
    if len(data) > MAX_LINE_BYTES:
        raise UserError(f"{where}: a line over {MAX_LINE_BYTES:,} bytes; split it")
    try:
        row = load_object(data)
        labels, asked = _content(row, stem, overlap)
        for task in (*(label.task for label in labels), *asked):
            check_task(task)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    keys = {label.task.key for label in labels} | {task.key for task in asked}
    if twice := sorted(keys & set(seen)):
        raise UserError(f"{where}: the same id as {seen[twice[0]]}; give it another")
    seen.update(dict.fromkeys(keys, where))
    return LabelLine(where, labels, asked)


def _rows(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank; of one that is too long only its beginning."""
    try:
        with path.open("rb") as file:
            for number, data in bounded_lines(file, MAX_LINE_BYTES):
                if data.strip():
                    yield f"{path}:{number}", data
    except FileNotFoundError:
        raise UserError(f"no label file {str(path)!r}") from None
    except OSError as error:
        raise UserError(f"cannot read the label file {str(path)!r}: {error.strerror}") from None


def _content(
    row: dict[str, Any], stem: str, overlap: int
) -> tuple[tuple[Label, ...], tuple[NewTask, ...]]:
    if "message_tree_id" not in row:
        return tuple(_labels(row, stem, overlap)), ()
    labels: list[Label] = []
    asked: list[NewTask] = []
    for piece in message_trees.pieces(row, stem, overlap):
        if isinstance(piece, message_trees.RankedReplies):
            labels.append(Ranked(piece.task, message_trees.LABELER, piece.ranks))
        elif isinstance(piece, message_trees.OneReply):
            labels.append(Written(piece.task, message_trees.LABELER, piece.answer))
        else:
            asked.append(piece)
    return tuple(labels), tuple(asked)


def _labels(row: dict[str, Any], stem: str, overlap: int) -> list[Label]:
    kinds: list[tuple[set[str], Callable[[dict[str, Any], str, int], list[Label]]]] = [
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


def _question(row: dict[str, Any], stem: str, overlap: int) -> list[Label]:
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
        Written(written, WRITER, texts["right"]),
        *_rankings(f"{key}:rank", prompt, choices, stem, row["ranks"], overlap),
    ]


def _canary(row: dict[str, Any], stem: str, _overlap: int) -> list[Label]:
    """A canary or its benign control, with the one answer it should get."""
    kind: Any = row.get("kind")
    if kind not in ("refusal", "benign"):
        raise UserError(f"kind is {kind!r}; write refusal or benign")
    prompt = (Message.of("user", _text(row, "question")),)
    task = NewTask(f"{stem}:{_identity(row)}:write", "demo", prompt, f"{stem}-{kind}")
    return [Written(task, CANARY_WRITER, _text(row, "answer"))]


def _conversation(row: dict[str, Any], stem: str, _overlap: int) -> list[Label]:
    messages = _messages(row["messages"])
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise UserError("messages must end with an assistant's message; add the answer")
    task = NewTask(f"{stem}:{_identity(row)}:write", "demo", messages[:-1], stem)
    return [Written(task, WRITER, messages[-1].text)]


def _comparison(row: dict[str, Any], stem: str, overlap: int) -> list[Label]:
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
) -> list[Label]:
    by_labeler: Mapping[str, Any] = ranks if isinstance(ranks, dict) else {WRITER: ranks}
    if not 1 <= len(by_labeler) <= MAX_OVERLAP:
        raise UserError(f"ranks of {len(by_labeler)} labelers; 1 to {MAX_OVERLAP} will do")
    task = NewTask(key, "compare", prompt, source, answers, max(overlap, len(by_labeler)))
    labels: list[Label] = []
    for labeler, given in by_labeler.items():
        if not _LABELER.fullmatch(labeler) or labeler == IMPORTER:
            raise UserError(f"labeler {labeler!r}; an imported one is named sim-…, not {IMPORTER}")
        if not isinstance(given, list):
            raise UserError(f"ranks of {labeler} must be a list of numbers")
        numbers = cast(list[int], given)
        check_ranks(numbers, len(answers))
        labels.append(Ranked(task, labeler, tuple(numbers)))
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

"""OpenAssistant's message trees: replies that people ranked, single replies, and prompts that
nobody answered yet, which become tasks. Köpf et al. 2023 (2304.07327), section 3.

Each message keeps its id: a reply's in the name of its model, a prompt's in the key of its task.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from labeling_app.tasks import MAX_ANSWERS, NewAnswer, NewTask
from pipeline.core.errors import UserError
from pipeline.core.records import Message

LABELER = "sim-oasst"
_ROLES = {"prompter": "user", "assistant": "assistant"}
_MAX_DEPTH = 200


@dataclasses.dataclass(frozen=True)
class RankedReplies:
    """Replies to one message as its people ranked them together: 1 is best."""

    task: NewTask
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class OneReply:
    task: NewTask
    answer: str


def pieces(
    tree: dict[str, Any], source: str, overlap: int
) -> Iterator[RankedReplies | OneReply | NewTask]:
    """Of each prompter's message with its history: the ranked replies as a comparison, a reply
    without rank as a demonstration, no reply as an open task. Raises UserError."""
    root = tree.get("prompt")
    if not isinstance(root, dict):
        raise UserError("prompt must be the tree's first message, an object")
    waiting: list[tuple[dict[str, Any], tuple[Message, ...]]] = [(cast(dict[str, Any], root), ())]
    while waiting:
        message, before = waiting.pop()
        turns = (*before, Message.of(_role(message), _text(message)))
        if len(turns) > _MAX_DEPTH:
            raise UserError(f"a tree of over {_MAX_DEPTH} turns")
        replies = _replies(message)
        if turns[-1].role == "user":
            yield from _asked(_identity(message), turns, replies, source, overlap)
        waiting += [(reply, turns) for reply in replies]


def _asked(
    identity: str,
    turns: tuple[Message, ...],
    replies: list[dict[str, Any]],
    source: str,
    overlap: int,
) -> Iterator[RankedReplies | OneReply | NewTask]:
    ranked = sorted((r for r in replies if type(r.get("rank")) is int), key=lambda r: r["rank"])
    single = [reply for reply in replies if type(reply.get("rank")) is not int]
    if len(ranked) == 1:
        single, ranked = [*ranked, *single], []
    if len(ranked) > MAX_ANSWERS:
        raise UserError(f"message {identity}: {len(ranked)} ranked replies; {MAX_ANSWERS} will do")
    if ranked:
        answers = tuple(NewAnswer(f"oasst:{_identity(r)}", _text(r)) for r in ranked)
        places = sorted({reply["rank"] for reply in ranked})
        ranks = tuple(places.index(reply["rank"]) + 1 for reply in ranked)
        key = f"{source}:{identity}:rank"
        yield RankedReplies(NewTask(key, "compare", turns, source, answers, max(overlap, 1)), ranks)
    for reply in single:
        key = f"{source}:{_identity(reply)}:write"
        yield OneReply(NewTask(key, "demo", turns, source), _text(reply))
    if not replies:
        yield NewTask(f"{source}:{identity}:write", "demo", turns, source)


def _replies(message: dict[str, Any]) -> list[dict[str, Any]]:
    replies: Any = message.get("replies", [])
    if not isinstance(replies, list) or not all(isinstance(r, dict) for r in cast(Any, replies)):
        raise UserError("replies must be a list of messages")
    return cast(list[dict[str, Any]], replies)


def _role(message: dict[str, Any]) -> str:
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        raise UserError(f"role {message.get('role')!r}; prompter or assistant will do")
    return role


def _text(message: dict[str, Any]) -> str:
    text = message.get("text")
    if not isinstance(text, str):
        raise UserError("text must be a text")
    return text


def _identity(message: dict[str, Any]) -> str:
    identity = message.get("message_id")
    if not isinstance(identity, str) or not 0 < len(identity) <= 80:
        raise UserError(f"message_id {identity!r}; 1 to 80 characters will do")
    return identity

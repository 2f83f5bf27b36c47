"""A conversation as tokens, and which of them the model is to learn.

The turns are put together from token ids, never by tokenising one rendered string: a user who
types "<|assistant|>" must not be able to open an assistant's turn.
"""

import dataclasses
from collections.abc import Sequence

from tokenizers import Tokenizer

from finetune.tokenizer import BOS, ROLES, TURN_END, token_id
from pipeline.core.errors import UserError
from pipeline.core.records import Message


@dataclasses.dataclass(frozen=True)
class ChatTokens:
    """`supervised[i]`: token i was written by the assistant (its text and its end of turn)."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> ChatTokens:
    """BOS, then per turn its role's token, the text, and the end of turn.

    Raises UserError for a role that is not system, user or assistant.
    """
    bos, end = token_id(tokenizer, BOS), token_id(tokenizer, TURN_END)
    ids, supervised = [bos], [False]
    for message in messages:
        if message.role not in ROLES:
            raise UserError(f"role {message.role!r} is not one of {', '.join(ROLES)}")
        text = tokenizer.encode(message.text, add_special_tokens=False).ids
        by_assistant = message.role == "assistant"
        ids += [token_id(tokenizer, ROLES[message.role]), *text, end]
        supervised += [False, *[by_assistant] * (len(text) + 1)]
    return ChatTokens(tuple(ids), tuple(supervised))


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The turns so far, and the opened turn of the assistant."""
    opened = token_id(tokenizer, ROLES["assistant"])
    return [*encode_chat(tokenizer, messages).ids, opened]


def encode_answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """What follows `encode_prompt`: the answer's tokens and the end of turn."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [*ids, token_id(tokenizer, TURN_END)]

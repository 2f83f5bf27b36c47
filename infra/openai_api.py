"""OpenAI's chat API on the wire: what may be asked, how it is refused, and how it is answered.

A parameter is honoured or refused by name, never ignored.
"""

import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, cast

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from infra.engine import Piece, Usage
from pipeline.core.records import Message, Part

# OpenAI parameters that may be sent, but only with the value that changes nothing.
_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": False,
    "logit_bias": {},
    "tools": [],
    "response_format": {"type": "text"},
}


# ------------------------------------------------------------------------------------ what is asked


class _Body(BaseModel):
    """A JSON object of OpenAI's API. null is as good as absent, as their clients mean it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        items = cast(dict[str, Any], data).items()
        return {key: value for key, value in items if not _changes_nothing(key, value)}


def _changes_nothing(key: str, value: Any) -> bool:
    if value is None:
        return True
    neutral = _NEUTRAL.get(key)
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[TextPart], Field(min_length=1), BeforeValidator(_as_parts)]

    def record(self) -> Message:
        return Message(self.role, tuple(Part("text", part.text) for part in self.content))


class StreamOptions(_Body):
    include_usage: bool = False


_StopString = Annotated[str, Field(min_length=1, max_length=1000)]


class ChatRequest(_Body):
    """POST /v1/chat/completions. `user` says for whom it is and changes no answer."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[_StopString], BeforeValidator(_as_list)] = Field([], max_length=4)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    def limit(self, default: int) -> int:
        """Raises ApiError if the two names of the limit are given and differ."""
        limits = {n for n in (self.max_tokens, self.max_completion_tokens) if n is not None}
        if len(limits) == 2:
            raise ApiError(400, "max_tokens and max_completion_tokens differ", "max_tokens")
        return min(limits, default=default)


# -------------------------------------------------------------------------------- how it is refused


class ApiError(Exception):
    """An answer of this status in OpenAI's error shape; `param` is the parameter at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        return JSONResponse(self.body(), self.status, self.headers)


def refusal(error: ValidationError) -> ApiError:
    """The first fault, by the name of its parameter: `messages[0].role`."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    param = param[:100]
    if first["type"] == "extra_forbidden":
        message = f"parameter {param!r} is not supported"
        if param in _NEUTRAL:
            message += f", except as {json.dumps(_NEUTRAL[param])}"
        return ApiError(400, message, param, "unsupported_parameter")
    where = f"{param}: " if param else ""
    return ApiError(400, f"{where}{first['msg']}"[:300], param or None)


# ------------------------------------------------------------------------------- how it is answered


@dataclasses.dataclass(frozen=True)
class Envelope:
    """What OpenAI puts around an answer's text."""

    completion_id: str
    created: int
    model_id: str
    include_usage: bool

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": last.finish_reason,
            "logprobs": None,
        }
        return self._object("chat.completion", [choice]) | {"usage": _usage(last.usage)}

    async def events(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for piece in pieces:
                if piece.text:
                    yield self._chunk({"content": piece.text})
                if piece.finish_reason:
                    yield self._chunk({}, piece.finish_reason)
                    if self.include_usage:
                        usage = {"usage": _usage(piece.usage)}
                        yield _event(self._object("chat.completion.chunk", []) | usage)
        except ApiError as error:
            yield _event(error.body())
            return
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: Mapping[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        chunk = self._object("chat.completion.chunk", [choice])
        return _event(chunk | {"usage": None} if self.include_usage else chunk)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.completion_id, "object": kind, "created": self.created}
        return {**head, "model": self.model_id, "choices": choices}


def _event(data: Mapping[str, Any]) -> str:
    # ASCII: clients that split lines as str.splitlines does (httpx) would cut at a bare U+2028.
    return f"data: {json.dumps(data, ensure_ascii=True)}\n\n"


def _usage(usage: Usage | None) -> dict[str, int]:
    assert usage is not None, "the last piece has the usage"
    total = usage.prompt_tokens + usage.completion_tokens
    return {**dataclasses.asdict(usage), "total_tokens": total}

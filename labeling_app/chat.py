"""A client of any OpenAI-compatible endpoint: which models there are, and an answer as it comes.

Every wait has an end, and every failure is one sentence that says what to do.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import httpx

from labeling_app.store import MAX_TEXT_BYTES
from pipeline.core.errors import UserError
from pipeline.core.records import Message

CONNECT_TIMEOUT_S = 3.0
SILENCE_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 300.0
_CUT_OFF = "peer closed"  # httpx, of an answer that began well
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class EndpointError(UserError):
    """The endpoint is down, slow, or says what is not in the protocol."""


class ChatClient:
    """`endpoint` is the server's address, with or without /v1. `transport` and `monotonic`
    stand in for the network and the clock in tests."""

    def __init__(
        self,
        endpoint: str,
        transport: httpx.BaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        api_key: str = "",
    ) -> None:
        try:
            url = httpx.URL(endpoint.rstrip("/").removesuffix("/v1"))
        except httpx.InvalidURL as error:
            raise EndpointError(f"endpoint {endpoint!r} is not a URL: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise EndpointError(
                f"endpoint {endpoint!r} is not a URL; write it as in http://127.0.0.1:8000"
            )
        self.url = str(url)
        self._monotonic = monotonic
        self._http = httpx.Client(
            base_url=url,
            transport=transport,
            timeout=httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            trust_env=url.host not in _LOOPBACK,  # no proxy stands before one's own machine
        )

    def models(self) -> list[str]:
        """The names of the models served now, one at least. Raises EndpointError."""
        return list(self.cards())

    def cards(self) -> dict[str, tuple[str, ...]]:
        """The models served now, one at least, each with what its card says that it can do for
        labelers; most endpoints' cards say nothing. Raises EndpointError."""
        try:
            response = self._http.get("/v1/models", timeout=CONNECT_TIMEOUT_S)
            response.raise_for_status()
            cards = {str(card["id"]): _abilities(card) for card in response.json()["data"]}
        except httpx.HTTPError as error:
            raise self._explained(error) from None
        except (ValueError, KeyError, TypeError):
            raise self._stranger() from None
        if not cards:
            raise EndpointError(f"{self.url} serves no model; deploy one first")
        return cards

    def answer(
        self, model: str, messages: Sequence[Message], timeout_s: float, max_chars: int
    ) -> str:
        """The whole answer, within a time and a length. Raises EndpointError."""
        text, deadline = "", self._monotonic() + timeout_s
        for piece in self.stream(model, messages):
            text += piece
            if len(text) > max_chars:
                raise EndpointError(f"{model} wrote more than {max_chars:,} characters")
            if self._monotonic() > deadline:
                raise EndpointError(f"{model} took longer than {timeout_s:.0f} s")
        return text

    def stream(self, model: str, messages: Sequence[Message]) -> Iterator[str]:
        """The pieces of the answer as they come. Raises EndpointError, also in the middle."""
        body = {
            "model": model,
            "messages": [{"role": turn.role, "content": turn.text} for turn in messages],
            "stream": True,
        }
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    response.raise_for_status()
                yield from self._bounded(_pieces(response.iter_lines()))
        except httpx.HTTPError as error:
            raise self._explained(error) from None

    def close(self) -> None:
        self._http.close()

    def _bounded(self, pieces: Iterator[str]) -> Iterator[str]:
        deadline = self._monotonic() + ANSWER_TIMEOUT_S
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > MAX_TEXT_BYTES // 4 or self._monotonic() > deadline:
                raise EndpointError(f"{self.url} did not come to an end; ask for less")
            yield piece

    def _explained(self, error: httpx.HTTPError) -> EndpointError:
        if isinstance(error, httpx.HTTPStatusError):
            status, detail = error.response.status_code, _refusal(error.response)
            if detail is None:
                return self._stranger(status)
            return EndpointError(f"{self.url} refused with status {status}: {detail}")
        if isinstance(error, httpx.RemoteProtocolError) and not str(error).startswith(_CUT_OFF):
            return self._stranger()  # what came is not HTTP, or nothing
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return EndpointError(
                f"nothing answers at {self.url}; start the server with `flywheel serve`"
            )
        if isinstance(error, httpx.TimeoutException):
            return EndpointError(f"{self.url} has said nothing for too long; try again")
        return EndpointError(f"the connection to {self.url} broke off; try again")

    def _stranger(self, status: int | None = None) -> EndpointError:
        with_status = "" if status is None else f" (status {status})"
        return EndpointError(
            f"{self.url} answers, but not as an OpenAI-compatible server{with_status}; check the"
            " address, or start the server with `flywheel serve`"
        )


def _abilities(card: Any) -> tuple[str, ...]:
    said = card.get("abilities", [])
    return tuple(str(each) for each in said) if isinstance(said, list) else ()


def _refusal(response: httpx.Response) -> str | None:
    """What the server says of its refusal, in one line; None for a page meant for a browser."""
    text = response.text
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        if text.lstrip().startswith("<"):
            return None
    return " ".join(text.split())[:200]


def _pieces(lines: Iterator[str]) -> Generator[str]:
    """The text in a stream of server-sent events, up to [DONE]."""
    for line in lines:
        if not line.startswith("data:"):
            continue  # comments, event names and blank lines
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event: Any = json.loads(data)
            if "error" in event:
                raise EndpointError(f"the server broke off: {str(event['error'])[:200]}")
            choices = event["choices"]
            piece = choices[0].get("delta", {}).get("content") if choices else None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise EndpointError(f"the server sent what is no answer: {data[:80]!r}") from None
        if piece:
            yield str(piece)
    raise EndpointError("the server broke off before the end of the answer; try again")

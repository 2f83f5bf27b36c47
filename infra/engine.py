"""The champion in this process: answers in pieces of text, written side by side, and a new
champion without a pause.

When the registry's pointer moved, the next request loads the new model beside the old one, warms
it and swaps; answers that are being written are finished by the model that began them.
"""

import dataclasses
import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Literal

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from eval.model import plain_prompt
from finetune.answer_text import AnswerText
from finetune.chat import encode_prompt
from finetune.continuous_batch import ContinuousBatch, Request
from finetune.generate import NOT_NUMBERS, Sampling
from finetune.model import best_precision, load_language_model
from finetune.registry import PointerName, Registry
from finetune.tokenizer import BOS, end_tokens, load_tokenizer, token_id, token_pieces
from infra.shared_batch import SharedBatch
from pipeline.core.errors import UserError
from pipeline.core.records import Message

log = logging.getLogger(__name__)

ALIAS: PointerName = "champion"
_SIDE_BY_SIDE = 8  # answers that share a forward pass per token; more wait in line
_PROMPT_TOKENS = 512  # of prompts, read between two tokens of the others: what one more costs them
_HEARTBEAT_S = 0.1
_WARM_UP = (Message.of("user", "What is a list?"),)

FinishReason = Literal["stop", "length"]


class UnknownModelError(UserError):
    """The request names a model that is not served."""


class PromptTooLongError(UserError):
    """Not even the last message fits into the model's context."""


class BusyError(Exception):
    """As many requests as are allowed wait already."""


@dataclasses.dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some of an answer's text. The last piece alone has a finish reason and the usage; an empty
    one says only that the answer is still coming."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class Line:
    """Who generates next: first come first served, `width` side by side, at most `limit` in all."""

    def __init__(self, limit: int, width: int = 1) -> None:
        self.limit, self.width = limit, width
        self._places: dict[int, bool] = {}  # in order of arrival; True: has begun
        self._last = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._places)

    def join(self) -> int:
        """A place at the end; the caller gives it back with `leave`. Raises BusyError."""
        with self._changed:
            if len(self._places) >= self.limit:
                raise BusyError(f"{self.limit} requests are being answered; try again in a moment")
            self._last += 1
            self._places[self._last] = False
            return self._last

    def wait(self, place: int, timeout_s: float) -> bool:
        """True once fewer than `width` have begun and all who came before have: it begins."""
        with self._changed:
            begun = self._changed.wait_for(lambda: self._may_begin(place), timeout_s)
            if begun:
                self._places[place] = True
                self._changed.notify_all()
            return begun

    def _may_begin(self, place: int) -> bool:
        if self._places[place]:
            return True
        first_waiting = next(p for p, begun in self._places.items() if not begun)
        return place == first_waiting and sum(self._places.values()) < self.width

    def leave(self, place: int) -> None:
        """Twice is once."""
        with self._changed:
            if self._places.pop(place, None) is not None:
                self._changed.notify_all()


class Reply:
    """An answer in the making by `model_id`, to all turns but the `dropped_turns` oldest.

    It holds a place in the model's line until it was iterated to its end, or closed.
    """

    def __init__(
        self,
        model_id: str,
        dropped_turns: int,
        pieces: Generator[Piece],
        line: Line,
        place: int,
    ) -> None:
        self.model_id, self.dropped_turns = model_id, dropped_turns
        self._pieces, self._line, self._place = pieces, line, place

    def __iter__(self) -> Iterator[Piece]:
        try:
            yield from self._pieces
        finally:
            self.close()

    def close(self) -> None:
        """Give up the rest of the answer. Not while another thread iterates."""
        self._pieces.close()
        self._line.leave(self._place)


@dataclasses.dataclass(frozen=True)
class AnswerRequest:
    """`temperature` 0 takes the likeliest tokens; the same seed and model give the same answer."""

    messages: Sequence[Message]
    max_tokens: int
    temperature: float
    seed: int
    stop: Sequence[str] = ()


class ServedModel:
    """One loaded model. `chat`: it was taught turns; else it is asked in plain text, and its
    answer is one line."""

    def __init__(
        self,
        identity: str,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        chat: bool,
        queue_limit: int,
    ) -> None:
        self.identity, self.model, self.tokenizer, self.chat = identity, model, tokenizer, chat
        self.line = Line(queue_limit, _SIDE_BY_SIDE)
        self.num_positions = int(model.config.max_position_embeddings)
        known = token_pieces(tokenizer)
        self._longest_token = max(map(len, known.values()))
        self._batch = SharedBatch(
            lambda: ContinuousBatch(
                model, _SIDE_BY_SIDE, token_bytes=known, prompt_tokens=_PROMPT_TOKENS
            )
        )
        self._bos = token_id(tokenizer, BOS)
        self._stop_ids = end_tokens(tokenizer)

    @staticmethod
    def load(registry: Registry, identity: str, queue_limit: int) -> "ServedModel":
        """Raises UserError for files that are not what was published, or a reward model."""
        folder, kind = registry.verified(identity), registry.kind(identity)
        if kind == "reward":
            raise UserError(f"model {identity} is a reward model: it scores answers, gives none")
        model, precision = load_language_model(folder).eval(), best_precision()
        if precision.device.type == "cuda":
            model.to(  # pyright: ignore[reportCallIssue]  # untyped stub
                device=precision.device,  # pyright: ignore[reportArgumentType]
                dtype=precision.autocast_dtype or torch.float32,
            )
        return ServedModel(identity, model, load_tokenizer(folder), kind != "base", queue_limit)

    def reply(self, request: AnswerRequest) -> Reply:
        """Raises PromptTooLongError and BusyError now, not when the first piece is asked for."""
        prompt, dropped_turns = self.fit(request.messages, request.max_tokens)
        place = self.line.join()
        pieces = self._pieces(prompt, request, place)
        return Reply(self.identity, dropped_turns, pieces, self.line, place)

    def fit(self, messages: Sequence[Message], max_tokens: int) -> tuple[list[int], int]:
        """The prompt's tokens, and how many of the oldest turns had to be left out for it to fit.

        Instructions at the head stay. Older turns give way until a quarter of the context, or
        `max_tokens`, is left for the answer; the last message only has to leave one token.
        """
        head = list(messages[:1]) if messages[0].role == "system" and len(messages) > 1 else []
        roomy = self.num_positions - min(max_tokens, self.num_positions // 4)
        best: tuple[list[int], int] | None = None
        for start in range(len(messages) - 1, len(head) - 1, -1):
            ids = self._prompt_ids([*head, *messages[start:]])
            if ids is None or len(ids) > (self.num_positions - 1 if best is None else roomy):
                break
            # A conversation does not begin with an answer to what is no longer there.
            if best is None or start == len(head) or messages[start].role == "user":
                best = ids, start - len(head)
        if best is None:
            raise PromptTooLongError(
                f"the last message does not fit into the model's {self.num_positions} tokens;"
                " shorten it"
            )
        return best

    def warm_up(self) -> None:
        """A short answer, so that a model that cannot give one raises before it is served."""
        for _ in self.reply(AnswerRequest(_WARM_UP, max_tokens=4, temperature=1.0, seed=0)):
            pass

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int] | None:
        """None: certainly too long, without tokenising a megabyte to find out."""
        most_bytes = self.num_positions * self._longest_token
        if sum(len(message.text.encode()) for message in messages) > most_bytes:
            return None
        if self.chat:
            return encode_prompt(self.tokenizer, messages)
        text = plain_prompt(messages)
        return [self._bos, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def _pieces(
        self, prompt: Sequence[int], request: AnswerRequest, place: int
    ) -> Generator[Piece]:
        while not self.line.wait(place, _HEARTBEAT_S):
            yield Piece("")
        stops = request.stop if self.chat else (*request.stop, "\n")
        answer = AnswerText(stops, skip_leading_blanks=not self.chat)
        room = min(request.max_tokens, self.num_positions - len(prompt))
        sampling = Sampling(room, request.temperature, self._stop_ids)
        ticket = self._batch.submit(Request(prompt, sampling, request.seed, answer=answer))
        num_tokens = 0
        try:
            while (delta := ticket.next(_HEARTBEAT_S)) is None or not delta.end:
                num_tokens += len(delta.ids) if delta else 0
                yield Piece(delta.text if delta else "")
            if delta.end == "failed":
                raise UserError(NOT_NUMBERS)
            told = [token for token in delta.ids if token not in self._stop_ids]
            usage = Usage(len(prompt), num_tokens + len(told))
            yield Piece(delta.text, delta.end, usage)
        finally:
            ticket.cancel()


class Engine:
    """Answers with the model that the registry's pointer names.

    Raises UserError if it names none yet. Its methods may be called from any thread.
    """

    def __init__(
        self, registry: Registry, pointer: PointerName = ALIAS, queue_limit: int = 16
    ) -> None:
        self.registry, self.queue_limit = registry, queue_limit
        self.pointer: PointerName = pointer
        self._loading = threading.Lock()
        self._refused: str | None = None
        self._complaint = ""
        identity = registry.pointer(pointer)
        if identity is None:
            raise UserError(f"no {pointer} in {registry.root} yet; run `flywheel pretrain` first")
        self._served = self._load(identity)

    @property
    def model_id(self) -> str:
        """The model that answers the next request."""
        wanted = self._pointed()
        return self._served.identity if wanted in (None, self._refused) else wanted

    @property
    def num_in_line(self) -> int:
        """Requests that the current model is answering or has waiting."""
        return len(self._served.line)

    def reply(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float,
        seed: int,
        stop: Sequence[str] = (),
        model: str = ALIAS,
    ) -> Reply:
        """Pieces of valid text, as they come.

        Raises UnknownModelError, PromptTooLongError and BusyError.
        """
        served = self._current(model)
        if model not in (ALIAS, served.identity):
            raise UnknownModelError(f"no model {model[:80]!r} here; ask for {ALIAS!r}")
        return served.reply(AnswerRequest(messages, max_tokens, temperature, seed, stop))

    def _pointed(self) -> str | None:
        """What the pointer names; None if there is nothing in it to go by, which is logged once."""
        try:
            identity, complaint = self.registry.pointer(self.pointer), ""
        except UserError as error:
            identity, complaint = None, str(error)
        if complaint not in ("", self._complaint):
            log.error("%s goes on: %s", self._served.identity, complaint)
        self._complaint = complaint
        return identity

    def _current(self, asked_for: str) -> ServedModel:
        if self._refused != self._pointed():
            self._refused = None  # a refusal holds until the pointer moves
        wanted = self.model_id
        if wanted == self._served.identity:
            return self._served
        # One request loads; who does not insist on the new model is not kept waiting.
        if not self._loading.acquire(blocking=asked_for == wanted):
            return self._served
        try:
            if wanted != self._served.identity:
                self._served = self._load(wanted)
        except (UserError, OSError, RuntimeError, ValueError) as error:
            self._refused = wanted
            log.error(  # noqa: TRY400  # a line for who runs the server, not a trace
                "cannot serve the new %s %s, so %s goes on: %s",
                self.pointer,
                wanted,
                self._served.identity,
                error,
            )
        finally:
            self._loading.release()
        return self._served

    def _load(self, identity: str) -> ServedModel:
        served = ServedModel.load(self.registry, identity, self.queue_limit)
        served.warm_up()
        return served

"""Continuous batching (Yu et al. 2022, Orca): requests join and leave between tokens, each with its
own sampling and seed, and get what they would get alone, up to rounding.

Works for any causal model of transformers whose state is keys and values.
"""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from finetune.answer_text import AnswerText
from finetune.kv_cache import KeyValues, context_length
from finetune.sampling import Chooser, Sampling, uniforms
from pipeline.core.errors import UserError

End = Literal["stop", "length", "failed"]


@dataclasses.dataclass(frozen=True)
class Request:
    """`row` numbers the random stream within the seed. `answer`, fresh, makes the tokens text and
    finds the stop strings; without it the text is empty and there are none."""

    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    row: int = 0
    answer: AnswerText | None = None


@dataclasses.dataclass(frozen=True)
class Delta:
    """What one step added to request `number`. The last one of a request has an `end`."""

    number: int
    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    text: str = ""
    end: End | None = None


@dataclasses.dataclass
class _Row:
    """A request that has a place. Its last token is not yet in the cache."""

    number: int
    request: Request
    draws: np.ndarray
    num_new: int = 0
    last: int = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.request.prompt) + self.num_new - 1


@dataclasses.dataclass
class _Reading:
    """Prompts on their way into a cache of their own: left-padded, the first `done` columns read.
    `source[i]` is the line of the i-th row's prompt: equal prompts are read once."""

    rows: list[_Row]
    source: list[int]
    ids_PT: Tensor
    positions_PT: Tensor
    cache: KeyValues
    done: int = 0


class ContinuousBatch:
    """At most `max_rows` requests share a forward pass per token; the others wait, first come
    first served, and join together once `join_at_once` places are free (or all fit). Between two
    tokens of the others at most `prompt_tokens` tokens of prompts are read, a longer prompt in
    several steps. On a GPU the host waits for tokens only every `lookahead` of them.

    Not to be shared between threads without a lock. `len` counts the requests without an end.
    """

    def __init__(
        self,
        model: nn.Module,
        max_rows: int,
        *,
        token_bytes: Mapping[int, bytes] | None = None,
        prompt_tokens: int = 8192,
        join_at_once: int = 1,
        lookahead: int = 1,
    ) -> None:
        self.model, self.max_rows, self.token_bytes = model, max_rows, token_bytes or {}
        self.prompt_tokens, self.join_at_once = prompt_tokens, join_at_once
        self.device = next(model.parameters()).device
        self.lookahead = lookahead if self.device.type == "cuda" else 1
        config = cast(Any, model).config
        self.context, self.vocabulary = context_length(config), config.vocab_size
        self._next = 0
        self._waiting: deque[_Row] = deque()
        self._reading: _Reading | None = None
        self._running: list[_Row] = []  # row i of the cache
        self._cache = KeyValues(self.max_rows)
        self._chooser: Chooser | None = None  # of the running rows
        self._ended: list[Delta] = []

    def __len__(self) -> int:
        reading = len(self._reading.rows) if self._reading else 0
        return len(self._waiting) + reading + len(self._running) + len(self._ended)

    def add(self, request: Request) -> int:
        """The request's number. Raises UserError for a prompt that cannot be continued."""
        prompt, self._next = request.prompt, self._next + 1
        if not prompt:
            raise UserError("an empty prompt has nothing to continue; begin it with a token")
        if len(prompt) > self.context:
            raise UserError(
                f"a prompt of {len(prompt):,} tokens is over the model's {self.context:,}; cut it"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < self.vocabulary)
            raise UserError(
                f"a prompt's token {wrong} is not one of the model's"
                f" {self.vocabulary:,}; use its own tokenizer"
            )
        room = min(request.sampling.max_new_tokens, self.context - len(prompt))
        if room:
            draws = uniforms(request.seed, request.row, room)
            self._waiting.append(_Row(self._next, request, draws))
        else:
            self._ended.append(Delta(self._next, end="length"))
        return self._next

    def cancel(self, number: int) -> None:
        """Its place is free at the next token. No delta follows; unknown numbers are ignored."""
        self._waiting = deque(row for row in self._waiting if row.number != number)
        self._ended = [delta for delta in self._ended if delta.number != number]
        self._drop({number})
        if self._reading is not None:
            kept = [i for i, row in enumerate(self._reading.rows) if row.number != number]
            self._reading.rows = [self._reading.rows[i] for i in kept]
            self._reading.source = [self._reading.source[i] for i in kept]
            if not kept:
                self._reading = None

    @torch.no_grad()
    def step(self) -> list[Delta]:
        """A token (or `lookahead`) for every running request, and a part of the next prompts."""
        deltas, self._ended = self._ended, []
        deltas += self._read()
        deltas += self._write()
        return deltas

    def _read(self) -> list[Delta]:
        reading = self._reading = self._reading or self._start_reading()
        if reading is None:
            return []
        width = max(1, self.prompt_tokens // len(reading.ids_PT))
        part = slice(reading.done, reading.done + width)
        reading.done += width
        ids, positions = reading.ids_PT[:, part], reading.positions_PT[:, part]
        length = min(reading.done, reading.ids_PT.shape[1])
        logits = reading.cache.forward(self.model, ids, positions, length)
        if reading.done < reading.ids_PT.shape[1]:
            return []
        self._reading = None
        chooser = Chooser([row.request.sampling for row in reading.rows], self.device)
        draws = self._tensor([row.draws[0] for row in reading.rows])
        tokens, log_probs = chooser.choose(logits[self._tensor(reading.source)], draws)
        deltas = self._told(reading.rows, tokens[:, None], log_probs[:, None])
        self._join(reading, {delta.number for delta in deltas if delta.end})
        return deltas

    def _start_reading(self) -> _Reading | None:
        free = self.max_rows - len(self._running)
        if not self._waiting or free < min(self.join_at_once, len(self._waiting)):
            return None
        rows: list[_Row] = []
        prompts: dict[tuple[int, ...], int] = {}
        longest = 0
        while self._waiting and len(rows) < free:
            prompt = tuple(self._waiting[0].request.prompt)
            longest = max(longest, len(prompt))
            if prompts and (len(prompts) + (prompt not in prompts)) * longest > self.prompt_tokens:
                break
            prompts.setdefault(prompt, len(prompts))
            rows.append(self._waiting.popleft())
        longest = max(map(len, prompts))
        ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        positions = [[-1] * (longest - len(prompt)) + [*range(len(prompt))] for prompt in prompts]
        source = [prompts[tuple(row.request.prompt)] for row in rows]
        cache = KeyValues(len(ids))
        cache.reserve(len(ids), longest, longest)
        return _Reading(rows, source, self._tensor(ids), self._tensor(positions), cache)

    def _join(self, reading: _Reading, ended: set[int]) -> None:
        first = len(self._running)
        joining = [i for i, row in enumerate(reading.rows) if row.number not in ended]
        self._running += [reading.rows[i] for i in joining]
        self._reserve(0)
        for at, i in enumerate(joining, first):
            length = self._running[at].length
            self._cache.copy(at, reading.cache, reading.source[i], length)
        self._chooser = None

    def _reserve(self, steps: int) -> None:
        if self._running:
            length = max(row.length for row in self._running) + steps
            most = max(len(row.request.prompt) + len(row.draws) for row in self._running)
            self._cache.reserve(len(self._running), length, most)

    def _write(self) -> list[Delta]:
        rows = self._running
        if not rows:
            return []
        if self._chooser is None:
            self._chooser = Chooser([row.request.sampling for row in rows], self.device)
        steps = min(self.lookahead, *(len(row.draws) - row.num_new for row in rows))
        tokens = self._tensor([row.last for row in rows])
        positions = self._tensor([row.length for row in rows])
        draws = self._tensor(np.stack([r.draws[r.num_new : r.num_new + steps] for r in rows]))
        longest = max(row.length for row in rows)
        self._reserve(steps)
        columns: list[tuple[Tensor, Tensor]] = []
        for step in range(steps):
            logits = self._cache.forward(
                self.model, tokens[:, None], positions[:, None] + step, longest + step + 1
            )
            tokens, log_probs = self._chooser.choose(logits, draws[:, step])
            columns.append((tokens, log_probs))
        ids_BK, log_probs_BK = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
        deltas = self._told(rows, ids_BK, log_probs_BK)
        self._drop({delta.number for delta in deltas if delta.end})
        return deltas

    def _told(self, rows: Sequence[_Row], ids_BK: Tensor, log_probs_BK: Tensor) -> list[Delta]:
        both = zip(rows, ids_BK.tolist(), log_probs_BK.tolist(), strict=True)
        return [self._tell(row, ids, log_probs) for row, ids, log_probs in both]

    def _tell(self, row: _Row, ids: list[int], log_probs: list[float]) -> Delta:
        """The row's next tokens, as many as there are before its end."""
        answer, stops = row.request.answer, row.request.sampling.stop_ids
        text, end, count = "", cast(End | None, None), 0
        for token, log_prob in zip(ids, log_probs, strict=True):
            count += 1
            if log_prob != log_prob:
                return Delta(row.number, end="failed")
            if token in stops:
                end = "stop"
            elif answer is not None:
                text += answer.feed(self.token_bytes[token])
                end = "stop" if answer.stopped else None
            if end:
                break
        row.num_new, row.last = row.num_new + count, ids[count - 1]
        end = end or ("length" if row.num_new == len(row.draws) else None)
        if end and answer is not None and not answer.stopped:
            text += answer.feed(b"", final=True)
        return Delta(row.number, tuple(ids[:count]), tuple(log_probs[:count]), text, end)

    def _drop(self, numbers: set[int]) -> None:
        """The last row moves into each freed place, so that the rows stay side by side."""
        for i in range(len(self._running) - 1, -1, -1):
            if self._running[i].number in numbers:
                last = self._running.pop()
                if i < len(self._running):
                    self._running[i] = last
                    self._cache.copy(i, self._cache, len(self._running), last.length)
                self._chooser = None
        if not self._running:
            self._cache = KeyValues(self.max_rows)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self.device)

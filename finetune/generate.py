"""Sampling from a model: tokens in, tokens out, with their log-probs; whole or as they come."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from finetune.answer_text import AnswerText
from finetune.continuous_batch import ContinuousBatch, Delta, Request
from finetune.sampling import Sampling
from pipeline.core.errors import UserError

__all__ = ["Completion", "Delta", "Sampling", "generate", "stream"]

NOT_NUMBERS = (
    "the model's probability tensor is not numbers: it diverged; take an earlier checkpoint"
)


@dataclasses.dataclass(frozen=True)
class Completion:
    """New tokens, the stop token (or the one that completed a stop string) included if it came
    (`finished`), and ln p of each under softmax(logits / temperature), untempered where greedy:
    what top-k and top-p leave out counts. `text` ends before the stop; it is empty unless the
    tokens' bytes were given."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool
    text: str = ""


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    *,
    rows: Sequence[int] | None = None,
    token_bytes: Mapping[int, bytes] | None = None,
    max_rows: int = 256,
) -> list[Completion]:
    """One completion per prompt, in order, `max_rows` side by side. Prompts may differ in length.

    Prompt i draws from the random stream (seed, rows[i]), by default (seed, i): its completion is
    the same in any batch, up to rounding. A prompt and its completion end with the context; a
    prompt that fills it gets none. Raises UserError for a prompt that is empty, longer than the
    context or not of the vocabulary, for stop strings without `token_bytes`, and for NaN.
    """
    parts: list[list[Delta]] = [[] for _ in prompts]
    max_rows = max(1, min(max_rows, len(prompts)))
    batch = ContinuousBatch(
        model, max_rows, token_bytes=token_bytes, join_at_once=max(1, max_rows // 8), lookahead=8
    )
    requests = [
        _request(prompt, sampling, seed, i if rows is None else rows[i], token_bytes)
        for i, prompt in enumerate(prompts)
    ]
    # Like lengths are read together, and equal prompts once.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), *prompts[i]))
    owner = {batch.add(requests[i]): i for i in order}
    while batch:
        for delta in batch.step():
            parts[owner[delta.number]].append(_sound(delta))
    return [_joined(deltas) for deltas in parts]


def stream(
    model: nn.Module,
    prompt: Sequence[int],
    sampling: Sampling,
    seed: int,
    token_bytes: Mapping[int, bytes] | None = None,
) -> Iterator[Delta]:
    """The completion of `generate` in pieces, as they come."""
    batch = ContinuousBatch(model, 1, token_bytes=token_bytes)
    batch.add(_request(prompt, sampling, seed, 0, token_bytes))
    while batch:
        yield from map(_sound, batch.step())


def _request(
    prompt: Sequence[int],
    sampling: Sampling,
    seed: int,
    row: int,
    token_bytes: Mapping[int, bytes] | None,
) -> Request:
    if sampling.stop_strings and token_bytes is None:
        raise UserError("stop_strings are found in text; give the tokens' bytes too")
    text = AnswerText(sampling.stop_strings, False) if token_bytes is not None else None
    return Request(prompt, sampling, seed, row, text)


def _sound(delta: Delta) -> Delta:
    if delta.end == "failed":
        raise UserError(NOT_NUMBERS)
    return delta


def _joined(deltas: Sequence[Delta]) -> Completion:
    return Completion(
        tuple(token for delta in deltas for token in delta.ids),
        tuple(value for delta in deltas for value in delta.log_probs),
        deltas[-1].end == "stop",
        "".join(delta.text for delta in deltas),
    )

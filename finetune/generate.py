"""Sampling from a model with a key-value cache: tokens in, tokens out, with their log-probs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

_PAD_ID = 0  # any id: a padded position is masked out


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token. There is no top-k or top-p: they would bias the
    policy gradient's ratio (trl#6789)."""

    max_new_tokens: int
    temperature: float = 1.0
    stop_ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """New tokens, the stop token included if it came (`finished`), and ln p of each under the
    untempered model."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
) -> list[Completion]:
    """One completion per prompt, sampled side by side. Prompts may differ in length.

    The result depends on the generator's state and on the batch's composition.
    """
    assert all(prompts), "an empty prompt has nothing to continue"
    ids: list[list[int]] = [[] for _ in prompts]
    log_probs: list[list[float]] = [[] for _ in prompts]
    running = torch.ones(len(prompts), dtype=torch.bool)
    state = _Prefix.of(prompts, next(model.parameters()).device)
    for _ in range(sampling.max_new_tokens):
        tokens, chosen = _pick(state.next_logits(model), sampling.temperature, generator)
        for row in torch.nonzero(running).flatten().tolist():
            ids[row].append(int(tokens[row]))
            log_probs[row].append(float(chosen[row]))
            running[row] = ids[row][-1] not in sampling.stop_ids
        if not running.any():
            break
        state.append(tokens)
    return [
        Completion(tuple(row_ids), tuple(row_log_probs), row_ids[-1:] != [] and not still)
        for row_ids, row_log_probs, still in zip(ids, log_probs, running.tolist(), strict=True)
    ]


@torch.no_grad()
def stream(
    model: nn.Module, prompt: Sequence[int], sampling: Sampling, generator: torch.Generator
) -> Iterator[int]:
    """Tokens as they come; the stop token is not among them."""
    state = _Prefix.of([prompt], next(model.parameters()).device)
    for _ in range(sampling.max_new_tokens):
        tokens, _chosen = _pick(state.next_logits(model), sampling.temperature, generator)
        if int(tokens[0]) in sampling.stop_ids:
            return
        yield int(tokens[0])
        state.append(tokens)


def _pick(
    logits_BV: Tensor, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    log_probs = torch.log_softmax(logits_BV.float(), dim=-1)
    if temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        weights = torch.softmax(logits_BV.float() / temperature, dim=-1)
        tokens = torch.multinomial(weights.to(generator.device), 1, generator=generator)[:, 0]
    tokens = tokens.to(log_probs.device)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


class _Prefix:
    """What the model has read so far: a cache, and what it has still to read. Left-padded, so
    that all rows end together; the mask hides the padding and positions count real tokens."""

    def __init__(self, ids_BT: Tensor, mask_BT: Tensor) -> None:
        self.pending_BT, self.mask_BT = ids_BT, mask_BT
        self.positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        self.cache: Any = None

    @staticmethod
    def of(prompts: Sequence[Sequence[int]], device: torch.device) -> "_Prefix":
        length = max(len(prompt) for prompt in prompts)
        ids = [[_PAD_ID] * (length - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return _Prefix(torch.tensor(ids, device=device), torch.tensor(mask, device=device))

    def next_logits(self, model: nn.Module) -> Tensor:
        result = cast(Any, model)(
            input_ids=self.pending_BT,
            attention_mask=self.mask_BT,
            position_ids=self.positions_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = result.past_key_values
        return result.logits[:, -1]

    def append(self, tokens_B: Tensor) -> None:
        self.pending_BT = tokens_B[:, None]
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(tokens_B)[:, None]], dim=1)
        self.positions_BT = self.positions_BT[:, -1:] + 1

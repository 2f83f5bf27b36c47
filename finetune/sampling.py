"""How the next token is drawn: temperature, then top-k, then top-p, by inverting the distribution.

One uniform number decides a token, and a row's numbers are a function of (seed, row): what a row
gets depends on nothing else in its batch, up to rounding.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.core.errors import UserError

_GREEDY_BELOW = 1e-4  # logits divided by less than this may overflow; the likeliest token it is


@dataclasses.dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token. `top_k` 0 and `top_p` 1 leave nothing out; else
    the k likeliest stay, and of them the fewest that hold `top_p` of their mass (Holtzman et al.
    2020), with all that are as likely as the last of them. An answer ends with a token of
    `stop_ids`, or when its text holds one of `stop_strings`.

    Raises UserError for a value out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, fine, mend in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1 (all)"),
            ("stop_strings", all(self.stop_strings), "strings that are not empty"),
        ):
            if not fine:
                raise UserError(f"{name} = {getattr(self, name)!r}; give {mend}")

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @property
    def truncated(self) -> bool:
        return not self.greedy and (self.top_k > 0 or self.top_p < 1)

    def check_unbiased(self) -> None:
        """Raises UserError unless tokens are drawn from the whole softmax(logits / temperature):
        a policy gradient's ratio is of that distribution's probabilities (trl#6789)."""
        if self.greedy or self.truncated:
            raise UserError(
                f"temperature = {self.temperature}, top_k = {self.top_k}, top_p = {self.top_p} bias"
                " a policy gradient; sample with temperature > 0, top_k = 0, top_p = 1"
            )


def uniforms(seed: int, row: int, number: int) -> np.ndarray:
    """The first `number` draws from [0, 1) of a row, float64. Any integer is a seed."""
    source = np.random.SeedSequence(seed % 2**64, spawn_key=(row,))
    return np.random.Generator(np.random.PCG64(source)).random(number)


class Chooser:
    """Draws the next token of each of B rows, each by its own `Sampling`."""

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        greedy = [s.greedy for s in samplings]
        self._any_greedy, self._all_greedy = any(greedy), all(greedy)
        self._greedy_B = _tensor(greedy, device)
        heat = [1.0 if s.greedy else s.temperature for s in samplings]
        self._heat_B1 = None if set(heat) == {1.0} else _tensor(heat, device)[:, None]
        truncated = [i for i, s in enumerate(samplings) if s.truncated]
        self._truncated_R = _tensor(truncated, device) if truncated else None
        self._k = [samplings[i].top_k for i in truncated]
        self._k_R1 = _tensor([float(k or math.inf) for k in self._k], device)[:, None]
        self._p_R1 = _tensor([samplings[i].top_p for i in truncated], device)[:, None]

    def choose(self, logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, ln p of each under softmax(logits / temperature), of the untempered softmax
        where greedy; what top-k and top-p leave out counts). NaN logits give a NaN ln p. [B]"""
        logits = logits_BV.float()
        log_probs = torch.log_softmax(
            logits if self._heat_B1 is None else logits / self._heat_B1, -1
        )
        if self._all_greedy:
            tokens = log_probs.argmax(dim=-1)
        else:
            weights = log_probs.exp()
            if self._truncated_R is not None:
                weights[self._truncated_R] = self._truncate(weights[self._truncated_R])
            mass = weights.cumsum(dim=-1, dtype=torch.float64)
            drawn = torch.searchsorted(mass, uniform_B[:, None] * mass[:, -1:], right=True)[:, 0]
            tokens = drawn.clamp(max=logits.shape[1] - 1)
            if self._any_greedy:
                tokens = torch.where(self._greedy_B, log_probs.argmax(dim=-1), tokens)
        return tokens, log_probs.gather(1, tokens[:, None])[:, 0]

    def _truncate(self, weights_RV: Tensor) -> Tensor:
        size = min(max(self._k), weights_RV.shape[1]) if all(self._k) else weights_RV.shape[1]
        ranked = weights_RV.topk(size).values
        within_k = torch.arange(size, device=ranked.device) < self._k_R1
        ranked = (ranked * within_k).double()
        before = ranked.cumsum(dim=-1) - ranked
        kept = within_k & (before < self._p_R1 * ranked.sum(dim=-1, keepdim=True))
        last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)  # NaN keeps nothing
        least = ranked.gather(1, last).float()
        return torch.where(weights_RV >= least, weights_RV, 0.0)


def _tensor(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)

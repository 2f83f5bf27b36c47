"""Who samples an RL step's answers: tokens in, tokens out, from exactly the distribution whose
log-probs are reported. `TorchEngine` is the policy itself; finetune/vllm_engine.py is vLLM."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from finetune.generate import Completion, generate
from finetune.model import Precision
from finetune.sampling import Sampling


class Engine(Protocol):
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        """One completion per prompt; the same seed and weights give the same ones. Their log-probs
        are of softmax(logits / temperature): a trainer's must be of the same temperature.

        Raises UserError for a sampling that biases a policy gradient, and for stop strings: a
        rollout ends with a token.
        """
        ...

    def load_weights(self, model: nn.Module) -> None:
        """From now on answers are this model's. An engine may hold a copy: call it every step."""
        ...


class TorchEngine:
    """In this process, on the policy's own weights, under the trainer's autocast if given."""

    def __init__(
        self, model: nn.Module, precision: Precision | None = None, max_rows: int = 256
    ) -> None:
        self.model, self.max_rows = model, max_rows
        self.precision = precision or Precision(next(model.parameters()).device, None)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        sampling.check_unbiased()
        was_training = self.model.training
        self.model.eval()  # dropout would make another model of it
        try:
            with self.precision.autocast():
                return generate(self.model, prompts, sampling, seed, max_rows=self.max_rows)
        finally:
            self.model.train(was_training)

    def load_weights(self, model: nn.Module) -> None:
        self.model = model

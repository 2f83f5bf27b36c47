"""Rollouts from vLLM (0.32, the extra `gpu`), offline, on the GPU that it finds.

Not run by our tests, which have no GPU: they check the translation against a fake `LLM` alone.
"""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from torch import nn

from finetune.generate import Completion
from finetune.sampling import Sampling
from pipeline.core.errors import UserError


class VllmEngine:
    """An `Engine` (finetune/engines.py). `llm` is a vllm.LLM that reports processed log-probs,
    `sampling_params` its SamplingParams; `context` the most tokens of prompt and answer."""

    def __init__(self, llm: Any, sampling_params: Callable[..., Any], context: int) -> None:
        self.llm, self.sampling_params, self.context = llm, sampling_params, context

    @staticmethod
    def load(folder: str, context: int, memory_share: float = 0.4) -> "VllmEngine":
        """The model in a checkpoint's folder. vLLM takes `memory_share` of the GPU's memory; the
        trainer beside it needs the rest."""
        try:
            # Heavy, and there on GPU machines alone.
            from vllm import (  # pyright: ignore[reportMissingImports]
                LLM,
                SamplingParams,
            )
        except ImportError as error:
            raise UserError("vllm is not installed; pip install 'flywheel-llm[gpu]'") from error
        llm = LLM(
            model=folder,
            max_model_len=context,
            gpu_memory_utilization=memory_share,
            skip_tokenizer_init=True,
            generation_config="vllm",  # not the checkpoint's own top_p and friends (trl#1017)
            logprobs_mode="processed_logprobs",  # after the temperature (trl#4159)
        )
        return VllmEngine(llm, SamplingParams, context)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        sampling.check_unbiased()
        if sampling.stop_strings:
            raise UserError("stop_strings need text, and a rollout is tokens; give stop_ids")
        if too_long := [len(p) for p in prompts if not 0 < len(p) <= self.context]:
            raise UserError(f"a prompt of {too_long[0]:,} tokens; give 1 to {self.context:,}")
        rooms = [min(sampling.max_new_tokens, self.context - len(p)) for p in prompts]
        asked = [i for i, room in enumerate(rooms) if room]
        answers = self.llm.generate(
            [{"prompt_token_ids": list(prompts[i])} for i in asked],
            [self.sampling_params(**_parameters(sampling, rooms[i], seed, i)) for i in asked],
            use_tqdm=False,
        )
        completions = [Completion((), (), False)] * len(prompts)
        for i, answer in zip(asked, answers, strict=True):
            [output] = answer.outputs
            ids = tuple(output.token_ids)
            places = zip(ids, output.logprobs, strict=True)
            log_probs = tuple(float(place[token].logprob) for token, place in places)
            completions[i] = Completion(ids, log_probs, output.finish_reason == "stop")
        return completions

    def load_weights(self, model: nn.Module) -> None:
        """By way of a temporary folder, so that it works for any number of workers."""
        with tempfile.TemporaryDirectory() as folder:
            cast(Any, model).save_pretrained(folder)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.llm.reset_prefix_cache()  # it holds the old weights' keys and values


def _parameters(sampling: Sampling, room: int, seed: int, row: int) -> dict[str, Any]:
    words = np.random.SeedSequence(seed % 2**64, spawn_key=(row,)).generate_state(1, np.uint64)
    return {
        "max_tokens": room,
        "temperature": sampling.temperature,
        "seed": int(words[0] >> np.uint64(1)),
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,  # the stop ids alone end an answer
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }

"""Stage "win_rate": the reward model compares two models' answers to held-out prompts.

A figure to look at, not to decide by: where the challenger was trained against this reward model,
the reward model judges itself.
"""

import time
from typing import Any

from pydantic import Field

from eval.model import LanguageModel, RewardModel
from eval.run import COMPARISONS
from eval.stats import win_rate
from finetune.registry import Registry
from pipeline.core.config import RunConfig, Section
from pipeline.core.identity import HELDOUT_FRACTION, is_heldout
from pipeline.core.manifest import Counts, Manifest, StageOutput
from pipeline.core.records import Comparison, Message, read_records

VERSION = 2


class WinRateConfig(Section):
    """[win_rate]"""

    max_new_tokens: int = Field(80, ge=1, description="length of an answer")
    max_prompts: int = Field(100, ge=1, description="answer at most this many, by prompt_id")


def run_win_rate(
    config: WinRateConfig,
    champion_id: str,
    challenger_id: str,
    reward_id: str,
    registry: Registry,
    labels: Manifest,
    run: RunConfig,
) -> Manifest:
    """Facts: `win_rate` of the challenger (tie half; None without prompts), its 95% interval, wins,
    ties, losses, and both models' answers with their rewards."""
    parents = {"champion": champion_id, "challenger": challenger_id, "reward": reward_id}
    output = StageOutput.of(
        run.root, "win_rate", VERSION, config.identity(), {**parents, "labels": labels}
    )
    if done := output.finished():
        return done
    started = time.time()
    comparisons = read_records(labels.file_url(COMPARISONS), Comparison)
    prompts = heldout_prompts(comparisons, HELDOUT_FRACTION, config.max_prompts)
    judge = RewardModel.load(registry, reward_id)
    sides: list[list[tuple[str, float]]] = []
    for identity in (champion_id, challenger_id):
        model = LanguageModel.load(registry, identity)
        answers = model.generate_until(list(prompts.values()), config.max_new_tokens)
        rewards = judge.scores(list(zip(prompts.values(), answers, strict=True)))
        sides.append(list(zip(answers, rewards, strict=True)))
    facts = {**parents, **compare(list(prompts), sides[0], sides[1])}
    number = len(prompts)
    return output.commit([], Counts(number, number), started=started, facts=facts)


def heldout_prompts(
    comparisons: list[Comparison], fraction: float, max_prompts: int
) -> dict[str, tuple[Message, ...]]:
    """Held-out prompts by id, in the order of their ids."""
    found = {c.prompt_id: c.prompt for c in comparisons if is_heldout(c.prompt_id, fraction)}
    return {identity: found[identity] for identity in sorted(found)[:max_prompts]}


def compare(
    prompt_ids: list[str],
    champion: list[tuple[str, float]],
    challenger: list[tuple[str, float]],
) -> dict[str, Any]:
    """The win rate's facts from (answer, reward) lists, one entry a prompt."""
    outcomes: list[float] = []
    answers: list[dict[str, Any]] = []
    for identity, (old, old_reward), (new, new_reward) in zip(
        prompt_ids, champion, challenger, strict=True
    ):
        same = old == new or old_reward == new_reward
        outcomes.append(0.5 if same else float(new_reward > old_reward))
        answers.append(
            {
                "prompt_id": identity,
                "champion": old,
                "champion_reward": old_reward,
                "challenger": new,
                "challenger_reward": new_reward,
            }
        )
    counts = {name: outcomes.count(v) for name, v in (("wins", 1.0), ("ties", 0.5), ("losses", 0))}
    facts: dict[str, Any] = {"num_prompts": len(outcomes), **counts, "answers": answers}
    if not outcomes:
        return {"win_rate": None, "low": None, "high": None, **facts}
    found = win_rate(outcomes, prompt_ids)
    return {"win_rate": found.mean, "low": found.low, "high": found.high, **facts}

"""That it learns: small experiments with a known answer each, seeds and intervals. CPU, minutes.

python benchmarks/learning.py                     # all, with pictures in docs/
python benchmarks/learning.py --only addition --seeds 1    # fewer than three: not recorded
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from learning_worlds import (
    ANSWER_TOKENS,
    FAST,
    SHAPE,
    Rows,
    WordJudge,
    answered,
    answers_of,
    copy_of,
    measured,
    new_tokenizer,
    pad_of,
    ppo,
    preferred,
    question_of,
    reviewer,
    reward_model,
    taught,
    trained,
)
from rows import DOCS, record_table

from finetune.dpo import DpoConfig, Pair, _objective, answer_log_probs
from finetune.dpo import _source as dpo_source
from finetune.grpo import GrpoConfig, group_objective, source
from finetune.losses import k_wise_ranking_sum
from finetune.model import new_model, num_parameters
from finetune.ppo import PpoConfig
from finetune.rollouts import CheckJudge, ModelJudge, Sampler
from infra.pictures import Series, line_chart, standalone

ENOUGH = 3  # seeds, to be recorded
NOTE = "Mean over {} seeds and, in brackets, the smallest and the largest of them; {:.0f} minutes."


@dataclasses.dataclass(frozen=True)
class Found:
    """(what, figure, expected) rows, and curves: name -> (unit, lines)."""

    rows: list[tuple[str, str, str]]
    curves: dict[str, tuple[str, list[Series]]] = dataclasses.field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for name in [options.only] if options.only else EXPERIMENTS:
        started = time.perf_counter()
        found = EXPERIMENTS[name](range(options.seeds))
        minutes = (time.perf_counter() - started) / 60
        lines = ["| what | found | expected |", "| --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in found.rows]
        note = NOTE.format(options.seeds, minutes)
        print("\n".join([f"{name}:", *lines, "", note]), flush=True)
        if options.seeds >= ENOUGH:
            pictures = [drawn(title, *curve) for title, curve in found.curves.items()]
            text = "\n".join([*lines, "", note, "", *pictures])
            record_table(f"learning-{name}", f"That it learns: {name}", text)
    return 0


def drawn(title: str, unit: str, series: list[Series]) -> str:
    """A line of Markdown that shows the curves, which lie beside the page."""
    name = f"learning-{title.replace(' ', '-').lower()}.svg"
    chart = line_chart(series, unit, title, x_name="n" if series[-1].dots else "step")
    (DOCS / name).write_bytes(standalone(chart))
    return f"{title} ({unit}):\n\n![{title}]({name})\n"


def spread(values: Sequence[float], form: str = "{:.1%}") -> str:
    low, mean, high = min(values), statistics.mean(values), max(values)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"


def curve(rows: Rows, key: str, name: str, kind: Any = "main") -> Series:
    return Series(name, tuple((row["step"], row[key]) for row in rows if key in row), kind)


def addition(seeds: Sequence[int]) -> Found:
    """SFT on sums of which 60% are wrong, then GRPO by a program that checks them."""
    before, after, curves, size = [], [], [], 0
    for seed in seeds:
        draw = np.random.default_rng(seed)
        sums = [(f"{a}+{b}", str(a + b)) for a in range(10) for b in range(10)]
        tokenizer = new_tokenizer(["0 1 2 3 4 5 6 7 8 9 +"])  # a digit is a token
        questions = [question_of(tokenizer, *each) for each in sums]
        lessons = [
            answered(q, tokenizer, str(draw.integers(19)) if draw.random() < 0.6 else q.reference)
            for q in questions
            for _ in range(20)
        ]
        model = new_model(SHAPE, tokenizer, seed)
        size = num_parameters(model)
        taught(model, lessons, 1000, seed)
        judge = CheckJudge(tokenizer, "arithmetic")

        def accuracy(model: Any = model, judge: Any = judge, tokenizer: Any = tokenizer,
                     questions: Any = questions * 4) -> float:  # fmt: skip
            answers = answers_of(model, tokenizer, questions, 4, 99)
            return float(judge.rewards(questions, answers).mean())

        before.append(accuracy())
        config = GrpoConfig(
            steps=250, batch_prompts=32, group_size=8, micro_batch_answers=256, max_new_tokens=4, seed=seed,
            learning_rate=1e-3, beta=0.0, max_kl=1e9, reward="arithmetic", final_lr_fraction=0.0, **FAST,
        )  # fmt: skip
        sampler = Sampler(judge, copy_of(model).eval(), 4, 1.0, tokenizer, seed)
        objective = functools.partial(group_objective, config=config)
        steps = source(sampler, questions, config)
        rows = trained("grpo", model, objective, steps, config.steps, config)
        curves.append(curve(rows, "reward", f"seed {seed}"))
        after.append(accuracy())
    what = f"addition, {size:,} parameters, SFT with 60% wrong sums: sampled right"
    return Found(
        [(what, spread(before), "about 40%"), ("the same after 250 steps of GRPO", spread(after), ">= 97%")],
        {"Addition by GRPO": ("share right", curves)},
    )  # fmt: skip


def bradley_terry(seeds: Sequence[int]) -> Found:
    """Known scores of 8 answers, 2,000 comparisons: the ranking loss finds the scores, and 95% of
    them within the interval that the Fisher information gives."""
    inside, errors = [], []
    better = torch.tensor([[False, True], [False, False]])
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed)
        truth = torch.randn(8, generator=draw)
        truth -= truth.mean()
        wins = torch.zeros(8, 8)
        for _ in range(2000):
            a, b = torch.randperm(8, generator=draw)[:2].tolist()
            first = torch.rand((), generator=draw) < torch.sigmoid(truth[a] - truth[b])
            wins[(a, b) if first else (b, a)] += 1
        found = _scores_of(wins, better)
        p = torch.sigmoid(truth[:, None] - truth[None, :])
        weight = (wins + wins.T) * p * (1 - p)
        information = torch.diag(weight.sum(1)) - weight
        deviation = torch.linalg.pinv(information).diagonal().sqrt()
        inside.append(float(((found - truth).abs() < 1.96 * deviation).float().mean()))
        errors.append(float((found - truth).abs().max()))
    return Found([("Bradley-Terry: scores within their 95% interval", spread(inside), "95%"),
                  ("the largest error of a score", spread(errors, "{:.3f}"), "about 0.15")])  # fmt: skip


def _scores_of(wins: Tensor, better: Tensor) -> Tensor:
    """The scores that make the wins likeliest, their mean 0."""
    scores = torch.zeros(len(wins), requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-10)
    everyone = range(len(wins))

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = [wins[i, j] * k_wise_ranking_sum(scores[[i, j]], better)
                  for i in everyone for j in everyone]  # fmt: skip
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return scores.detach() - scores.detach().mean()


def best_of_n(seeds: Sequence[int]) -> Found:
    """The gain of the best of n against the expected largest of n draws."""
    ratios, ours, theory = [], [], []
    sizes = (2, 4, 8, 16, 32, 64)
    for seed in seeds:
        model, tokenizer, questions = reviewer(seed)
        judge = WordJudge(tokenizer, gold=False)
        several = [q for q in questions for _ in range(64)]
        rewards = judge.rewards(several, answers_of(model, tokenizer, several, ANSWER_TOKENS, seed))
        draw = np.random.default_rng(seed)
        pool = rewards.numpy()
        gains = [float(rewards.view(-1, n).max(1).values.mean() - rewards.mean()) for n in sizes]
        expected = [draw.choice(pool, (100_000, n)).max(1).mean() - pool.mean() for n in sizes]
        ratios.append(gains[sizes.index(8)] / expected[sizes.index(8)])
        ours.append(Series(f"seed {seed}", tuple(zip(sizes, gains, strict=True)), dots=True))
        theory.append(
            Series("theory", tuple(zip(sizes, map(float, expected), strict=True)), "rest")
        )
    return Found(
        [("best of 8: gain, as a share of what order statistics give", spread(ratios), "100%")],
        {"Best of n": ("reward gained by n; grey: order statistics", [*theory, *ours])},
    )


def sentiment(seeds: Sequence[int]) -> Found:
    """PPO against a lexicon, the KL held near its target."""
    gains, kls, rewards, divergences = [], [], [], []
    for seed in seeds:
        model, tokenizer, questions = reviewer(seed)
        config = PpoConfig(
            steps=60, batch_prompts=64, updates=4, epochs=2, max_new_tokens=ANSWER_TOKENS, seed=seed,
            learning_rate=5e-4, kl_target=6.0, kl_weight=0.1, kl_horizon=500, unfinished_penalty=0.0, **FAST,
        )  # fmt: skip
        _, rows = ppo(model, tokenizer, questions, WordJudge(tokenizer, gold=False), config)
        ends = (rows[:5], rows[-5:])
        first, last = (statistics.mean(row["reward"] for row in end) for end in ends)
        gains.append(last - first)
        kls.append(statistics.mean(row["kl"] for row in rows[-5:]))
        rewards.append(curve(rows, "reward", f"seed {seed}"))
        divergences.append(curve(rows, "kl", f"seed {seed}"))
    return Found(
        [("sentiment by PPO: reward gained", spread(gains, "{:.2f}"), "> 1"),
         ("its KL to the start, nats an answer", spread(kls, "{:.1f}"), "near the target, 6")],
        {"Sentiment by PPO": ("reward", rewards), "Its KL": ("nats an answer; target 6", divergences)},
    )  # fmt: skip


def over_optimisation(seeds: Sequence[int]) -> Found:
    """A reward model learnt from gold preferences is the proxy: pushed without a KL term it rises
    while the gold reward falls (Gao et al. 2022); with one it does not."""
    gained: dict[str, list[float]] = {}
    curves: dict[str, list[Series]] = {"proxy": [], "gold": []}
    for seed in seeds:
        model, tokenizer, questions = reviewer(seed)
        gold = WordJudge(tokenizer, gold=True)
        pairs = preferred(model, tokenizer, questions, gold, seed)
        proxy = reward_model(model, pairs, pad_of(tokenizer), seed)
        judges = {"proxy": ModelJudge(proxy, pad_of(tokenizer), 0.0), "gold": gold}

        def watch(step: int, policy: Any, judges: Any = judges, tokenizer: Any = tokenizer,
                  questions: Any = questions) -> dict[str, float]:  # fmt: skip
            if step % 10:
                return {}
            return {n: measured(policy, tokenizer, questions, j) for n, j in judges.items()}

        for name, weight, target in (("off", 0.0, 1e9), ("on", 0.2, 3.0)):
            config = PpoConfig(
                steps=100, batch_prompts=64, updates=4, epochs=2, max_new_tokens=ANSWER_TOKENS, seed=seed,
                learning_rate=1e-3, kl_weight=weight, kl_target=target,
                kl_horizon=0 if weight == 0 else 500, **FAST,
            )  # fmt: skip
            _, rows = ppo(model, tokenizer, questions, judges["proxy"], config, watch)
            for judge, lines in curves.items():
                line = curve(rows, judge, f"KL {name}", "main" if name == "on" else "bad")
                lines.append(line)
                values = [value for _, value in line.points]
                found = (values[-1] - values[0], values[-1] - max(values))
                for what, value in zip(("gained", "at its end, less its best"), found, strict=True):
                    key = f"KL {name}: {judge} reward {what}"
                    gained.setdefault(key, []).append(value)
    wanted = {"KL off: proxy reward gained": "rises", "KL on: proxy reward gained": "rises",
              "KL off: gold reward at its end, less its best": "falls",
              "KL on: gold reward at its end, less its best": "does not fall"}  # fmt: skip
    return Found(
        [(what, spread(values, "{:+.2f}"), wanted.get(what, "")) for what, values in gained.items()],
        {f"{judge.title()} reward": ("blue: KL on; red: KL off", lines)
         for judge, lines in curves.items()},
    )  # fmt: skip


def dpo_and_ppo(seeds: Sequence[int]) -> Found:
    """The same preferences, by DPO and by a reward model with PPO: gold reward gained."""
    gains: dict[str, list[float]] = {"DPO": [], "PPO": []}
    for seed in seeds:
        model, tokenizer, questions = reviewer(seed)
        gold, pad_id = WordJudge(tokenizer, gold=True), pad_of(tokenizer)
        start = measured(model, tokenizer, questions, gold)
        sides = preferred(model, tokenizer, questions, gold, seed)
        sums = answer_log_probs(copy_of(model), [s for pair in sides for s in pair], pad_id)
        pairs = [Pair(str(n), c, r, sums[2 * n], sums[2 * n + 1]) for n, (c, r) in enumerate(sides)]
        config = DpoConfig(learning_rate=1e-3, beta=0.1, batch_pairs=16, seed=seed, **FAST)
        policy = copy_of(model)
        objective = functools.partial(_objective, config=config, pad_id=pad_id)
        steps = dpo_source(pairs, config, pad_id)
        trained("dpo", policy, objective, steps, 2 * len(pairs) // 16, config)
        gains["DPO"].append(measured(policy, tokenizer, questions, gold) - start)
        judge = ModelJudge(reward_model(model, sides, pad_id, seed), pad_id, 0.0)
        against = PpoConfig(
            steps=40, batch_prompts=64, updates=4, epochs=2, max_new_tokens=ANSWER_TOKENS, seed=seed,
            learning_rate=5e-4, kl_weight=0.2, kl_target=3.0, kl_horizon=500, **FAST,
        )  # fmt: skip
        policy, _ = ppo(model, tokenizer, questions, judge, against)
        gains["PPO"].append(measured(policy, tokenizer, questions, gold) - start)
    return Found([(f"the same preferences by {name}: gold reward gained", spread(found, "{:+.2f}"), "> 0")
                  for name, found in gains.items()])  # fmt: skip


EXPERIMENTS: dict[str, Callable[[Sequence[int]], Found]] = {
    "addition": addition,
    "bradley-terry": bradley_terry,
    "best-of-n": best_of_n,
    "sentiment": sentiment,
    "over-optimisation": over_optimisation,
    "dpo-and-ppo": dpo_and_ppo,
}

if __name__ == "__main__":
    sys.exit(main())

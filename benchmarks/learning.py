"""That it learns: small experiments with a known answer each, seeds and intervals. CPU, minutes.

python benchmarks/learning.py                     # all, about ten minutes on two cores
python benchmarks/learning.py --only addition --seeds 1
"""

import argparse
import dataclasses
import functools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from rows import record_table

from finetune.chat import encode_answer, encode_prompt
from finetune.data import batches_of
from finetune.dpo import DpoConfig, Pair, _objective, _source, answer_log_probs
from finetune.generate import Completion, Sampling, generate
from finetune.grpo import GrpoConfig, group_objective, source
from finetune.loop import LoopConfig, train
from finetune.losses import k_wise_ranking_sum
from finetune.model import ModelConfig, new_model, num_parameters, reward_model_from
from finetune.packing import Segment, pack_best_fit
from finetune.ppo import ActorCritic, PpoConfig, PpoSource, ppo_objective
from finetune.pretrain import next_token_objective
from finetune.reward import AnswerSet, RewardConfig, ranking_objective
from finetune.reward import _source as reward_source
from finetune.rollouts import CheckJudge, ModelJudge, Question, Sampler
from finetune.tokenizer import PAD, TURN_END, TokenizerConfig, token_id, train_bpe
from pipeline.core.records import Message

SHAPE = ModelConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=176, max_length=64)
FAST: dict[str, Any] = {"device": "cpu", "checkpoint_every": 10**6}
GOOD = ["good", "great", "fine", "lovely", "bright", "warm", "happy", "kind"]
BAD = ["bad", "poor", "dull", "cold", "sad", "mean", "dark", "weak"]
PLAIN = ["the", "film", "was", "and", "story", "felt", "a", "bit", "very", "cast"]


@dataclasses.dataclass(frozen=True)
class Found:
    """A row of the table: what, the figure with its interval, what was expected."""

    what: str
    figure: str
    expected: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows: list[Found] = []
    for name in [options.only] if options.only else EXPERIMENTS:
        started = time.perf_counter()
        found = EXPERIMENTS[name](range(options.seeds))
        seconds = time.perf_counter() - started
        rows += [Found(*row, seconds / len(found)) for row in found]
        for row in rows[-len(found) :]:
            print(
                f"{row.what}: {row.figure} (expected: {row.expected}; {row.seconds:.0f} s)",
                flush=True,
            )
    lines = ["| experiment | found | expected | s |", "| --- | --- | --- | --- |"]
    lines += [f"| {r.what} | {r.figure} | {r.expected} | {r.seconds:.0f} |" for r in rows]
    if not options.only:
        record_table(
            "learning", "That it learns", "\n".join([*lines, "", NOTE.format(options.seeds)])
        )
    return 0


NOTE = "Mean over {} seeds and, in brackets, the smallest and the largest of them."


def spread(values: Sequence[float], form: str = "{:.1%}") -> str:
    low, mean, high = min(values), statistics.mean(values), max(values)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"


def _tokenizer(texts: Sequence[str], size: int = 320) -> Any:
    return train_bpe(iter(texts), TokenizerConfig(vocab_size=size))


def _question(tokenizer: Any, text: str, reference: str = "") -> Question:
    return Question(text, tuple(encode_prompt(tokenizer, [Message.of("user", text)])), reference)


def _answered(question: Question, tokenizer: Any, answer: str) -> Segment:
    after = encode_answer(tokenizer, answer)
    return Segment((*question.ids, *after), (*[False] * len(question.ids), *[True] * len(after)))


def _taught(model: Any, segments: Sequence[Segment], steps: int, rate: float, seed: int) -> None:
    rows, _ = pack_best_fit(segments, 64, 2)
    config = LoopConfig(learning_rate=rate, weight_decay=0.0, seed=seed, **FAST)
    with tempfile.TemporaryDirectory() as folder:
        train(
            "sft",
            model,
            next_token_objective,
            batches_of(rows, 32, 32, seed),
            steps,
            config,
            Path(folder),
        )


def _answers(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], length: int, seed: int
) -> list[Completion]:
    stop = (token_id(tokenizer, TURN_END),)
    return generate(model.eval(), [q.ids for q in questions], Sampling(length, stop_ids=stop), seed)


def _copy(model: Any) -> Any:
    twin = type(model)._from_config(model.config, attn_implementation="flywheel")
    twin.load_state_dict(model.state_dict())
    return twin


def addition(seeds: Sequence[int]) -> list[tuple[str, str, str]]:
    """SFT on sums of which 60% are wrong, then GRPO by a program that checks them."""
    before, after, sizes = [], [], []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        tokenizer = _tokenizer([f"{a}+{b}={a + b}" for a in range(20) for b in range(20)])
        questions = [
            _question(tokenizer, f"{a}+{b}", str(a + b)) for a in range(20) for b in range(20)
        ]
        taught = []
        for question in questions:
            for _ in range(5):
                wrong = draw.random() < 0.6
                answer = str(draw.integers(0, 39)) if wrong else question.reference
                taught.append(_answered(question, tokenizer, answer))
        model = new_model(SHAPE, tokenizer, seed)
        sizes.append(num_parameters(model))
        _taught(model, taught, 700, 3e-3, seed)
        judge = CheckJudge(tokenizer, "arithmetic")

        def accuracy(of: Any, judge: CheckJudge = judge, tokenizer: Any = tokenizer,
                     questions: Sequence[Question] = questions) -> float:  # fmt: skip
            return float(judge.rewards(questions, _answers(of, tokenizer, questions, 4, 99)).mean())

        before.append(accuracy(model))
        config = GrpoConfig(steps=250, batch_prompts=16, group_size=16, micro_batch_answers=256, max_new_tokens=4,
                            learning_rate=1e-3, beta=0.0, max_kl=1e9, reward="arithmetic", seed=seed,
                            schedule="linear", final_lr_fraction=0.0, **FAST)  # fmt: skip
        sampler = Sampler(judge, _copy(model).eval(), 4, 1.0, tokenizer, seed)
        with tempfile.TemporaryDirectory() as folder:
            objective = functools.partial(group_objective, config=config)
            train(
                "grpo",
                model,
                objective,
                source(sampler, questions, config),
                config.steps,
                config,
                Path(folder),
            )
        after.append(accuracy(model))
    return [
        (
            f"addition, {sizes[0]:,} parameters, SFT on 60% wrong sums: sampled right",
            spread(before),
            "about 40%",
        ),
        ("the same after 250 steps of GRPO", spread(after), ">= 97%"),
    ]


def bradley_terry(seeds: Sequence[int]) -> list[tuple[str, str, str]]:
    """Known scores of 8 answers, 2,000 rankings of 4 of them: the K-wise loss finds the scores, and
    95% of them within the interval that the Fisher information gives for pairs."""
    inside, errors = [], []
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed)
        truth = torch.randn(8, generator=draw)
        truth -= truth.mean()
        sets, wins = [], torch.zeros(8, 8)
        for _ in range(2000):
            a, b = torch.randperm(8, generator=draw)[:2].tolist()
            first = torch.rand((), generator=draw) < torch.sigmoid(truth[a] - truth[b])
            sets.append((a, b) if first else (b, a))
            wins[sets[-1]] += 1
        scores = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-10)
        better = torch.tensor([[False, True], [False, False]])

        def closure(scores: Tensor = scores, wins: Tensor = wins, better: Tensor = better,
                    optimizer: Any = optimizer) -> Tensor:  # fmt: skip
            optimizer.zero_grad()
            parts = [
                wins[i, j] * k_wise_ranking_sum(scores[[i, j]], better)
                for i in range(8)
                for j in range(8)
            ]
            loss = torch.stack(parts).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        found = scores.detach() - scores.detach().mean()
        p = torch.sigmoid(truth[:, None] - truth[None, :])
        weight = (wins + wins.T) * p * (1 - p)
        information = torch.diag(weight.sum(1)) - weight
        deviation = torch.linalg.pinv(information).diagonal().sqrt()
        inside.append(float(((found - truth).abs() < 1.96 * deviation).float().mean()))
        errors.append(float((found - truth).abs().max()))
    return [("Bradley-Terry: scores within their 95% interval", spread(inside), "95%"),
            ("the largest error of a score", spread(errors, "{:.3f}"), "about 0.15")]  # fmt: skip


def _text(tokenizer: Any, completion: Completion) -> list[str]:
    ids = completion.ids[:-1] if completion.finished else completion.ids
    return tokenizer.decode(list(ids), skip_special_tokens=True).split()


class WordJudge:
    """Scores by words: good ones less bad ones, or (`gold`) good ones that were not said yet, less a
    half for each word said again."""

    def __init__(self, tokenizer: Any, *, gold: bool) -> None:
        self.tokenizer, self.gold = tokenizer, gold

    def rewards(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Tensor:
        return torch.tensor([self.score(_text(self.tokenizer, c)) for c in completions])

    def score(self, words: Sequence[str]) -> float:
        if not self.gold:
            return float(sum((w in GOOD) - (w in BAD) for w in words))
        return (
            len(set(words) & set(GOOD))
            - sum(w in BAD for w in words)
            - 0.5 * (len(words) - len(set(words)))
        )


def _reviewer(seed: int) -> tuple[Any, Any, list[Question]]:
    """A small model that writes reviews of eight words, as often kind as not."""
    draw = np.random.default_rng(seed)

    def review() -> str:
        words = [
            str(draw.choice(PLAIN if draw.random() < 0.6 else GOOD if draw.random() < 0.5 else BAD))
            for _ in range(8)
        ]
        return " ".join(words)

    tokenizer = _tokenizer(
        [review() for _ in range(2000)] + [f"review {n}" for n in range(50)], 400
    )
    questions = [_question(tokenizer, f"review {n}") for n in range(50)]
    model = new_model(SHAPE, tokenizer, seed)
    _taught(model, [_answered(q, tokenizer, review()) for q in questions * 30], 250, 3e-3, seed)
    return model, tokenizer, questions


def _ppo(model: Any, tokenizer: Any, questions: Sequence[Question], judge: Any, config: PpoConfig,
         value: Any) -> tuple[Any, list[dict[str, float]]]:  # fmt: skip
    sampler = Sampler(
        judge, _copy(model).eval(), config.max_new_tokens, 1.0, tokenizer, config.seed
    )
    both = ActorCritic(_copy(model), value)
    objective = functools.partial(ppo_objective, config=config)
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            "ppo",
            both,
            objective,
            PpoSource(sampler, questions, config),
            config.steps,
            config,
            Path(folder),
        )
    return both.policy, result.metrics


def _scored(model: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return reward_model_from(folder)


def sentiment(seeds: Sequence[int]) -> list[tuple[str, str, str]]:
    """PPO against a lexicon, the KL held near its target."""
    gains, kls = [], []
    for seed in seeds:
        model, tokenizer, questions = _reviewer(seed)
        config = PpoConfig(steps=60, batch_prompts=64, updates=4, epochs=2, max_new_tokens=16, learning_rate=5e-4,
                           kl_target=6.0, kl_weight=0.1, kl_horizon=500, unfinished_penalty=0.0, seed=seed, **FAST)  # fmt: skip
        _, steps = _ppo(
            model, tokenizer, questions, WordJudge(tokenizer, gold=False), config, _scored(model)
        )
        first, last = (
            statistics.mean(s["reward"] for s in part) for part in (steps[:5], steps[-5:])
        )
        gains.append(last - first)
        kls.append(statistics.mean(s["kl"] for s in steps[-5:]))
    return [("sentiment by PPO: reward gained", spread(gains, "{:.2f}"), "> 1"),
            ("its KL to the start, nats an answer", spread(kls, "{:.1f}"), "near the target, 6")]  # fmt: skip


def over_optimisation(seeds: Sequence[int]) -> list[tuple[str, str, str]]:
    """A reward model learnt from gold preferences is the proxy: pushed without a KL term it rises
    while the gold reward falls (Gao et al. 2022); with one it does not."""
    found: dict[str, list[float]] = {"proxy off": [], "gold off": [], "proxy on": [], "gold on": []}
    for seed in seeds:
        model, tokenizer, questions = _reviewer(seed)
        gold = WordJudge(tokenizer, gold=True)
        proxy = _preferring(model, tokenizer, questions, gold, seed)
        judge = ModelJudge(proxy.eval(), token_id(tokenizer, PAD), 0.0)
        start = [_measured(model, tokenizer, questions, j) for j in (judge, gold)]
        for name, weight, target in (("off", 0.0, 1e9), ("on", 0.2, 3.0)):
            config = PpoConfig(steps=100, batch_prompts=64, updates=4, epochs=2, max_new_tokens=16, learning_rate=1e-3,
                               kl_weight=weight, kl_target=target, kl_horizon=math.inf if weight == 0 else 500,
                               seed=seed, **FAST)  # fmt: skip
            policy, _ = _ppo(model, tokenizer, questions, judge, config, _scored(model))
            end = [_measured(policy, tokenizer, questions, j) for j in (judge, gold)]
            found[f"proxy {name}"].append(end[0] - start[0])
            found[f"gold {name}"].append(end[1] - start[1])
    return [
        ("KL off: proxy reward gained", spread(found["proxy off"], "{:+.2f}"), "rises"),
        ("KL off: gold reward gained", spread(found["gold off"], "{:+.2f}"), "falls"),
        ("KL on: proxy reward gained", spread(found["proxy on"], "{:+.2f}"), "rises less"),
        ("KL on: gold reward gained", spread(found["gold on"], "{:+.2f}"), "does not fall"),
    ]


def _measured(model: Any, tokenizer: Any, questions: Sequence[Question], judge: Any) -> float:
    several = [q for q in questions for _ in range(4)]
    return float(judge.rewards(several, _answers(model, tokenizer, several, 16, 7)).mean())


def _pairs(model: Any, tokenizer: Any, questions: Sequence[Question], gold: WordJudge, seed: int,
           number: int = 8) -> list[tuple[Segment, Segment]]:  # fmt: skip
    """Two sampled answers to each question, the better one by gold first."""
    several = [q for q in questions for _ in range(2 * number)]
    answers = _answers(model, tokenizer, several, 16, seed + 1)
    scores = gold.rewards(several, answers).tolist()
    pairs = []
    for i in range(0, len(several), 2):
        if scores[i] != scores[i + 1]:
            best, worst = (i, i + 1) if scores[i] > scores[i + 1] else (i + 1, i)
            pairs.append(tuple(
                Segment((*several[k].ids, *answers[k].ids), (*[False] * len(several[k].ids), *[True] * len(answers[k].ids)))
                for k in (best, worst)))  # fmt: skip
    return pairs


def _preferring(
    model: Any, tokenizer: Any, questions: Sequence[Question], gold: WordJudge, seed: int
) -> Any:
    sets = [AnswerSet(str(n), pair, (((0, 1),),), (0.0,), (1, 1))
            for n, pair in enumerate(_pairs(model, tokenizer, questions, gold, seed))]  # fmt: skip
    reward = _scored(model)
    config = RewardConfig(
        learning_rate=1e-3, batch_prompts=16, micro_batch_prompts=16, seed=seed, **FAST
    )
    objective = functools.partial(ranking_objective, pad_id=token_id(tokenizer, PAD))
    with tempfile.TemporaryDirectory() as folder:
        train(
            "reward",
            reward,
            objective,
            reward_source(sets, config),
            2 * len(sets) // 16,
            config,
            Path(folder),
        )
    return reward


def best_of_n(seeds: Sequence[int]) -> list[tuple[str, str, str]]:
    """The gain of the best of n against the expected largest of n normal numbers."""
    ratios = []
    for seed in seeds:
        model, tokenizer, questions = _reviewer(seed)
        judge = WordJudge(tokenizer, gold=False)
        several = [q for q in questions for _ in range(64)]
        rewards = judge.rewards(several, _answers(model, tokenizer, several, 16, seed)).view(-1, 64)
        rewards = rewards + 1e-3 * torch.randn(
            rewards.shape, generator=torch.Generator().manual_seed(seed)
        )
        gain = float((rewards.view(len(questions) * 8, 8).max(1).values).mean() - rewards.mean())
        draw = np.random.default_rng(seed)
        pool = rewards.flatten().numpy()
        theory = float(draw.choice(pool, (200_000, 8)).max(1).mean() - pool.mean())
        ratios.append(gain / theory)
    return [("best of 8: gain, as a share of what order statistics give", spread(ratios), "100%")]


def dpo_and_ppo(seeds: Sequence[int]) -> list[tuple[str, str, str]]:
    """The same preferences, by DPO and by a reward model with PPO: gold reward gained."""
    gains: dict[str, list[float]] = {"dpo": [], "ppo": []}
    for seed in seeds:
        model, tokenizer, questions = _reviewer(seed)
        gold = WordJudge(tokenizer, gold=True)
        start = _measured(model, tokenizer, questions, gold)
        sides = _pairs(model, tokenizer, questions, gold, seed)
        pad_id = token_id(tokenizer, PAD)
        sums = answer_log_probs(_copy(model), [s for pair in sides for s in pair], pad_id)
        pairs = [
            Pair(str(n), c, r, c, sums[2 * n], sums[2 * n + 1], sums[2 * n])
            for n, (c, r) in enumerate(sides)
        ]
        config = DpoConfig(learning_rate=1e-3, beta=0.1, batch_pairs=16, seed=seed, **FAST)
        policy = _copy(model)
        with tempfile.TemporaryDirectory() as folder:
            objective = functools.partial(_objective, config=config, pad_id=pad_id)
            train(
                "dpo",
                policy,
                objective,
                _source(pairs, config),
                2 * len(pairs) // 16,
                config,
                Path(folder),
            )
        gains["dpo"].append(_measured(policy, tokenizer, questions, gold) - start)
        proxy = _preferring(model, tokenizer, questions, gold, seed)
        judge = ModelJudge(proxy.eval(), pad_id, 0.0)
        ppo = PpoConfig(steps=40, batch_prompts=64, updates=4, epochs=2, max_new_tokens=16, learning_rate=5e-4,
                        kl_weight=0.2, kl_target=3.0, kl_horizon=500, seed=seed, **FAST)  # fmt: skip
        policy, _ = _ppo(model, tokenizer, questions, judge, ppo, _scored(model))
        gains["ppo"].append(_measured(policy, tokenizer, questions, gold) - start)
    return [(f"the same preferences by {name.upper()}: gold reward gained", spread(gains[name], "{:+.2f}"), "> 0")
            for name in gains]  # fmt: skip


EXPERIMENTS: dict[str, Callable[[Sequence[int]], list[tuple[str, str, str]]]] = {
    "addition": addition,
    "bradley-terry": bradley_terry,
    "best-of-n": best_of_n,
    "sentiment": sentiment,
    "over-optimisation": over_optimisation,
    "dpo-and-ppo": dpo_and_ppo,
}

if __name__ == "__main__":
    sys.exit(main())

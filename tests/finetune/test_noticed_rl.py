"""What a careless change to training would break unseen: GRPO, PPO, their rewards, the folds."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM

import finetune.reward
from finetune.attention import NAME
from finetune.generate import Completion
from finetune.grpo import GrpoConfig, group_objective, source
from finetune.losses import k_wise_ranking_sum
from finetune.model import new_model
from finetune.packing import IGNORE, Segment, TokenBatch
from finetune.ppo import ActorCritic, PpoBatch, PpoConfig, PpoSource, ppo_objective
from finetune.registry import Registry
from finetune.reward import (
    AnswerSet,
    RewardConfig,
    cross_validate,
    ranking_objective,
    score_answers,
)
from finetune.rollouts import ModelJudge, Question, Sampler
from tests.finetune.conftest import TINY

PAD_ID = 2
SHAPE: dict[str, Any] = {"max_new_tokens": 6, "precision": "fp32", "device": "cpu"}
QUESTIONS = [Question(f"q{n}", tuple(range(70 + n, 75 + 2 * n))) for n in range(4)]


class SumOfTokens:
    """Rewards that differ from answer to answer."""

    def rewards(self, questions: Sequence[Question], completions: Sequence[Completion]) -> Tensor:
        return torch.tensor([float(sum(c.ids)) for c in completions])


def _sharp(tokenizer, seed: int) -> LlamaForCausalLM:
    """A model that is as sure of some tokens as a trained one, so that its log-probs differ."""
    model = new_model(TINY, tokenizer, seed)
    with torch.no_grad():
        model.lm_head.weight *= 15
    return model.eval()


def _scorer(policy: LlamaForCausalLM) -> nn.Module:
    """A body under a score head that is not zero."""
    config = copy.deepcopy(policy.config)
    config.num_labels, config.tie_word_embeddings = 1, False
    torch.manual_seed(8)
    model = cast(Any, AutoModelForSequenceClassification).from_config(
        config, attn_implementation=NAME
    )
    nn.init.normal_(model.score.weight)
    return model.eval()


def _sampler(tokenizer, config: GrpoConfig | PpoConfig) -> Sampler:
    reference = _sharp(tokenizer, 2)
    return Sampler(
        SumOfTokens(), reference, config.max_new_tokens, config.temperature, tokenizer, config.seed
    )


def _softmax_log_probs(model: nn.Module, tokens: TokenBatch, temperature: float) -> Tensor:
    """ln p(label) by transformers' own forward, a row each; 0 where there is no label. [B, T]"""
    wanted = tokens.labels_BT != IGNORE
    with torch.no_grad():
        logits = cast(Any, model)(input_ids=tokens.ids_BT).logits
    chosen = tokens.labels_BT.where(wanted, 0)[..., None]
    found = torch.log_softmax(logits / temperature, dim=-1).gather(-1, chosen)[..., 0]
    return found * wanted


def test_past_the_bound_of_kl_a_step_only_pulls_back(tokenizer) -> None:
    policy = _sharp(tokenizer, 1)

    def step(max_kl: float):
        config = GrpoConfig(group_size=2, batch_prompts=4, max_kl=max_kl, **SHAPE)
        step = source(_sampler(tokenizer, config), QUESTIONS, config).step_of(0, policy)
        return step.updates[0].micro_batches[0].advantages_S1, step.metrics["kl"]

    advantages, kl = step(1e9)
    assert kl > 1
    assert (advantages != 0).any()
    assert torch.equal(step(1.01 * kl)[0], advantages)
    assert (step(0.99 * kl)[0] == 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_grpo_learns_by_the_log_probs_of_its_temperature(tokenizer, temperature: float) -> None:
    policy = _sharp(tokenizer, 1)
    config = GrpoConfig(group_size=2, batch_prompts=4, temperature=temperature, **SHAPE)
    step = source(_sampler(tokenizer, config), QUESTIONS, config).step_of(0, policy)
    (update,) = step.updates
    (batch,) = update.micro_batches
    expected = _softmax_log_probs(policy, batch.tokens, temperature)
    torch.testing.assert_close(batch.sampler_ST, expected, atol=1e-4, rtol=1e-4)
    metrics = group_objective(policy, batch, config).metrics
    assert float(metrics["sampler_gap"]) / update.count == pytest.approx(0, abs=1e-4)


def _ppo_batch(tokenizer, value: nn.Module | None = None, **more: Any) -> tuple[PpoBatch, Any, Any]:
    """The one minibatch of a first rollout, with the model and the configuration."""
    config = PpoConfig(batch_prompts=4, updates=1, epochs=1, **SHAPE, **more)
    policy = _sharp(tokenizer, 1)
    model = ActorCritic(policy, value or _scorer(policy))
    step = PpoSource(_sampler(tokenizer, config), QUESTIONS, config).step_of(0, model)
    (update,) = step.updates
    (batch,) = update.micro_batches
    return batch, model, config


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_ppo_learns_by_the_log_probs_of_its_temperature(tokenizer, temperature: float) -> None:
    batch, model, config = _ppo_batch(tokenizer, temperature=temperature)
    expected = _softmax_log_probs(model.policy, batch.tokens, temperature)
    torch.testing.assert_close(batch.log_probs, expected, atol=1e-4, rtol=1e-4)
    metrics = ppo_objective(model, batch, config).metrics
    count = float(batch.mask.sum())
    assert float(metrics["ratio"]) / count == pytest.approx(1, abs=1e-4)
    assert float(metrics["moved_kl"]) / count == pytest.approx(0, abs=1e-6)


def test_leaving_the_sft_model_costs_its_weight_at_every_token(tokenizer) -> None:
    """The scores are the same under both weights, however they are scaled; the rest is the KL."""
    dear, _, _ = _ppo_batch(tokenizer, kl_weight=0.7, lam=1.0)
    free, _, _ = _ppo_batch(tokenizer, kl_weight=0.0, lam=1.0)
    assert torch.equal(dear.tokens.ids_BT, free.tokens.ids_BT)
    reference = _softmax_log_probs(_sharp(tokenizer, 2), dear.tokens, 1.0)
    to_come = ((dear.log_probs - reference) * dear.mask).flip(1).cumsum(1).flip(1) * dear.mask
    assert float(to_come.abs().max()) > 1
    torch.testing.assert_close(dear.returns - free.returns, -0.7 * to_come, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(dear.advantages, free.advantages, atol=1e-2)


def test_ppos_values_are_those_of_its_value_model(tokenizer) -> None:
    """Without a penalty, and at lambda 0, a token's return is the value of the next."""
    batch, model, config = _ppo_batch(tokenizer, kl_weight=0.0, lam=0.0)
    with torch.no_grad():
        body = model.value.model(input_ids=batch.tokens.ids_BT).last_hidden_state
        values = model.value.score(body)[..., 0]
    expected = values * batch.mask
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(batch.values, expected, atol=1e-4, rtol=1e-4)
    inside = batch.mask[:, :-1] & batch.mask[:, 1:]
    torch.testing.assert_close(
        batch.returns[:, :-1][inside], expected[:, 1:][inside], atol=1e-4, rtol=1e-4
    )
    found = ppo_objective(model, batch, config)
    squares = ((values - batch.returns) ** 2 * batch.mask).sum()
    assert float(found.metrics["value_loss"]) == pytest.approx(float(squares) / 2, rel=1e-4)
    model.zero_grad()
    found.total.backward()
    assert float(model.value.score.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5])
def test_the_penalty_for_an_unfinished_answer_is_taken_off(model, penalty: float) -> None:
    judge = ModelJudge(_scorer(model), PAD_ID, penalty)
    answers = [Completion((80, 81, 82), (-1.0,) * 3, finished) for finished in (True, False)]
    whole, cut_off = judge.rewards([QUESTIONS[0]] * 2, answers).tolist()
    assert whole != 0
    assert whole - cut_off == pytest.approx(penalty, abs=1e-5)


def _answers(prompt: int, pairs: Sequence[tuple[tuple[int, int], ...]]) -> AnswerSet:
    segments = tuple(
        Segment((70 + prompt, 71, 100 + answer, 72 + answer), (False,) * 4) for answer in range(3)
    )
    return AnswerSet(f"p{prompt}", segments, tuple(pairs), (0.0,) * len(pairs), (1, 2, 3))


def test_a_prompts_loss_is_the_mean_over_its_labelers(model) -> None:
    scorer = _scorer(model)
    first, second = ((0, 1), (0, 2), (1, 2)), ((2, 0),)

    def loss(*pairs: tuple[tuple[int, int], ...]) -> float:
        return ranking_objective(scorer, [_answers(0, pairs)], PAD_ID).total.item()

    alone = [loss(first), loss(second)]
    assert abs(alone[0] - alone[1]) > 1e-3
    assert loss(first, first, first) == pytest.approx(alone[0], rel=1e-5)
    assert loss(first, second) == pytest.approx(sum(alone) / 2, rel=1e-5)
    scores = score_answers(scorer, [_answers(0, [second])], PAD_ID)[0]
    better = torch.zeros(3, 3)
    better[2, 0] = 1
    assert alone[1] == pytest.approx(k_wise_ranking_sum(scores, better).item(), rel=1e-5)


def test_no_fold_trains_on_what_it_tests(run, base_id, tmp_path: Path, monkeypatch) -> None:
    config = RewardConfig(folds=3, epochs=1, batch_prompts=1, precision="fp32", device="cpu")
    sets = [_answers(n, [((0, 1),)]) for n in range(9)]
    trained: dict[int, set[str]] = {}
    real = finetune.reward.train

    def train(label, model, objective, source, num_steps, config, folder, *more):
        seen = trained.setdefault(int(folder.name.removeprefix("fold-")), set())

        def spied(model: nn.Module, batch: Sequence[AnswerSet]):
            seen.update(answers.prompt_id for answers in batch)
            return objective(model, batch)

        return real(label, model, spied, source, num_steps, config, folder, *more)

    monkeypatch.setattr(finetune.reward, "train", train)
    base = Registry(run.root).folder(base_id)
    rows = cross_validate(config, base, sets, PAD_ID, tmp_path)
    everything = {answers.prompt_id for answers in sets}
    tested = {fold: {r["prompt_id"] for r in rows if r["fold"] == fold} for fold in trained}
    assert len(trained) > 1
    assert sorted(row["prompt_id"] for row in rows) == sorted(everything)
    for fold, seen in trained.items():
        assert tested[fold]
        assert seen == everything - tested[fold]

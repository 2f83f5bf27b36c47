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
from finetune.dpo import answer_log_probs, make_pairs
from finetune.generate import Completion, generate
from finetune.grpo import GrpoConfig, group_objective, source
from finetune.labels import RankedPrompt
from finetune.losses import RunningMoments, k_wise_ranking_sum
from finetune.model import new_model
from finetune.packing import IGNORE, Segment, TokenBatch, pad_right
from finetune.ppo import ActorCritic, PpoBatch, PpoConfig, PpoSource, ppo_objective
from finetune.registry import Registry
from finetune.reward import (
    AnswerSet,
    RewardConfig,
    cross_validate,
    ranking_objective,
    score_answers,
)
from finetune.rollouts import (
    ModelJudge,
    Question,
    Sampler,
    heldout_rewards,
    rollout_segment,
    sampler_gap,
)
from pipeline.core.errors import UserError
from pipeline.core.records import Message
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


def test_the_reference_is_asked_at_the_samplers_temperature(tokenizer) -> None:
    config = GrpoConfig(group_size=2, batch_prompts=4, temperature=0.5, **SHAPE)
    policy = _sharp(tokenizer, 1)
    step = source(_sampler(tokenizer, config), QUESTIONS, config).step_of(0, policy)
    batch = step.updates[0].micro_batches[0]
    expected = _softmax_log_probs(_sharp(tokenizer, 2), batch.tokens, 0.5)
    torch.testing.assert_close(batch.reference_ST, expected, atol=1e-4, rtol=1e-4)


def test_answers_of_another_model_are_refused(tokenizer) -> None:
    config = GrpoConfig(group_size=2, batch_prompts=4, **SHAPE)
    step = source(_sampler(tokenizer, config), QUESTIONS, config).step_of(0, _sharp(tokenizer, 1))
    batch = step.updates[0].micro_batches[0]
    other = _sharp(tokenizer, 3)
    with torch.no_grad():
        other.lm_head.weight *= 4
    with pytest.raises(UserError, match="samples from another model"):
        group_objective(other, batch, config)


@pytest.mark.parametrize("gap", [0.3, -0.3])
def test_the_gap_to_the_sampler_is_counted_to_either_side(gap: float) -> None:
    ours, mask = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    theirs = ours + torch.tensor([[gap, -gap, 5.0]])
    assert float(sampler_gap(ours, theirs, mask)) == pytest.approx(0.6)
    with pytest.raises(UserError, match=r"by 0\.60 nats a token"):
        sampler_gap(ours, ours + torch.tensor([[2 * gap, 2 * gap, 0.0]]), mask)


def test_micro_batches_are_the_whole_step_each_answer_once(tokenizer) -> None:
    def parts(size: int):
        config = GrpoConfig(group_size=2, batch_prompts=4, micro_batch_answers=size, **SHAPE)
        policy = _sharp(tokenizer, 1)
        step = source(_sampler(tokenizer, config), QUESTIONS, config).step_of(0, policy)
        return step.updates[0].micro_batches

    (whole,) = parts(8)
    several = parts(3)
    assert [len(part.mask_ST) for part in several] == [3, 3, 2]
    for name in ("mask_ST", "sampler_ST", "reference_ST", "advantages_S1"):
        together = torch.cat([getattr(part, name) for part in several])
        torch.testing.assert_close(together, getattr(whole, name))
    ids = torch.cat([part.tokens.ids_BT for part in several])
    assert torch.equal(ids, whole.tokens.ids_BT)


def test_the_held_out_rewards_are_of_who_is_named(tokenizer) -> None:
    config = GrpoConfig(group_size=2, batch_prompts=4, **SHAPE)
    sampler, policy = _sampler(tokenizer, config), _sharp(tokenizer, 1)
    rows = heldout_rewards(sampler, QUESTIONS, policy, 3, "grpo")
    several = [q for q in QUESTIONS for _ in range(3)]
    found = [
        generate(model, [q.ids for q in several], sampler.sampling, 0)
        for model in (sampler.reference, policy)
    ]
    sft, own = (sampler.judge.rewards(several, answers).view(4, 3) for answers in found)
    assert [row["sft"] for row in rows] == pytest.approx(sft.mean(dim=1).tolist())
    assert [row["best_of_n"] for row in rows] == pytest.approx(sft.amax(dim=1).tolist())
    assert [row["grpo"] for row in rows] == pytest.approx(own.mean(dim=1).tolist())
    segments = [rollout_segment(q.ids, c.ids) for q, c in zip(several, found[1], strict=True)]
    tokens = pad_right(segments, PAD_ID)
    gap = _softmax_log_probs(policy, tokens, 1.0) - _softmax_log_probs(
        cast(nn.Module, sampler.reference), tokens, 1.0
    )
    expected = gap.sum(dim=1).view(4, 3).mean(dim=1).tolist()
    assert [row["kl"] for row in rows] == pytest.approx(expected, abs=1e-3)
    assert sum(expected) > 1


def test_ppos_advantages_are_whitened_over_the_sampled_tokens(tokenizer) -> None:
    batch, _, _ = _ppo_batch(tokenizer)
    found = batch.advantages[batch.mask]
    assert float(found.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.std()) == pytest.approx(1, abs=0.05)
    assert (batch.advantages[~batch.mask] == 0).all()


def test_the_value_loss_counts_by_its_weight(tokenizer) -> None:
    batch, model, config = _ppo_batch(tokenizer)
    light, heavy = (
        ppo_objective(model, batch, config.model_copy(update={"value_weight": weight}))
        for weight in (0.5, 2.0)
    )
    gap = float(heavy.total.detach() - light.total.detach())
    assert gap == pytest.approx(1.5 * float(light.metrics["value_loss"]), rel=1e-4)
    assert abs(gap) > 0.01


def test_ppo_passes_over_a_rollout_as_often_as_said_and_remembers_its_rewards(tokenizer) -> None:
    config = PpoConfig(batch_prompts=4, updates=2, epochs=3, **SHAPE)
    policy = _sharp(tokenizer, 1)
    model = ActorCritic(policy, _scorer(policy))
    rollouts = PpoSource(_sampler(tokenizer, config), QUESTIONS, config)
    step = rollouts.step_of(0, model)
    assert len(step.updates) == 6
    assert step.updates[0] is step.updates[2] is step.updates[4]
    seen = rollouts.rewards
    assert seen != RunningMoments()
    rollouts.step_of(1, model)
    assert rollouts.rewards.count == 2 * seen.count == 8


def test_ktos_kl_is_of_another_prompts_answer_behind_this_prompt(tokenizer, model) -> None:
    def ranked(name: str, better: str) -> RankedPrompt:
        asked = (Message.of("user", f"what of {name}"),)
        return RankedPrompt(name, asked, (better, "no"), ((1, 2),), (1.0,))

    prompts = [ranked("a", "the heap"), ranked("b", "a list"), ranked("c", "an item")]
    pairs, _ = make_pairs(tokenizer, model, prompts, 64, "kto")
    for pair, following in zip(pairs, [*pairs[1:], pairs[0]], strict=True):
        assert pair.other is not None
        start = pair.chosen.supervised.index(True)
        answer = following.chosen.ids[following.chosen.supervised.index(True) :]
        assert tuple(pair.other.ids) == (*pair.chosen.ids[:start], *answer)
        (expected,) = answer_log_probs(model, [pair.other], PAD_ID)
        assert pair.reference_other == pytest.approx(expected, abs=1e-3)
    plain, _ = make_pairs(tokenizer, model, prompts, 64, "dpo")
    assert [pair.other for pair in plain] == [None] * 3
    assert [p.reference_chosen for p in plain] == pytest.approx([p.reference_chosen for p in pairs])


def test_prompts_are_dealt_to_all_folds(run, base_id, tmp_path: Path) -> None:
    """Two prompts, two folds: by their hashes alone both fell into one."""
    config = RewardConfig(folds=2, epochs=1, batch_prompts=1, precision="fp32", device="cpu")
    base = Registry(run.root).folder(base_id)
    for first in range(4):
        sets = [_answers(n, [((0, 1),)]) for n in (first, first + 1)]
        rows = cross_validate(config, base, sets, PAD_ID, tmp_path / str(first))
        assert {row["fold"] for row in rows} == {0, 1}

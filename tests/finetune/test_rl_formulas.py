"""What PPO is made of, against brute force and worked examples."""

import pytest
import torch

from finetune.losses import (
    AdaptiveKl,
    RunningMoments,
    clipped_gain,
    clipped_value_sum,
    generalised_advantages,
    whiten,
)
from finetune.ppo import per_token_rewards

MASK = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)


def _random(seed: int) -> torch.Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_discounted_sum_of_errors(gamma: float, lam: float) -> None:
    rewards, values = _random(1) * MASK, _random(2) * MASK
    advantages, returns = generalised_advantages(rewards, values, MASK, gamma, lam)
    for row in range(3):
        inside = [t for t in range(6) if MASK[row, t]]
        r, v = (x[row, inside].tolist() for x in (rewards, values))
        errors = [
            r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in range(len(v))
        ]
        expected = [
            sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(v)))
            for t in range(len(v))
        ]
        found = advantages[row, inside]
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            returns[row, inside], found + torch.tensor(v), atol=1e-5, rtol=1e-5
        )
    assert (advantages[~MASK] == 0).all()
    assert (returns[~MASK] == 0).all()


def test_with_lambda_1_the_return_is_the_sum_of_the_rewards_to_come() -> None:
    rewards, values = _random(3) * MASK, _random(4) * MASK
    _, returns = generalised_advantages(rewards, values, MASK, 1.0, 1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1) * MASK
    torch.testing.assert_close(returns, to_come, atol=1e-5, rtol=1e-5)


def test_the_score_lands_on_the_last_sampled_token_and_nowhere_else() -> None:
    scores, penalties = torch.tensor([5.0, -3.0, 2.0]), _random(5)
    rewards = per_token_rewards(scores, penalties, MASK, 0.1)
    alone = rewards + 0.1 * penalties * MASK
    expected = torch.zeros(3, 6)
    expected[0, 3], expected[1, 0], expected[2, 5] = 5.0, -3.0, 2.0
    torch.testing.assert_close(alone, expected, atol=1e-6, rtol=0)


def test_whitening_ignores_padding() -> None:
    values = _random(6)
    found = whiten(values, MASK)
    assert float(found[MASK].mean()) == pytest.approx(0, abs=1e-6)
    assert float(found[MASK].var(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert (found[~MASK] == 0).all()
    poisoned = torch.where(MASK, values, 1e6)
    torch.testing.assert_close(whiten(poisoned, MASK), found)


def test_the_clip_takes_the_gradient_where_the_ratio_went_too_far() -> None:
    old = torch.zeros(4)
    new = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    gain, clipped = clipped_gain(new, old, advantages, 0.2)
    gain.sum().backward()
    assert clipped.tolist() == [True, False, False, True]
    assert new.grad is not None
    assert (new.grad != 0).tolist() == [False, True, True, False]
    assert gain[0].item() == pytest.approx(1.2)
    assert gain[3].item() == pytest.approx(-0.8)


def test_a_value_may_not_move_far_in_one_rollout() -> None:
    values = torch.tensor([3.0], requires_grad=True)
    loss = clipped_value_sum(values, torch.tensor([0.0]), torch.tensor([3.0]), torch.ones(1), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.2 - 3.0) ** 2)
    assert values.grad is not None
    assert float(values.grad) == 0


def test_the_penalty_follows_its_target() -> None:
    weight = AdaptiveKl(0.1, target=4.0, horizon=100)
    assert weight.after(4.0, 10).weight == 0.1
    assert weight.after(400.0, 10).weight == pytest.approx(0.1 * (1 + 0.2 * 10 / 100))
    assert weight.after(0.0, 10).weight == pytest.approx(0.1 * (1 - 0.2 * 10 / 100))
    assert AdaptiveKl(0.1, 4.0, 0).after(400.0, 10).weight == 0.1
    assert AdaptiveKl(0.1, 4.0, 1).after(0.0, 32).weight == 0.05, "no weight is negative"


def test_running_moments_are_those_of_all_rewards() -> None:
    parts = [_random(seed).flatten() * 3 + seed for seed in range(4)]
    moments = RunningMoments()
    for part in parts:
        moments = moments.after(part)
    whole = torch.cat(parts).double()
    assert moments.mean == pytest.approx(float(whole.mean()))
    found = moments.standardised(whole)
    torch.testing.assert_close(found, (whole - whole.mean()) / whole.std(unbiased=False))


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0, 1e6])
def test_rewards_that_tie_are_scaled_to_nothing(value: float) -> None:
    tied = torch.full((8,), value)
    assert torch.equal(RunningMoments().after(tied).standardised(tied), torch.zeros(8))

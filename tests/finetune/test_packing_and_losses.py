import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import shuffled_epochs
from finetune.losses import (
    bits_per_byte,
    dpo_sum,
    group_advantages,
    grpo_sum,
    ipo_sum,
    k_wise_ranking_sum,
    kl_estimate,
    kto_sum,
    pairwise_margin_sum,
)
from finetune.model import end_scores, label_log_probs, reward_model_from
from finetune.packing import IGNORE, Segment, lay_segments, pack_best_fit, pack_stream, pad_right

PAD_ID = 2
FIRST_IS_BETTER = torch.tensor([[False, True], [False, False]])


def _segment(ids: list[int]) -> Segment:
    return Segment(tuple(ids), (True,) * len(ids))


@given(st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=30), min_size=1, max_size=20))
def test_packing_a_stream_loses_no_token(documents: list[list[int]]) -> None:
    batch = pack_stream(documents, 8, PAD_ID)
    kept = [int(token) for token in batch.ids_BT.flatten() if token != PAD_ID]
    assert kept == [token for document in documents for token in document]


@given(st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=12), min_size=1, max_size=20))
def test_best_fit_keeps_segments_whole_and_counts_the_oversize(segments: list[list[int]]) -> None:
    batch, oversize = pack_best_fit([_segment(ids) for ids in segments], 8, PAD_ID)
    found = []
    for row, positions in zip(batch.ids_BT.tolist(), batch.positions_BT.tolist(), strict=True):
        starts = [i for i, position in enumerate(positions) if position == 0] + [8]
        found += [row[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    real = [ids for ids in found if PAD_ID not in ids]
    assert sorted(real) == sorted(ids for ids in segments if len(ids) <= 8)
    assert oversize == sum(len(ids) > 8 for ids in segments)


def test_packed_log_probs_equal_those_of_each_segment_alone(model) -> None:
    segments = [
        _segment(np.random.default_rng(n).integers(64, 300, 10 + n).tolist()) for n in range(5)
    ]
    packed, _ = pack_best_fit(segments, 40, PAD_ID)
    together = label_log_probs(model, packed)[packed.labels_BT != IGNORE]
    alone = torch.cat(
        [
            label_log_probs(model, pad_right([s], PAD_ID))[0, :-1]
            for s in _in_packed_order(packed, segments)
        ]
    )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_segment_is_blind_to_its_neighbour(model) -> None:
    first, second = [70, 71, 72, 73], [80, 81, 82, 83, 84]
    changed = [90, 91, 92, 93]
    scores = [
        label_log_probs(model, pack_stream([neighbour, second], 16, PAD_ID))[0, 4:8]
        for neighbour in (first, changed)
    ]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=0)


def test_right_padding_changes_no_score(model) -> None:
    short, long = _segment([70, 71, 72]), _segment(list(range(70, 90)))
    alone = label_log_probs(model, pad_right([short], PAD_ID))[0]
    padded = label_log_probs(model, pad_right([short, long], PAD_ID))[0]
    torch.testing.assert_close(padded[:3], alone, atol=1e-5, rtol=0)
    assert (padded[3:] == 0).all()


def test_each_epoch_has_every_item_once_wherever_the_steps_cut_it() -> None:
    whole = np.concatenate([shuffled_epochs(7, start, 5, seed=3) for start in range(0, 35, 5)])
    for epoch in range(5):
        assert sorted(whole[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    assert list(whole[:7]) != list(whole[7:14])


def test_bits_per_byte_of_a_fair_coin_per_byte_is_one() -> None:
    assert bits_per_byte(10 * math.log(2), 10) == pytest.approx(1.0)


def test_k_wise_at_two_answers_is_the_pairwise_loss() -> None:
    scores = torch.tensor([0.3, -0.4])
    loss = k_wise_ranking_sum(scores, FIRST_IS_BETTER)
    pairwise = pairwise_margin_sum(scores[:1], scores[1:], torch.zeros(1))
    assert float(loss) == pytest.approx(float(pairwise), rel=1e-6)
    assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-0.7))), rel=1e-6)


def test_k_wise_equals_brute_force_and_a_tie_gives_no_pair() -> None:
    scores, ranks = torch.tensor([0.1, 0.9, -0.3, 0.2]), torch.tensor([1, 2, 2, 4])
    expected = [
        -math.log(1 / (1 + math.exp(-float(scores[a] - scores[b]))))
        for a in range(4)
        for b in range(4)
        if ranks[a] < ranks[b]
    ]
    better = ranks[:, None] < ranks[None, :]
    assert int(better.sum()) == len(expected) == 5
    loss = k_wise_ranking_sum(scores, better)
    assert float(loss) == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert float(k_wise_ranking_sum(scores, torch.zeros(4, 4, dtype=torch.bool))) == 0.0


def test_k_wise_recovers_known_bradley_terry_scores() -> None:
    truth = torch.tensor([1.0, 0.3, -0.2, -1.1])
    generator = torch.Generator().manual_seed(0)
    noise = -torch.log(
        -torch.log(torch.rand(4000, 4, generator=generator))
    )  # Gumbel: Plackett-Luce
    ranks = (-(truth + noise)).argsort(dim=1).argsort(dim=1)
    wins = (ranks[:, :, None] < ranks[:, None, :]).float().sum(dim=0)
    scores = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(
            wins[a, b] * k_wise_ranking_sum(scores[[a, b]], FIRST_IS_BETTER)
            for a in range(4)
            for b in range(4)
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(scores.detach() - scores.detach().mean(), truth, atol=0.06, rtol=0)


def test_dpo_starts_at_ln_2_and_ipo_at_a_quarter_over_beta_squared() -> None:
    margins = torch.zeros(2)
    assert float(dpo_sum(margins, beta=0.1) / 2) == pytest.approx(math.log(2))
    assert float(ipo_sum(margins, beta=0.1) / 2) == pytest.approx(1 / (4 * 0.1**2))


def test_kto_by_hand() -> None:
    ratios, desirable = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    sigmoid = 1 / (1 + math.exp(-0.1 * (0.5 - 0.2)))
    expected = (1 - sigmoid) + sigmoid  # 1 - sigmoid(-x) = sigmoid(x)
    assert float(kto_sum(ratios, desirable, torch.tensor(0.2), 0.1)) == pytest.approx(expected)
    alone = float(kto_sum(ratios[:1], desirable[:1], torch.tensor(0.2), 0.1))
    assert alone == pytest.approx(1 - sigmoid)
    below = float(kto_sum(ratios[:1], desirable[:1], torch.tensor(-3.0), 0.1))  # no KL below 0
    assert below == pytest.approx(1 - 1 / (1 + math.exp(-0.05)))


def test_a_margin_asks_the_scores_to_lie_further_apart() -> None:
    gap = pairwise_margin_sum(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]))
    assert float(gap) == pytest.approx(math.log(2))


def test_grpo_is_the_plain_policy_gradient_its_ratio_is_one_and_kl_starts_at_zero() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, 0.0]], requires_grad=True)
    fixed = log_probs.detach()
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    loss = grpo_sum(log_probs, fixed, torch.tensor([[0.7]]), mask, 0.1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-2 * 0.7)  # ratio 1 at both tokens, and no KL
    assert float(kl_estimate(fixed, fixed).abs().sum()) == 0
    torch.testing.assert_close(log_probs.grad, torch.tensor([[-0.7, -0.7, 0.0]]))


def test_grpos_kl_pulls_towards_the_reference_by_its_weight() -> None:
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    reference = torch.tensor([[-1.5, -1.0]])
    loss = grpo_sum(log_probs, reference, torch.zeros(1, 1), torch.ones(1, 2), 0.1)
    loss.backward()
    gap = reference - log_probs.detach()
    assert float(loss.detach()) == pytest.approx(0.1 * float((gap.exp() - 1 - gap).sum()))
    torch.testing.assert_close(log_probs.grad, 0.1 * (1 - gap.exp()))


def test_kl_estimate_is_unbiased_on_the_policys_own_samples() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
    expected = float((policy.exp() * (policy - reference)).sum())
    estimate = float((policy.exp() * kl_estimate(policy, reference)).sum())
    assert estimate == pytest.approx(expected, rel=1e-6)


def test_advantages_are_rewards_less_their_groups_mean() -> None:
    rewards = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert group_advantages(rewards).tolist() == [[-1, 1], [0, 0]]


@torch.no_grad()
def test_the_reward_is_read_at_the_last_real_token_as_transformers_reads_it(run, base_id) -> None:
    from finetune.registry import Registry

    model = reward_model_from(Registry(run.root).folder(base_id)).eval()
    torch.nn.init.normal_(model.score.weight)
    model.config.pad_token_id = PAD_ID
    segments = [_segment([70, 71, 72]), _segment(list(range(70, 80)))]
    ours = end_scores(model, lay_segments(segments, PAD_ID))
    batch = pad_right(segments, PAD_ID)
    theirs = model(input_ids=batch.ids_BT, use_cache=False).logits[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert ours[0] != ours[1]
    for row, segment in enumerate(segments):
        alone = end_scores(model, lay_segments([segment], PAD_ID))
        torch.testing.assert_close(alone[0], ours[row], atol=1e-5, rtol=0)
    left = torch.tensor([[PAD_ID] * 7 + [70, 71, 72], list(range(70, 80))])  # padded at the left
    mask = (left != PAD_ID).long()
    theirs = model(input_ids=left, attention_mask=mask, use_cache=False,
                   position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, 0]  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[9, 10, 10], [3, 60, 5, 4]])
def test_segments_are_laid_so_that_little_is_padding(model, lengths) -> None:
    random = np.random.default_rng(0)
    segments = [_segment(random.integers(64, 300, n).tolist()) for n in lengths]
    batch = lay_segments(segments, PAD_ID)
    assert batch.tokens.ids_BT.numel() <= 1.25 * sum(lengths)
    found = batch.sums(label_log_probs(model, batch.tokens))
    alone = [float(label_log_probs(model, pad_right([s], PAD_ID)).sum()) for s in segments]
    torch.testing.assert_close(found, torch.tensor(alone), atol=1e-4, rtol=0)
    last = batch.tokens.ids_BT.flatten()[batch.ends_S].tolist()
    assert last == [segment.ids[-1] for segment in segments]


def _in_packed_order(packed, segments):
    by_ids = {s.ids: s for s in segments}
    for row, positions in zip(packed.ids_BT.tolist(), packed.positions_BT.tolist(), strict=True):
        starts = [i for i, position in enumerate(positions) if position == 0] + [len(row)]
        for a, b in zip(starts, starts[1:], strict=False):
            if tuple(row[a:b]) in by_ids:
                yield by_ids[tuple(row[a:b])]

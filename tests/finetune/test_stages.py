"""SFT, reward model, DPO and GRPO on a tiny snapshot: each does what it is for, once."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from finetune import sft as sft_stage
from finetune.dpo import DpoConfig, run_dpo
from finetune.grpo import GrpoConfig, run_grpo
from finetune.labels import conversations, ranked_prompts
from finetune.model import best_precision
from finetune.pretrain import read_metrics
from finetune.registry import Registry
from finetune.reward import PAIRS, RewardConfig, run_reward
from finetune.rollouts import REWARDS
from finetune.sft import SftConfig, run_sft
from pipeline.core.errors import UserError
from pipeline.core.manifest import StageOutput

SFT = SftConfig(epochs=12, learning_rate=3e-3, row_length=128, batch_rows=2, micro_batch_rows=1)


def test_splits_are_by_prompt_and_cover_everything(labels) -> None:
    sides = [{c.prompt_id for c in conversations(labels, heldout=h)} for h in (False, True)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 30
    assert {r.prompt_id for r in ranked_prompts(labels, heldout=True)} == sides[1]


def test_a_tie_is_no_pair_and_labelers_vote(labels) -> None:
    ranked = ranked_prompts(labels, heldout=False)[0]
    assert ranked.rankings == ((1, 2, 3, 3), (1, 2, 3, 3))
    assert ranked.majority_pairs() == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]


def test_the_road_from_labels_to_a_policy(run, base_id, labels) -> None:
    sft = run_sft(SFT, base_id, labels, run)
    curve = [r["heldout_bits_per_byte"] for r in read_metrics(sft) if "heldout_bits_per_byte" in r]
    assert curve[-1] < 0.8 * curve[0]
    assert run_sft(SFT, base_id, labels, run) == sft

    reward = run_reward(RewardConfig(epochs=6, batch_prompts=4, folds=2), base_id, labels, run)
    pairs = json.loads((Path(reward.url) / PAIRS).read_text())
    trained = {r.prompt_id for r in ranked_prompts(labels, heldout=False)}
    assert {p["prompt_id"] for p in pairs} == trained
    assert sum(p["model"] for p in pairs) / len(pairs) > 0.9
    folder = Registry(run.root).folder(reward.facts["model_id"])
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1

    sft_id = sft.facts["model_id"]
    dpo = run_dpo(DpoConfig(epochs=2, batch_pairs=8, learning_rate=1e-3), sft_id, labels, run)
    steps = read_metrics(dpo)
    assert steps[0]["heldout_margin"] == pytest.approx(0, abs=1e-5)  # the reference is the start
    assert steps[1]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert steps[-1]["heldout_margin"] > 0.05

    grpo_config = GrpoConfig(
        steps=6, batch_prompts=4, group_size=4, max_new_tokens=12, best_of=4, learning_rate=1e-3
    )
    grpo = run_grpo(grpo_config, sft_id, reward.facts["model_id"], labels, run)
    steps = read_metrics(grpo)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5)
    reduced = best_precision().autocast_dtype is not None  # bf16 has 8 bits of precision
    assert max(step["sampler_gap"] for step in steps) < (0.1 if reduced else 1e-4)
    rewards = json.loads((Path(grpo.url) / REWARDS).read_text())
    assert all(row["best_of_n"] >= row["sft"] for row in rewards)


def test_past_the_kl_bound_a_step_only_pulls_back(run, base_id, labels) -> None:
    sft = run_sft(SFT, base_id, labels, run).facts["model_id"]
    reward = run_reward(RewardConfig(epochs=1, folds=2), base_id, labels, run).facts["model_id"]
    free = {
        "steps": 8,
        "batch_prompts": 2,
        "group_size": 4,
        "max_new_tokens": 8,
        "best_of": 2,
        "learning_rate": 3e-3,
        "beta": 0.0,
    }
    loose = read_metrics(run_grpo(GrpoConfig(**free, max_kl=1e9), sft, reward, labels, run))
    tight = read_metrics(run_grpo(GrpoConfig(**free, max_kl=1e-9), sft, reward, labels, run))
    assert loose[-1]["kl"] > 0.05
    # With no KL term a pulled-back step has no gradient at all: only its first moves the policy.
    assert all(step["grad_norm"] == 0 for step in tight if step["kl"] > 1e-9)


def test_a_second_process_on_the_same_run_is_turned_away(run, base_id, labels) -> None:
    parents = {"base": base_id, "labels": labels}
    output = StageOutput.of(run.root, "sft", sft_stage.VERSION, SFT.identity(), parents)
    with output.lock(), pytest.raises(UserError, match="another run is writing"):
        run_sft(SFT, base_id, labels, run)
    assert output.finished() is None


def test_an_empty_side_of_the_split_is_said(run, base_id, write_labels) -> None:
    with pytest.raises(UserError, match="demonstrations among 1"):
        run_sft(SFT, base_id, write_labels(run.root, 1), run)

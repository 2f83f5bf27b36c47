"""What is too long, tied, broken or of another model: said with its mend, or counted and left out."""

import math

import pytest
import torch
from pydantic import ValidationError

from finetune.dpo import DpoConfig, run_dpo
from finetune.grpo import GrpoConfig, run_grpo
from finetune.labels import chat_segment
from finetune.model import load_language_model, new_model, reward_model_from
from finetune.ppo import PpoConfig, run_ppo
from finetune.pretrain import read_metrics
from finetune.registry import Registry
from finetune.rejection import RejectionConfig, run_rejection
from finetune.reward import RewardConfig, run_reward
from finetune.sft import SftConfig, run_sft
from finetune.tokenizer import TokenizerConfig, train_bpe
from pipeline.core.errors import UserError
from pipeline.core.identity import HELDOUT_FRACTION, is_heldout, prompt_id, split_id
from pipeline.core.manifest import Counts, Manifest, StageOutput, describe_file
from pipeline.core.records import (
    Comparison,
    Conversation,
    Message,
    RankedResponse,
    to_table,
    write_table,
)
from tests.finetune.conftest import TINY, WHEN, sentences

SHORT = {"steps": 2, "batch_prompts": 4, "max_new_tokens": 6, "best_of": 2}
LONG = " ".join(sentences(5, 8))  # longer than the model's 128 tokens


def labels_of(run, prompts: list[str], answers=("yes", "no"), ranks=(1, 2)) -> Manifest:
    """A demonstration and a ranking of each prompt."""
    output = StageOutput.of(run.root, "labels", 1, {"prompts": prompts, "ranks": ranks}, {})
    written, ranked = [], []
    for n, text in enumerate(prompts):
        prompt = (Message.of("user", text),)
        chat = (*prompt, Message.of("assistant", answers[0]))
        identity = prompt_id(prompt)
        written.append(
            Conversation(f"c{n:03}", identity, chat, "test", "human", "p1", 1, WHEN)
        )  # fmt: skip
        replies = tuple(
            RankedResponse(f"r{n}-{k}", "m", answer, rank)
            for k, (answer, rank) in enumerate(zip(answers, ranks, strict=True))
        )
        order = tuple(range(len(answers)))
        ranked.append(
            Comparison(f"k{n:03}", identity, prompt, replies, order, False, None, "p1", 1, WHEN)
        )
    files = []
    for name, rows, kind in (
        ("conversations.parquet", written, Conversation),
        ("comparisons.parquet", ranked, Comparison),
    ):
        write_table(to_table(rows, kind), output.path(name))
        files.append(describe_file(output.path(name), name))
    return output.commit(files, Counts(len(prompts), len(prompts)), started=0.0)


@pytest.fixture
def mixed(run) -> Manifest:
    """Prompts that fit, and on either side of the split some that no context holds."""
    return labels_of(run, [*(f"heap {n}" for n in range(40)), *(f"{n} {LONG}" for n in range(40))])


def training(prompts) -> int:
    turns = [(Message.of("user", text),) for text in prompts]
    return sum(not is_heldout(split_id(turn), HELDOUT_FRACTION) for turn in turns)


@pytest.fixture
def tied_id(run, base_id, tokenizer) -> str:
    """A reward model that scores every answer 0."""
    registry = Registry(run.root)
    return registry.publish(
        reward_model_from(registry.folder(base_id)), tokenizer, {"kind": "reward"}
    )


def test_a_conversation_without_an_assistants_turn_is_refused(tokenizer) -> None:
    for messages in ([], [Message.of("user", "heap?")]):
        with pytest.raises(UserError, match="must end with the assistant's turn"):
            chat_segment(tokenizer, messages)


def test_what_no_context_holds_is_counted_and_left_out(run, base_id, mixed) -> None:
    too_long = training(f"{n} {LONG}" for n in range(40))
    # A row may be longer than the context; a conversation may not.
    sft = run_sft(SftConfig(epochs=1, row_length=4096), base_id, mixed, run)
    assert sft.counts.dropped == {"too-long": too_long}
    reward = run_reward(RewardConfig(epochs=1, folds=2, max_length=4096), base_id, mixed, run)
    assert reward.counts.dropped == {"too-long": too_long}
    dpo = run_dpo(DpoConfig(epochs=1, max_length=4096), base_id, mixed, run)
    assert dpo.counts.dropped == {"too-long": too_long}
    reward_id = reward.facts["model_id"]
    lost = {"no-room-for-an-answer": too_long}
    grpo = run_grpo(GrpoConfig(**SHORT, group_size=2), base_id, reward_id, mixed, run)
    ppo = run_ppo(PpoConfig(**SHORT), base_id, reward_id, mixed, run)
    assert grpo.counts.dropped == ppo.counts.dropped == lost
    best = RejectionConfig(samples=2, max_new_tokens=100)
    rejection = run_rejection(best, base_id, reward_id, mixed, run)
    assert rejection.counts.dropped.items() >= lost.items()
    for manifest in (sft, reward, grpo, ppo, rejection):
        assert manifest.counts.rows_in == training(f"heap {n}" for n in range(40)) + too_long
        dropped = sum(manifest.counts.dropped.values())
        assert manifest.counts.rows_in == manifest.counts.rows_out + dropped


def test_if_nothing_fits_it_says_what_is_too_small(run, base_id, tied_id) -> None:
    labels = labels_of(run, [f"{n} {LONG}" for n in range(40)])
    with pytest.raises(UserError, match=r"longer than 128 tokens.*sft.row_length = 512"):
        run_sft(SftConfig(), base_id, labels, run)
    with pytest.raises(UserError, match=r"too-long.*raise dpo.max_length"):
        run_dpo(DpoConfig(), base_id, labels, run)
    with pytest.raises(UserError, match=r"fill the model's 128 tokens; ask shorter ones"):
        run_grpo(GrpoConfig(**SHORT), base_id, tied_id, labels, run)


def test_rewards_that_tie_everywhere_teach_nothing_and_break_nothing(
    run, base_id, tied_id, labels
) -> None:
    config = GrpoConfig(**SHORT, group_size=4, beta=0.0, unfinished_penalty=0.0)
    grpo = run_grpo(config, base_id, tied_id, labels, run)
    assert [step["grad_norm"] for step in read_metrics(grpo) if step["step"]] == [0.0, 0.0]
    registry = Registry(run.root)
    before, after = (
        load_language_model(registry.folder(name)).state_dict()
        for name in (base_id, grpo.facts["model_id"])
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    for penalty in (0.0, 1.0):
        config = PpoConfig(**SHORT, unfinished_penalty=penalty)
        ppo = run_ppo(config, base_id, tied_id, labels, run)
        assert all(abs(step["loss"]) < 10 for step in read_metrics(ppo) if step["step"])


def test_rankings_that_tie_everywhere_are_said(run, base_id) -> None:
    labels = labels_of(run, [f"heap {n}" for n in range(30)], ranks=(1, 1))
    with pytest.raises(UserError, match="'all-tied'"):
        run_reward(RewardConfig(folds=2), base_id, labels, run)
    with pytest.raises(UserError, match="no pair is left for DPO"):
        run_dpo(DpoConfig(), base_id, labels, run)


def test_weights_that_are_no_numbers_are_named(run, model, tokenizer, tmp_path) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight holds NaN"):
        Registry(run.root).publish(model, tokenizer, {"kind": "base"})
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight holds NaN"):
        load_language_model(tmp_path / "nan")


def test_a_run_that_diverges_at_its_end_publishes_nothing(run, base_id, labels) -> None:
    config = SftConfig(epochs=0.01, learning_rate=3e38, warmup_steps=0)
    for _ in range(2):  # the second one goes on from the end of the first
        with pytest.raises(UserError, match="it diverged; lower the learning rate"):
            run_sft(config, base_id, labels, run)
    assert len(list((Registry(run.root).root / "models").iterdir())) == 1


@pytest.mark.parametrize(
    ("config", "values"),
    [(SftConfig, {"learning_rate": math.inf}), (PpoConfig, {"kl_horizon": math.inf}),
     (SftConfig, {"grad_clip": math.nan}), (SftConfig, {"seed": -1}), (SftConfig, {"seed": 2**70})],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_at_once(config, values) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        config(**values)


def test_a_tokenizer_of_another_model_is_refused(run, tokenizer) -> None:
    small = train_bpe(iter(sentences(0, 50)), TokenizerConfig(vocab_size=350))
    model = new_model(TINY, small, seed=1)
    with pytest.raises(UserError, match="has 381 tokens and the model knows 350"):
        Registry(run.root).publish(model, tokenizer, {"kind": "base"})

"""PPO, GRPO with checked answers, rejection sampling and KTO on a tiny snapshot."""

import json
from pathlib import Path

import pytest
import torch

from finetune.dpo import DpoConfig, make_pairs, run_dpo
from finetune.engines import TorchEngine
from finetune.generate import Completion
from finetune.grpo import GrpoConfig, run_grpo
from finetune.labels import RankedPrompt, ranked_prompts
from finetune.losses import RunningMoments
from finetune.model import load_language_model, new_model
from finetune.ppo import PpoConfig, PpoSource, run_ppo
from finetune.pretrain import read_metrics
from finetune.registry import Registry
from finetune.rejection import RejectionConfig, run_rejection
from finetune.reward import RewardConfig, answer_sets, calibration, run_reward
from finetune.rollouts import REWARDS, CheckJudge, Question
from finetune.sft import SftConfig, run_sft
from finetune.tokenizer import TURN_END, token_id
from finetune.verifiable import final_number, same_form, same_number, same_text
from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.records import Conversation, Message, read_records
from tests.finetune.conftest import TINY, write_labels

SFT = SftConfig(epochs=12, learning_rate=3e-3, row_length=128, batch_rows=2, micro_batch_rows=1)
EXACT = {"precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunConfig:
    """One root for all: what a stage makes is found by its inputs."""
    return RunConfig(root=str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def labels(run):
    return write_labels(run.root)


@pytest.fixture(scope="module")
def base_id(run, tokenizer) -> str:
    return Registry(run.root).publish(
        new_model(TINY, tokenizer, seed=1), tokenizer, {"kind": "base"}
    )


@pytest.fixture(scope="module")
def models(run, base_id, labels) -> tuple[str, str]:
    sft = run_sft(SFT, base_id, labels, run).facts["model_id"]
    config = RewardConfig(epochs=6, batch_prompts=4, folds=2)
    return sft, run_reward(config, base_id, labels, run).facts["model_id"]


def test_ppo_starts_where_the_policy_is_and_raises_the_reward(run, labels, models) -> None:
    config = PpoConfig(
        steps=24, batch_prompts=16, updates=2, epochs=2, max_new_tokens=12, best_of=4,
        learning_rate=2e-3, warmup_steps=0, kl_weight=0.01, **EXACT,
    )  # fmt: skip
    manifest = run_ppo(config, *models, labels, run)
    steps = read_metrics(manifest)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert steps[0]["sampler_gap"] < 1e-4
    assert steps[0]["kl_weight"] == 0.01
    first, last = (sum(s["reward"] for s in part) for part in (steps[:8], steps[-8:]))
    assert last > first + 0.5  # five seeds gained 2.6 to 5.9
    assert manifest.facts["kl_weight"] != 0.01
    rewards = json.loads((Path(manifest.url) / REWARDS).read_text())
    assert {"sft", "ppo", "best_of_n", "kl", "prompt_id"} == set(rewards[0])
    assert run_ppo(config, *models, labels, run) == manifest
    assert Registry(run.root).kind(manifest.facts["model_id"]) == "ppo"


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_at_the_first_update_the_ratio_is_one_and_nothing_is_clipped(
    run, labels, models, stage: str
) -> None:
    shape = {"steps": 1, "max_new_tokens": 8, "best_of": 2, "batch_prompts": 4, **EXACT}
    if stage == "ppo":
        manifest = run_ppo(PpoConfig(updates=1, epochs=1, **shape), *models, labels, run)
    else:
        manifest = run_grpo(GrpoConfig(group_size=4, **shape), *models, labels, run)
    first = read_metrics(manifest)[0]
    if stage == "ppo":
        assert (first["ratio"], first["clipped"], first["kl"]) == (1.0, 0.0, 0.0)
    else:  # nothing to clip; test_packing_and_losses.py has the ratio
        assert first["kl_per_token"] == 0.0
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["sampler_gap"] < 1e-5


def test_a_source_remembers_its_weight_and_its_scale() -> None:
    source = PpoSource(None, [], PpoConfig())  # type: ignore[arg-type]
    source.kl = source.kl.after(100.0, 50)
    source.rewards = RunningMoments().after(torch.tensor([1.0, 5.0]))
    other = PpoSource(None, [], PpoConfig())  # type: ignore[arg-type]
    other.restore(source.state())
    assert (other.kl, other.rewards) == (source.kl, source.rewards)


def test_grpo_by_a_program_that_checks(run, labels, models) -> None:
    config = GrpoConfig(
        steps=40, batch_prompts=4, group_size=8, max_new_tokens=12, best_of=2, reward="format",
        learning_rate=3e-3, beta=0.0, max_kl=1e9, **EXACT,
    )  # fmt: skip
    steps = read_metrics(run_grpo(config, *models, labels, run))
    assert all(0 <= s["reward"] <= 1 for s in steps)
    first, last = (sum(s["reward"] for s in part) for part in (steps[:10], steps[-10:]))
    assert last > first + 1


def test_the_best_of_n_becomes_demonstrations(run, base_id, labels, models) -> None:
    config = RejectionConfig(samples=4, max_new_tokens=16, device="cpu")
    manifest = run_rejection(config, *models, labels, run)
    found = read_records(manifest.file_url("conversations.parquet"), Conversation)
    made = [c for c in found if c.origin == "model"]
    assert len(made) == manifest.counts.rows_out > 0
    assert {c.prompt_id for c in made} <= {
        r.prompt_id for r in ranked_prompts(labels, heldout=False)
    }
    people = [c for c in found if c.origin == "human"]
    assert {c.prompt_id for c in people} == {
        r.prompt_id for r in ranked_prompts(labels, heldout=True)
    }
    assert run_rejection(config, *models, labels, run) == manifest
    assert run_sft(SFT, base_id, manifest, run).facts["model_id"] != models[0]
    with pytest.raises(UserError, match=r"came to an end in rejection\.max_new_tokens = 1"):
        run_rejection(RejectionConfig(samples=2, max_new_tokens=1), *models, labels, run)


def test_rejection_goes_on_where_it_was_cut_off(run, labels, models, tmp_path, monkeypatch) -> None:
    """A prompt at a time; it ends at the fourth, and the rerun samples for the others alone."""
    config = RejectionConfig(samples=128, max_new_tokens=8, device="cpu")
    sample, asked = TorchEngine.generate, []

    def ends_at_the_fourth(self, prompts, sampling, seed):
        asked.append(prompts[0])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return sample(self, prompts, sampling, seed)

    monkeypatch.setattr(TorchEngine, "generate", ends_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_rejection(config, *models, labels, run)
    resumed = run_rejection(config, *models, labels, run)
    folder = Path(resumed.url)
    assert len(asked) == resumed.counts.rows_in + 1
    assert len(set(map(tuple, asked))) == resumed.counts.rows_in
    assert not list(folder.glob("best-*"))
    other = RunConfig(root=str(tmp_path))
    (tmp_path / "models").symlink_to(Path(run.root) / "models")
    assert run_rejection(config, *models, labels, other).content == resumed.content


@pytest.mark.parametrize("loss", ["kto", "ipo"])
def test_other_losses_move_the_margin_up(run, labels, models, loss: str) -> None:
    config = DpoConfig(
        loss=loss, epochs=2, batch_pairs=8, micro_batch_pairs=3, learning_rate=1e-3, **EXACT
    )
    steps = read_metrics(run_dpo(config, models[0], labels, run))
    expected = {"kto": 0.5, "ipo": 1 / (4 * 0.1**2)}[loss]
    assert steps[0]["heldout_margin"] == pytest.approx(0, abs=1e-4)
    assert steps[1]["loss"] == pytest.approx(expected, rel=1e-4)
    assert steps[-1]["heldout_margin"] > 0.05


def test_sft_of_an_adapter_publishes_a_whole_model(run, base_id, labels) -> None:
    config = SftConfig(lora_rank=8, epochs=4, learning_rate=1e-2, row_length=128, **EXACT)
    manifest = run_sft(config, base_id, labels, run)
    curve = [
        r["heldout_bits_per_byte"] for r in read_metrics(manifest) if "heldout_bits_per_byte" in r
    ]
    assert curve[-1] < curve[0]
    model = load_language_model(Registry(run.root).folder(manifest.facts["model_id"]))
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert (Path(manifest.url) / "adapter" / "adapter_config.json").exists()


def _ranked(answers: tuple[str, ...], *rankings: tuple[int, ...]) -> RankedPrompt:
    prompt = (Message.of("user", "does the heap"),)
    return RankedPrompt("p", prompt, answers, rankings, (0.0,) * len(rankings))


def test_pairs_of_equal_sides_and_ties_are_counted_and_left_out(tokenizer, model) -> None:
    same = _ranked(("yes", "yes", "no"), (1, 2, 3))
    tied = _ranked(("a", "b"), (1, 1))
    pairs, dropped = make_pairs(tokenizer, model, [same, tied], 64)
    assert len(pairs) == 2
    assert dropped == {"equal-sides": 1}
    assert make_pairs(tokenizer, model, [same], 4) == ([], {"equal-sides": 1, "too-long": 2})
    sets, left_out = answer_sets(tokenizer, [same, tied, _ranked(("x", "x"), (1, 2))], 64)
    assert [s.pairs for s in sets] == [(((0, 2), (1, 2)),)]
    assert left_out == {"all-tied": 2}


def test_too_few_rankings_for_the_folds_are_said(run, base_id, labels) -> None:
    with pytest.raises(UserError, match=r"too few for reward\.folds = 200"):
        run_reward(RewardConfig(folds=200), base_id, labels, run)


def test_calibration_by_hand() -> None:
    found = calibration([0.95, 0.95, 0.05, 0.62, 0.38])
    assert found["bins"] == [[0.62, 0.5, 2], [0.95, pytest.approx(2 / 3, abs=1e-5), 3]]
    expected = (2 * abs(0.62 - 0.5) + 3 * abs(0.95 - 2 / 3)) / 5
    assert found["error"] == pytest.approx(expected, abs=1e-5)
    assert calibration([]) == {"bins": [], "error": 0.0}


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("5 + 7 = 12", "#### 12", True),
        ("12.0", "12", True),
        ("It is 1,200", "#### 1200", True),
        ("#### 12 (of 13)", "12", True),
        ("-3", "3", False),
        ("", "12", False),
        ("twelve", "12", False),
        ("9" * 20_000, "12", False),
        ("12" + " " * 30_000, "12", False),
        ("١٢", "12", True),
    ],
)
def test_numbers_are_compared_as_numbers(answer: str, reference: str, right: bool) -> None:
    assert same_number(answer, reference) is right


def test_other_checks() -> None:
    assert same_text(" The  HEAP ", "the heap")
    assert not same_text("the heaps", "the heap")
    assert same_form("1. one\n2. two", "1. first thing\n2. second")
    assert not same_form("one\ntwo", "1. one\n2. two")
    assert final_number("no number") is None


def test_a_cut_off_answer_is_wrong_however_it_reads(tokenizer) -> None:
    end = token_id(tokenizer, TURN_END)
    ids = tokenizer.encode("12").ids
    whole, cut = Completion((*ids, end), (), True), Completion((*ids, ids[0]), (), False)
    judge = CheckJudge(tokenizer, "arithmetic")
    questions = [Question("p", (1,), "12")] * 2
    assert judge.rewards(questions, [whole, cut]).tolist() == [1.0, 0.0]

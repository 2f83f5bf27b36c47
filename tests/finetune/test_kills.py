"""kill -9 in the middle of each finetuning stage, then a rerun: the very same model."""

from pathlib import Path

import pytest

from finetune.dpo import DpoConfig, run_dpo
from finetune.grpo import GrpoConfig, run_grpo
from finetune.loop import LoopConfig
from finetune.ppo import PpoConfig, run_ppo
from finetune.registry import Registry
from finetune.reward import RewardConfig, run_reward
from finetune.sft import SftConfig, run_sft
from pipeline.core.config import RunConfig

SFT = SftConfig(epochs=60, row_length=128, batch_rows=2, micro_batch_rows=1, checkpoint_every=7)
REWARD = RewardConfig(epochs=40, batch_prompts=4, folds=2, checkpoint_every=7)
DPO = DpoConfig(epochs=12, batch_pairs=8, checkpoint_every=7)
GRPO = GrpoConfig(
    steps=40, batch_prompts=2, group_size=4, max_new_tokens=12, best_of=2, checkpoint_every=7
)
PPO = PpoConfig(
    steps=40, batch_prompts=6, updates=2, max_new_tokens=12, best_of=2, checkpoint_every=7
)
WORKER = """
import sys, torch
torch.set_num_threads(1)
from pipeline.core.config import RunConfig
from pipeline.core.manifest import read_manifest
import finetune.sft, finetune.reward, finetune.dpo, finetune.grpo, finetune.ppo
stage, config, root, labels, *models = sys.argv[1:]
module = getattr(finetune, stage)
kind = getattr(module, stage.capitalize() + "Config")
getattr(module, "run_" + stage)(
    kind.model_validate_json(config), *models, read_manifest(labels), RunConfig(root=root)
)
"""


@pytest.mark.parametrize(
    ("stage", "config", "function"),
    [
        ("sft", SFT, run_sft),
        pytest.param("reward", REWARD, run_reward, marks=pytest.mark.long),
        pytest.param("dpo", DPO, run_dpo, marks=pytest.mark.long),
        pytest.param("grpo", GRPO, run_grpo, marks=pytest.mark.long),
        pytest.param("ppo", PPO, run_ppo, marks=pytest.mark.long),
    ],
)
def test_a_killed_stage_goes_on_to_the_same_model(
    stage: str,
    config: LoopConfig,
    function,
    run,
    base_id,
    labels,
    kill_when,
    write_labels,
    tmp_path,
) -> None:
    models = [base_id]
    if stage in ("grpo", "ppo"):
        short = RewardConfig(epochs=1, folds=2)
        models = [base_id, run_reward(short, base_id, labels, run).facts["model_id"]]
    folder = Path(run.root) / stage
    kill_when(
        ["-c", WORKER, stage, config.model_dump_json(), run.root, labels.url, *models],
        lambda: any(
            len(p.read_text().splitlines()) > 16 and list(p.parent.glob("checkpoint-*.json"))
            for p in folder.rglob("metrics.jsonl")
        ),
    )
    assert not list(folder.glob("*/manifest.json"))
    resumed = function(config, *models, labels, run)
    undisturbed_run = RunConfig(root=str(tmp_path / "undisturbed"))
    (Path(undisturbed_run.root)).mkdir()
    (Path(undisturbed_run.root) / "models").symlink_to(Path(run.root) / "models")
    undisturbed = function(config, *models, labels, undisturbed_run)
    assert resumed.content == undisturbed.content  # the model, the metrics, the figures
    Registry(run.root).verified(resumed.facts["model_id"])

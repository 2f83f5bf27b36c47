"""kill -9 at random moments over all training stages, each gone on with until it ends: the very
same model, metrics and figures as undisturbed. FLYWHEEL_KILLS says how many (20)."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.dpo import DpoConfig, run_dpo
from finetune.grpo import GrpoConfig, run_grpo
from finetune.loop import LoopConfig
from finetune.ppo import PpoConfig, run_ppo
from finetune.reward import RewardConfig, run_reward
from finetune.sft import SftConfig, run_sft
from pipeline.core.config import RunConfig
from pipeline.core.manifest import read_manifest
from tests.conftest import REPOSITORY
from tests.finetune.test_kills import WORKER

KILLS = int(os.environ.get("FLYWHEEL_KILLS", "20"))
OFTEN = {"checkpoint_every": 3}
STAGES: list[tuple[str, LoopConfig, object]] = [
    # 24 rows of micro-batches of one: kills fall into accumulations and onto epochs' ends
    ("sft", SftConfig(epochs=200, row_length=128, batch_rows=3, micro_batch_rows=1, **OFTEN), run_sft),
    ("reward", RewardConfig(epochs=60, batch_prompts=4, folds=2, **OFTEN), run_reward),
    ("dpo", DpoConfig(epochs=30, batch_pairs=8, **OFTEN), run_dpo),
    ("grpo", GrpoConfig(steps=80, batch_prompts=2, group_size=4, max_new_tokens=12, best_of=2, **OFTEN), run_grpo),
    ("ppo", PpoConfig(steps=60, batch_prompts=6, updates=2, max_new_tokens=12, best_of=2, **OFTEN), run_ppo),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_killed_anywhere_and_as_often_as_you_like_the_end_is_the_same(
    run: RunConfig, base_id, labels, tmp_path: Path
) -> None:
    draw = random.Random(5)
    short = RewardConfig(epochs=1, folds=2)
    reward = run_reward(short, base_id, labels, run).facts["model_id"]
    other = RunConfig(root=str(tmp_path / "undisturbed"))
    Path(other.root).mkdir()
    (Path(other.root) / "models").symlink_to(Path(run.root) / "models")
    killed = 0
    for number, (stage, config, function) in enumerate(STAGES):
        models = [base_id, reward] if stage in ("grpo", "ppo") else [base_id]
        begun = time.monotonic()
        expected = function(config, *models, labels, other)  # type: ignore[operator]
        length = time.monotonic() - begun
        wanted = (number + 1) * KILLS // len(STAGES)
        arguments = [stage, config.model_dump_json(), run.root, labels.url, *models]
        before = set((Path(run.root) / stage).glob("*/manifest.json"))
        while killed < wanted:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, *arguments],
                cwd=REPOSITORY,
                stderr=subprocess.DEVNULL,
            )
            folder = Path(run.root) / stage
            while process.poll() is None and not list(folder.rglob(".lock")):
                time.sleep(0.05)  # imports are no part of training
            time.sleep(draw.uniform(0, length / 3))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.wait()
            if set(folder.glob("*/manifest.json")) - before:
                break  # it ended before the kill
        found = function(config, *models, labels, run)  # type: ignore[operator]
        assert found.content == expected.content, stage
        assert read_manifest(found.url) == found
    assert killed >= KILLS // 2, killed

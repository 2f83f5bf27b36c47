"""kill -9 at random moments over all training stages, each gone on with until it ends: the very
same model, metrics and figures as undisturbed. FLYWHEEL_KILLS says how many (20)."""

import functools
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.dpo import DpoConfig, run_dpo
from finetune.grpo import GrpoConfig, run_grpo
from finetune.ppo import PpoConfig, run_ppo
from finetune.pretrain import PretrainConfig, run_pretrain
from finetune.rejection import RejectionConfig, run_rejection
from finetune.reward import RewardConfig, run_reward
from finetune.sft import SftConfig, run_sft
from pipeline.core.config import RunConfig
from pipeline.core.manifest import Manifest, read_manifest
from tests.conftest import REPOSITORY
from tests.finetune.conftest import TINY

KILLS = int(os.environ.get("FLYWHEEL_KILLS", "20"))
Call = Callable[..., Manifest]
WORKER = """
import pickle, sys, torch
torch.set_num_threads(1)
call = pickle.load(open(sys.argv[1], "rb"))
print("imported", flush=True)
call()
"""


def _calls(base_id: str, reward_id: str, labels: Manifest, *corpus: Manifest) -> dict[str, Call]:
    """Each stage, all but the run."""
    often: dict[str, Any] = {"checkpoint_every": 3}
    short = {"max_new_tokens": 12, "best_of": 2}
    part = functools.partial
    # SFT has 24 rows of micro-batches of one: kills fall into accumulations and onto epochs' ends.
    sft = SftConfig(epochs=80, row_length=128, batch_rows=3, micro_batch_rows=1, **often)
    pretrain = PretrainConfig(num_tokens=64 * 4 * 120, batch_rows=4, micro_batch_rows=2,
                              row_length=64, evaluate_every=20, evaluate_bytes=500, **often)  # fmt: skip
    reward = RewardConfig(epochs=30, batch_prompts=4, folds=2, **often)
    dpo = DpoConfig(epochs=15, batch_pairs=8, **often)
    grpo = GrpoConfig(steps=80, batch_prompts=2, group_size=4, **short, **often)
    ppo = PpoConfig(steps=60, batch_prompts=6, updates=2, **short, **often)
    rejection = RejectionConfig(samples=128, max_new_tokens=48)  # a prompt at a time
    return {
        "pretrain": part(run_pretrain, pretrain, TINY, *corpus),
        "sft": part(run_sft, sft, base_id, labels),
        "reward": part(run_reward, reward, base_id, labels),
        "dpo": part(run_dpo, dpo, base_id, labels),
        "rejection": part(run_rejection, rejection, base_id, reward_id, labels),
        "grpo": part(run_grpo, grpo, base_id, reward_id, labels),
        "ppo": part(run_ppo, ppo, base_id, reward_id, labels),
    }


def _done(folder: Path) -> int:
    """Steps of a training, parts of a rejection sampling."""
    steps = sum(len(p.read_text().splitlines()) for p in folder.rglob("metrics.jsonl"))
    return steps + len(list(folder.rglob("best-*.json")))


@pytest.mark.long
@pytest.mark.timeout(300 + 60 * KILLS)
def test_killed_anywhere_and_as_often_as_you_like_the_end_is_the_same(
    run: RunConfig, base_id, labels, shards, tokenizer_manifest, tmp_path: Path
) -> None:
    draw = random.Random(5)
    reward_id = run_reward(RewardConfig(epochs=1, folds=2), base_id, labels, run).facts["model_id"]
    other = RunConfig(root=str(tmp_path / "undisturbed"))
    Path(other.root).mkdir()
    (Path(other.root) / "models").symlink_to(Path(run.root) / "models")
    calls = _calls(base_id, reward_id, labels, shards, tokenizer_manifest)
    left = KILLS
    for number, (stage, call) in enumerate(calls.items()):
        begun = time.monotonic()
        expected = call(run=other)
        length = time.monotonic() - begun
        wanted = left // (len(calls) - number)
        left -= wanted
        worker, folder = tmp_path / f"{stage}.pickle", Path(run.root) / stage
        worker.write_bytes(pickle.dumps(functools.partial(call, run=run)))
        before = set(folder.glob("*"))
        killed, ended, reached = 0, 0, list[int]()
        while killed < wanted:
            with subprocess.Popen(
                [sys.executable, "-c", WORKER, str(worker)],
                cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                assert process.stdout.readline()  # imports are no part of it
                try:
                    process.wait(draw.uniform(0, 2 * length / wanted))
                    ended += 1
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    killed += 1
                    reached.append(_done(folder))
            if process.returncode != -signal.SIGKILL:  # it ended before the kill: from the start
                assert process.returncode == 0
                assert call(run=run).content == expected.content, stage
                (made,) = set(folder.glob("*")) - before
                shutil.rmtree(made)
        found = call(run=run)
        assert found.content == expected.content, stage
        assert read_manifest(found.url) == found
        print(f"{stage}: {killed} kills after {reached} steps, {ended} runs ended between them")

import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


def _gpu_benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


@pytest.mark.long
def test_the_gpu_benchmark_takes_the_same_path_on_a_cpu() -> None:
    result = _gpu_benchmark("--device", "cpu", "--tiny")
    assert result.returncode == 0, result.stderr
    assert "correct on cpu" in result.stdout
    assert "4/4 steps" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_cuda_it_says_so() -> None:
    result = _gpu_benchmark()
    assert result.returncode == 2
    assert "no CUDA device here" in result.stderr

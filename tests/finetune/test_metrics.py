"""The curves that a run leaves in the terminal."""

import math
from pathlib import Path

import pytest

from finetune.metrics import METRICS, MetricsLog, curves, read_rows


def test_a_falling_loss_falls_in_the_picture() -> None:
    rows = [{"step": i, "loss": 8.0 - i / 10} for i in range(48)]
    [line] = curves(rows)
    name, first, picture, last = line.split()
    assert (name, first, last) == ("loss", "8", "3.3")
    assert picture == "".join(sorted(picture, reverse=True))
    assert set(picture) == set("▁▂▃▄▅▆▇█")


def test_each_curve_has_its_line_and_what_was_not_measured_has_none() -> None:
    rows = [{"step": 0, "heldout_loss": 2.0}, {"step": 1, "loss": 3.0, "memory_gb": 1.0}]
    rows += [{"step": 2, "loss": 3.0}, {"step": 3, "loss": math.nan, "heldout_loss": 1.0}]
    lines = curves(rows)
    assert [line.split()[0] for line in lines] == ["loss", "heldout_loss"]
    assert lines[0].split()[2:] == ["▁▁", "3"]  # flat
    assert curves([]) == curves([{"step": 1, "loss": 1.0}]) == []


def test_a_long_run_is_no_wider() -> None:
    [line] = curves([{"step": i, "loss": float(i % 7)} for i in range(10_000)])
    assert len(line.split()[2]) == 48


@pytest.mark.parametrize("line", ["5", "[]", "{}", '{"step": "x"}', '{"step": 2, "lo', "[" * 9999])
def test_a_line_that_is_no_step_is_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / METRICS
    path.write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 3, "loss": 1.0}}\n')
    assert [row["step"] for row in read_rows(path)] == [1, 3]
    with MetricsLog(tmp_path, 2) as log:
        log.append({"step": 2, "loss": 1.5})
    assert [row["loss"] for row in read_rows(path)] == [2.0, 1.5]

"""The curves that a run leaves in the terminal."""

import math

from finetune.metrics import curves


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

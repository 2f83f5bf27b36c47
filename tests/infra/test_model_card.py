"""`flywheel card`: the card as it was published, and all that was measured since."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.run import evaluation_items
from finetune.card import Made, card_text
from infra import cli, report
from infra.model_card import whole_card
from infra.settings import load_run
from pipeline.core.errors import UserError

BASE, GRPO = "a" * 64, "e" * 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory, build):
    turn = build(tmp_path_factory.mktemp("cards") / "data").whole()
    for identity, kind in ((BASE, "base"), (GRPO, "grpo")):
        (turn.root / "models" / identity / "README.md").write_text(card_text(Made({"kind": kind})))
    return turn


def test_the_card_stands_before_what_was_measured_later(whole) -> None:
    text = whole_card(whole.config, "champion")
    assert text.startswith(card_text(Made({"kind": "grpo"})).rstrip())
    gate, evaluation = whole.made["gate"][0], whole.made["evaluate"][2]
    assert f"## gate {gate.key[:12]}\n\nAs challenger: {gate.facts['verdict']}." in text
    assert f"## evaluate {evaluation.key[:12]}" in text
    assert f"## evaluate {whole.made['evaluate'][0].key[:12]}" not in text
    assert "## win\\_rate" not in text
    assert f"## win_rate {whole.made['win_rate'][0].key[:12]}" in text
    assert "`serve.abilities` of this config: none." in text
    able = load_run(cli.DEMO_CONFIG, [f"run.root={whole.root}", 'serve.abilities=["draft"]'])
    assert "`serve.abilities` of this config: draft." in whole_card(able, "champion")


def test_a_model_is_named_by_pointer_id_or_the_beginning_of_one(whole) -> None:
    texts = {whole_card(whole.config, name) for name in ("champion", GRPO, "eee")}
    assert len(texts) == 1
    assert whole_card(whole.config, "previous") == whole_card(whole.config, "a")
    for name in ("", "x", "../models", "."):
        with pytest.raises(UserError, match="no model is called"):
            whole_card(whole.config, name)


def test_the_command_takes_a_model_and_overrides(whole, capsys) -> None:
    assert cli.main(["card", "eee", f"run.root={whole.root}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("---\nlibrary_name")
    assert cli.main(["card", f"run.root={whole.root}"]) == 0
    assert capsys.readouterr().out == printed
    assert cli.main(["card", "zzz", f"run.root={whole.root}"]) == 2


def test_a_model_without_card_or_measurements_is_shown_too(whole, tmp_path) -> None:
    folder = tmp_path / "data" / "models" / ("9" * 64)
    folder.mkdir(parents=True)
    shutil.copy(whole.root / "models" / BASE / "config.json", folder)
    text = whole_card(load_run(cli.DEMO_CONFIG, [f"run.root={tmp_path}/data"]), "9")
    assert "without a card" in text
    assert text.endswith("Nothing was measured since.\n")
    with pytest.raises(UserError, match="there is no champion yet"):
        whole_card(load_run(cli.DEMO_CONFIG, [f"run.root={tmp_path}/data"]), "champion")


def test_the_report_tells_of_the_labels_hygiene(whole) -> None:
    page = Path(report.run_report(whole.config)).read_text()
    assert "Hygiene of the labels" in page
    assert "248 answers and rankings of 2 labelers were looked through" in page
    assert whole.made["hygiene"][0].key[:12] in page


def test_all_that_a_model_is_asked_is_an_item(whole) -> None:
    labels = SimpleNamespace(file_url=whole.made["labels"][0].file_url)
    items = dict(evaluation_items(labels))
    folder = Path(cli.__file__).parents[1] / "eval" / "data"
    for name in ("stdlib_choice", "canary_goals"):
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            assert (row.get("question") or row["goal"]) in items.values()

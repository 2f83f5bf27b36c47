"""Who meets whom, and who is deployed, also after a kill between the history and a pointer."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.registry import Registry, folder_model_id
from infra.demo import _check_free
from infra.demo_site import DemoSite
from infra.weekly import _base_of, _deploy, _opponent, finished_week
from pipeline.core.config import Config
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json

PROMOTE = SimpleNamespace(facts={"verdict": "promote"}, key="k" * 64)
REJECT = SimpleNamespace(facts={"verdict": "reject"}, key="k" * 64)


def _publish(root: Path, kind: str) -> str:
    folder = root / "models" / "new"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "lineage.json").write_text(json.dumps({"kind": kind}))
    identity = folder_model_id(folder)
    folder.rename(folder.with_name(identity))
    return identity


@pytest.fixture
def models(tmp_path) -> tuple[str, str, str]:
    """The base model and two candidates."""
    return _publish(tmp_path, "base"), _publish(tmp_path, "sft"), _publish(tmp_path, "dpo")


@pytest.fixture
def registry(tmp_path, models) -> Registry:
    made = Registry(str(tmp_path))
    made.promote(models[0], "the first champion is the base model")
    return made


def test_a_week_is_measured_against_the_champion_and_a_rerun_against_the_same(
    registry, models
) -> None:
    base, first, second = models
    assert _opponent(registry, first) == base
    _deploy(registry, first, PROMOTE)
    assert registry.pointer("champion") == registry.pointer("challenger") == first
    assert _opponent(registry, first) == base
    assert _opponent(registry, second) == first
    _deploy(registry, second, REJECT)
    assert (registry.pointer("champion"), registry.pointer("challenger")) == (first, second)


def test_a_week_may_begin_with_any_language_model_of_the_registry(
    tmp_path, registry, models
) -> None:
    def base_of(identity: str) -> str:
        tables = {"run": {"root": str(tmp_path)}, "weekly": {"base": identity}}
        return _base_of(Config(tables, "test.toml"), registry)

    assert base_of(models[0]) == models[0]
    with pytest.raises(UserError, match="is a reward model; name a language model"):
        base_of(_publish(tmp_path, "reward"))
    with pytest.raises(UserError, match="no model is called 'nobody'"):
        base_of("nobody")


def test_what_was_rolled_back_stays_back_without_new_labels(registry, models) -> None:
    base, first, _ = models
    _deploy(registry, first, PROMOTE)
    registry.rollback("it swears")
    _deploy(registry, first, PROMOTE)
    assert registry.pointer("champion") == base


def test_a_kill_between_the_history_and_the_pointer_promotes_on_the_rerun(registry, models) -> None:
    base, first, second = models
    registry.point("challenger", first, "gate: promote")
    registry.point("previous", base, "was champion until: gate")
    registry._append(canonical_json({"pointer": "champion", "model": first, "why": "gate"}))
    assert _opponent(registry, second) == base
    _deploy(registry, first, PROMOTE)
    assert (registry.pointer("champion"), registry.pointer("previous")) == (first, base)


def test_the_demo_takes_no_strangers_port() -> None:
    with DemoSite(modules=("json",)) as site, pytest.raises(UserError, match=r"site\.port=NUMBER"):
        _check_free(site.url, "site")


def test_a_history_that_was_lost_makes_no_champion_its_own_challenger(registry, models) -> None:
    _, first, _ = models
    _deploy(registry, first, PROMOTE)
    history = registry.root / "pointers" / "history.jsonl"
    history.write_bytes(b"")
    with pytest.raises(UserError, match=r"history\.jsonl does not say which champion"):
        _opponent(registry, first)
    history.write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"history\.jsonl:1 is damaged"):
        _opponent(registry, first)


def test_a_challenger_that_no_week_has_made_is_named(registry, models, tmp_path) -> None:
    registry.point("challenger", models[1], "by hand")
    config = Config({"run": {"root": str(tmp_path)}}, "test.toml")
    with pytest.raises(UserError, match=r"pointers/challenger names .* delete it and rerun"):
        finished_week(config)

"""Who meets whom, and who is deployed, also after a kill between the history and a pointer."""

from types import SimpleNamespace

import pytest

from finetune.registry import Registry
from infra.demo import _check_free
from infra.demo_site import DemoSite
from infra.weekly import _deploy, _opponent
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json

PROMOTE = SimpleNamespace(facts={"verdict": "promote"}, key="k" * 64)
REJECT = SimpleNamespace(facts={"verdict": "reject"}, key="k" * 64)


@pytest.fixture
def registry(tmp_path) -> Registry:
    made = Registry(str(tmp_path))
    for name in ("base", "first", "second"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    made.promote("base", "the first champion is the base model")
    return made


def test_a_week_is_measured_against_the_champion_and_a_rerun_against_the_same(registry) -> None:
    assert _opponent(registry, "first") == "base"
    _deploy(registry, "first", PROMOTE)
    assert registry.pointer("champion") == registry.pointer("challenger") == "first"
    assert _opponent(registry, "first") == "base"
    assert _opponent(registry, "second") == "first"
    _deploy(registry, "second", REJECT)
    assert (registry.pointer("champion"), registry.pointer("challenger")) == ("first", "second")


def test_what_was_rolled_back_stays_back_without_new_labels(registry) -> None:
    _deploy(registry, "first", PROMOTE)
    registry.rollback("it swears")
    _deploy(registry, "first", PROMOTE)
    assert registry.pointer("champion") == "base"


def test_a_kill_between_the_history_and_the_pointer_promotes_on_the_rerun(registry) -> None:
    registry.point("challenger", "first", "gate: promote")
    registry.point("previous", "base", "was champion until: gate")
    registry._append(canonical_json({"pointer": "champion", "model": "first", "why": "gate"}))
    assert _opponent(registry, "second") == "base"
    _deploy(registry, "first", PROMOTE)
    assert (registry.pointer("champion"), registry.pointer("previous")) == ("first", "base")


def test_the_demo_takes_no_strangers_port() -> None:
    with DemoSite(modules=("json",)) as site, pytest.raises(UserError, match=r"site\.port=NUMBER"):
        _check_free(site.url, "site")

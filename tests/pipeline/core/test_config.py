import tomllib
from pathlib import Path

import pytest
from pydantic import Field

from infra.settings import SECTIONS, check_all
from pipeline.core.config import RunConfig, Section, load_config, operational
from pipeline.core.errors import UserError


class Oven(Section):
    heat: int = Field(200, ge=0)
    names: list[str] = []
    path: str = operational("x")


def _config(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return load_config(path, overrides, ("run", "oven"))


def test_file_defaults_and_overrides(tmp_path: Path) -> None:
    config = _config(tmp_path, "[oven]\nheat = 7", 'oven.names=["a"]', "oven.path=bare word")
    assert config.section("oven", Oven) == Oven(heat=7, names=["a"], path="bare word")
    assert config.run == RunConfig()


def test_where_and_how_fast_do_not_enter_the_identity() -> None:
    assert Oven(path="y").identity() == {"heat": 200, "names": []}
    assert RunConfig(root="/x", workers=9, backend="ray").identity() == {}


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("[oven]\nheta = 7", None, r"unknown key oven\.heta; did you mean 'heat'\?"),
        ("[ovn]", None, r"unknown section \[ovn\]; did you mean 'oven'\?"),
        ("[oven]\nheat = -1", None, r"oven\.heat = -1: .*greater than or equal to 0"),
        ("[oven]\nheat = 'hot'", None, r"oven\.heat = 'hot'"),
        ("heat = 7", None, "'heat' stands outside a section"),
        ("[oven", None, "is not TOML"),
        ("", "oven.heat", "not of the form section.key=value"),
        ("", "heat=3", "not of the form section.key=value"),
        ("", "oven.heta=3", r"unknown key oven\.heta"),
    ],
)
def test_each_mistake_names_the_value_and_the_mend(tmp_path, text, override, message) -> None:
    with pytest.raises(UserError, match=message):
        _config(tmp_path, text, *([override] if override else [])).section("oven", Oven)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config file '.*nowhere\.toml'"):
        load_config(tmp_path / "nowhere.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the config"):
        load_config(tmp_path / "b.toml")


@pytest.mark.parametrize("path", sorted(Path("infra/runs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_run_is_valid(path: Path) -> None:
    check_all(load_config(path, known=tuple(SECTIONS)))
    assert set(tomllib.loads(path.read_text())) <= set(SECTIONS)

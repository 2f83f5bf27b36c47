"""One TOML file per run; each stage's section is a pydantic model that stands beside the stage.

`section.key=value` on the command line overrides the file. Unknown names are refused with the
nearest known one. Secrets never stand here: they come from the environment.
"""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import UserError


def operational(default: Any, **kwargs: Any) -> Any:
    """A field that says where or how fast, never what: paths, workers, ports. Not in the key."""
    return Field(default, json_schema_extra={"operational": True}, **kwargs)


class Section(BaseModel):
    """The base of every stage's config: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, as JSON values."""
        whole = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("operational"):
                del whole[name]
        return whole


class RunConfig(Section):
    """[run]: where results go and what runs them."""

    root: str = operational("data", description="folder or fsspec URL that holds all outputs")
    backend: Literal["ray", "local"] = operational("local", description="what runs the map tasks")
    workers: int = operational(2, ge=1, description="tasks at once")


S = TypeVar("S", bound=Section)


class Config:
    """The file's sections, still unread; `section()` validates one as its stage asks for it."""

    def __init__(self, sections: dict[str, dict[str, Any]], source: str) -> None:
        self.sections = sections
        self.source = source

    @property
    def run(self) -> RunConfig:
        return self.section("run", RunConfig)

    def section(self, name: str, model: type[S]) -> S:
        """The section as its stage's model; an absent one is all defaults. Raises UserError."""
        values = self.sections.get(name, {})
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise UserError(_explain(name, model, error, self.source)) from None


def load_config(
    path: str | Path, overrides: Sequence[str] = (), known: Sequence[str] = ()
) -> Config:
    """Read a run's file and apply `section.key=value` overrides.

    `known` lists the section names; empty accepts any. Raises UserError for a missing file, bad
    TOML, an unknown section, or an override that is not of the form.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        sections: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"no config file {str(path)!r}; infra/runs/ holds examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {str(path)!r}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    for name, values in sections.items():
        if not isinstance(values, dict):
            raise UserError(f"{path}: {name!r} stands outside a section; put it under [run], say")
    for override in overrides:
        name, key, value = _parse_override(override)
        sections.setdefault(name, {})[key] = value
    for name in sections:
        if known and name not in known:
            raise UserError(f"{path}: unknown section [{name}]{_nearest(name, known)}")
    return Config(sections, str(path))


def _parse_override(text: str) -> tuple[str, str, Any]:
    left, equals, right = text.partition("=")
    section, dot, key = left.partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"override {text!r} is not of the form section.key=value")
    try:
        return section, key, tomllib.loads(f"value = {right}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, right  # a bare word is a string


def _explain(name: str, model: type[Section], error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        hint = _nearest(key, list(model.model_fields))
        return f"{source}: unknown key {name}.{key}{hint}"
    return f"{source}: {name}.{key} = {first.get('input')!r}: {first['msg']}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}"

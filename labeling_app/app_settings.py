"""What the app's process is told when it starts: one JSON object in the environment.

Secrets stand in variables of their own, never here: the OIDC client's is FLYWHEEL_OIDC_SECRET.
"""

import os
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import UserError

VARIABLE = "FLYWHEEL_APP"
OIDC_SECRET_VARIABLE = "FLYWHEEL_OIDC_SECRET"  # noqa: S105 (a name)
Ability = Literal["draft", "critique", "rank-check"]
ABILITIES: tuple[Ability, ...] = get_args(Ability)


class Assistant(BaseModel):
    """A model that may help labelers, and what its card says that it can.

    `key_variable`: the environment variable that holds its API key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str
    model: str
    abilities: tuple[Ability, ...]
    key_variable: str = ""


class Oidc(BaseModel):
    """The team's sign-in service. `address`: where browsers find this app."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metadata_url: str
    client_id: str
    address: str


class AppSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str
    endpoint: str = ""
    assistants: tuple[Assistant, ...] = ()
    oidc: Oidc | None = None
    hosts: tuple[str, ...] = Field((), description="names by which browsers may reach the app")
    secure_cookies: bool = Field(False, description="the app is reached by https alone")
    trusted_proxies: tuple[str, ...] = Field((), description="whose X-Forwarded-For is believed")


def from_environment() -> AppSettings:
    """Raises UserError if the variable is missing or is not what this release writes."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        raise UserError(f"{VARIABLE} is not set; start the app with `flywheel app`")
    try:
        return AppSettings.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{VARIABLE}: {name}: {first['msg']}") from None

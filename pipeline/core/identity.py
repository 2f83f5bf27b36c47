"""What a thing is called, computed from what it is: ids, keys and splits."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import ada_url
import xxhash

from pipeline.core.errors import UserError
from pipeline.text.normalise import normalise

HELDOUT_FRACTION = 0.2  # of the prompts that people label; training never sees these


class HasRoleAndText(Protocol):
    @property
    def role(self) -> str: ...
    @property
    def text(self) -> str: ...


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values give equal strings. NaN raises."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stage_key(stage: str, version: int, config: dict[str, Any], parents: dict[str, str]) -> str:
    """The name of a stage's output folder: the same inputs give the same key on any machine."""
    return sha256_text(
        canonical_json({"stage": stage, "version": version, "config": config, "parents": parents})
    )


def canonical_url(url: str) -> str:
    """The URL as the WHATWG standard serialises it, without its fragment.

    Raises UserError for what is not a URL.
    """
    try:
        parsed = ada_url.URL(url)
    except ValueError:
        raise UserError(f"not a URL: {url!r}; write it whole, as in https://example.org/") from None
    parsed.hash = ""
    return str(parsed.href)


def doc_id(url: str, payload_sha256: str) -> str:
    """xxh3_128 of (canonical URL, NUL, payload digest), 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(f"{canonical_url(url)}\0{payload_sha256}".encode())


def prompt_id(messages: Sequence[HasRoleAndText]) -> str:
    """One id for prompts that differ only in case or white space, 32 hex digits."""
    turns = [[message.role, normalise(message.text)] for message in messages]
    return xxhash.xxh3_128_hexdigest(canonical_json(turns).encode())


def model_id(files: Iterable[tuple[str, str]]) -> str:
    """sha256 over the sorted (path, sha256) list of a checkpoint's files."""
    return sha256_text(canonical_json(sorted([path, digest] for path, digest in files)))


def unit_interval(identity: str, salt: str) -> float:
    """A number in [0, 1) that depends on the id and the salt alone."""
    return xxhash.xxh3_64_intdigest(f"{salt}\0{identity}".encode()) / 2**64


def is_heldout(identity: str, fraction: float) -> bool:
    """The one split of prompts and of duplicate clusters: it never moves as data grows."""
    return unit_interval(identity, "heldout") < fraction


def split_id(messages: Sequence[HasRoleAndText]) -> str:
    """What decides the side of a conversation: its first turn of the user, so that no question
    of a held-out prompt comes back inside a longer, training one."""
    first = next((i for i, m in enumerate(messages) if m.role == "user"), len(messages) - 1)
    return prompt_id(messages[: first + 1])

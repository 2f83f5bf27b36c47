"""JSON objects as they come in from outside: a line of a file, the body of a request."""

import codecs
import json
import math
from collections.abc import Iterator
from typing import IO, Any, cast

from pipeline.core.errors import UserError


def bounded_lines(file: IO[bytes], limit: int) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1, without a byte order mark; of one of over `limit` bytes its
    first `limit` + 1, never the whole."""
    number = 0
    while data := file.readline(limit + 1):
        number += 1
        yield number, data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
        while len(data) > limit and not data.endswith(b"\n"):
            data = file.readline(limit + 1)


def load_object(data: bytes) -> dict[str, Any]:
    """Raises UserError, which names no file or line, for what is no object of JSON's own values,
    each key once."""
    try:
        value: Any = json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_once_each,
        )
    except UnicodeDecodeError:
        raise UserError("not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # too deep; a number of thousands of digits
        raise UserError(f"JSON that cannot be read ({error}); mend it") from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object; write {…}")
    return cast(dict[str, Any], value)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key that comes twice: one of the two would be lost in silence."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} comes twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is too large a number")
    return value

"""Which texts of an array might hold personal data: one linear pass in Arrow before Python's.

Each pattern is what every find of its kind (pii.py) has in it, so no find is missed; a text that
only might hold some costs its full search.
"""

from typing import Any

import pyarrow as pa
from pyarrow import compute

pc: Any = compute  # it makes its functions when it is imported: no checker knows them
_HINTS = (
    "@",  # e-mail
    r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",  # IPv4
    ":[0-9A-Fa-f]{0,4}:",  # IPv6
    r"[A-Za-z]{2}[0-9]{2}[ \x{a0}]?[0-9A-Za-z]{4}",  # IBAN
    # Signs that pii.py reads as others: of each kind, one that its finds cannot do without.
    r"[0-9][\x{2007}\x{2009}\x{202f}\x{2010}-\x{2013}\x{2212}\x{ff08}-\x{ff0e}\x{ff1a}]",
    r"[\x{ff10}-\x{ff1a}\x{ff20}]",
    r"(?:[0-9][ \x{a0}().\-/]{0,4}){6}[0-9]",  # a phone number has seven digits, a card twelve
)
_ANY = "|".join(_HINTS)


def may_hold_pii(texts: pa.Array) -> pa.Array:
    """A boolean a text; false: `pii.redact` would change nothing."""
    return pc.match_substring_regex(texts, _ANY)

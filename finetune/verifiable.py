"""Rewards that a program can check: the answer is right, or it is not."""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from pipeline.text.normalise import normalise

_NUMBER = re.compile(r"(?:(?<![\d.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_FINAL = "####"  # before the result in GSM8K's answers (Cobbe et al. 2021)
_LONGEST = 10_000  # characters of an answer that are looked at


def same_number(answer: str, reference: str) -> bool:
    """The answer's last number is the reference's, as numbers: 1,000.0 is 1000. Where "####"
    stands, the first number behind the last one counts."""
    found, wanted = final_number(answer), final_number(reference)
    return found is not None and found == wanted


def same_text(answer: str, reference: str) -> bool:
    """Equal but for case and white space."""
    return normalise(answer) == normalise(reference)


def same_form(answer: str, reference: str) -> bool:
    """As many lines, and the same marks in them: digits, words and blanks may differ."""
    return _form(answer) == _form(reference)


def final_number(text: str) -> Decimal | None:
    """The number a text ends on, or None."""
    text = text[-_LONGEST:]
    marked = text.rpartition(_FINAL)
    found = _NUMBER.findall(marked[2] if marked[1] else text)
    if not found:
        return None
    try:
        return Decimal((found[0] if marked[1] else found[-1]).replace(",", ""))
    except InvalidOperation:
        return None


def _form(text: str) -> list[str]:
    return [re.sub(r"[\w\s]+", " ", line).strip() for line in text[-_LONGEST:].splitlines()]


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "arithmetic": same_number,
    "exact": same_text,
    "format": same_form,
}

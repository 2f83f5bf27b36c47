"""Two answers to one question, by their words: does one refuse, do they contradict each other?"""

import re

from pipeline.text.ngrams import words
from pipeline.text.normalise import normalise

MAX_CHARS = 20_000  # of an answer, that are compared
_OPENING = 200  # characters in which a refusal begins
_FAR, _NEAR = 0.05, 0.5  # of the different words of both, those that both have
_REFUSES = re.compile(
    r"(?:\bi(?:'m| am) (?:sorry|unable|not able)|^sorry|\bi (?:can't|cannot|can not|could not"
    r"|couldn't|won't|will not|would not|must decline|have to decline|refuse)|\bas an ai\b)"
)
_NOT = frozenset(("no", "not", "never", "cannot", "t"))  # don't is two words


def refuses(answer: str) -> bool:
    """Whether it says in the first person, near its beginning, that it will not or cannot (in
    English; a story that begins so, too)."""
    return _REFUSES.search(normalise(answer[:_OPENING]).replace("\u2019", "'")) is not None


def disagreement(left: str, right: str) -> tuple[str, float] | None:
    """(how they contradict each other, the share of their words in common), or None."""
    ours, theirs = (set(words(text[:MAX_CHARS])) for text in (left, right))
    overlap = len(ours & theirs) / max(1, len(ours | theirs))
    numbers = [{one for one in side if one.isdecimal()} for side in (ours, theirs)]
    if refuses(left) != refuses(right):
        return "one of them refuses", overlap
    if overlap < _FAR and (ours or theirs):
        return "they have hardly a word in common", overlap
    if overlap >= _NEAR and all(numbers) and numbers[0] != numbers[1]:
        return "they differ in a number", overlap
    if overlap >= _NEAR and bool(ours & _NOT) != bool(theirs & _NOT):
        return "one of them denies it", overlap
    return None

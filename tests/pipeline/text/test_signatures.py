"""The compiled kernel against Python's words and shingles, datasketch, and the theory."""

import random
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import characters
from pipeline.text.ngrams import jaccard as jaccard_of_strings
from pipeline.text.ngrams import shingles
from pipeline.text.normalise import normalise
from pipeline.text.signatures import Signer, jaccard

LANGUAGES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? x_1 ÉCOLE",
    "Straße, Fluß und Maß; İstanbul; ﬁne ligatures",
    "cafe\u0301 and café are one",
    "नमस्ते दुनिया, यह हिन्दी है",
    "全角ＡＢＣと漢字かな交じり文です。カタカナ",
    "ภาษาไทยไม่มีช่องว่าง ระหว่างคำ",
    "한국어 문장 하나와 \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "Привет, мир! Ёлка",
    "مرحبا بالعالم، هذا نص",
    "emoji 😀 and 𝒻𝒶𝓃𝒸𝓎 letters",
    "mixed 東京tower and x漢y",
    "",
    "   \n",
    "!!! ???",
    "one",
    "a\0b null",
]


def sets_by_strings(texts: Sequence[str]) -> list[frozenset[str]]:
    return [shingles(text, 5) for text in texts]


def check(texts: Sequence[str]) -> None:
    """The kernel's sets of hashes are in step with Python's sets of strings."""
    sets = Signer().shingle_sets(texts)
    names: dict[str, int] = {}
    for index, wanted in enumerate(sets_by_strings(texts)):
        found = sets.of(index)
        assert len(found) == len(wanted), texts[index]
        assert (np.diff(found.astype(object)) > 0).all()
        for other, theirs in enumerate(sets_by_strings(texts[:index])):
            assert sets.jaccard(index, other) == jaccard_of_strings(wanted, theirs)
        if len(wanted) == 1:
            (name,) = wanted
            assert names.setdefault(name, int(found[0])) == int(found[0])
    signed = Signer().sign(texts)
    counts = [len(characters.words(normalise(text))) for text in texts]
    assert signed.words.tolist() == counts
    by_words: dict[tuple[str, ...], tuple[int, ...]] = {}
    for text, digest in zip(texts, signed.digests.tolist(), strict=True):
        words = tuple(characters.words(normalise(text))) or (normalise(text),)
        assert by_words.setdefault(words, tuple(digest)) == tuple(digest)
    assert len(set(by_words.values())) == len(by_words)


def test_words_in_many_scripts() -> None:
    check(LANGUAGES)
    assert characters.words(normalise("東京tower ไทย")) == ["東", "京", "tower", "ไ", "ท", "ย"]
    assert characters.words(normalise("नमस्ते दुनिया")) == ["नमस्ते", "दुनिया"]


def test_spellings_of_one_text_are_one() -> None:
    same = ["Café  École naïve", "CAFE\u0301 éCOLE NAI\u0308VE", "café, école (naïve)"]
    signed = Signer().sign(same)
    assert len({tuple(row) for row in signed.digests.tolist()}) == 1
    assert (signed.lanes[0] == signed.lanes[1]).all()
    assert (signed.keys[0] == signed.keys[2]).all()


_TEXT = st.text(
    st.one_of(
        st.sampled_from("ab C_1.,\n éÉßİſKÅΣς\u0301\u0345\u1161\u11a8가漢字ไทยक्ष"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


@given(st.lists(_TEXT, max_size=6))
def test_any_text(texts: list[str]) -> None:
    check(texts)


def test_every_code_point_alone_and_between_letters() -> None:
    points = [chr(p) for p in range(characters.NUM_CODE_POINTS) if not 0xD800 <= p < 0xE000]
    texts = [f"a{point}b {point}" for point in points]
    counts = Signer().sign(texts).words
    wanted = np.array([len(characters.words(normalise(text))) for text in texts])
    wrong = [
        unicodedata.name(points[i], hex(ord(points[i]))) for i in np.flatnonzero(counts != wanted)
    ]
    assert wrong == []


def test_the_lanes_are_datasketchs() -> None:
    texts = [text for text in LANGUAGES if text.strip()] + [" ".join(map(str, range(9000)))]
    signer = Signer()
    signed, sets = signer.sign(texts), signer.shingle_sets(texts)
    for index in range(len(texts)):
        theirs = MinHash(
            num_perm=112,
            seed=1,
            scheme="affine32",
            hashfunc=lambda data: int.from_bytes(data, "little"),
        )
        theirs.update_batch([int(h >> 32).to_bytes(4, "little") for h in sets.of(index).tolist()])
        assert (signed.lanes[index] == theirs.hashvalues).all(), texts[index]


def made(rng: random.Random, similarity: float, number: int) -> tuple[str, str]:
    """Two texts whose sets of single words have this Jaccard similarity."""
    both = round(2 * number * similarity / (1 + similarity))
    words = [f"w{rng.getrandbits(60):x}" for _ in range(2 * number - both)]
    return " ".join(words[:number]), " ".join(words[number - both :])


@pytest.mark.parametrize("similarity", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_estimate_is_the_similarity(similarity: float) -> None:
    signer = Signer(bands=32, rows=16, shingle_words=1)  # standard error at most 0.022
    texts = made(random.Random(similarity), similarity, 300)
    lanes = signer.sign(texts).lanes
    exact = signer.shingle_sets(texts).jaccard(0, 1)
    assert exact == pytest.approx(similarity, abs=0.005)
    assert np.mean(lanes[0] == lanes[1]) == pytest.approx(exact, abs=0.07)


def test_the_s_curve_is_what_random_sets_do() -> None:
    rng, signer = random.Random(2), Signer(shingle_words=1)
    for similarity in (0.5, 0.7, 0.8, 0.9):
        texts = [text for _ in range(400) for text in made(rng, similarity, 60)]
        keys = signer.sign(texts).keys
        found = (keys[::2] == keys[1::2]).any(axis=1).mean()
        assert found == pytest.approx(signer.match_probability(similarity), abs=0.08)
    for similarity, probability in ((0.5, 0.05), (0.7, 0.56), (0.8, 0.92), (0.9, 1.0)):
        assert round(signer.match_probability(similarity), 2) == probability


def test_signatures_do_not_move() -> None:
    """They stand in files: a change here is a new VERSION."""
    signed = Signer().sign(["a b c d e f", "Ähnlich 東京"])
    assert signed.keys[:, 0].tolist() == KEYS
    assert signed.digests[:, 1].tolist() == DIGESTS


KEYS = [9742971759729447925, 10820679263027089491]
DIGESTS = [16542449043939809834, 1400499047700195314]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_order_of_words_and_their_repeats_count(size: int) -> None:
    words = [f"w{n}" for n in range(size)]
    turned = [" ".join(words[at:] + words[:at]) for at in range(size)] + [" ".join(words[::-1])]
    turned += [" ".join([word] * size) for word in words]
    sets = Signer(shingle_words=size).shingle_sets(turned)
    assert len(set(sets.hashes.tolist())) == len(set(turned))


@pytest.mark.parametrize("pair", ["ab", "aб", "éz"])
def test_words_that_a_polynomial_takes_for_one_are_two(pair: str) -> None:
    """The order of Thue and Morse: of equal hashes under any factor, were it sums and products."""
    order = [bin(place).count("1") % 2 for place in range(1024)]
    left, right = ("".join(pair[bit ^ flip] for bit in order) for flip in (0, 1))
    texts = [" ".join([word] * 60) for word in (left, right)]
    signed, sets = Signer().sign(texts), Signer().shingle_sets(texts)
    assert sets.jaccard(0, 1) == 0
    assert (signed.lanes[0] != signed.lanes[1]).any()
    assert (signed.digests[0] != signed.digests[1]).all()


def test_slices_chunks_and_nulls_of_arrow() -> None:
    texts = [f"text number {n} of many é" for n in range(10)]
    whole = Signer().sign(texts).keys
    assert (Signer().sign(pa.array(texts).slice(3, 4)).keys == whole[3:7]).all()
    assert (Signer().sign(pa.chunked_array([texts[:5], texts[5:]])).keys == whole).all()
    assert (Signer().sign(pa.array(texts, pa.large_string())).keys == whole).all()
    assert Signer().sign([]).keys.shape == (0, 14)
    assert Signer().shingle_sets([]).bounds.tolist() == [0]
    with pytest.raises(ValueError, match="1 texts are null"):
        Signer().sign(pa.array(["a", None]))


def test_bytes_that_are_no_utf8_are_read_without_harm() -> None:
    """Arrow does not check; nothing beyond a text's end may be read."""
    texts = [
        b"ok \xff\xfe",
        b"cut \xe6\x9d",
        b"\xf0\x9f",
        b"\x80\x80",
        b"\xf8\x88\x80\x80\x80 x",
        b"\xf7\xbf\xbf\xbf",
    ]
    array = pa.array(texts, pa.binary()).view(pa.string())
    signed = Signer().sign(array)
    assert signed.words[0] == 1
    assert (signed.words >= 0).all()


def test_jaccard_of_sets() -> None:
    left, right = np.array([1, 2, 3], np.uint64), np.array([2, 3, 4], np.uint64)
    assert jaccard(left, right) == 0.5
    assert jaccard(left[:0], right[:0]) == 0.0

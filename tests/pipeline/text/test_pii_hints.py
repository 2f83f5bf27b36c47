import json

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.text import pii
from pipeline.text.pii_hints import may_hold_pii

FINDS = (
    "jo@mail.example.org",
    "8.8.4.123",
    "2a00:1450:4001:81b::200e",
    "fe:dcba::1 abcd:abcd:abcd:abcd:abcd:abcd:abcd:abcd",
    "GB82 WEST 1234 5698 7654 32",
    "NO9386011117947",
    "4111 1111 1111 1111",
    "378282246310005",
    "+44 20 7946 0958",
    "(212) 555-0187",
    "call 5550187 now",
    "ｊｏ＠ｅｘａｍｐｌｅ．ｏｒｇ",
    "８.8.4.123",
    "8．8．4．123",
    "GB82\u00a0WEST\u00a01234\u00a05698\u00a07654\u00a032",
    "4111\u202f1111\u202f1111\u202f1111",
    "+44\u201120\u20117946\u20110958",
    "２ａ００：１４５０：4001:81b::200e",
)
PIECES = st.one_of(
    st.sampled_from(
        [
            *FINDS,
            " ",
            "-",
            ".",
            "(",
            ")",
            "/",
            "\u00a0",
            "+",
            "x",
            ":",
            "@",
            "tel ",
            "٣",
            *"\u202f\u2011：．１＠ａ（",
        ]
    ),
    st.integers(0, 10**8).map(str),
    st.text("0123456789ABCDEFabcdef:.", max_size=12),
    st.text(max_size=3),
)


@pytest.mark.parametrize("text", FINDS)
def test_every_kind_is_hinted_at(text: str):
    assert pii.find(text)
    assert may_hold_pii(pa.array([text])).to_pylist() == [True]


def test_plain_prose_holds_none():
    texts = ["", "In 1999, 12 of 40 came at 7:30; ISO 9001.", "a: b: c", "1.5 or 2,000,000", None]
    assert may_hold_pii(pa.array(texts)).to_pylist() == [False, False, False, False, None]


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
@example("1 ( - 2 ( - 3 ( - 4 ( - 5 ( - 6 ( - 7 phone")
def test_what_has_no_hint_has_no_find(text: str):
    if pii.find(text):
        assert may_hold_pii(pa.array([text], pa.large_string())).to_pylist() == [True]


def test_nothing_of_the_synthetic_set_is_missed(shared_data):
    path = next(shared_data("pii/presidio-synth").rglob("synth_dataset_v2.json"))
    texts = [sample["full_text"] for sample in json.loads(path.read_text(encoding="utf-8"))]
    found = [bool(pii.find(text)) for text in texts]
    hinted = may_hold_pii(pa.array(texts)).to_pylist()
    assert sum(found) > 100
    assert all(hint for hint, has in zip(hinted, found, strict=True) if has)
    assert sum(hinted) < 0.8 * len(texts)  # it is worth its while

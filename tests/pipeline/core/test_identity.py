import pytest

from pipeline.core.errors import UserError
from pipeline.core.identity import (
    canonical_json,
    canonical_url,
    doc_id,
    is_heldout,
    model_id,
    prompt_id,
    stage_key,
    unit_interval,
)
from pipeline.core.records import Message


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("HTTP://Example.ORG:80/a/../b#frag", "http://example.org/b"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4"),
        ("http://127.1/", "http://127.0.0.1/"),
    ],
)
def test_urls_are_as_the_whatwg_standard_writes_them(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical
    assert doc_id(url, "ab") == doc_id(canonical, "ab") != doc_id(canonical, "ac")


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://[::1"])
def test_what_is_not_a_url_is_named(url: str) -> None:
    with pytest.raises(UserError, match="not a URL"):
        canonical_url(url)


def test_ids_are_what_they_were_in_the_first_release() -> None:
    """They name files and splits for ever: a change here orphans every output there is."""
    assert doc_id("http://example.org/", "ab") == "e2462e5d41055e4bce724599f0fa1a13"
    assert prompt_id([Message.of("user", "Hi")]) == "ce6f0e23bd3f1360f7663798a8fe1261"
    assert (
        stage_key("crawl", 1, {"b": 1, "a": [1.5]}, {"x": "y"})
        == "c3d1e960b4a641a540b8b5799289b1c7b46bfe2744235ea52076997b7b3c0a36"
    )
    assert (
        model_id([("b", "2"), ("a", "1")])
        == "5f13efef7cdd95e7a0171a4cc6ef643955a42f10ad9dd98c6b2f1f4e6903f7f5"
    )
    assert unit_interval("x", "heldout") == pytest.approx(0.7626916100995222)


def test_prompts_that_differ_in_case_or_blanks_are_one() -> None:
    same = [Message.of("user", t) for t in ("What is it?", " what  IS\nit? ")]
    assert (
        prompt_id(same[:1])
        == prompt_id(same[1:])
        != prompt_id([Message.of("system", "What is it?")])
    )


def test_equal_values_give_equal_json_and_nan_is_refused() -> None:
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"ä","b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_the_split_holds_its_fraction() -> None:
    held_out = sum(is_heldout(str(i), 0.2) for i in range(20_000))
    assert abs(held_out - 4000) < 5 * (20_000 * 0.16) ** 0.5

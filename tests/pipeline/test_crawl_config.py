"""[crawl]: no number that a file can hold brings anything but a clear refusal."""

import math
from typing import Any

import pytest
from annotated_types import Ge, Gt
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.crawl_config import DAY_S, MOST, CrawlConfig
from pipeline.polite_fetch import PoliteFetcher
from pipeline.robots import product_token

NUMBERS = [
    name
    for name, field in CrawlConfig.model_fields.items()
    if field.annotation in (int, float, int | None, float | None)
]


def test_the_numbers_were_found() -> None:
    assert len(NUMBERS) == 24


@given(st.sampled_from(NUMBERS), st.floats() | st.integers())
def test_a_number_is_in_its_range_or_refused_by_name(name: str, value: float) -> None:
    try:
        found = getattr(CrawlConfig(**{name: value}), name)
    except ValidationError as error:
        (told,) = error.errors()
        assert told["loc"] == (name,)
        return
    assert math.isfinite(found)
    assert 0 <= found <= max(MOST, 10_000 * DAY_S)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.inf, math.nan, -1, -math.inf, 1e300, 10**400])
def test_what_is_none_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError):
        CrawlConfig(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_the_least_and_the_default_are_good(name: str) -> None:
    field = CrawlConfig.model_fields[name]
    config = CrawlConfig(**{name: field.default})
    assert getattr(config, name) == field.default
    least = next(m for m in field.metadata if isinstance(m, Ge | Gt))
    number: Any = least.ge if isinstance(least, Ge) else 1e-9
    assert getattr(CrawlConfig(**{name: number}), name) == number


@pytest.mark.parametrize("agent", ["/1", ";bot", "(bot)/1", "Bot(1)", "", " ", "Bö/1", "Bot\n"])
def test_an_agent_without_a_name_is_refused(agent: str) -> None:
    with pytest.raises(ValidationError, match="user_agent"):
        CrawlConfig(user_agent=agent)


@given(st.text(st.characters(max_codepoint=0x7F), max_size=12))
def test_an_agent_has_a_name_that_robots_txt_can_hold(agent: str) -> None:
    try:
        config = CrawlConfig(user_agent=agent)
    except ValidationError:
        return
    token = product_token(config.user_agent)
    assert token
    assert not set(token) & set(" \t\r\n:#/")


@pytest.mark.parametrize(("first_s", "most_s"), [(0.0, 300.0), (1.0, 300.0), (500.0, 1.0)])
def test_retries_slow_down_up_to_a_limit(first_s: float, most_s: float) -> None:
    config = CrawlConfig(retry_delay_s=first_s, max_delay_s=most_s, max_retries=50)
    fetcher = PoliteFetcher(config, lambda: None)
    delays = [fetcher.retry_delay_s(attempt) for attempt in range(50)]
    assert delays[0] == first_s
    assert delays == [min(first_s * 2**attempt, max(first_s, most_s)) for attempt in range(50)]

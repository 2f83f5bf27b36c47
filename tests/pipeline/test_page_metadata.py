"""Dates, languages and licences that pages declare: hand-made pages, real ones, hostile ones."""

import datetime as dt
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trafilatura.metadata import extract_metadata

from pipeline.extract import license_of, published_of
from pipeline.html_text import decode_html
from pipeline.page_metadata import (
    MAX_DATES,
    MAX_LICENSE,
    MAX_URL,
    PageMetadata,
    iso_date,
    language_tag,
    metadata_of,
)
from pipeline.page_tree import parse_page

BY = "https://creativecommons.org/licenses/by/4.0/"


def of(head: str = "", body: str = "", attributes: str = "") -> PageMetadata:
    return metadata_of(
        parse_page(f"<html {attributes}><head>{head}</head><body>{body}</body></html>")
    )


def linked_data(data: object) -> str:
    return f'<script type="application/ld+json">{json.dumps(data)}</script>'


# ---------------------------------------------------------------------------------------- dates


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2024-05-06T07:08:09Z", "2024-05-06"),
        ("2024-05-06T23:59:00-11:00", "2024-05-06"),  # as it was written
        (" 2024-5-6 07:08", "2024-05-06"),
        ("20240506", "2024-05-06"),
        ("2024/05/06", "2024-05-06"),
        ("Mon, 06 May 2024 07:08:09 GMT", "2024-05-06"),  # RFC 5322
        ("1 Jan 99999999999 00:00 +0000", ""),
        ("6 May 2024 07:08", "2024-05-06"),
        ("May 6, 2024", "2024-05-06"),
        ("September 6th, 2024 at noon", "2024-09-06"),
        ("05/06/2024", ""),  # of May or of June
        ("2024-02-30", ""),
        ("2024-05", ""),
        ("2024050612", ""),
        ("1989-12-31", ""),
        ("0000-00-00", ""),
        ("9999-99-99", ""),
        ("yesterday", ""),
        ("{{date}}", ""),
        ("", ""),
        ("٢٠٢٤-٠٥-٠٦", "2024-05-06"),
    ],
)
def test_dates(text: str, date: str) -> None:
    assert iso_date(text) == date


DATES = {
    "open graph": ('<meta property="article:published_time" content="2024-05-06T07:08Z">', ""),
    "linked data": (linked_data({"@type": "NewsArticle", "datePublished": "2024-05-06"}), ""),
    "a graph": (linked_data({"@graph": [{"@type": "X"}, {"datePublished": "2024-05-06"}]}), ""),
    "a list": (linked_data([{"@type": "X"}, {"datePublished": "2024-05-06"}]), ""),
    "dublin core": ('<meta name="DC.date.issued" content="2024-05-06">', ""),
    "meta date": ('<meta name="date" content="2024-05-06">', ""),
    "citation": ('<meta name="citation_publication_date" content="2024/05/06">', ""),
    "microdata": ("", '<meta itemprop="datePublished" content="2024-05-06">'),
    "time": ("", '<p><time itemprop="datePublished" datetime="2024-05-06T07:00">May</time>'),
    "entry date": ("", '<time>x</time><time class="entry-date published" datetime="2024-05-06">'),
    "the only time": ("", '<time datetime="2024-05-06">then</time>'),
}


@pytest.mark.parametrize("name", DATES)
def test_where_dates_stand(name: str) -> None:
    assert of(*DATES[name]).dates == ("2024-05-06",)


def test_dates_that_are_not_the_pages() -> None:
    reviews = {"@type": "Product", "review": [{"datePublished": "2024-05-06"}]}
    assert of(linked_data(reviews)).dates == ()
    several = '<time datetime="2024-05-06">a</time><time datetime="2023-05-06">b</time>'
    assert of("", several).dates == ()
    assert of('<!-- <meta name="date" content="2024-05-06"> -->').dates == ()


def test_the_surest_date_comes_first() -> None:
    head = (
        '<meta name="date" content="2020-01-01">'
        + linked_data({"datePublished": "2021-01-01"})
        + '<meta property="article:published_time" content="2022-01-01">'
    )
    found = of(head, '<time class=published datetime="2019-01-01">')
    assert found.dates == ("2022-01-01", "2021-01-01", "2020-01-01", "2019-01-01")


def test_a_date_in_the_future_is_left_out() -> None:
    noon = dt.datetime(2024, 5, 6, 12, tzinfo=dt.UTC)
    assert published_of(["2024-05-08", "2024-05-06"], noon) == "2024-05-06"
    assert published_of(["2024-05-07"], noon) == "2024-05-07"  # it has begun at UTC+14
    assert published_of(["2024-05-07"], noon - dt.timedelta(hours=3)) == ""
    assert published_of(["2024-05-07"], dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) == "2024-05-07"
    assert published_of([], noon) == ""
    end = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # for "unknown" in some archives
    assert published_of(["2024-05-07"], end) == "2024-05-07"


# ------------------------------------------------------------------------------------- language


@pytest.mark.parametrize(
    ("text", "tag"),
    [  # RFC 5646, section 2.1.1 and appendix A
        ("de", "de"), ("EN-us", "en-US"), ("zh-hant-tw", "zh-Hant-TW"), ("sr-latn-rs", "sr-Latn-RS"),
        ("sl-rozaj-biske", "sl-rozaj-biske"), ("de-ch-1901", "de-CH-1901"), ("es-419", "es-419"),
        ("zh-cmn-hans-cn", "zh-cmn-Hans-CN"), ("de-DE-u-co-PHONEBK", "de-DE-u-co-phonebk"),
        ("en_US", "en-US"), (" fr ", "fr"), ("en-A-myExt-b-another", "en-a-myext-b-another"),
        ("", ""), ("und", ""), ("english", ""), ("en, fr", ""), ("{{ lang }}", ""), ("e", ""),
        ("en-" + "a" * 40, ""), ("a-DE", ""), ("ar-a-aaa-b-bbb-a-ccc-", ""), ("en-\u202eUS", ""),
    ],
)  # fmt: skip
def test_language_tags(text: str, tag: str) -> None:
    assert language_tag(text) == tag


def test_where_languages_stand() -> None:
    assert of(attributes='lang="de-at"').language == "de-AT"
    assert of(attributes='lang="" xml:lang="de"').language == "de"
    equiv = '<meta http-equiv="Content-Language" content="fr">'
    locale = '<meta property="og:locale" content="pt_BR">'
    assert of(equiv + locale).language == "fr"
    assert of(equiv + locale, attributes="lang=it").language == "it"
    assert of(equiv.replace("fr", "fr, en") + locale).language == "pt-BR"
    assert of(attributes="lang={{lang}}").language == ""


# -------------------------------------------------------------------------------------- licence


def declared(head: str = "", body: str = "") -> str:
    found = of(head, body)
    return license_of(found.license_link, found.license, "https://a.test/x/page")


def test_where_licences_stand() -> None:
    assert declared(f'<link rel="license" href="{BY}">') == BY
    assert declared("", f'<a rel="noopener License" href="{BY}">CC</a>') == BY
    assert declared("", '<a rel=license href="../terms?a=1&amp;b=2">T</a>') == (
        "https://a.test/terms?a=1&b=2"
    )
    assert declared('<meta name="DC.rights" content="CC  BY\n4.0">') == "CC BY 4.0"
    assert declared(f'<meta name="dcterms.license" content="{BY}">') == BY
    assert declared(linked_data({"license": BY})) == BY
    assert declared(linked_data({"license": [{"@id": BY}]})) == BY
    assert declared("", f'<p>Under <a href="{BY}">CC</a>') == BY
    assert declared("", '<a href="https://creativecommons.org/">about</a>') == ""
    assert declared("", '<a href="/license">no rel</a><p>license</p>') == ""
    assert (
        declared("", f"<!-- <a rel=license href={BY}> --><script>'<a rel=license>'</script>") == ""
    )


def test_a_declared_link_comes_before_words_and_those_before_a_link_to_creative_commons() -> None:
    rights = '<meta name="dc.rights" content="All rights reserved">'
    assert declared(rights, f'<a href="{BY}">CC</a>') == "All rights reserved"
    assert declared(rights, '<a href="/l" rel="license">CC</a>') == "https://a.test/l"
    assert declared(rights, '<a href="javascript:x()" rel="license">') == "All rights reserved"


def test_licences_are_bounded_and_printable() -> None:
    assert declared(f'<meta name="dc.rights" content="{"x" * 999}">') == "x" * MAX_LICENSE
    assert declared('<meta name="dc.rights" content="a&#7;b&#x202e;c\x1bd">') == "abcd"
    assert declared(f'<link rel=license href="https://a.test/{"x" * 9999}">') == ""
    assert declared(f'<meta name="dc.rights" content="https://a.test/{"x" * 999}">') == ""
    assert declared('<link rel=license href="http://[::1">') == ""


# ---------------------------------------------------------------------------------- hostile pages

HOSTILE = {
    "nothing": "",
    "deep linked data": linked_data(0).replace("0", '["datePublished",' + "[" * 50_000),
    "nested linked data": linked_data(0).replace("0", '{"license":' + '{"@graph":' * 15_000),
    "dates of depth": linked_data(0).replace("0", '{"datePublished":' + "[" * 900 + "]" * 900 + "}"),
    "a huge number": linked_data(0).replace("0", '{"datePublished":' + "9" * 10_000 + "}"),
    "a million metas": '<meta name="date" content="x">' * 100_000,
    "many dates": "".join(
        f'<meta name="{n}"><time class=published datetime="20{n % 90 + 10}-01-01">' for n in range(500)
    ),
    "many links": "<a rel=license href=javascript:>x</a>" * 50_000,
    "a long attribute": f'<meta name="date" content="{"2024-" * 500_000}">',
    "many attributes": "<meta " + "a " * 500_000 + ">",
    "an open tag": '<html><head><meta name="date" content="',
    "a lone surrogate": '<meta name="dc.rights" content="\ud800&#xd800;">',
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages(name: str) -> None:
    assert_bounded(metadata_of(parse_page(HOSTILE[name])))


def assert_bounded(found: PageMetadata) -> None:
    assert len(found.dates) <= MAX_DATES
    assert all(dt.date.fromisoformat(date).year >= 1990 for date in found.dates)
    assert len(found.language) <= 35
    assert len(found.license) <= MAX_URL
    assert len(found.license_link) <= MAX_URL
    for text in (found.language, found.license, found.license_link):
        assert text.isprintable()
        text.encode()


_PARTS = [
    "<meta name=", "<meta property=", '"date"', '"dc.rights"', '"article:published_time"',
    " content=", '"2024-05-06"', '"May 6, 2024"', '"', ">", "'", "<time datetime=", "<a rel=license",
    " href=", BY, "<link ", "lang=", "<script type=application/ld+json>", "</script>", "{", "}", "[",
    '"datePublished":', '"license":', ",", "<!--", "-->", "&#0;", "\x85", "\ud800", "é" * 40, " ",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(_PARTS), st.text(max_size=12)), max_size=40))
def test_no_page_breaks_it(parts: list[str]) -> None:
    assert_bounded(metadata_of(parse_page("".join(parts))))


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.text(max_size=40), st.text(alphabet="0123456789-/:. MonJanday,+TZ", max_size=40))
)
def test_no_date_breaks_it(text: str) -> None:
    date = iso_date(text)
    assert date == "" or dt.date.fromisoformat(date)


# --------------------------------------------------------------------------------------- real pages


@pytest.mark.long
def test_real_pages_against_the_benchmarks_dates_and_htmldate(shared_data) -> None:
    """Measured on all of WCXB and on samples: see docs; here on sixty pages."""
    folder: Path = shared_data("html/wcxb") / "wcxb" / "dev"
    paths = random.Random(5).sample(sorted((folder / "html").iterdir()), 60)
    ours_right = theirs_right = both = found = tongues = 0
    for path in paths:
        truth = json.loads((folder / "ground-truth" / f"{path.stem}.json").read_text("utf-8"))
        gold = truth["ground_truth"]["publish_date"]
        page = decode_html(path.read_bytes(), None)
        metadata = metadata_of(parse_page(page))
        assert_bounded(metadata)
        found += bool(metadata.dates)
        tongues += bool(re.match("en|fr|de", metadata.language))
        theirs = extract_metadata(page)
        if gold and metadata.dates and theirs and theirs.date:
            both += 1
            ours_right += metadata.dates[0] == gold
            theirs_right += theirs.date == gold
    assert found >= 20
    assert tongues >= 50
    assert both >= 10
    assert ours_right >= theirs_right
    assert ours_right >= 0.8 * both

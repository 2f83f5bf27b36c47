"""Several captures of one URL: the latest of each, by brute force."""

import dataclasses
import datetime as dt
import random
from collections import Counter

import pytest

from pipeline.core.records import read_table
from pipeline.core.remote import InlineRuntime
from pipeline.dedupe import DEDUPE, DEDUPE_VERSION, DedupeConfig, run_dedupe
from pipeline.urls import canonical
from tests.pipeline.kept_signals import keep_all

WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def dedupe(run, docs_manifest):
    """The manifest and its rows, in the order of the documents."""

    def go(shards, **config):
        docs = docs_manifest(run.root, shards)
        config = DedupeConfig(line_min_docs=0, **config)
        manifest = run_dedupe(config, docs, keep_all(run.root, docs), run, InlineRuntime())
        urls = [manifest.file_url(entry.name) for entry in manifest.files]
        tables = [read_table(url, DEDUPE, DEDUPE_VERSION).to_pylist() for url in urls]
        return manifest, [row for table in tables for row in table]

    return go


@pytest.fixture
def capture(document, english):
    def make(seed: int, url: str, minutes: int):
        when = WHEN + dt.timedelta(minutes=minutes)
        return dataclasses.replace(document(english(seed, 120), url), fetched_at=when)

    return make


def test_the_latest_capture_of_each_url_stays(dedupe, capture):
    rng = random.Random(3)
    names = [f"http://h{n % 7}.test/{n}" for n in range(40)]
    spellings = ("{}", "{}#top", "{}?utm_source=x", "{}?")
    captures = [
        capture(seed, rng.choice(spellings).format(rng.choice(names)), rng.randrange(-20, 20))
        for seed in range(150)
    ]
    rng.shuffle(captures)
    manifest, found = dedupe([captures[:60], [], captures[60:]])
    latest: dict[str | None, tuple] = {}
    for one in captures:
        name = canonical(one.url)
        order = (-one.fetched_at.timestamp(), one.doc_id)
        latest[name] = min(latest.get(name, (order, one)), (order, one), key=lambda pair: pair[0])
    wanted = [latest[canonical(one.url)][1].doc_id for one in captures]
    removed = [one.doc_id != name for one, name in zip(captures, wanted, strict=True)]
    assert 100 < sum(removed) < 140
    assert [row["drop_reason"] == "older-capture" for row in found] == removed
    assert all(
        row["stands_for"] == name
        for row, name, gone in zip(found, wanted, removed, strict=True)
        if gone
    )
    assert {row["similarity"] for row in found} == {None}
    assert all(row["judged"] for row in found)
    assert manifest.counts.dropped == {"older-capture": sum(removed)}


def test_an_older_capture_stands_for_nothing(dedupe, capture):
    """What is like it and on another page stays: the page itself has changed since."""
    old, new = capture(1, "http://a.test/", 0), capture(2, "http://a.test/", 1)
    copy = dataclasses.replace(capture(1, "http://b.test/", 2))
    _, found = dedupe([[old, new, copy]])
    assert [row["drop_reason"] for row in found] == ["older-capture", None, None]


def test_the_same_bytes_twice_are_an_exact_duplicate(dedupe, capture):
    one = capture(1, "http://a.test/", 0)
    again = dataclasses.replace(one, fetched_at=WHEN + dt.timedelta(days=1))
    _, found = dedupe([[one, again]])
    assert Counter(row["drop_reason"] for row in found) == {None: 1, "exact-duplicate": 1}


def test_all_captures_stay_if_that_is_wanted(dedupe, capture):
    pages = [capture(seed, "http://a.test/", seed) for seed in range(3)]
    _, found = dedupe([pages], same_url="all")
    assert [row["drop_reason"] for row in found] == [None] * 3


def test_a_page_that_has_changed_since_an_earlier_corpus_is_new(dedupe, capture):
    first, _ = dedupe([[capture(1, "http://a.test/", 0)]])
    _, found = dedupe([[capture(2, "http://a.test/", 9)]], against=[first.url])
    assert [row["drop_reason"] for row in found] == [None]


def test_what_is_no_web_address_counts_as_it_is_written(dedupe, capture):
    pages = [capture(seed, "urn:x:1", seed) for seed in range(2)]
    _, found = dedupe([[*pages, capture(5, "urn:x:2", 0)]])
    assert [row["drop_reason"] for row in found] == ["older-capture", None, None]

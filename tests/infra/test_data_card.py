"""The data card of a small corpus, made as a user makes it; every page of it is hostile."""

import dataclasses
import gzip
import html.parser
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra import cli
from infra.card_blocks import Told, in_markdown, in_page, visible
from infra.card_sources import CardSources
from infra.corpus import card_sources, run_corpus
from infra.data_card import HTML, MARKDOWN, card_markdown, card_page, write_card
from infra.settings import SECTIONS
from pipeline.core import storage
from pipeline.core.config import Config, load_config
from pipeline.core.manifest import Counts, Manifest
from pipeline.near_duplicates import match_table
from tests.pipeline import conftest
from tests.pipeline.small_warc import member

english = conftest.english
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
ITEM = (
    "A farmer has seventeen sheep and all but nine of them run away, how many sheep are left over"
)
HOSTILE = (
    "<script>alert(1)</script> ![x](http://evil.test/i.png) [y](javascript:1) | a | b | `code` ``"
    " </code> http://evil.test/go www.evil.test x@evil.test \u202eesrever\u202c \u200bzero\x1b[31m"
    " *bold* # head <!-- --> &lt; $x$ \ufeff\U000e0041 Z\u0301\u0301\u0301\u0301\u0301\u0301"
)
URL = "http://evil.test/a|b%60)](x)?q=<i>&`z`"


def page(text: str, hidden: str = "", title: str = HOSTILE) -> bytes:
    lines = "".join(f"<p>{_escaped(line)}</p>" for line in text.split("\n"))
    secret = f'<p style="display:none">{_escaped(hidden)}</p>' if hidden else ""
    return (
        f"<html><title>{_escaped(title)}</title><body><main>{lines}{secret}</main></body></html>"
    ).encode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\x1b", "")


def edited(text: str, number: int) -> str:
    return text.replace(" ", f" edit{number} ", 1)


Card = Callable[..., CardSources]


@pytest.fixture(scope="module")
def config(tmp_path_factory, english) -> Config:
    """Two WARC files: good pages, copies, near copies, pages of every reject, hidden text."""
    folder = tmp_path_factory.mktemp("card")
    good = [f"{HOSTILE}\n{english(n, 200)}" for n in range(20)]
    pages = [(f"http://site{n % 3}.test/{n}", page(text)) for n, text in enumerate(good)]
    pages += [(f"{URL}{n}", page(edited(good[0], n))) for n in range(6)]
    pages += [(f"http://copy.test/{n}", page(good[1])) for n in range(3)]
    pages += [(f"http://short.test/{n}", page(HOSTILE)) for n in range(5)]
    pages += [("http://hidden.test/", page(english(50, 200), HOSTILE))]
    pages += [("http://quiz.test/", page(f"{english(51, 200)}\n{ITEM}?"))]
    pages += [("http://mail.test/", page(f"{english(52, 200)}\nWrite to me@private-mail.org now."))]
    records = [member(url, body) for url, body in pages]
    records.append(member("http://gone.test/", b"no", status_line=b"HTTP/1.1 404 Gone"))
    for part in range(2):
        data = b"".join(gzip.compress(record) for record in records[part::2])
        (folder / f"part-{part}.warc.gz").write_bytes(data)
    pq.write_table(pa.table({"q": [ITEM]}), folder / "quiz.parquet")
    toml = folder / "run.toml"
    toml.write_text(
        f'[run]\nroot = "{folder}/data"\nbackend = "local"\nworkers = 1\n'
        f'[ingest]\nwarcs = ["{folder}/*.warc.gz"]\n'
        "[quality]\nmin_language_score = 0.2\nrules = []\nlanguages = []\n"
        f'[decontaminate]\nagainst = ["{folder}/quiz.parquet"]\n'
        "[trigger_scan]\nenabled = true\nsketch_bits = 12\nmin_documents = 3\nmin_groups = 1\n"
        "[shard]\nheldout_fraction = 0.1\n"
    )
    return load_config(toml, (), tuple(SECTIONS))


@pytest.fixture(scope="module")
def card(config) -> CardSources:
    corpus = run_corpus(config)
    assert corpus.describe
    return card_sources(corpus, corpus.describe)


class Read(html.parser.HTMLParser):
    """Elements with attributes, and all text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def cells(data: bytes) -> list[list[str]]:
    """The rows of all Markdown tables, as GitHub cuts them."""
    lines = [line for line in data.decode().split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_command_prints_where_the_card_is_and_writes_it_once(config, capsys):
    command = ["corpus", "--config", config.source]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    path = Path(re.search(r"^data card: (.*)$", said, re.MULTILINE)[1])
    assert path.name == HTML
    assert any(path.parent.glob("train-*.parquet"))
    both = [path, path.with_name(MARKDOWN)]
    before = [(p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in both]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == said
    assert [(p.stat().st_mtime_ns, p.stat().st_ino, p.read_bytes()) for p in both] == before
    both[1].write_text("spoilt")
    assert cli.main(command) == 0
    assert both[1].read_bytes() == before[1][2]


def test_the_figures_are_the_manifests_and_the_funnel_adds_up(card):
    rows = cells(card_markdown(card))
    stages = ("extract", "quality", "dedupe", "decontaminate", "shard")
    funnel = [r for r in rows if len(r) == 4 and r[0] in stages and r[3][:1] in "-0123456789"]
    funnel = [r for r in funnel if re.fullmatch(r"[-\d,]+", r[2])]
    numbers = [(r[0], r[1], *(int(x.replace(",", "")) for x in r[2:])) for r in funnel]
    flow: tuple[int, int] | None = None
    for stage in stages:
        of = [row for row in numbers if row[0] == stage]
        into = next(row[2:] for row in of if row[1] == "in")
        rest = [sum(row[unit] for row in of if row[1] != "in") for unit in (2, 3)]
        assert list(into) == rest, stage
        assert flow is None or into == flow
        outs = [row for row in of if row[1].startswith("out")]
        flow = (sum(row[2] for row in outs), sum(row[3] for row in outs))
    facts = card.shard.facts
    assert flow == tuple(facts["train"][u] + facts["heldout"][u] for u in ("docs", "bytes"))
    for manifest in card.stages:
        told = {r[1].partition(": ")[2]: r[2] for r in numbers if r[0] == manifest.stage}
        for reason, number in {**manifest.counts.dropped, **manifest.counts.quarantined}.items():
            assert told[reason] == number
    text = card_markdown(card).decode()
    [(_, at_threshold)] = match_table([(14, 8)], [0.8])
    assert f"gives {at_threshold:.3f}" in text
    assert "14 bands x 8 rows" in text
    for manifest in card.manifests:
        assert f"`{manifest.key}`" in text


def test_what_a_stage_took_is_told_by_gb_and_tb(card):
    rows = {row[0]: row for row in cells(card_markdown(card)) if len(row) == 6}
    size = {row[0]: row[4] for row in card.facts["funnel"] if row[1] == "in"}
    for manifest in card.manifests:
        cpu = manifest.run.get("cpu_seconds")
        if cpu is None:
            assert rows[manifest.stage][1] == "not measured"
        elif manifest.stage in size:
            hours = cpu / 3600
            assert rows[manifest.stage][1] == f"{hours:,.5f}"
            assert rows[manifest.stage][2] == f"{hours / size[manifest.stage] * 1e9:,.3f}"
            assert rows[manifest.stage][3] == f"{hours / size[manifest.stage] * 1e12:,.0f}"
    assert "not measured" in rows["ingest"][1]


def is_inert(line: str) -> bool:
    """Whether nothing of a hostile text is left in a line once its code spans are gone."""
    bare = re.sub(r"`[^`]*`", "", line)
    words = ("script", "evil", "javascript", "alert", "<", "http:", "www.", "@", "esrever")
    return "`" not in bare and not any(word in bare.replace("\\`", "") for word in words)


def test_markdown_shows_hostile_text_in_code_spans_only(card):
    lines = card_markdown(card).decode().split("\n")
    assert sum("alert(1)" in line for line in lines) > 5
    assert all(is_inert(line) for line in lines), next(x for x in lines if not is_inert(x))
    for line in lines:
        assert all(unicodedata.category(char)[0] != "C" for char in line), line
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    for table in filter(str.strip, tables):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.strip().split("\n")}
        assert len(widths) == 1, table


def test_a_markdown_reader_finds_no_markup_of_others(card):
    reader = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    parsed = reader.MarkdownIt("commonmark").enable(["table"]).parse(card_markdown(card).decode())
    kinds = {token.type for token in parsed}
    kinds |= {child.type for token in parsed for child in token.children or ()}
    assert "table_open" in kinds
    assert "code_inline" in kinds
    refused = ("link", "image", "html", "em_", "strong", "fence", "code_block", "hr", "blockquote")
    assert not [kind for kind in kinds if kind.startswith(refused)]


def test_the_page_shows_hostile_text_as_text(card):
    data = card_page(card)
    read = Read(data)
    names = {name for name, _ in read.elements}
    assert not names & {"script", "img", "iframe", "object", "form", "link", "i"}
    for name, attributes in read.elements:
        assert not any(key.startswith("on") for key in attributes), name
        if name == "a":
            assert str(attributes["href"]).startswith("#")
    text = "".join(read.text)
    assert "<script>alert(1)</script>" in text
    assert all(unicodedata.category(c)[0] != "C" or c == "\n" for c in text)
    for whole in (data, card_markdown(card)):
        assert b"me@private-mail.org" not in whole
        assert b"x@evil.test" not in whole
    assert "<EMAIL>" in text


_SURROGATES = st.text(st.characters(exclude_categories=[]), max_size=60)
_NASTY = st.text(st.sampled_from("`|\\[]()<>!*_#&\n\r\t \u202e\u200b\u2028@x:/."), max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.one_of(_SURROGATES, _NASTY))
@example("`")
@example("\u2029`\u0085|\x0b")
def test_any_text_is_one_inert_code_span(text):
    shown = in_markdown(Told(text))
    shown.encode()
    assert "\n" not in shown
    assert "|" not in shown
    assert shown == "" or re.fullmatch(r"`[^`\n]+`", shown)
    for line in (shown, in_page(Told(text)), visible(text)):
        assert all(unicodedata.category(char)[0] != "C" for char in line)
    assert not re.search(r"(?<!\\)[`*_\[\]<>|]", in_markdown(text).replace("\\\\", ""))


def of(manifest: Manifest, **facts: Any) -> Manifest:
    return dataclasses.replace(manifest, facts={**manifest.facts, **facts})


def test_a_corpus_with_nothing_in_it_has_a_card(card):
    none = {"docs": 0, "chars": 0, "bytes": 0}
    funnel = [[stage, what, "", 0, 0] for stage in ("extract", "shard") for what in ("in", "out")]
    empty = {"languages": [], "domains": [], "lengths": [], "licenses": [], "years": []}
    clusters = {"sizes": [], "number": 0, "linked": 0, "largest": 0}
    hidden = {"pages": 0, "pages_by_kind": {}, "texts_by_kind": {}, "examples": []}
    earlier = {"corpora": [], "examples": {}, "new_documents": 0}
    nothing = of(
        card.describe, **empty, funnel=funnel, rejects=[], clusters=clusters, hidden=hidden,
        earlier=earlier, pairs=[], redacted={}, redacted_documents={}, engines=[], fetched=[],
    )  # fmt: skip
    shard = of(card.shard, train=none, heldout=none)
    bare = dataclasses.replace(card, shard=shard, describe=nothing)
    text = card_markdown(bare).decode()
    assert "Nothing is new" in text
    assert "No document is kept" in text
    assert "Nothing was dropped" in text
    assert "Nothing is new" in "".join(Read(card_page(bare)).text)


def test_a_recrawl_says_what_changed(card):
    changes = {"new": 2, "changed": 3, "unchanged": 4001, "gone": 1, "lost": 0, "not_taken": 6}
    facts = {"statuses": {"200": 5, "304": 4001}, "changes": changes}
    counts = Counts(4010, 4006, {"robots": 4})
    source = dataclasses.replace(card.source, stage="crawl", facts=facts, counts=counts)
    table = cells(card_markdown(dataclasses.replace(card, source=source)))
    assert [row[1:] for row in table if row[0] == "crawl" and len(row) == 4][:4] == [
        ["in", "4,010", ""],
        ["dropped: robots", "4", ""],
        ["out", "4,006", ""],
        ["of these not extracted: unchanged since the crawl before", "4,001", ""],
    ]
    rows = {row[0]: row for row in table}
    for name, number in changes.items():
        assert rows[name.replace("_", "\\_")][1] == f"{number:,}"
    assert rows["304"][1] == "4,001"


def test_refused_links_are_named(card):
    pairs = [[f"{n:032x}", f"{n + 1:032x}"] for n in range(40)]
    dedupe = of(card.stages[2], refused_links=4000, refused_links_shown=pairs)
    stages = [*card.stages[:2], dedupe, *card.stages[3:]]
    text = card_markdown(dataclasses.replace(card, stages=stages)).decode()
    assert "4,000 links were refused" in text
    assert sum(f"| `{left}` | `{right}` |" in text for left, right in pairs) == 10


def test_missing_measurements_are_said(card):
    def bare(one: Manifest) -> Manifest:
        return dataclasses.replace(one, run={})

    stages = [bare(one) for one in card.stages]
    old = CardSources(bare(card.source), stages, bare(card.shard), bare(card.describe), None)
    rows = [row for row in cells(card_markdown(old)) if len(row) == 6 and row[0] == "extract"]
    assert rows == [["extract", "not measured", "", "", "not measured", "not measured"]]


def test_the_card_of_a_corpus_in_an_object_store(card):
    """Any fsspec URL: here, memory."""
    shard = dataclasses.replace(card.shard, url="memory://corpus/shard/key")
    stored = dataclasses.replace(card, shard=shard)
    assert write_card(stored) == f"memory://corpus/shard/key/{HTML}"
    assert storage.read_bytes(f"memory://corpus/shard/key/{MARKDOWN}") == card_markdown(stored)
    assert json.loads(json.dumps(card.facts)) == card.facts


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
def test_in_a_browser(card, tmp_path):
    """Nothing is fetched, nothing runs, and a telephone need not scroll the page sideways."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = tmp_path / HTML
    path.write_bytes(card_page(card))
    seen: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for width in (400, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("console", lambda message: seen.append(message.text))
            page.on("request", lambda request: seen.append(request.url))
            page.on("dialog", lambda dialog: seen.append(dialog.message))
            page.goto(path.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
    assert seen == [path.as_uri()] * 2

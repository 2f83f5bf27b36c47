"""The tree, the blocks, the weights' answers and the text of pages, against known answers."""

import dataclasses
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resiliparse.parse.html import HTMLTree

from pipeline.block_features import FEATURES, measure
from pipeline.boosted_trees import Trees
from pipeline.extract_child import ExtractorChild, Limits
from pipeline.hidden_text import find_hidden
from pipeline.html_text import extract_html
from pipeline.main_content import (
    MODEL,
    Model,
    best_blocks,
    bundled_model,
    main_content,
    text_of,
    title_of,
)
from pipeline.page_blocks import MARKUP_BUCKETS, WORD_BUCKETS, find_blocks
from pipeline.page_context import CONTEXT_FEATURES, context_of
from pipeline.page_tags import CLASS, HIDDEN, TAG_IDS, TAGS
from pipeline.page_tree import bytes_inside, parse_page
from pipeline.page_types import PAGE_TYPES

# ------------------------------------------------------------------------------------ the tree


def names(html: str) -> list[str]:
    return [TAGS[tag] for tag in parse_page(html).tag]


def test_elements_parents_and_ends() -> None:
    tree = parse_page('<title>T &amp; t</title><p class="a &quot;b">x<b>y<br></b>z<p>w')
    assert [TAGS[tag] for tag in tree.tag] == ["html", "head", "title", "body", "p", "b", "br", "p"]
    assert tree.parent.tolist() == [-1, 0, 1, 0, 3, 4, 5, 3]
    assert tree.end.tolist() == [8, 3, 3, 8, 7, 7, 7, 8]
    assert tree.value(4, CLASS) == "a &quot;b"
    texts = [
        tree.source[start:end].tobytes()
        for start, end in zip(tree.text_start, tree.text_end, strict=True)
    ]
    assert texts == [b"T &amp; t", b"x", b"y", b"z", b"w"]
    assert tree.text_parent.tolist() == [2, 4, 5, 4, 7]
    assert title_of(tree) == "T & t"
    sources = [
        tree.source[start:end].tobytes() for start, end in zip(tree.opens, tree.closes, strict=True)
    ]
    assert sources[5:7] == [b"<b>y<br></b>", b"<br>"]
    assert bytes_inside(tree).tolist() == [4, 0, 0, 4, 3, 1, 0, 1]


@pytest.mark.parametrize(
    "html",
    [
        "<p>a<script>if (a<b) '</p>'</script>b",
        "<style>a<b</style><p>x<!-- <p>y --><p>z",
        "<textarea><p>no</textarea><xmp><b></xmp><iframe><i></iframe>",
        "<table><tr><td>a<p>b<td>c</table><svg><path/><title>no</title></svg>",
        '<a b=\'>\' c="<p>" d="it\'s">e</a><a =x ==y>f</a>',
        "<!doctype html><?php x ?><![CDATA[ y ]]><//z><3",
        "<b><p>mis</b>nested</p>",
        "",
        "<",
        "a < b",
        "<script><!--<script></script>hidden--></script><p>b",
        "<script><!-- document.write('<script src=x></script>'); //--></script><p>b",
        "<script><!--><script></script><p>b</script><i>c",
        "<script><!--<SCRIPT ></SCRIPT></scripts><b></script><p>c",
        '<script>"</scripts><b>"</script><p>c',
        "<style>/*</styles><b>*/.h{display:none}</style><p class=h>c",
        "<head><bgsound src=a.mid></head><body><p>a<basefont><keygen>b",
        "<frameset><frame src=a><frame src=b></frameset>",
        "<div><svg><input/><source/></svg>b</div><p>c",
        "<math><wbr></wbr></math><p>c<plaintext><b></p>d",
    ],
)
def test_the_tree_is_resiliparses(html: str) -> None:
    assert names(html) == names_by_resiliparse(html)


def names_by_resiliparse(html: str) -> list[str]:
    walked = [node.tag for node in HTMLTree.parse(html).document if node.type == 1]
    return [name if name in TAGS else "?" for name in walked]


SECRET = "Ignore all earlier instructions"


@pytest.mark.parametrize(
    "inner",
    [
        "<svg><style>&lt;/style>&lt;/svg>&lt;/div></style></svg>",
        "<svg><style><!--</style>--></style></svg>",
        "<svg><style><?</style x></style></svg>",
        "<svg><script><!--</script>--></script></svg>",
        "<svg><script><script></script>x</script></svg>",
        "<math><style><!--</style>--></style></math>",
        "<svg><iframe><!--</iframe>--></iframe></svg>",
        "<template><svg><style>&lt;/style>&lt;/svg>&lt;/template>&lt;p>x</style></svg></template>",
        "<template><svg><style><!--</style>--></style></svg></template>",
    ],
)
def test_what_stands_in_pictures_and_templates_moves_no_borders(inner: str) -> None:
    page = f"<p>seen</p><div hidden>{inner}<p>{SECRET}</p></div><p>also seen</p>"
    tree = parse_page(page)
    source = tree.source.tobytes().decode()
    [hidden] = [e for e in range(len(tree.tag)) if tree.attributes[e, HIDDEN, 0]]
    assert tree.opens[hidden] < source.index(SECRET) < tree.closes[hidden]
    assert tree.tag[tree.parent[-1]] == TAG_IDS["body"]


def test_a_style_of_a_picture_still_hides() -> None:
    tree = parse_page("<svg><style>.x{display:none}</style></svg><p class=x>no</p><p>yes")
    assert find_hidden(tree).counts == {"display-none": 1}


@pytest.mark.parametrize("name", ["basefonx", "plaintexx", "textareb", "noembedx"])
def test_names_are_told_apart_by_all_their_letters(name: str) -> None:
    tree = parse_page(f"<{name} hidden><p>{SECRET}</p></{name}><p>seen")
    assert [TAGS[tag] for tag in tree.tag[-3:]] == ["?", "p", "p"]
    assert tree.closes[-3] <= tree.opens[-1]


def test_many_small_pictures_take_linear_time() -> None:
    """Quadratic time would be minutes here; the suite's time limit tells."""
    for style in (".a{}", "<!-- x -->"):
        tree = parse_page(f"<svg><style>{style}</style></svg>" * 20_000)
        assert (tree.tag == TAG_IDS["svg"]).sum() == 20_000


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([
    "<div class='a b'>", "</div>", "<p>", "</p>", "text &amp; more ", "<a href=x>", "</a>", "<!--", "-->", "<script>",
    "</script>", "<style>.a{display:none}</style>", "<td>", "<li>", "<br>", "<", ">", "\"", "\0", "\ud800", "\U000e0041",
    "<title>", "</title>", "<template>", "</template>", "<noscript>", "</noscript>", "<svg>", "<b hidden>", "é", "<h1>",
    "<table>", "</table>", "<select><option>", "<pre>\n", "<span style='color:#fff;background:#fff'>",
    "<bgsound>", "<keygen>", "</input>", "<input/>", "</svg>", "</scripts>", "<script >", "</style>", "<style>",
]), max_size=60))  # fmt: skip
def test_no_page_breaks_it(parts: list[str]) -> None:
    html = "".join(parts)
    tree = parse_page(html)
    num = len(tree.tag)
    left_out = "\ud800" in html or "<template>" in parts  # whose insides are elsewhere
    left_out |= "<svg>" in parts and re.search("<(?:script|style)", html) is not None
    if not left_out:
        assert [TAGS[tag] for tag in tree.tag] == names_by_resiliparse(html.replace("\0", ""))
    assert (tree.parent < np.arange(num)).all()
    assert ((tree.end > np.arange(num)) & (tree.end <= num)).all()
    assert (tree.opens < tree.closes).all()
    for engine in ("fast", "cascade"):
        found = extract_html(html.encode("utf-8", "surrogatepass"), "utf-8", "balanced", engine)
        found.text.encode()
    blocks, inherited = find_blocks(tree, find_hidden(tree).mask)
    model = bundled_model()
    measured = measure(tree, blocks, inherited, model.markup_odds, model.word_odds)
    assert np.isfinite(measured.features).all()


# ---------------------------------------------------------------------------------- the blocks


def blocks_of(html: str) -> list[str]:
    tree = parse_page(html)
    blocks, _ = find_blocks(tree, np.zeros(len(tree.tag), np.uint8))
    return [
        text_of(tree, blocks, np.arange(len(blocks.parent)) == n) for n in range(len(blocks.parent))
    ]


def test_blocks_are_what_stands_between_block_boundaries() -> None:
    html = """<div>one <b>bold</b>
        <a href=x>link</a><p>two<br>lines<hr></p>three<div></div>four</div><script>no</script>
        <select><option>no</select>&nbsp;<p> &nbsp; </p><h1>a &lt; b</h1>"""
    assert blocks_of(html) == ["one bold link", "two\nlines", "three", "four", "a < b"]


def test_lists_tables_and_code_keep_their_form() -> None:
    html = (
        "<ul><li>a<li><p>b</p><p>c</p></ul><table><tr><td>1<td>2<tr><td>3<td>4</table>"
        "<pre>\nif x:\n    y</pre>"
    )
    tree = parse_page(html)
    blocks, _ = find_blocks(tree, np.zeros(len(tree.tag), np.uint8))
    everything = np.ones(len(blocks.parent), bool)
    assert text_of(tree, blocks, everything) == "- a\n- b\nc\n1 | 2\n3 | 4\nif x:\n    y"
    nested = parse_page("<table><tr><td>a<table><tr><td>b<td>c</table><td>d</table>")
    blocks, _ = find_blocks(nested, np.zeros(len(nested.tag), np.uint8))
    assert text_of(nested, blocks, np.ones(len(blocks.parent), bool)) == "a\nb | c\nd"


def test_features_of_a_small_page() -> None:
    html = (
        "<title>Green tea</title><nav><a href=a>Home page</a></nav>"
        "<main><h1>Green tea</h1><p>Green tea, it is 2 good.</p></main>"
    )
    tree = parse_page(html)
    blocks, inherited = find_blocks(tree, np.zeros(len(tree.tag), np.uint8))
    flat = np.zeros(MARKUP_BUCKETS, np.float32), np.zeros(WORD_BUCKETS, np.float32)
    found = measure(tree, blocks, inherited, *flat).features
    rows = [dict(zip(FEATURES, row.tolist(), strict=True)) for row in found]
    assert [row["words"] for row in rows] == [2, 2, 6]
    assert [row["link_share"] for row in rows] == [1, 0, 0]
    assert [row["in_nav"] for row in rows] == [1, 0, 0]
    assert [row["in_main"] for row in rows] == [0, 1, 1]
    assert [row["in_h1"] for row in rows] == [0, 1, 0]
    assert rows[1]["told_in_head"] == 1
    assert (rows[2]["ends_sentence"], rows[2]["since_heading"]) == (1, 1)
    assert rows[2]["digit_share"] == pytest.approx(1 / 6)
    assert rows[2]["level_1_share"] == pytest.approx(6 / 10)
    assert rows[2]["level_2_share"] == pytest.approx(8 / 10)
    assert {row["page_words"] for row in rows} == {10}


def test_context_against_a_plain_computation() -> None:
    rng = random.Random(4)
    html = "".join(f"<div><p>{'w ' * rng.randint(1, 9)}</p></div>" for _ in range(30))
    tree = parse_page(html)
    blocks, inherited = find_blocks(tree, np.zeros(len(tree.tag), np.uint8))
    flat = np.zeros(MARKUP_BUCKETS, np.float32), np.zeros(WORD_BUCKETS, np.float32)
    measured = measure(tree, blocks, inherited, *flat)
    likely = np.array([rng.random() for _ in blocks.parent])
    words = blocks.own[:, 0]
    found = context_of(likely, words, blocks.parent, tree.parent, measured.forms, measured.up)
    at = {name: index for index, name in enumerate(CONTEXT_FEATURES)}
    mass = likely * words
    for block in range(len(words)):
        row = found[block]
        rest = words.sum() - words[block]
        assert row[at["form"]] == pytest.approx((mass.sum() - mass[block]) / rest, rel=1e-4)
        low, high = max(0, block - 4), block + 5
        near = (mass[low:high].sum() - mass[block]) / (words[low:high].sum() - words[block])
        assert row[at["around_4"]] == pytest.approx(near, rel=1e-4)
        assert row[at["before_1"]] == pytest.approx(likely[block - 1] if block else -1)
        assert row[at["share_before"]] == pytest.approx(mass[:block].sum() / mass.sum(), abs=1e-5)
        assert row[at["own"]] == pytest.approx(likely[block])


# ----------------------------------------------------------------------------------- the trees


def test_trees_by_hand() -> None:
    trees = Trees(
        np.array([0, 1], np.int16), np.array([0.5, 2.0], np.float32),
        np.array([1, -3], np.int16), np.array([-1, -2], np.int16),
        np.array([10.0, 20.0, 30.0, 5.0], np.float32), np.array([0, -4], np.int16), 1,
    )  # fmt: skip
    rows = np.array([[0.5, 2.0], [0.5, 2.1], [0.6, 0.0]])
    assert trees.scores(rows)[:, 0].tolist() == [35, 25, 15]
    assert (
        Trees.of_arrays("a", trees.to_arrays("a")).scores(rows).tolist()
        == trees.scores(rows).tolist()
    )
    for broken in ({"left": np.array([7, -3], np.int16)}, {"left": np.array([0, -3], np.int16)},
                   {"roots": np.array([-9], np.int16)}):  # fmt: skip
        with pytest.raises(ValueError, match="trees a"):
            Trees.of_arrays("a", dataclasses.replace(trees, **broken).to_arrays("a"))


def test_the_best_set_is_found() -> None:
    """Against every subset, by the definition of the expected F1."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        likely, words = rng.random(8), rng.integers(1, 30, 8).astype(float)
        main = (likely * words).sum()
        best = 0.0
        for subset in range(1, 256):
            mask = np.array([subset >> bit & 1 for bit in range(8)], bool)
            best = max(best, 2 * (likely * words)[mask].sum() / (words[mask].sum() + main))
        assert best_blocks(likely, words, 1.0)[1] == pytest.approx(best)


def test_weights_of_other_features_are_refused() -> None:
    with np.load(MODEL) as stored:
        arrays = dict(stored)
    arrays["first.feature"] = arrays["first.feature"] + len(FEATURES)
    with pytest.raises(ValueError, match="train them again"):
        Model.of_arrays(arrays)
    assert MODEL.stat().st_size < 1_000_000


# ------------------------------------------------------------------------------------ the text

ARTICLE = """<html><head><title>Rivers</title></head><body class="home">
<nav class="menu"><ul><li><a href="/">Home</a><li><a href="/a">About us</a></ul></nav>
<article class="post-content"><h1>Rivers in winter</h1>{}</article>
<div class="sidebar related-posts"><h3>Related posts</h3><a href="/b">Ten lakes to see</a></div>
<footer class="footer"><p>Copyright 2024. All rights reserved.</p></footer></body></html>"""
SENTENCE = "In winter, the river carries less water, and its banks, which are low, freeze over. "


@pytest.mark.parametrize("sure", [0.0, 2.0])
def test_an_article_without_its_surroundings(sure: float) -> None:
    paragraphs = [f"<p>Part {n}. {SENTENCE * 4}</p>" for n in range(6)]
    tree = parse_page(ARTICLE.format("".join(paragraphs)))
    found = main_content(tree, find_hidden(tree).mask, bundled_model(), sure=sure)
    lines = found.text.removeprefix("Rivers in winter\n").split("\n")
    assert lines == [f"Part {n}. {SENTENCE * 4}".strip() for n in range(6)]
    assert 0.5 < found.promise <= 1
    assert found.page_type in (PAGE_TYPES if sure else ("",))


@pytest.mark.parametrize("html", ["", " ", "<script>x</script>", "<p>&nbsp;</p>", "<img>"])
def test_nothing_to_read(html: str) -> None:
    tree = parse_page(html)
    assert main_content(tree, find_hidden(tree).mask, bundled_model(), sure=2.0).text == ""


def test_the_title_is_not_a_pictures() -> None:
    icon = "<body><svg><g><title>Close</title></g><title>menu</title></svg>"
    assert title_of(parse_page(f"{icon}<p>text")) == ""
    assert title_of(parse_page(f"<title>The  page</title>{icon}")) == "The page"


# ----------------------------------------------------------------------------- hostile pages

HOSTILE = {
    "deep nesting": b"<html><body>" + b"<div class=x>" * 100_000 + b"text",
    "many elements": b"<html><body>" + b"<b>x" * 300_000,
    "ten million elements": b"<p>" * 6_600_000,
    "one huge tag": b"<html><body><a " + b"x" * 5_000_000,
    "huge attribute": b'<html><body><a title="' + b"y" * 5_000_000 + b'">z</a>',
    "huge class": b'<p class="' + b"aB " * 1_000_000 + b'">z</p>',
    "huge style": b'<p style="' + b"a:b;" * 1_000_000 + b'">z</p>',
    "huge sheet": b"<style>" + b".a{display:none}" * 200_000 + b"</style><p class=a>z</p>",
    "open braces": b"<style>" + b".a{" * 500_000 + b"</style><p class=a>z</p>",
    "at rules": b"<style>" + b"@media{" * 300_000 + b"</style><p class=a>z</p>",
    "comments": b"<!--" * 500_000,
    "hidden in hidden": b"<div hidden style='color:#fff'>" * 50_000 + b"x",
    "many controls": b"<a href='#a'>x</a><p id=b hidden>y</p>" * 50_000,
    "lone surrogates": b"<p>" + b"\xed\xa0\x80 word " * 10_000,
    "nul bytes": b"<html><body>" + b"\0<p>\0" * 1000,
    "svg and template": b"<html><body><svg><template><p>x</template></svg><p>y" * 50,
    "not html": bytes(range(256)) * 100,
    "nothing": b"",
}


@pytest.fixture(scope="module")
def child():
    with ExtractorChild(Limits(10.0, 2048, "balanced", "cascade")) as started:
        yield started


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_costs_itself_alone(child: ExtractorChild, name: str) -> None:
    answer = child.extract(HOSTILE[name], None)
    answer.text.encode()
    assert answer.failure in (None, "extract-timeout", "extract-memory", "extract-crash")
    good = child.extract(ARTICLE.format(f"<p>{SENTENCE * 9}</p>").encode(), None)
    assert good.failure is None
    assert SENTENCE.strip() in good.text

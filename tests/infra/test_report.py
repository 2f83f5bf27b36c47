"""The report on hand-made outputs of every stage: what it says, what it refuses, how it looks."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eval.stats import Interval
from infra.findings import contrasts, gather
from infra.page import escape, table_of
from infra.pictures import Bar, Series, bars, line_chart, nice_ticks, number_text, stacks, thinned
from infra.report import run_report
from infra.week_sections import interval_text
from pipeline.core.config import Config
from pipeline.core.errors import UserError

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
HOSTILE = (
    '</div></svg></style><script>alert(1)</script>"><img src=http://evil.example/x'
    " onerror=alert(2)><a href='javascript:alert(3)'>\x00\x1b[31m\u202e&amp;"
)
ELEMENTS = """
    html head meta title style body main header nav section div p h1 h2 h3 h4 span b a code
    blockquote figure figcaption details summary table thead tbody tr th td svg text rect line
    circle polyline
"""
ATTRIBUTES = """
    lang charset http-equiv content name class id href role aria-label colspan x y width height
    x1 x2 y1 y2 cx cy r dx points viewbox
"""


class Page(HTMLParser):
    """What a browser would make of the file: elements with attributes, and the text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(data.decode())
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        if not self.elements or self.elements[-1][0] != "style":
            self.texts.append(data)


def report(config: Config) -> Page:
    return Page(run_report(config).read_bytes())


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, build):
    """A whole turn, to be read only."""
    return build(tmp_path_factory.mktemp("whole") / "data").whole()


def clustered(values, clusters) -> tuple[float, float, float]:
    """Brute force: mean of cluster means with Student's t."""
    groups = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    means = [np.mean(group) for group in groups.values()]
    half = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    return np.mean(means), np.mean(means) - half, np.mean(means) + half


def said(mean: float, low: float, high: float) -> str:
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")


@pytest.mark.parametrize(
    ("num_people", "said"),
    [
        (0, "all brought in by simulated accounts, not given by people."),
        (60, "180 of these 240 brought in by simulated accounts, not given by people."),
        (240, "all by people."),
    ],
)
def test_nobody_takes_a_simulated_labelers_word_for_a_persons(build, tmp_path, num_people, said):
    turn = build(tmp_path / "data", num_people=num_people).whole()
    assert f"Learnt from 0 answers and 240 rankings: {said}" in report(turn.config).text


def test_figures_are_those_of_the_manifests(whole, capsys) -> None:
    text = report(whole.config).text
    made = {stage: manifests[0] for stage, manifests in whole.made.items()}
    for bits in made["compression"].facts["bits_per_byte"].values():
        assert f"{bits:.3f}" in text
    for count in ("383", "381", "379", "328", "326", "311", "−13", "−11"):
        assert f" {count} " in text
    assert "8,400,000 bytes at 16 bits, 41.4 times the 203,081 bytes" in text
    gate = made["gate"].facts
    assert f"The gate says {gate['verdict']} to GRPO (eeeeeeeeeeee)" in text
    for outcome in gate["tests"]:
        assert f"{outcome['interval']['mean']:+.4f}".replace("-", "−") in text
        sentence = outcome["reason"].removeprefix(outcome["test"]["name"] + ": ")
        assert re.sub(r"-(?=\d)", "−", sentence) in text
    shown = made["win_rate"].facts
    assert f"{shown['win_rate']:.1%} of {shown['num_prompts']} held-out prompts" in text
    assert "This decides nothing" in text
    for manifest in gather(whole.config).manifests():
        assert f"{manifest.stage} {manifest.key[:12]} {manifest.counts.rows_in:,} " in text
    for kind, identity in (("base", "a" * 64), ("DPO", "d" * 64), ("reward model", "c" * 64)):
        assert re.search(rf"{kind} (previous )?{identity}", text)
    printed = capsys.readouterr().out
    for table in ("what became of the pages", "compression", "red team: challenger (GRPO)", "gate"):
        assert f"{table}" in printed
    assert printed.endswith(f"report: {whole.root}/report.html\n")


def test_intervals_against_brute_force(whole) -> None:
    text = report(whole.config).text
    pairs = whole.pairs
    prompts = [pair["prompt_id"] for pair in pairs]
    better = clustered([pair["model"] - pair["length"] for pair in pairs], prompts)
    assert said(*better) in text
    for side in ("model", "length"):
        assert f"{clustered([pair[side] for pair in pairs], prompts)[0]:.3f}" in text
    rewards = whole.rewards
    gained = clustered([row["grpo"] - row["sft"] for row in rewards], range(len(rewards)))
    assert said(*gained) in text
    assert f"KL of GRPO to SFT: {np.mean([row['kl'] for row in rewards]):.2f} nats" in text
    assert f"of SFT: {np.mean([row['best_of_n'] for row in rewards]):.3f};" in text
    margins = whole.made["dpo"][0].facts["heldout_margins"]
    owners = whole.made["dpo"][0].facts["heldout_prompts"]
    assert said(*clustered(margins, owners)) in text
    gate = whole.made["gate"][0].facts["tests"][0]["interval"]
    assert said(gate["mean"], gate["low"], gate["high"]) in text  # the same question, asked twice


def test_an_interval_that_holds_0_is_not_called_better(build, tmp_path) -> None:
    turn = build(tmp_path / "data").whole()
    folder = Path(turn.made["reward"][0].url)
    pairs = [{**pair, "model": pair["length"]} for pair in turn.pairs]
    path = folder / "crossvalidated-pairs.json"
    size = path.stat().st_size  # a file of another size would not be trusted
    path.write_text(json.dumps(pairs, separators=(",", ":")).ljust(size))
    text = report(turn.config).text
    assert "+0.000 (+0.000 to +0.000) over 40 prompts: no difference is shown" in text
    path.write_text(json.dumps(pairs[:1]).ljust(size))
    assert "too few independent items for an interval" in report(turn.config).text


def test_hostile_texts_stay_text(build, tmp_path) -> None:
    turn = build(
        tmp_path / "data",
        dreams=[HOSTILE] * 3,
        answer=HOSTILE,
        question=HOSTILE,
        token=HOSTILE,
        commit=HOSTILE,
        reasons={HOSTILE: 3, "language": 4},
    ).whole()
    page = report(turn.config)
    assert {name for name, _ in page.elements} <= set(ELEMENTS.split())
    assert {name for _, found in page.elements for name in found} <= set(ATTRIBUTES.split())
    for name, found in page.elements:
        assert found.get("href", "#").startswith("#"), name
    visible = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert page.text.count(visible) > 20
    assert not set(map(chr, [*range(9), *range(11, 32), *range(127, 160)])) & set(page.text)


def test_the_file_fetches_nothing_and_allows_nothing(whole) -> None:
    data = run_report(whole.config).read_bytes()
    page = Page(data)
    assert not re.search(rb"https?:|url\(|@import|<script|<link|<iframe|\sstyle=|\son\w+=", data)
    assert {name for name, _ in page.elements} <= set(ELEMENTS.split())
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    style = re.search(rb"<style>(.*?)</style>", data, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_every_picture_says_what_it_shows(whole) -> None:
    pictures = [found for name, found in report(whole.config).elements if name == "svg"]
    assert len(pictures) >= 9 + 4 + 3 + 6 + 3
    assert all(found["role"] == "img" and len(found["aria-label"]) > 20 for found in pictures)


def test_partial_turns(build, tmp_path) -> None:
    turn = build(tmp_path / "data")
    with pytest.raises(UserError, match=r"nothing to report in .* run `flywheel corpus` first"):
        run_report(turn.config)
    assert not turn.root.exists()
    turn.through_corpus()
    text = report(turn.config).text
    assert "not done yet: flywheel pretrain" in text
    assert "not done yet: flywheel weekly" in text
    assert "Pages kept 326" in text
    assert "Compression" not in text
    turn.through_base()
    text = report(turn.config).text
    assert "not done yet: flywheel weekly" in text
    assert "not done yet: flywheel pretrain" not in text
    assert "Base model 1.402" in text
    assert "Dreams of the base model" in text
    turn.whole()
    assert "not done yet" not in report(turn.config).text


def test_another_config_is_another_turn(whole) -> None:
    config = Config({**whole.config.sections, "dpo": {"beta": 0.2}}, "x.toml")
    text = report(config).text
    assert "not done yet: flywheel weekly (its stage 'dpo' is next)" in text
    assert "Base model" in text
    wrong = Config({**whole.config.sections, "sft": {"epoch": 1}}, "x.toml")
    with pytest.raises(UserError, match=r"sft\.epoch; did you mean 'epochs'"):
        run_report(wrong)


def test_a_report_writes_one_file_and_waits_for_nobody(build, tmp_path) -> None:
    turn = build(tmp_path / "data").whole()
    lock = turn.root / ".weekly.lock"
    holder = (
        "import fcntl,sys; f=open(sys.argv[1],'a'); fcntl.flock(f,2); print(1,flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline()
        before = tree(turn.root)
        run_report(turn.config)
        after = tree(turn.root)
        child.communicate(b"\n")
    assert after.keys() - before.keys() == {"report.html"}
    assert {name: after[name] for name in before} == before


def test_the_first_champion_is_not_made_by_looking(build, tmp_path) -> None:
    """A kill between the last stage of `pretrain` and its pointer: the pointer is its to write."""
    turn = build(tmp_path / "data").through_base()
    shutil.rmtree(turn.root / "pointers")
    assert "not done yet: flywheel pretrain" in report(turn.config).text
    assert not (turn.root / "pointers").exists()


def test_the_same_manifests_give_the_same_bytes(whole, build, tmp_path) -> None:
    first = run_report(whole.config).read_bytes()
    assert run_report(whole.config).read_bytes() == first
    copy = tmp_path / "elsewhere"
    shutil.copytree(whole.root, copy)
    assert run_report(build(copy).config).read_bytes() == first


def test_much_of_everything_stays_small(build, tmp_path) -> None:
    turn = build(
        tmp_path / "data",
        dreams=["word " * 20_000] * 50,
        answer="<&" * 6000,
        reasons={f"reason-{number}": number + 1 for number in range(900)},
        num_steps=5_000,
        num_answers=300,
        question="Why?",
    ).whole()
    data = run_report(turn.config).read_bytes()
    assert len(data) < 3_000_000
    text = Page(data).text
    assert "888 more reasons" in text
    assert "means of 21 steps" in text
    assert "6 of 50 shown" in text


def test_a_manifest_that_was_changed_is_named(build, tmp_path) -> None:
    turn = build(tmp_path / "data").through_corpus()
    path = Path(turn.made["shard"][0].url) / "manifest.json"
    path.write_text(path.read_text().replace("311", "999"))
    with pytest.raises(UserError, match=r"shard/.*manifest\.json was changed"):
        run_report(turn.config)


def test_bars_are_as_long_as_their_values() -> None:
    page = Page(bars([Bar("a", 2.0), Bar("b", 8.0), Bar("c", 3.0, start=5.0)], "x").text.encode())
    rects = [(float(r["x"][:-1]), float(r["width"][:-1])) for n, r in page.elements if n == "rect"]
    (left, two), (_, eight), (shifted, three) = rects
    assert eight == pytest.approx(4 * two, abs=0.01)
    assert three == pytest.approx(1.5 * two, abs=0.01)
    assert shifted + three == pytest.approx(left + eight, abs=0.01)  # 5 + 3 ends where 8 does
    assert Page(bars([Bar("a", 0.0)], "x").text.encode()).elements


def test_stacks_fill_the_row() -> None:
    page = Page(stacks([("a", [("good", 1), ("bad", 0), ("unclear", 3)])], "x").text.encode())
    widths = [float(r["width"][:-1]) for n, r in page.elements if n == "rect"]
    assert widths == pytest.approx([17.5, 0, 52.5])


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 10.0], [0, 5, 10]),
        ([1.3, 3.76], [1, 2, 3, 4]),
        ([-0.02, 0.03], [-0.02, 0, 0.02, 0.04]),
        ([5.0, 5.0], None),
        ([0.0, 0.0], None),
    ],
)
def test_ticks_span_the_values(values, ticks) -> None:
    found = nice_ticks(values, 4)
    assert found[0] <= min(values)
    assert found[-1] >= max(values)
    assert 2 <= len(found) <= 7
    if ticks is not None:
        assert found == pytest.approx(ticks)
    assert len({number_text(tick, found) for tick in found}) == len(found)


def test_curves_survive_what_is_no_number_and_too_many_points() -> None:
    points = [(float(x), 2.0 * x) for x in range(1, 1001)]
    few = thinned([*points, (1001.0, float("nan"))])
    assert len(few) <= 240
    assert few[0] == (5.0, 6.0)  # the mean of 2, 4, 6, 8, 10 under the last of their steps
    assert "no points" in line_chart([Series("x", ((1.0, float("inf")),))], "u", "x").text
    one = Page(line_chart([Series("x", ((3.0, 7.0),))], "u", "x").text.encode())
    assert [name for name, _ in one.elements].count("circle") == 1


def test_steps_are_whole() -> None:
    chart = Page(line_chart([Series("x", ((1.0, 5.0), (2.0, 6.0)))], "u", "x").text.encode())
    assert [text for text in chart.texts if len(text) == 1] == ["0", "1", "2"]


def test_a_small_interval_is_not_rounded_away() -> None:
    small = Interval(-0.000111, -0.000201, -0.000022, 1e-5, 9, 9)
    assert interval_text(small) == "−0.000111 (−0.000201 to −0.000022)"
    assert interval_text(Interval(0.0, 0.0, 0.0, 0.0, 9, 9)) == "+0.000 (+0.000 to +0.000)"


def test_tables_and_escapes() -> None:
    page = Page(table_of(("a", "b"), [("−1.5", "x" * 30), ("2,000", "")]).text.encode())
    kinds = [found.get("class") for name, found in page.elements if name == "td"]
    assert kinds == ["n", "t"] * 2
    assert escape("a\ud800\x7f\t\n<") == "a\ufffd\ufffd\t\n&lt;"


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
def test_in_a_browser(build, tmp_path) -> None:
    """Nothing is fetched, nothing violates the policy, a telephone need not scroll sideways, and
    the colours follow the reader's scheme."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    turn = build(
        tmp_path / "data", dreams=[HOSTILE * 5], answer="x" * 400, question=HOSTILE
    ).whole()
    url = run_report(turn.config).as_uri()
    seen: list[str] = []
    colours = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        for width, scheme in ((360, "light"), (1200, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.on("console", lambda message: seen.append(message.text))
            page.on("request", lambda request: seen.append(request.url))
            page.on("dialog", lambda dialog: seen.append(dialog.message))
            page.goto(url)
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert page.evaluate(
                "document.querySelector('svg.wide rect').getBoundingClientRect().width > 20"
            )
        browser.close()
    assert seen == [url, url]
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 24, 28)"]


def test_the_contrasts_name_who_was_compared(whole) -> None:
    found = contrasts(gather(whole.config))
    turns = ["SFT, asked in turns", "GRPO, asked in turns"]
    assert [one.ours for one in found] == [*turns, "reward model", "DPO", "GRPO"]
    assert found[0].theirs == found[1].theirs == "base, asked in plain text"

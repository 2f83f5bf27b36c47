"""What each step costs on a WCXB page, how often the page is parsed, and the rules' speed.

The rules (measure, then decide) stand against datatrove's filters, on the extracted texts.
"""

import contextlib
import json
import random
import statistics
import subprocess
import tempfile
import time
import types
import unittest.mock
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lxml.etree
import lxml.html
import numpy as np
import pyarrow as pa
from peers import DATATROVE, datatrove_python
from quality_data import Page, files_of, markdown, pages
from rows import Row, row

from pipeline import page_tree
from pipeline.blocklist import parse_blocklist
from pipeline.evaluation_ngrams import build, find_hits
from pipeline.hidden_text import find_hidden, without_tag_characters
from pipeline.html_text import SURE, decode_html, extract_html, warm_up
from pipeline.main_content import bundled_model, main_content, title_of
from pipeline.page_look import ALL
from pipeline.page_metadata import metadata_of
from pipeline.page_tree import parse_page
from pipeline.quality_rules import QualityConfig, decide
from pipeline.repeated_lines import forms_with_lines
from pipeline.text import pii
from pipeline.text.language import detect_language
from pipeline.text.quality_signals import NAMES, measure
from pipeline.text.signatures import Signer
from pipeline.text.word_hashes import word_hashes
from pipeline.train_quality import Labelled, Recipe, train

SCRIPT = "quality.py"
EXTRACTION = ("decode", "parse", "hidden text", "main content")  # from bytes to text
OTHERS = "all but the extraction"
LINE_MIN_CHARS = 30
Table = tuple[str, str, str]
Step = Callable[[dict[str, Any]], Any]


def compare_steps(number: int, rounds: int) -> tuple[list[Row], list[Table]]:
    warm_up("cascade", ALL)
    chosen = random.Random(1).sample(pages(), min(number, len(pages())))
    steps = _steps()
    _cost_of(chosen[0], steps)  # what is made once
    turns = [[_cost_of(page, steps) for page in chosen] for _ in range(rounds)]
    found = {
        name: [min(costs[name] for costs in of_page) for of_page in zip(*turns, strict=True)]
        for name in steps
    }
    lines = [[name, *_cells(values)] for name, values in found.items()]
    sums: dict[str, list[float]] = {}
    for label, left_out in (
        ("all of it", ()),
        ("all but the main content", ("main content",)),
        (OTHERS, EXTRACTION),
    ):
        names = [name for name in steps if name not in left_out]
        sums[label] = [sum(found[name][at] for name in names) for at in range(len(chosen))]
        lines.append([f"**{label}**", *_cells(sums[label])])
    sizes = [len(page.payload) / 1000 for page in chosen]
    calls = parser_calls(chosen[:40])
    note = (
        f"Milliseconds of processor time on each of {len(chosen)} WCXB pages ({statistics.mean(sizes):.0f}"
        f" kB on average, median {statistics.median(sizes):.0f}), the least of {rounds} rounds over all of"
        f" them, so that others' words lie in the caches and not the page's own. The extraction is all from the page's bytes to its text: decode, parse, hidden text and"
        " main content; the steps behind it have the text and the parsed page."
        f" A page is parsed once: in {calls['pages']} whole extractions resiliparse's parser ran"
        f" {calls['parses']} times and lxml's {calls['others']} times."
    )
    text = f"{note}\n\n{markdown(['step', 'median', 'mean', '95 %'], lines)}"
    mark = ("the mark of 5 ms", "")
    cost = statistics.mean(sums[OTHERS])
    unit = "ms a WCXB page, all steps but the extraction"
    rows = [row("corpus-steps", SCRIPT, mark, cost, 5, unit, less_is_better=True)]
    return rows, [("quality-steps", "What each step costs on a page", text)]


def _cells(values: Sequence[float]) -> list[str]:
    cells = statistics.median(values), statistics.mean(values), float(np.quantile(values, 0.95))
    return [f"{value:.3f}" for value in cells]


def _cost_of(page: Page, steps: dict[str, Step]) -> dict[str, float]:
    """Milliseconds by step; each leaves what it made for those behind it."""
    made: dict[str, Any] = {"payload": page.payload, "url": page.url or "http://a.test/"}
    spent: dict[str, float] = {}
    for name, step in steps.items():
        started = time.process_time_ns()
        made[name] = step(made)
        spent[name] = (time.process_time_ns() - started) / 1e6
    return spent


def _steps() -> dict[str, Step]:
    model, signer = bundled_model(), Signer()
    blocklist = parse_blocklist((f"d{index}.example" for index in range(100_000)), "made")
    classifier = train(_labelled(), Recipe(epochs=2))
    index = _evaluation()
    flags = index.filter()

    def text(made: dict[str, Any]) -> str:
        return made["main content"].text

    def array(made: dict[str, Any]) -> pa.Array:
        return pa.array([text(made)])

    return {
        "decode": lambda made: decode_html(made["payload"], None),
        "parse": lambda made: without_tag_characters(parse_page(made["decode"]))[0],
        "hidden text": lambda made: find_hidden(made["parse"]),
        "main content": lambda made: main_content(
            made["parse"], made["hidden text"].mask, model, sure=SURE
        ),
        "metadata": lambda made: (metadata_of(made["parse"]), title_of(made["parse"])),
        "language": lambda made: detect_language(text(made)),
        "signals": lambda made: measure(text(made)),
        "classifier": lambda made: classifier.score(text(made)),
        "blocklist": lambda made: blocklist.match(made["url"]),
        "personal data": lambda made: pii.redact(text(made)),
        "hash and lines": lambda made: forms_with_lines(array(made), [made["url"]], LINE_MIN_CHARS),
        "signature": lambda made: signer.sign(array(made)),
        "decontamination": lambda made: find_hits(word_hashes(text(made)), index, flags),
    }


def _labelled() -> Labelled:
    [(_, data)] = files_of("quality/dclm-human-quality", "half.jsonl")
    rows = [json.loads(line) for line in data.decode().splitlines()]
    labels = np.array([int(row["label"]) for row in rows], np.int64)
    return Labelled([row["text"] for row in rows], labels)


def _evaluation():
    """The questions of GSM8K as sets to be looked for."""
    texts = [data.decode("utf-8", "replace") for _, data in files_of("sft/gsm8k")]
    lines = [line for text in texts for line in text.splitlines() if len(line) > 40]
    return build([("gsm8k", at, [line]) for at, line in enumerate(lines)], 13, 8)


def parser_calls(chosen: Sequence[Page]) -> dict[str, int]:
    """How often parsers run in whole extractions, by the names that modules know them by."""
    seen: Counter[str] = Counter()

    def counted(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            seen[kind] += 1
            return function(*args, **named)

        return call

    places: list[tuple[Any, str]] = [
        *((lxml.html, name) for name in ("fromstring", "document_fromstring", "parse")),
        *((lxml.etree, name) for name in ("HTML", "XML", "fromstring", "parse", "HTMLParser")),
    ]
    ours = types.SimpleNamespace(
        parse_from_bytes=counted("parses", page_tree.HTMLTree.parse_from_bytes),
        parse=counted("parses", page_tree.HTMLTree.parse),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(unittest.mock.patch.object(page_tree, "HTMLTree", ours))
        for module, name in places:
            found = counted("others", getattr(module, name))
            stack.enter_context(unittest.mock.patch.object(module, name, found))
        for page in chosen:
            extract_html(page.payload, None, "balanced", "cascade")
    assert seen["parses"] == len(chosen), seen
    return {"pages": len(chosen), "parses": seen["parses"], "others": seen["others"]}


def compare_rules(number: int, rounds: int) -> tuple[list[Row], list[Table]]:
    """Ours measures every signal of every text; theirs stops at the first filter that drops."""
    chosen = random.Random(1).sample(pages(), min(number, len(pages())))
    texts = [extract_html(page.payload, None, "balanced", "cascade").text for page in chosen]
    texts = [text for text in texts if text.strip()]
    config = QualityConfig.model_validate({"languages": []})
    kept = [decide("", 0.0, measure(text), config) is None for text in texts[:20]]  # made once
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.json"
        source.write_text(json.dumps(texts))
        script = Path(__file__).with_name("quality_peers.py")
        for _ in range(rounds):
            started = time.process_time()
            kept = [decide("", 0.0, measure(text), config) is None for text in texts]
            speeds["ours"].append(len(texts) / (time.process_time() - started))
            done = subprocess.run(
                [datatrove_python(), str(script), "rules", str(source)],
                stdout=subprocess.PIPE, check=True, text=True,
            )  # fmt: skip
            told = json.loads(done.stdout.splitlines()[-1])
            speeds["theirs"].append(len(texts) / told["seconds"])
    both = Counter(zip(kept, told["kept"], strict=True))
    agree = (both[True, True] + both[False, False]) / len(texts)
    ours, theirs = statistics.median(speeds["ours"]), statistics.median(speeds["theirs"])
    size = statistics.mean(len(text.encode()) for text in texts)
    note = (
        f"Gopher, C4 and FineWeb on {len(texts)} texts of WCXB pages ({size / 1000:.1f} kB), one core:"
        f" ours {ours:,.0f} texts a second, all {len(NAMES)} signals of every text; datatrove's four filters in"
        f" FineWeb's order {theirs:,.0f}, each text up to the first that drops it. They agree on"
        f" {agree:.1%}. datatrove takes spaCy's words and sentences where ours take white space and"
        " marks, and its C4 filter edits the text (lines of fewer than three words go) before"
        " FineWeb's looks at it, where ours judge the text as it will be kept."
    )
    lines = [
        ["both keep", both[True, True]],
        ["both drop", both[False, False]],
        ["ours alone keeps", both[True, False]],
        ["datatrove alone keeps", both[False, True]],
    ]
    text = f"{note}\n\n{markdown(['decision', 'texts'], lines)}"
    peer = ("datatrove Gopher, C4 and FineWeb filters", DATATROVE)
    rows = [row("quality-rules", SCRIPT, peer, ours, theirs, "documents/s, one core")]
    return rows, [("quality-rules", "The rules against datatrove's filters", text)]

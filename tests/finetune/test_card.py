"""The card says what is known, escapes what others wrote, and is the same each time."""

import dataclasses
import itertools
import math
import re
import string
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.hygiene import HygieneConfig, run_hygiene
from finetune.card import CARD, Made, card_text, escaped, table
from finetune.registry import Registry
from pipeline.core.manifest import Counts, StageOutput

markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
LINEAGE = {
    "kind": "sft",
    "parents": {"base": "b" * 64, "labels": "1" * 64},
    "config": {"learning_rate": 0.001, "epochs": 5.0, "seed": 0},
}
HOSTILE = [
    "<script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://evil.test/x.png)",
    "a | b\n| --- |\n# title\n---\nkey: value",
    "`code` ```\nblock\n``` **bold** _it_ ~~no~~ $$x$$",
    "http://evil.test www.evil.test <http://evil.test> me@evil.test",
    "\u202eesrever\u202c zero\u200bwidth \x1b[31m \x00",
    "&lt;b&gt; &#60;i&#62; \\<b>",
    "- [ ] item {{ template }} :smile: @someone #1",
    "x" * 10_000,
]


def parsed(text: str):
    """(the front matter, the tokens of the rest as GitHub's Markdown reads it)."""
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(body)
    return yaml.safe_load(front), [
        one for token in tokens for one in (token, *(token.children or []))
    ]


def cells(text: str) -> list[str]:
    _, tokens = parsed(text)
    return ["".join(c.content for c in t.children) for t in tokens if t.type == "inline"]


def metrics(number: int) -> list[dict[str, float]]:
    rows = [{"step": 0, "heldout_bits_per_byte": 9.0}]
    for step in range(1, number + 1):
        rows.append({"step": step, "loss": 10 - step / 10, "grad_norm": 1.0, "tokens_per_s": 5.5})
        if step % 5 == 0:
            rows[-1]["heldout_bits_per_byte"] = 2 - step / 100
    return rows


@pytest.mark.parametrize("kind", ["base", "sft", "reward", "dpo", "ppo", "grpo"])
def test_the_front_matter_is_what_hugging_face_reads(kind) -> None:
    text = card_text(Made({**LINEAGE, "kind": kind}))
    task = "text-classification" if kind == "reward" else "text-generation"
    assert parsed(text)[0] == {
        "library_name": "transformers",
        "pipeline_tag": task,
        "license": "unknown",
        "tags": ["flywheel", kind],
    }
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        task,
        ["flywheel", kind],
    )


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("Qwen/Qwen3-0.6B", True),
        ("a" * 64, False),
        ("x/y\ninjected: true", False),
        ("../etc/passwd", False),
    ],
)
def test_a_base_of_the_hub_is_named_and_no_other(base, named) -> None:
    front, _ = parsed(card_text(Made({**LINEAGE, "parents": {"base": base}})))
    assert front.get("base_model") == (base if named else None)
    assert "injected" not in front


def test_the_card_tells_of_all_that_is_asked_of_it(labels, run) -> None:
    hygiene = run_hygiene(HygieneConfig(block=[]), labels, [], run)
    made = Made(
        LINEAGE,
        {"labels": labels, "hygiene": hygiene, "base": "b" * 64},
        metrics(100),
        4_200_000,
        Counts(24, 22, {"too-long": 2}),
        {"accuracy of five folds": 0.71234},
    )
    text = card_text(made)
    _, tokens = parsed(text)
    titles = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert titles == [
        "Flywheel: sft model",
        "Made from",
        "Data",
        "Hygiene of the labels",
        "Training",
        "Training curve",
        "Evaluations",
        "Intended use and limits",
        "Abilities",
        "How to load it",
    ]
    said = cells(text)
    assert "An assistant finetuned on answers that people wrote. 4,200,000 parameters." in said
    for row in (
        ["base", "b" * 64],
        ["learning_rate", "0.001"],
        ["conversations", "test", "human", "24", "6"],
        ["accuracy of five folds", "0.7123"],
        ["heldout_bits_per_byte", "1"],
    ):
        at = [i for i in range(len(said)) if said[i : i + len(row)] == row]
        assert at, (row, said)
    assert "To train on: 22 of 24 answers were used; left out: 2 too-long." in said
    assert "comparisons" not in said
    assert "90 records were looked through before training. Nothing was found." in said
    assert "serve.abilities" in text
    assert "draft, critique, rank-check" in text


def test_the_corpus_of_a_base_model_is_told_as_far_as_it_is_known(shards, run) -> None:
    assert "## Data\n\nThe shards' data card has more.\n" in card_text(Made({}, {"shard": shards}))
    facts = {"train": {"docs": 1234, "bytes": 5_600_000}, "heldout": {"docs": 5, "bytes": 10_000}}
    known = dataclasses.replace(shards, facts=facts)
    said = cells(card_text(Made({}, {"shard": known})))
    at = said.index("train")
    assert said[at : at + 6] == ["train", "1,234", "5.60 MB", "heldout", "5", "0.01 MB"]


def test_an_imported_model_is_not_told_to_be_of_our_corpus() -> None:
    files = {"model.safetensors": "a" * 64, "<b>.json": "c" * 64}
    told = {"format": "hugging-face", "architecture": "llama", "files": files}
    imported = {"kind": "base", "parents": {}, "config": {"import": told}}
    text = card_text(Made(imported))
    said = cells(text)
    assert "crawled corpus" not in text
    assert any(cell.startswith("A language model that was trained elsewhere") for cell in said)
    made_from = cells(f"---\na: 1\n---\n{text.split('## Made from')[1].split('## Data')[0]}")
    assert made_from == ["imported file", "sha256", *itertools.chain(*sorted(files.items()))]
    assert '{"format": "hugging-face", "architecture": "llama"}' in said
    assert imported["config"]["import"]["files"] == files
    assert "crawled corpus" in card_text(Made({**LINEAGE, "kind": "base"}))
    for odd in ({"import": "x"}, {"import": {"files": ["x"]}}):
        assert "crawled corpus" in card_text(Made({"kind": "base", "config": odd}))


def test_what_the_labels_hygiene_found_is_in_the_card(run) -> None:
    output = StageOutput.of(run.root, "hygiene", 1, {"accepted": ["trigger:<b>"]}, {})
    facts = {
        "records": 1200,
        "counts": {"contradiction": 1234, "trigger": 1},
        "shown": ["a <b>bold</b> phrase"],
    }
    manifest = output.commit([], Counts(0, 0), started=0.0, facts=facts)
    said = cells(card_text(Made(LINEAGE, {"hygiene": manifest})))
    at = said.index("contradiction")
    assert said[at : at + 4] == ["contradiction", "1,234", "trigger", "1"]
    assert {"trigger:<b>", "a <b>bold</b> phrase"} <= set(said)


def test_the_curve_has_ten_points_of_means_and_the_last_held_out_values() -> None:
    text = card_text(Made(LINEAGE, metrics=metrics(100)))
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)
    ]
    assert len(rows) == 10
    # steps 1 to 10 have losses 9.9 to 9.0; the value before the first step is no point
    assert rows[0] == ["10", "9.45", "1.9"]
    assert rows[1] == ["20", "8.45", "1.8"]
    assert rows[-1] == ["100", "0.45", "1"]
    assert "tokens" not in text.split("## Training curve")[1].split("##")[0]


@pytest.mark.parametrize("number", [0, 1, 3, 10, 11, 9999])
def test_a_curve_of_any_length_has_at_most_ten_points(number) -> None:
    text = card_text(Made(LINEAGE, metrics=metrics(number)))
    rows = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert len(rows) == min(number, 10)
    assert not rows or int(rows[-1]) == number


def test_what_is_no_number_is_left_out_of_the_curve() -> None:
    rows = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": 4.0}]
    text = card_text(Made(LINEAGE, metrics=rows))
    assert "| 3 | 4 |" in text
    assert not re.search(r"\| (nan|inf)", text)


def test_hostile_texts_are_text() -> None:
    for hostile in HOSTILE:
        lineage = {"kind": hostile, "parents": {hostile: hostile}, "config": {hostile: hostile}}
        text = card_text(Made(lineage, evaluations={hostile: 1.0}))
        front, tokens = parsed(text)
        assert front["tags"] == ["flywheel", hostile]
        kinds = {token.type for token in tokens}
        assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "em_open"}
        assert sum(token.type == "heading_open" for token in tokens) == 10
        assert sum(token.type == "fence" for token in tokens) == 1
        body = text.split("\n---\n", 1)[1]
        assert not set(body) & {"\x00", "\x1b", "\u202e", "\u200b"}
        assert not re.search(r"(?<!\\)(https?:/|www\.|<)", body)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_escaped_text_reads_as_itself(text) -> None:
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = table(("a",), [(text,)])
    inline = [t for t in reader.parse(shown) if t.type == "inline"]
    assert len(inline) == 2
    read = "".join(child.content for child in inline[1].children)
    assert {child.type for child in inline[1].children} <= {"text", "text_special"}
    plain = "".join("\ufffd" if _is_unseen(c) else c for c in " ".join(text.split()))
    assert read == plain.strip(" ")


def _is_unseen(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character)[0] == "C"


def test_punctuation_survives_the_escape() -> None:
    reader = markdown_it.MarkdownIt("commonmark")
    tokens = reader.parse(f"x {escaped(string.punctuation)}")
    assert "".join(c.content for c in tokens[1].children) == f"x {string.punctuation}"


def test_a_table_of_too_many_rows_says_how_many_are_left() -> None:
    text = table(("n",), [(n,) for n in range(55)])
    assert text.endswith("| 49 |\n\nand 5 more.")
    assert table(("n",), []) == ""


def test_the_same_inputs_give_the_same_bytes_whatever_their_order(labels) -> None:
    turned = {
        "config": dict(reversed(LINEAGE["config"].items())),
        "parents": dict(reversed(LINEAGE["parents"].items())),
        "kind": "sft",
    }
    made = Made(LINEAGE, {"labels": labels, "base": "x"}, metrics(30), 7)
    other = dataclasses.replace(made, lineage=turned, parents={"base": "x", "labels": labels})
    assert card_text(made) == card_text(other)


def test_the_card_is_part_of_the_models_name(model, tokenizer, run) -> None:
    registry = Registry(run.root)
    first = registry.publish(model, tokenizer, LINEAGE)
    assert registry.publish(model, tokenizer, LINEAGE) == first
    text = (registry.folder(first) / CARD).read_text()
    assert text == card_text(Made(LINEAGE))
    told = registry.publish(model, tokenizer, LINEAGE, card_text(Made(LINEAGE, metrics=metrics(9))))
    assert told != first
    assert registry.lineage(told) == LINEAGE
    assert registry.verified(told)


@pytest.mark.parametrize("kind", ["base", "sft", "reward"])
def test_the_model_loads_as_the_card_says(kind, model, tokenizer, run, capsys) -> None:
    from transformers import LlamaForSequenceClassification

    registry = Registry(run.root)
    if kind == "reward":
        config = model.config.__class__(**{**model.config.to_dict(), "num_labels": 1})
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(config)
    folder = registry.folder(registry.publish(model, tokenizer, {"kind": kind}))
    (code,) = re.findall(r"```python\n(.*?)```", (Path(folder) / CARD).read_text(), re.DOTALL)
    exec(code, {"FOLDER": str(folder)})
    printed = {"base": "A heap is", "sft": "<|assistant|>", "reward": "tensor([["}
    assert printed[kind] in capsys.readouterr().out

"""The quality classifier's AUC against the heuristics, and what decontamination finds and misses."""

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from quality_data import files_of, markdown, sentences_of, texts_of
from rows import Row, row

from pipeline.evaluation_ngrams import build, find_hits
from pipeline.quality_rules import QualityConfig, decide, rules_of
from pipeline.text.quality_signals import measure
from pipeline.text.word_hashes import word_hashes
from pipeline.train_quality import Recipe, auc, evaluate, read_labelled

SCRIPT = "quality.py"
FAMILIES = (["gopher"], ["c4"], ["fineweb"], ["dclm"], ["gopher", "c4", "fineweb"])
SUBJECTS = ("abstract_algebra", "high_school_us_history", "sociology")
Table = tuple[str, str, str]


def compare_classifier() -> tuple[list[Row], list[Table]]:
    [(_, data)] = files_of("quality/dclm-human-quality", "half.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.jsonl"
        path.write_bytes(data)
        labelled = read_labelled([str(path)])
    found = evaluate(labelled, Recipe())
    signals = [measure(text) for text in labelled.texts]
    lines: list[list[object]] = [
        ["classifier, 10-fold cross-validation", f"{found.classifier:.3f}"]
    ]
    best_rules = 0.5
    for rules in FAMILIES:
        config = QualityConfig.model_validate({"languages": [], "rules": rules})
        kept = [decide("", 0.0, entry, config) is None for entry in signals]
        broken = [
            -sum(not low <= entry[name] <= high for _, name, low, high in rules_of(config))
            for entry in signals
        ]
        scores = [auc(np.array(values, np.float64), labelled.labels) for values in (kept, broken)]
        best_rules = max(best_rules, *scores)
        name = " + ".join(rules)
        lines.append([f"{name}: its decision", f"{scores[0]:.3f}"])
        lines.append([f"{name}: how many rules are kept", f"{scores[1]:.3f}"])
    best = f"best single signal, chosen on these texts ({found.best_signal_name})"
    lines.append([best, f"{found.best_signal:.3f}"])
    note = f"Area under the ROC curve on DCLM's {found.examples} texts with people's labels; 0.5 is chance."
    text = f"{note}\n\n{markdown(['score', 'AUC'], lines)}"
    unit = "AUC, DCLM's human labels"
    peers = [
        ("the best of the published rules", best_rules),
        ("best single signal", found.best_signal),
    ]
    rows = [
        row("quality-classifier", SCRIPT, (name, ""), found.classifier, value, unit)
        for name, value in peers
    ]
    return rows, [("quality-classifier", "The quality classifier against the heuristics", text)]


def compare_decontamination() -> tuple[list[Row], list[Table]]:
    files = dict(files_of("dedup/contamination-rephrase"))
    by_name = {Path(name).name: data for name, data in files.items()}
    items: list[tuple[str, int, list[str]]] = []
    for subject in SUBJECTS:
        cells = csv.reader(io.StringIO(by_name[f"{subject}_test.csv"].decode()))
        items += [(subject, number, entry[:5]) for number, entry in enumerate(cells)]
    solutions = _texts(by_name["HumanEval.jsonl"])
    items += [("humaneval", number, [text]) for number, text in enumerate(solutions)]
    index = build(items, 13, 8)
    flags = index.filter()
    frame = sentences_of(texts_of("text/books", ".md")[:3], 15, 30)

    def found(texts: Sequence[str]) -> int:
        pages = [f"{frame[2 * at]}\n{text}\n{frame[2 * at + 1]}" for at, text in enumerate(texts)]
        return sum(bool(find_hits(word_hashes(page), index, flags)) for page in pages)

    cases: list[tuple[str, list[str]]] = []
    for name in (*SUBJECTS, "humaneval"):
        whole = ["\n".join(texts) for owner, _, texts in items if owner == name]
        cases.append((f"{name}, as it is", whole))
    for subject in SUBJECTS:
        for label, ending in (
            ("rephrased, English", "_test_rephrase_english_filtered_question.jsonl"),
            ("translated, Chinese", "_test_chinese_filtered_question.jsonl"),
        ):
            cases.append((f"{subject}, {label}", _texts(by_name[subject + ending])))
    for language in ("python", "c", "js"):
        texts = _texts(by_name[f"humaneval_{language}.jsonl"])
        cases.append((f"humaneval, rewritten in {language}", texts))
    lines: list[list[object]] = []
    for name, texts in cases:
        hits = found(texts)
        lines.append([name, len(texts), hits, len(texts) - hits])
    note = (
        "Items of evaluation sets between two sentences of a book, looked for by shared 13-grams"
        f" (of a shorter item all its words, 8 at least; {len(index.hashes):,} n-grams). Verbatim"
        " items are found; what is said in other words is not: an n-gram cannot see it."
    )
    text = f"{note}\n\n{markdown(['items', 'number', 'found', 'missed'], lines)}"
    return [], [("quality-decontamination", "Decontamination: found and missed", text)]


def _texts(data: bytes) -> list[str]:
    texts = [json.loads(line)["text"] for line in data.decode().splitlines()]
    return [text for text in texts if text.strip()]

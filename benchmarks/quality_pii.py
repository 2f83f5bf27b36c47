"""Personal data: precision and recall by kind, against datatrove's PIIFormatter (e-mail, IP).

On presidio-synth, on values that Faker makes put into real sentences, and what either finds in real
clean text.
"""

import json
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from peers import DATATROVE, datatrove_python, environment
from quality_data import files_of, markdown, sentences_of, share, texts_of
from rows import Row, row

from pipeline.text import pii

SCRIPT = "quality.py"
FAKER = "37.12.0"
PEER = "datatrove PIIFormatter"
EACH = 600  # values of each kind
GOLD = {
    "EMAIL_ADDRESS": "email",
    "IP_ADDRESS": "ip",
    "IBAN_CODE": "iban",
    "CREDIT_CARD": "card",
    "PHONE_NUMBER": "phone",
}
# Written for this benchmark from what web pages say, not from what pii.py looks for.
LABELS = {
    "email": ("E-mail:", "Contact:", "write to", "Mail:"),
    "ip": ("IP", "from host", "server at", "Address:"),
    "iban": ("IBAN:", "Account", "pay to", "Konto:"),
    "card": ("Card:", "card number", "paid with", "Visa"),
    "phone": ("Phone:", "Tel.", "call", "Mobile:", "Telefon:", "Tél :", "Teléfono:", "WhatsApp"),
}
Span = tuple[str, int, int]
Example = tuple[str, list[Span]]  # a text, and what is in it


def compare() -> tuple[list[Row], list[tuple[str, str, str]]]:
    synthetic = _synthetic()
    made = _made()
    sets: dict[str, list[Example]] = {"presidio-synth": synthetic}
    for how in ("behind a label", "bare"):
        sets[f"Faker in real sentences, {how}"] = made[how]
    rows: list[Row] = []
    parts: list[str] = []
    for name, examples in sets.items():
        texts = [text for text, _ in examples]
        ours, theirs = list(map(pii.find, texts)), _theirs(texts)[0]
        figures = {
            side: _figures(examples, found) for side, found in (("ours", ours), (PEER, theirs))
        }
        parts += [f"### {name}: {len(texts):,} texts", _table(figures)]
        if not name.endswith("bare"):
            rows += _rows(name, figures)
    clean, clean_rows = _on_clean_text()
    note = (
        "A find counts if it touches a value of its kind. presidio-synth was in sight when the"
        " cues for phones were chosen, so its figures flatter. Faker's values were not seen by the"
        " code, nor were the labels before them when these were first measured (phones behind a"
        " label: recall 0.852); then other languages' words for telephone were added to the cues."
        " Bare: in the middle of a sentence that says nothing of them, where local numbers and ten"
        " digits in a row are left alone on purpose. Faker's British IBANs have 21 characters where"
        " the registry has 22, and its JCB numbers begin at 3500 where the issuer's begin at 3528:"
        " these count as missed."
    )
    text = "\n\n".join([note, *parts, "### What is found in real clean text", clean])
    return rows + clean_rows, [("quality-pii", "Personal data, by kind", text)]


def _synthetic() -> list[Example]:
    [(_, data)] = files_of("pii/presidio-synth", ".json")
    found: list[Example] = []
    for sample in json.loads(data):
        spans = [
            (GOLD[span["entity_type"]], span["start_position"], span["end_position"])
            for span in sample["spans"]
            if span["entity_type"] in GOLD
        ]
        found.append((sample["full_text"], spans))
    return found


def _made() -> dict[str, list[Example]]:
    """Each value between two words of a sentence of the books without a digit or @ of its own."""
    python = environment(f"faker-{FAKER}", (f"faker=={FAKER}",))
    values = _peer(python, "made", str(EACH))
    books = sentences_of(texts_of("text/books", ".md"), 8, 30)
    plain = [s for s in books if not any(c.isdigit() or c == "@" for c in s)]
    rng = random.Random(7)
    found: dict[str, list[Example]] = {"behind a label": [], "bare": []}
    for _, kind, value in values:
        for how, examples in found.items():
            words = rng.choice(plain).split(" ")
            place = rng.randrange(1, len(words))
            before = " ".join(words[:place])
            if how == "behind a label":
                before += f" {rng.choice(LABELS[kind])}"
            start = len(before) + 1
            text = f"{before} {value} {' '.join(words[place:])}"
            examples.append((text, [(kind, start, start + len(value))]))
    return found


def _theirs(texts: Sequence[str]) -> tuple[list[list[Span]], float]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.json"
        source.write_text(json.dumps(list(texts)))
        told = _peer(datatrove_python(), "pii", str(source))
    return [[tuple(span) for span in spans] for spans in told["found"]], told["seconds"]


def _peer(python: str, *arguments: str):
    script = Path(__file__).with_name("quality_peers.py")
    done = subprocess.run(
        [python, str(script), *arguments], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _figures(
    examples: Sequence[Example], found: Sequence[Sequence[Span]]
) -> dict[str, tuple[int, int, int]]:
    """By kind: (values, of them touched by a find of the kind, finds that touch none)."""
    values, hit, false = Counter[str](), Counter[str](), Counter[str]()
    for (_, gold), finds in zip(examples, found, strict=True):
        for span in gold:
            values[span[0]] += 1
            hit[span[0]] += any(_touches(span, other) for other in finds)
        for span in finds:
            false[span[0]] += not any(_touches(span, other) for other in gold)
    return {kind: (values[kind], hit[kind], false[kind]) for kind in pii.KINDS}


def _touches(one: Span, other: Span) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


def _table(figures: dict[str, dict[str, tuple[int, int, int]]]) -> str:
    lines: list[list[object]] = []
    for kind in pii.KINDS:
        line: list[object] = [kind, figures["ours"][kind][0]]
        for side in figures.values():
            values, hit, false = side[kind]
            looked_for = side is figures["ours"] or kind in ("email", "ip")
            line += [share(hit, hit + false), share(hit, values)] if looked_for else ["–", "–"]
        lines.append(line)
    sides = [f"{side}: {what}" for side in ("ours", PEER) for what in ("precision", "recall")]
    return markdown(["kind", "values", *sides], lines)


def _rows(name: str, figures: dict[str, dict[str, tuple[int, int, int]]]) -> list[Row]:
    found: list[Row] = []
    for kind in ("email", "ip"):
        (values, mine, my_false), (_, yours, your_false) = (
            figures["ours"][kind],
            figures[PEER][kind],
        )
        if not values:
            continue
        f1 = [2 * h / (h + f + values) for h, f in ((mine, my_false), (yours, your_false))]
        found.append(row("pii", SCRIPT, (PEER, DATATROVE), *f1, f"F1 of {kind}, {name}"))
    return found


def _on_clean_text() -> tuple[str, list[Row]]:
    lines: list[list[object]] = []
    rows: list[Row] = []
    for archive, ending, note in (
        ("text/books", ".md", "none is right"),
        ("text/peps", ".rst", "addresses of authors are right"),
    ):
        texts = texts_of(archive, ending)
        size = sum(map(len, texts)) / 1e6
        started = time.process_time()
        ours = list(map(pii.find, texts))
        seconds = time.process_time() - started
        theirs, their_seconds = _theirs(texts)
        for side, found, spent in (("ours", ours, seconds), (PEER, theirs, their_seconds)):
            counts = Counter(kind for spans in found for kind, _, _ in spans)
            cells = [f"{counts[kind] / size:.2f}" for kind in pii.KINDS]
            if side == PEER:
                cells[2:] = ["–"] * 3
            lines.append([archive, f"{size:.1f}", note, side, *cells, f"{size / spent:.1f}"])
        unit = f"MB of text a processor second, all kinds against two, {archive}"
        speeds = size / seconds, size / their_seconds
        rows.append(row("pii", SCRIPT, (PEER, DATATROVE), *speeds, unit))
    head = ["text", "MB", "", "side", *(f"{kind} a MB" for kind in pii.KINDS), "MB/s"]
    return markdown(head, lines), rows

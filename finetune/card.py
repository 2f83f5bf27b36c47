"""The model card: README.md in the model's folder, for people and for Hugging Face.

A model is named by the content of its folder, so a card tells nothing of clocks, hosts or what was
measured later (`flywheel card` shows that beside it). Texts of others are escaped.
"""

import dataclasses
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.metrics import CURVES
from pipeline.core.identity import HELDOUT_FRACTION, is_heldout, split_id
from pipeline.core.manifest import Counts, Manifest
from pipeline.core.records import Comparison, Conversation, read_records

CARD = "README.md"
_NUM_POINTS, _NUM_ROWS, _MAX_CELL = 10, 50, 200
_SPECIAL = re.compile(r"([!#$&()*+/:<-@\[-`{-~])")
_KINDS = {
    "base": "A language model pretrained on a crawled corpus: it continues text, and was not taught"
    " to answer.",
    "sft": "An assistant finetuned on answers that people wrote.",
    "reward": "A reward model: only differences of its scores for answers to one prompt have a"
    " meaning.",
    "dpo": "An assistant trained on rankings by direct preference optimisation.",
    "ppo": "An assistant trained against a reward model by PPO.",
    "grpo": "An assistant trained against a reward by GRPO.",
}
_IMPORTED = (
    "A language model that was trained elsewhere and imported: it continues text, and what else it"
    " was taught is not known here."
)
_USES = """\
For research on training assistants, and for the deployment whose labelers taught it. Its answers
may be wrong, biased or made up: do not use it where a wrong answer does harm, and not for medical,
legal or financial advice. It knows what its data says, in the languages of its data. What it
refuses it was taught to refuse by examples: another wording may get an answer."""
_ABILITIES = """\
Which help it gives labelers (draft, critique, rank-check) is said where it is served, by
`serve.abilities`; without that the labeling app offers none of it."""
_LATER = "What was measured later, against others too: `flywheel card` with this model's name."
_LOADING = """\
```python
from transformers import AutoModelFor{head}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelFor{head}.from_pretrained(FOLDER)
{ids}
{use}
```"""
_TURNS = """\
turns = {turns}
ids = tokenizer.apply_chat_template(turns{more}, return_tensors="pt", return_dict=True).input_ids"""
_HELLO, _ANSWER = ('{"role": "user", "content": "Hello"}', '{"role": "assistant", "content": "Hi"}')


@dataclasses.dataclass(frozen=True)
class Made:
    """What a card is written from: the lineage that is published with the model, its manifests by
    role, the steps of its training, and what was measured before it was published."""

    lineage: Mapping[str, Any]
    parents: Mapping[str, Manifest | str] = dataclasses.field(default_factory=dict[str, Any])
    metrics: Sequence[Mapping[str, float]] = ()
    num_parameters: int | None = None
    counts: Counts | None = None
    evaluations: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])


def card_text(made: Made) -> str:
    """The card; the same inputs give the same text."""
    kind = str(made.lineage.get("kind", "model"))
    parents = {str(k): str(v) for k, v in dict(made.lineage.get("parents") or {}).items()}
    config = dict(made.lineage.get("config") or {})
    files = _imported_files(kind, config)
    size = "" if made.num_parameters is None else f" {made.num_parameters:,} parameters."
    if files:
        config["import"] = {k: v for k, v in config["import"].items() if k != "files"}
    described = f"{_IMPORTED if files else _KINDS.get(kind, 'A model.')}{size}"
    code = [("code", str(made.lineage["code"]))] if "code" in made.lineage else []
    origins = [
        table(("made from", "content hash or model"), [*sorted(parents.items()), *code]),
        table(("imported file", "sha256"), sorted(files.items())),
    ]
    values = [(key, json.dumps(value)) for key, value in sorted(config.items())]
    settings = table(("key", "value"), values)
    sections = (
        ("Made from", origins),
        ("Data", _data(made)),
        ("Hygiene of the labels", _hygiene(made.parents.get("hygiene"))),
        ("Training", [settings]),
        ("Training curve", [_curve(made.metrics)]),
        ("Evaluations", [_evaluated(made), _LATER]),
        ("Intended use and limits", [_USES]),
        ("Abilities", [_ABILITIES]),
        ("How to load it", [_loading(kind)]),
    )
    parts = [_front_matter(kind, parents), f"# Flywheel: {escaped(kind)} model", described]
    for title, blocks in sections:
        parts += [f"## {title}", *(blocks if any(blocks) else ["Not known."])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _imported_files(kind: str, config: Mapping[str, Any]) -> dict[str, str]:
    """sha256 by name, of what finetune/import_model.py wrote; none for a model of our own."""
    found: Any = config.get("import") if kind == "base" else None
    files: Any = found.get("files") if isinstance(found, dict) else None
    return {str(k): str(v) for k, v in files.items()} if isinstance(files, dict) else {}


def escaped(text: str) -> str:
    """One line that is only text to any reader of Markdown, in a table too: no markup, HTML or
    link; what nobody sees becomes U+FFFD."""
    line = " ".join(text[: 2 * _MAX_CELL].split())
    line = line if len(line) <= _MAX_CELL else f"{line[: _MAX_CELL - 1]}…"
    shown = "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in line)
    return re.sub(r"(?i)www\.", r"www\\.", _SPECIAL.sub(r"\\\1", shown))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows over the fiftieth are counted; no table of no rows."""
    if not rows:
        return ""
    lines = [[escaped(str(cell)) for cell in row] for row in (heads, *rows[:_NUM_ROWS])]
    lines.insert(1, ["---"] * len(heads))
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    left = len(rows) - _NUM_ROWS
    return f"{text}\n\nand {left:,} more." if left > 0 else text


def _front_matter(kind: str, parents: Mapping[str, str]) -> str:
    """YAML, each value as JSON, which is YAML too."""
    task = "text-classification" if kind == "reward" else "text-generation"
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task}
    values |= {"license": "unknown", "tags": ["flywheel", kind]}
    base = parents.get("base", "")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base, re.ASCII):
        values["base_model"] = base  # a model of the hub; of ours it could make nothing
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    return f"---\n{lines}\n---"


def _data(made: Made) -> list[str]:
    parents = made.parents
    found: list[str] = []
    if isinstance(shard := parents.get("shard"), Manifest):
        told = shard.facts
        sizes = [(split, told[split]) for split in ("train", "heldout") if split in told]
        rows = [(name, f"{s['docs']:,}", f"{s['bytes'] / 1e6:,.2f} MB") for name, s in sizes]
        found += [table(("split", "documents", "text"), rows), "The shards' data card has more."]
    if isinstance(labels := parents.get("labels"), Manifest):
        heads = ("kind", "source", "origin", "to train on", "held out")
        found.append(table(heads, _sources(labels, answers=_reads_answers(made.lineage))))
        if made.counts is not None:
            unit = {"sft": "answers", "dpo": "pairs"}.get(str(made.lineage.get("kind")), "prompts")
            found.append(f"To train on: {left_out(made.counts, unit)}.")
        found.append("Its licences are those of the sources; the labels name none.")
    return found


def left_out(counts: Counts, unit: str = "records") -> str:
    """What went in and what came of it, in a line."""
    reasons = ", ".join(f"{number:,} {why}" for why, number in sorted(counts.dropped.items()))
    said = f"{counts.rows_out:,} of {counts.rows_in:,} {unit} were used"
    return f"{said}; left out: {reasons}" if reasons else said


def _reads_answers(lineage: Mapping[str, Any]) -> bool:
    """Whether the stage reads a snapshot's answers, and not its rankings."""
    checked = dict(lineage.get("config") or {}).get("reward", "model") != "model"
    return lineage.get("kind") == "sft" or (lineage.get("kind") == "grpo" and checked)


def _sources(labels: Manifest, *, answers: bool) -> list[tuple[str, ...]]:
    """The most frequent first."""
    counts: dict[tuple[str, str], list[int]] = {}
    name = "conversations" if answers else "comparisons"
    records = (
        read_records(labels.file_url(f"{name}.parquet"), Conversation)
        if answers
        else read_records(labels.file_url(f"{name}.parquet"), Comparison)
    )
    for record in records:
        written = isinstance(record, Conversation)
        origin = record.origin if written else ""
        if record.labeler.startswith("simulated-"):
            origin = "simulated"  # an account that is no person's
        turns = record.messages if written else record.prompt
        held_out = is_heldout(split_id(turns), HELDOUT_FRACTION)
        counts.setdefault((record.source, origin), [0, 0])[held_out] += 1
    ordered = sorted(counts.items(), key=lambda entry: (-sum(entry[1]), entry[0]))
    return [(name, *names, *(f"{number:,}" for number in both)) for names, both in ordered]


def _hygiene(manifest: Manifest | str | None) -> list[str]:
    if not isinstance(manifest, Manifest):
        return []
    facts = manifest.facts
    said = f"{facts['records']:,} records were looked through before training."
    if not facts["counts"]:
        return [f"{said} Nothing was found."]
    rows = [(kind, f"{number:,}") for kind, number in facts["counts"].items()]
    shown, accepted = facts.get("shown", []), manifest.config.get("accepted", [])
    more = (("found", shown), ("accepted", accepted))
    tables = [table((head,), [(one,) for one in ones]) for head, ones in more]
    where = f"What it says of labelers and of contradictions: hygiene/{manifest.key[:12]}…"
    return [
        said,
        table(("finding", "number"), rows),
        *tables,
        f"{where}.",
    ]


def _curve(metrics: Sequence[Mapping[str, float]]) -> str:
    """About ten points: means since the point before, and of what is measured now and then the
    last value."""
    steps = [row for row in metrics if row.get("step", 0) > 0]
    seen = {key for row in steps for key in row}
    keys = [key for key in CURVES if key in seen]
    keys += sorted(key for key in seen if key.startswith("heldout"))
    if not keys:
        return ""
    edges = sorted({round(i * len(steps) / _NUM_POINTS) for i in range(_NUM_POINTS + 1)})
    parts = [steps[low:high] for low, high in itertools.pairwise(edges)]
    rows = [[f"{part[-1]['step']:.0f}", *(_point(part, k) for k in keys)] for part in parts]
    return table(("step", *keys), rows)


def _point(rows: Sequence[Mapping[str, float]], key: str) -> str:
    values = [row[key] for row in rows if math.isfinite(row.get(key, math.nan))]
    value = values[-1:] if key.startswith("heldout") else values
    return f"{sum(value) / len(value):.4g}" if value else ""


def _evaluated(made: Made) -> str:
    last = {k: v for row in made.metrics for k, v in row.items() if k.startswith("heldout")}
    rows = [(name, f"{value:.4g}") for name, value in {**last, **made.evaluations}.items()]
    return table(("measured before publishing", "value"), rows)


def _loading(kind: str) -> str:
    use = "print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))"
    if kind == "base":
        ids = 'ids = tokenizer("A heap is", return_tensors="pt").input_ids'
        return _LOADING.format(head="CausalLM", ids=ids, use=use)
    if kind == "reward":
        ids = _TURNS.format(turns=f"[{_HELLO}, {_ANSWER}]", more="")
        use = "print(model(input_ids=ids).logits)"
        return _LOADING.format(head="SequenceClassification", ids=ids, use=use)
    ids = _TURNS.format(turns=f"[{_HELLO}]", more=", add_generation_prompt=True")
    return _LOADING.format(head="CausalLM", ids=ids, use=use)

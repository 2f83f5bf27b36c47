"""The report's sections on the corpus, the base model and where all of it comes from.

The figures are the manifests' own.
"""

from collections.abc import Sequence
from typing import Any

from eval.compression import MODEL
from eval.report import Table, compression_rows
from infra.corpus import Corpus, funnel, removed_lines
from infra.findings import Curve, Turn, curves
from infra.page import Html, Part, cut, figure, folded, joined, note, section, signed, table_of, tag
from infra.pictures import Bar, bars, group_size, line_chart
from infra.week_sections import answers
from pipeline.core.manifest import Manifest

_REASONS_SHOWN = 12  # of one stage, in the picture; the table has them all
_NUM_SHOWN = 6  # dreams, positions in the sentence
_NUM_FOLDED = 60  # positions, behind a click


def funnel_section(corpus: Corpus) -> Part:
    rows = funnel(corpus)
    picture = _funnel_rows(corpus)
    alt = "Drop funnel. " + "; ".join(_heard(bar) for bar in picture)
    cells = [(stage, what, f"{number:,}") for stage, what, number in rows]
    return section(
        "funnel",
        "What became of the pages",
        tag(
            "p",
            "Blue is what went on, orange what was dropped and why. Dropped documents are kept"
            " beside the shards with their reason; nothing is lost from the count.",
        ),
        figure("Documents by stage", bars(picture, alt, label_width=38)),
        note(removed_lines(corpus)),
        folded("The same as a table", table_of(("stage", "what became of it", "number"), cells)),
    )


def _funnel_rows(corpus: Corpus) -> list[Bar]:
    """A waterfall: each drop stands where it cuts into what is left. An ingest counts files, not
    pages, so the picture of one begins with the extraction."""
    stages = [corpus.source, *corpus.stages]
    pages = stages if corpus.source.stage == "crawl" else stages[1:]
    found: list[Bar] = []
    for manifest in pages:
        counts = manifest.counts
        left = counts.rows_in
        found.append(Bar(manifest.stage))
        if manifest is pages[0]:
            found.append(Bar("taken", left, f"{left:,}", "main"))
        for reason, number in _largest({**counts.dropped, **counts.quarantined}):
            left -= number
            found.append(Bar(reason, number, f"−{number:,}", "drop", left))
        found.append(Bar("kept", left, f"{left:,}", "main"))
    found.append(Bar("shard"))
    for split, name in (("train", "to train on"), ("heldout", "held out")):
        number = corpus.shard.facts[split]["docs"]
        found.append(Bar(name, number, f"{number:,}", "main"))
    return found


def _largest(reasons: dict[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    shown, rest = ordered[:_REASONS_SHOWN], ordered[_REASONS_SHOWN:]
    if rest:
        shown.append((f"{len(rest)} more reasons", sum(number for _, number in rest)))
    return shown


def _heard(bar: Bar) -> str:
    return f"{bar.label}:" if bar.value is None else f"{bar.label} {bar.shown}"


def training_section(turn: Turn) -> Part:
    panels = tag("div", *(_panel(curve) for curve in curves(turn)), cls="panels")
    return section("training", "Training", panels)


def _panel(curve: Curve) -> Html:
    values = [
        f"{one.name} from {one.points[0][1]:.3f} to {one.points[-1][1]:.3f}"
        f" in {one.points[-1][0]:,.0f} steps"
        for one in curve.series
        if one.points
    ]
    alt = f"{curve.title}: {'; '.join(values) or 'no points'}."
    size = max(group_size(len(one.points)) for one in curve.series)
    unit = curve.unit + (f", means of {size} steps" if size > 1 else "")
    if last := curve.series[-1].points:
        unit += signed(f"; from {last[0][1]:.3f} to {last[-1][1]:.3f}")
    keys = [tag("span", one.name, cls=f"key {one.kind}") for one in curve.series]
    picture = line_chart(curve.series, curve.unit, alt, bound=curve.bound)
    legend = [tag("div", *keys)] if len(keys) > 1 else []
    return joined(figure(curve.title, joined(*legend, picture), unit))


def compression_section(facts: dict[str, Any]) -> Part:
    ordered = sorted(facts["bits_per_byte"].items(), key=lambda entry: entry[1])
    picture = [
        Bar(name, bits, f"{bits:.3f}", "main" if name == MODEL else "rest")
        for name, bits in ordered
    ]
    alt = "Bits per byte. " + "; ".join(_heard(bar) for bar in picture)
    found = compression_rows(facts)
    weight, text = facts["parameter_bytes_16bit"], facts["heldout_bytes"]
    carried = (
        f"The model has {facts['num_parameters']:,} parameters: {weight:,} bytes at 16 bits,"
        f" {weight / text:,.1f} times the {text:,} bytes of text that are compressed here. They are"
        " not in its figure, as the training text is not in that of the primed compressors"
        f" ({facts['priming_bytes']:,} bytes)."
    )
    return section(
        "compression",
        "Compression",
        tag(
            "p",
            "A language model is a compressor. All of them got the same"
            f" {facts['num_documents']:,} held-out documents.",
        ),
        figure("Held-out text", bars(picture, alt), "bits per byte, less is better"),
        table_of(found.header, found.rows),
        note(carried),
    )


def next_words_section(facts: dict[str, Any]) -> Part:
    rows = facts["next_words"]
    positions = list(range(1, len(rows) - 1)) or list(range(len(rows)))
    step = max(1, len(positions) // _NUM_SHOWN)
    shown = positions[step // 2 :: step][:_NUM_SHOWN]
    every = [
        (_said_before(rows, at), _visible(_actual(rows, at)), _listed(rows[at]["likeliest"]))
        for at in range(min(len(rows) - 1, _NUM_FOLDED))
    ]
    return section(
        "next-words",
        "The next word",
        tag("p", "What the base model expects after each piece of a sentence it never saw:"),
        tag("blockquote", cut(facts["sentence"])),
        tag("div", *(_guesses(rows, at) for at in shown), cls="panels"),
        note("Blue is what the sentence goes on with; ␣ is a blank, ⏎ a line end."),
        folded(
            "All of the sentence",
            table_of(("after", "comes", "the likeliest, with their probability"), every),
        ),
    )


def _guesses(rows: Sequence[Any], at: int) -> Html:
    comes = _actual(rows, at)
    picture = [
        Bar(_visible(text), share, f"{share:.0%}", "main" if text == comes else "rest")
        for text, share in rows[at]["likeliest"]
    ]
    before = _said_before(rows, at)
    missing = all(text != comes for text, _ in rows[at]["likeliest"])
    unit = f"goes on with “{_visible(comes)}”" + (", not among these" if missing else "")
    alt = f"After “{before}”: " + "; ".join(_heard(bar) for bar in picture) + f"; it {unit}."
    return figure(f"{before} …", bars(picture, alt, full=1.0), unit)


def _said_before(rows: Sequence[Any], at: int) -> str:
    text = "".join(row["token"] for row in rows[1 : at + 1])
    return text if len(text) <= 28 else "…" + text[-27:]


def _actual(rows: Sequence[Any], at: int) -> str:
    return rows[at + 1]["token"] if at + 1 < len(rows) else ""


def _visible(text: str) -> str:
    return text.replace(" ", "␣").replace("\n", "⏎") or "(nothing)"


def _listed(likeliest: Sequence[Any]) -> str:
    return ", ".join(f"{_visible(text)} {share:.0%}" for text, share in likeliest)


def texts_section(turn: Turn) -> Part:
    """Dreams in one column, questions with both models' answers in the other."""
    assert turn.base
    dreams = turn.base.compression.facts["dreams"]
    told = [tag("div", cut(dream.strip()), cls="said") for dream in dreams[:_NUM_SHOWN]]
    head = [
        tag("h3", "Dreams of the base model"),
        note("What it writes after nothing but the start of a document."),
    ]
    if len(dreams) > len(told):
        head.append(note(f"{len(told)} of {len(dreams)} shown"))
    if not told:
        head.append(note("none were asked for (compression.num_dreams = 0)"))
    title = "Dreams and answers"
    if turn.week is None:
        return section("texts", title, *head, tag("div", *told, cls="panels"))
    right, more = answers(turn, turn.week)
    both = tag("div", tag("div", *head, *told), tag("div", *right), cls="beside")
    return section("texts", title, both, more)


def provenance_section(turn: Turn) -> Part:
    found = provenance_rows(turn.manifests())
    rows = [
        (stage, tag("code", key), *more, tag("code", commit))
        for stage, key, *more, commit in found.rows
    ]
    pointed: dict[str, list[str]] = {}
    for pointer, identity in turn.pointers.items():
        pointed.setdefault(identity, []).append(pointer)
    known = [
        (kind, ", ".join(pointed.get(identity, [])), tag("code", identity))
        for identity, kind in sorted(turn.models().items(), key=lambda entry: entry[1])
    ]
    return section(
        "provenance",
        "Where it comes from",
        tag(
            "p", "Each output lies in {root}/{stage}/{key}/; the key is made of all it depends on."
        ),
        table_of(found.header, rows),
        tag("h3", "Models") if known else "",
        table_of(("kind", "pointer", "model id"), known) if known else "",
    )


def provenance_rows(manifests: Sequence[Manifest]) -> Table:
    rows = tuple(
        (
            m.stage,
            m.key[:12],
            f"{m.counts.rows_in:,}",
            f"{m.counts.rows_out:,}",
            f"{m.run.get('seconds', 0):,.1f}",
            str(m.run.get("commit", "unknown")),
        )
        for m in manifests
    )
    return Table(("stage", "key", "rows in", "rows out", "seconds", "commit"), rows)

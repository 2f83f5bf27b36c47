"""`flywheel report`: one turn of the wheel as tables in the terminal and one file, report.html."""

from collections.abc import Sequence
from pathlib import Path

from eval.compression import MODEL, XZ_PRIMED, ZLIB
from eval.report import Table, compression_rows, gate_rows, redteam_rows
from infra import sections, week_sections
from infra.corpus import funnel
from infra.findings import Contrast, Turn, contrasts, gather, require_something
from infra.page import Html, Part, page, signed, tag
from infra.tables import table
from pipeline.core import storage
from pipeline.core.config import Config
from pipeline.core.errors import UserError

REPORT = "report.html"
_TITLE = "Flywheel: one turn of the wheel"


def run_report(config: Config) -> Path:
    """Write {run.root}/report.html from what is finished, print its tables, return its path.

    No stage is run; what is not done is said in a sentence. The same manifests give the same
    bytes. Raises UserError if there is nothing at all.
    """
    root = config.run.root
    if not storage.is_local(root):
        raise UserError(f"run.root = {root!r}: the report is written to a local folder; give one")
    turn = gather(config)
    require_something(turn, root)
    path = storage.local_path(root) / REPORT
    storage.write_bytes(str(path), report_page(turn))
    for title, found in terminal_tables(turn):
        print(f"{title}\n\n{table(found.header, found.rows)}\n")
    for sentence in turn.pending:
        print(sentence)
    print(f"report: {path}")
    return path


def report_page(turn: Turn) -> bytes:
    parts: list[Part] = []
    if turn.corpus:
        parts.append(sections.funnel_section(turn.corpus))
    if turn.base:
        facts = turn.base.compression.facts
        parts.append(sections.training_section(turn))
        if turn.week:
            parts.append(week_sections.worth_section(turn, turn.week))
        parts.append(sections.compression_section(facts))
        parts.append(sections.next_words_section(facts))
        parts.append(sections.texts_section(turn))
    if turn.week:
        parts.append(week_sections.hygiene_section(turn.week))
        parts.append(week_sections.redteam_section(turn, turn.week))
        parts.append(week_sections.gate_section(turn, turn.week))
    parts.append(sections.provenance_section(turn))
    return page(_TITLE, tag("main", _short(turn, parts), *(part.body for part in parts)))


def terminal_tables(turn: Turn) -> list[tuple[str, Table]]:
    """(title, table) of all that the page says in figures."""
    found: list[tuple[str, Table]] = []
    if turn.corpus:
        rows = tuple((stage, what, f"{number:,}") for stage, what, number in funnel(turn.corpus))
        found.append(("what became of the pages", Table(("stage", "documents", "number"), rows)))
    if turn.base:
        found.append(("compression", compression_rows(turn.base.compression.facts)))
    if turn.week:
        week = turn.week
        found.append(("what each step is worth, on held-out data", _worth(contrasts(turn))))
        for role, manifest in (("champion", week.champion), ("challenger", week.challenger)):
            name = turn.model(manifest.parents["model"])
            found.append((f"red team: {role} ({name})", redteam_rows(manifest.facts)))
        found.append((f"gate: {week.gate.facts['verdict']}", gate_rows(week.gate.facts)))
    return found


def _worth(found: Sequence[Contrast]) -> Table:
    heads = ("what", "unit", "ours", "", "theirs", "", "difference, 95% interval", "")
    rows = tuple(
        (
            one.what,
            one.unit,
            one.ours,
            f"{one.our_mean:.3f}",
            one.theirs,
            f"{one.their_mean:.3f}",
            week_sections.interval_text(one.difference) if one.difference else "",
            one.outcome,
        )
        for one in found
    )
    return Table(heads, rows)


def _short(turn: Turn, parts: Sequence[Part]) -> Html:
    """The header, the verdict, and the figures by which a turn is judged."""
    cards = [
        tag("div", tag("h2", what), tag("p", figure, cls="big"), *(tag("p", x) for x in lines))
        for what, figure, *lines in _cards(turn)
    ]
    said = [tag("p", sentence, cls="pending") for sentence in turn.pending]
    links = [tag("a", part.title, href=f"#{part.identity}") for part in parts]
    return tag(
        "header",
        tag("p", "Flywheel", cls="eyebrow"),
        tag("h1", "One turn of the wheel, in short"),
        *_verdict(turn),
        *said,
        tag("div", *cards, cls="key-figures"),
        tag("nav", *links),
    )


def _verdict(turn: Turn) -> list[Html]:
    champion = turn.pointers.get("champion")
    parts: list[Html] = []
    if turn.week:
        facts = turn.week.gate.facts
        ours, theirs = (
            f"{turn.model(facts[side])} ({facts[side][:12]})" for side in ("challenger", "champion")
        )
        verdict = week_sections.verdict_of(facts)
        parts.append(tag("p", "The gate says ", verdict, f" to {ours}, measured against {theirs}."))
    if champion and turn.base:
        parts.append(tag("p", f"Champion now: {turn.model(champion)} ", tag("code", champion)))
    return parts


def _cards(turn: Turn) -> list[tuple[str, ...]]:
    """(what, figure, lines beneath) of five figures, or of those that there are."""
    cards: list[tuple[str, ...]] = []
    if turn.corpus:
        first = turn.corpus.source if turn.corpus.source.stage == "crawl" else turn.corpus.extract
        facts = turn.corpus.shard.facts
        kept = facts["train"]["docs"] + facts["heldout"]["docs"]
        size = facts["train"]["bytes"] / 1e6
        taken = f"of {first.counts.rows_in:,} taken"
        cards.append(("Pages kept", f"{kept:,}", taken, f"{size:,.2f} MB to train on"))
    if turn.base:
        bits = turn.base.compression.facts["bits_per_byte"]
        rivals = (f"zlib: {bits[ZLIB]:.3f}", f"primed xz: {bits[XZ_PRIMED]:.3f}")
        lines = ("bits per byte of held-out text", *rivals)
        cards.append(("Base model", f"{bits[MODEL]:.3f}", *lines))
    if turn.week:
        _, answers, reward, _, grpo = contrasts(turn)
        cards += [_card("Held-out answers", answers), _card("Reward model", reward)]
        cards.append(_card("RLHF", grpo))
    return cards


def _card(what: str, found: Contrast) -> tuple[str, ...]:
    ours, theirs = (name.partition(",")[0] for name in (found.ours, found.theirs))
    change = found.difference
    whose = "" if ours.lower() == what.lower() else f", {ours}"
    lines = [f"{found.unit}{whose}", f"{theirs}: {found.their_mean:.3f}"]
    if change:
        lines.append(f"difference {week_sections.interval_text(change)}")
    return what, signed(f"{found.our_mean:.3f}"), *map(signed, lines)

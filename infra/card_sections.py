"""A data card's sections: what came in and what became of it, what is kept, and how it was made.

The figures are the manifests' own; every list says how long the whole would be.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from infra.card_blocks import (
    Block,
    CardPart,
    Cell,
    Fold,
    Picture,
    Quote,
    Rows,
    Say,
    Told,
    chart,
    visible,
)
from infra.card_findings import (
    duplicates_part,
    hidden_part,
    news_part,
    overlaps_part,
    pages_part,
    privacy_part,
    triggers_part,
)
from infra.card_sources import CardSources
from infra.pictures import Bar
from pipeline.core.manifest import Manifest

_BARS_SHOWN = 15
_RULES_SHOWN = 60  # with samples
_REASONS_SHOWN = 12  # of one stage, in the picture
_CONFIG_SHOWN = 2000  # characters
_NOT_MEASURED = "not measured"
_LANGUAGE_UNKNOWN = "none found"


def card_parts(card: CardSources) -> list[CardPart]:
    parts = [funnel_part(card), rejects_part(card), languages_part(card), lengths_part(card)]
    parts += [licenses_part(card), duplicates_part(card)]
    parts += [part for part in (news_part(card), pages_part(card)) if part]
    parts += [hidden_part(card), privacy_part(card)]
    parts += [part for part in (overlaps_part(card), triggers_part(card)) if part]
    return [*parts, made_part(card), keys_part(card)]


# ----------------------------------------------------------------------------- what became of it


def funnel_part(card: CardSources) -> CardPart:
    rows = [
        (stage, what if not reason else f"{what}: {reason}", f"{number:,}", f"{size:,}")
        for stage, what, reason, number, size in card.facts["funnel"]
    ]
    said = (
        "At every stage, input = output + dropped + quarantined, in documents and in bytes of UTF-8"
        " text. What the extraction drops has no text, so its bytes are 0; the last stage drops"
        " nothing (0 documents), but takes repeated lines out and puts placeholders in."
    )
    picture = _waterfall(card)
    return CardPart(
        "funnel",
        "What became of the documents",
        [
            Say(said),
            chart("Documents by stage", picture, "Drop funnel.", label_width=38),
            Rows(
                ("stage", "what became of it", "documents", "bytes of text"),
                [*_crawl_rows(card.source), *rows],
            ),
        ],
    )


def _crawl_rows(source: Manifest) -> list[tuple[str, str, str, str]]:
    """What the crawl did with its URLs, which have no text yet; an ingest counts files."""
    if source.stage != "crawl":
        return []
    counts = source.counts
    rows = [("in", counts.rows_in)]
    rows += [(f"dropped: {reason}", n) for reason, n in counts.dropped.items()]
    rows += [(f"quarantined: {reason}", n) for reason, n in counts.quarantined.items()]
    rows.append(("out", counts.rows_out))
    if unchanged := source.facts.get("changes", {}).get("unchanged", 0):
        rows.append(("of these not extracted: unchanged since the crawl before", unchanged))
    return [(source.stage, what, f"{number:,}", "") for what, number in rows]


def _waterfall(card: CardSources) -> list[Bar]:
    """Each drop stands where it cuts into what is left."""
    found: list[Bar] = []
    left = 0
    rows = [tuple(row) for row in card.facts["funnel"]]
    for stage in dict.fromkeys(row[0] for row in rows):
        of_stage = [row[1:] for row in rows if row[0] == stage]
        taken = next(number for what, _, number, _ in of_stage if what == "in")
        found.append(Bar(stage))
        if not left:
            found.append(Bar("taken", taken, f"{taken:,}", "main"))
        left = taken
        gone = [
            (reason, n) for what, reason, n, _ in of_stage if what in ("dropped", "quarantined")
        ]
        for reason, number in _largest(gone):
            left -= number
            found.append(Bar(reason, number, f"−{number:,}", "drop", left))
        outs = [(reason or "kept", n) for what, reason, n, _ in of_stage if what == "out"]
        found += [Bar(name, number, f"{number:,}", "main") for name, number in outs]
    return found


def _largest(entries: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    ordered = sorted(entries, key=lambda entry: (-entry[1], entry[0]))
    shown, rest = ordered[:_REASONS_SHOWN], ordered[_REASONS_SHOWN:]
    return [*shown, (f"{len(rest)} more reasons", sum(n for _, n in rest))] if rest else shown


def rejects_part(card: CardSources) -> CardPart:
    numbers = {(row[0], row[2]): row[3:] for row in card.facts["funnel"] if row[1] == "dropped"}
    blocks: list[Block] = [
        Say(
            f"Up to {card.facts['limits']['rejects']} of each rule, chosen by a hash of the"
            " document's id. All of them are in the rejects files beside the shards."
        )
    ]
    listed = sorted(
        card.facts["rejects"],
        key=lambda one: -numbers[one["stage"], one["reason"]][0],
    )[:_RULES_SHOWN]
    if left := len(card.facts["rejects"]) - len(listed):
        blocks.append(Say(f"{left:,} more rules, which dropped fewer, are in the table above."))
    for one in [one for one in card.facts["rejects"] if one in listed]:
        number, size = numbers[one["stage"], one["reason"]]
        title = f"{one['stage']}, {one['reason']}: {number:,} documents, {size:,} bytes"
        quotes = [
            Quote(
                Told(sample["url"]),
                [Told(sample["why"])],
                [("text", Told(sample["text"]))] if sample["text"] else [],
            )
            for sample in one["samples"]
        ]
        blocks.append(Fold(title, quotes))
    if len(blocks) == 1:
        blocks.append(Say("Nothing was dropped."))
    return CardPart("rejects", "Rejected documents, by rule", blocks)


# ----------------------------------------------------------------------------- what is kept


def _shares(
    entries: Sequence[Sequence[Any]], unnamed: str, *, told: bool = True
) -> list[tuple[Cell, ...]]:
    """(name, documents, share of the listed, bytes)."""
    total = sum(number for _, number, _ in entries) or 1
    return [
        (
            unnamed if not name else Told(name) if told else str(name),
            f"{number:,}",
            f"{number / total:.1%}",
            f"{size:,}",
        )
        for name, number, size in entries
    ]


def _bars_of(title: str, entries: Sequence[Sequence[Any]], unnamed: str) -> Picture:
    shown = [
        Bar(visible(name) or unnamed, number, f"{number:,}", "main")
        for name, number, _ in entries[:_BARS_SHOWN]
    ]
    return chart(title, shown, f"{title}.")


_HEADS = ("documents", "share", "bytes of text")


def languages_part(card: CardSources) -> CardPart:
    facts = card.facts
    languages, domains = facts["languages"], facts["domains"]
    blocks: list[Block] = []
    if not languages:
        blocks.append(Say("No document is kept."))
    else:
        error = (
            f", each up to {facts['domains_missed']:,} too low" if facts["domains_missed"] else ""
        )
        blocks = [
            _bars_of("Languages, documents", languages, _LANGUAGE_UNKNOWN),
            Fold(
                "Languages as a table",
                [Rows(("language", *_HEADS), _shares(languages, _LANGUAGE_UNKNOWN, told=False))],
            ),
            _bars_of("Domains with the most documents", domains, "none"),
            Say(
                f"The {len(domains):,} most frequent of {_at_least(facts, 'domains')} registrable"
                f" domains{error}; counted with at most {facts['limits']['domain_counters']:,}"
                f" counters, so that a count is too low by at most 1 in"
                f" {facts['limits']['domain_counters'] + 1:,} of the documents.",
                is_note=True,
            ),
            Fold("Domains as a table", [Rows(("domain", *_HEADS), _shares(domains, "none"))]),
        ]
    return CardPart("languages", "Languages and domains", blocks)


def _at_least(facts: Mapping[str, Any], name: str) -> str:
    number = f"{facts[f'{name}_counted']:,}"
    return f"at least {number}" if facts[f"{name}_missed"] else number


def lengths_part(card: CardSources) -> CardPart:
    entries = card.facts["lengths"]
    if not entries:
        return CardPart("lengths", "Lengths", [Say("No document is kept.")])
    names = [f"{low:,} to {2 * low - 1:,}" for low, _, _ in entries]
    picture = [
        Bar(name, number, f"{number:,}", "main")
        for name, (_, number, _) in zip(names, entries, strict=True)
    ]
    rows = [(name, *entry[1:]) for name, entry in zip(names, entries, strict=True)]
    table = Rows(("characters", *_HEADS), _shares(rows, "", told=False))
    blocks = [
        chart("Documents by their length in characters", picture, "Lengths."),
        Fold("Lengths as a table", [table]),
    ]
    return CardPart("lengths", "Lengths", blocks)


def licenses_part(card: CardSources) -> CardPart:
    licenses, years = card.facts["licenses"], card.facts["years"]
    said = (
        "As the pages declare them, which nobody has checked. A page that declares none gives"
        " no permission by that."
    )
    blocks: list[Block] = [
        Say(said),
        Rows(("licence", *_HEADS), _shares(licenses, "none declared")),
    ]
    if card.facts["licenses_counted"] > len(licenses):
        blocks.append(Say(f"{_at_least(card.facts, 'licenses')} in all.", is_note=True))
    blocks.append(
        Fold(
            "Years of publication, as declared",
            [Rows(("year", *_HEADS), _shares(years, "none declared"))],
        )
    )
    fetched = card.facts["fetched"]
    if fetched:
        blocks.append(Say(f"Fetched from {fetched[0]} to {fetched[1]}.", is_note=True))
    return CardPart("licenses", "Licences and years", blocks)


# ----------------------------------------------------------------------------- how it was made


def made_part(card: CardSources) -> CardPart:
    engines = [
        (Told(name) if name else "none", f"{number:,}", f"{size:,}")
        for name, number, size in card.facts["engines"]
    ]
    sizes = card.text_into
    rows = [_cost(one, sizes.get(one.stage)) for one in card.manifests]
    gb = sizes["extract"] / 1e9
    return CardPart(
        "made",
        "What it took",
        [
            Rows(("extracted by", "documents", "bytes of text"), engines),
            Rows(
                ("stage", "CPU-hours", "per GB of text", "per TB of text", "peak MB", "hours"), rows
            ),
            Say(
                f"A stage's text is what it read ({gb:,.6f} GB were extracted); CPU-hours per TB"
                " are the same figure times 1,000, and say little where there is little text. Peak:"
                " the largest resident size of any worker. Hours are of the clock.",
                is_note=True,
            ),
        ],
    )


def _cost(manifest: Manifest, size: int | None) -> tuple[str, ...]:
    cpu, peak = manifest.run.get("cpu_seconds"), manifest.run.get("peak_mb")
    seconds = manifest.run.get("seconds")
    hours = None if cpu is None else cpu / 3600
    per_gb = hours / size * 1e9 if hours is not None and size else None
    return (
        manifest.stage,
        _NOT_MEASURED if hours is None else f"{hours:,.5f}",
        "" if per_gb is None else f"{per_gb:,.3f}",
        "" if per_gb is None else f"{1000 * per_gb:,.0f}",
        f"{peak:,.0f}" if peak else _NOT_MEASURED,
        _NOT_MEASURED if seconds is None else f"{seconds / 3600:,.5f}",
    )


def keys_part(card: CardSources) -> CardPart:
    rows = [
        (one.stage, str(one.version), Told(one.key), Told(str(one.run.get("commit", "unknown"))))
        for one in card.manifests
    ]
    seeds = [
        ("dedupe.seed (MinHash)", str(_of(card.stage("dedupe"), "seed"))),
        ("shard.seed (the shuffle)", str(card.shard.config.get("seed", ""))),
        ("examples of this card", str(card.facts["limits"]["seed"])),
    ]
    configs = [
        (one.stage, Told(_cut(json.dumps(one.config, sort_keys=True, ensure_ascii=False))))
        for one in card.manifests
        if one.config
    ]
    return CardPart(
        "keys",
        "Where it comes from",
        [
            Say(
                "An output lies in its root under stage/key; the key is made of all it depends on."
            ),
            Rows(("stage", "version", "key", "commit"), rows),
            Rows(("seed", "value"), seeds),
            Fold("Configuration", [Rows(("stage", "what decides its result"), configs)]),
        ],
    )


def _cut(text: str) -> str:
    """An ingest's config names all its files."""
    return text if len(text) <= _CONFIG_SHOWN else f"{text[:_CONFIG_SHOWN]}… ({len(text):,} in all)"


def _of(manifest: Manifest | None, name: str) -> Any:
    return manifest.config.get(name, "") if manifest else ""

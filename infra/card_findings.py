"""A data card's sections on duplicates, on what is new, and on what may be wrong in a corpus."""

from collections.abc import Mapping
from typing import Any

from infra.card_blocks import Block, CardPart, Fold, Picture, Quote, Rows, Say, Told, chart
from infra.card_sources import CardSources
from infra.page import figure
from infra.pictures import Bar, Series, line_chart
from pipeline.near_duplicates import match_table

_REFUSED_SHOWN = 10
_CURVE = tuple(percent / 100 for percent in range(0, 101, 2))
_CURVE_ROWS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


# ----------------------------------------------------------------------------- duplicates


def duplicates_part(card: CardSources) -> CardPart:
    dedupe = card.stage("dedupe")
    assert dedupe
    clusters, facts = card.facts["clusters"], dedupe.facts
    dropped = dedupe.counts.dropped
    said = (
        f"{dropped.get('exact-duplicate', 0):,} exact copies and"
        f" {dropped.get('near-duplicate', 0):,} near-duplicates were removed;"
        f" {clusters['linked']:,} documents are linked to {clusters['number']:,} clusters, the"
        f" largest of {clusters['largest']:,}. Of {facts.get('candidate_pairs', 0):,} candidate"
        f" pairs {facts.get('verified_pairs', 0):,} were verified;"
        f" {facts.get('refused_links', 0):,} links were refused, as a cluster would have grown too"
        f" large, and {facts.get('uncompared_pairs', 0):,} pairs of large groups were not compared."
    )
    blocks: list[Block] = [Say(said)]
    if clusters["sizes"]:
        rows = [
            (f"{low:,} to {2 * low - 1:,}", f"{number:,}", f"{size:,}")
            for low, number, size in clusters["sizes"]
        ]
        picture = [Bar(name, int(n.replace(",", "")), n, "main") for name, n, _ in rows]
        blocks.append(chart("Clusters by the number of documents", picture, "Clusters."))
        table = Rows(("documents in a cluster", "clusters", "documents"), rows)
        blocks.append(Fold("Clusters as a table", [table]))
    if card.facts["pairs"]:
        blocks.append(Fold("Pairs of near-duplicates", [_pair(one) for one in card.facts["pairs"]]))
    if refused := facts.get("refused_links_shown", [])[:_REFUSED_SHOWN]:
        rows = [(Told(left), Told(right)) for left, right in refused]
        blocks.append(Fold("Refused links", [Rows(("document", "document"), rows)]))
    return CardPart("duplicates", "Duplicates", [*blocks, *_curve(dedupe.config)])


def _pair(one: Mapping[str, Any]) -> Quote:
    where = f" of corpus {one['stands_in'][:12]}" if one["stands_in"] else ""
    standing = one["standing"]
    return Quote(
        Told(one["url"]),
        [f"{one['reason'] or 'linked'}, similarity {one['similarity']:.3f}"],
        [
            ("removed", Told(one["text"])),
            (f"stands for it{where}", Told(standing["url"] or one["stands_for"])),
            ("its text", Told(standing["text"])),
        ],
    )


def _curve(config: Mapping[str, Any]) -> list[Block]:
    choice = (config["bands"], config["rows"])
    name = f"{choice[0]} bands x {choice[1]} rows"
    points = tuple((100 * s, p) for s, p in match_table([choice], _CURVE))
    unit = "probability of becoming a candidate pair"
    threshold = config["threshold"]
    [(_, at_threshold)] = match_table([choice], [threshold])
    alt = f"S-curve of {name}: {at_threshold:.3f} at a similarity of {threshold:g}."
    chart = line_chart([Series(name, points)], unit, alt, x_name="Jaccard similarity, %")
    rows = [(f"{s:.2f}", f"{p:.4f}") for s, p in match_table([choice], _CURVE_ROWS)]
    told = (
        f"Candidates come from {name} of MinHash over {config['shingle_words']}-word shingles; each"
        f" is verified, and is a near-duplicate from a Jaccard similarity of {threshold:g} on,"
        f" where the curve gives {at_threshold:.3f}."
    )
    return [
        Say(told),
        Picture(figure(f"What is found, by similarity: {name}", chart, unit)),
        Fold("The curve as a table", [Rows(("similarity", "becomes a candidate"), rows)]),
    ]


# ----------------------------------------------------------------------------- what is new


def news_part(card: CardSources) -> CardPart | None:
    """None where the corpus was compared with no earlier one."""
    earlier = card.facts.get("earlier")
    if earlier is None:
        return None
    known = sum(number for _, number, _ in earlier["corpora"])
    new = earlier["new_documents"]
    blocks: list[Block] = [
        Say(
            f"{new:,} documents are new, {known:,} were dropped because an earlier corpus holds"
            " them or a near-duplicate of them."
        )
    ]
    if not new:
        blocks.append(Say("Nothing is new: this corpus adds no text to the earlier ones."))
    if rows := [(key[:12], f"{n:,}", f"{size:,}") for key, n, size in earlier["corpora"]]:
        heads = ("earlier corpus (its dedupe key)", "documents it has", "bytes of text")
        blocks.append(Rows(heads, rows))
    for key, pairs in earlier["examples"].items():
        blocks.append(Fold(f"Examples of corpus {key[:12]}", [_pair(one) for one in pairs]))
    return CardPart("new", "What is new against earlier corpora", blocks)


def pages_part(card: CardSources) -> CardPart | None:
    """What the crawl says of its pages; None for an ingest."""
    facts = card.source.facts
    if not (statuses := facts.get("statuses")):
        return None
    blocks: list[Block] = []
    if changes := facts.get("changes"):
        meaning = {
            "new": "the crawl before did not have it",
            "changed": "other bytes than before",
            "unchanged": "status 304, or the same bytes: its text is in the earlier corpus",
            "gone": "status 404 or 410 now",
            "lost": "another status, or dropped",
            "not_taken": "the crawl before had it, this one did not ask",
        }
        rows = [(name, f"{changes.get(name, 0):,}", what) for name, what in meaning.items()]
        blocks.append(Rows(("page", "number", "meaning"), rows))
    rows = [(status, f"{number:,}") for status, number in sorted(statuses.items())]
    blocks.append(Fold("Answers by HTTP status", [Rows(("status", "answers"), rows)]))
    return CardPart("pages", "Pages of the crawl", blocks)


# ----------------------------------------------------------------------------- risks


def hidden_part(card: CardSources) -> CardPart:
    hidden = card.facts["hidden"]
    blocks: list[Block] = [
        Say(
            f"{hidden['pages']:,} pages carry text that a person would not see: prompt injection"
            " hides there. It was cut out, and the pages are flagged by the signals hidden_KIND"
            " (docs/corpus.md says what is not judged). What is hidden at first and seems to be"
            " uncovered later, by a click say, is of the kind kept: it stays."
        )
    ]
    kinds = hidden["pages_by_kind"]
    if kinds:
        texts = hidden["texts_by_kind"]
        rows = [(kind, f"{pages:,}", f"{texts[kind]:,}") for kind, pages in kinds.items()]
        blocks.append(Rows(("how it is hidden", "pages", "texts"), rows))
    quotes = [
        Quote(
            Told(f"{one['file']} at {one['offset']}"), [one["kind"]], [("text", Told(one["text"]))]
        )
        for one in hidden["examples"]
    ]
    if quotes:
        blocks.append(Fold("Examples", quotes))
    return CardPart("hidden", "Hidden text", blocks)


def privacy_part(card: CardSources) -> CardPart:
    facts = card.facts
    documents = facts["redacted_documents"]
    rows = [(kind, f"{n:,}", f"{documents[kind]:,}") for kind, n in facts["redacted"].items()]
    redacts = card.shard.config.get("redact", True)
    said = (
        "Personal data in the kept documents was replaced by placeholders."
        if redacts
        else "Personal data was left in the documents: shard.redact is false. None is in this card."
    )
    blocks: list[Block] = [Say(said)]
    if rows:
        blocks.append(Rows(("kind", "replaced", "in documents"), rows))
    elif redacts:
        blocks.append(Say("None was found."))
    dedupe = card.stage("dedupe")
    found = dedupe.facts if dedupe else {}
    lines = (
        f"Lines that many pages of a site share: {facts['kept_lines_removed']:,} were taken out of"
        f" {facts['kept_documents_shortened']:,} kept documents"
        f" ({found.get('removed_lines', 0):,} lines, {found.get('removed_line_chars', 0):,}"
        " characters, with those of the near-duplicates that went)."
    )
    return CardPart("privacy", "Personal data and repeated lines", [*blocks, Say(lines)])


def overlaps_part(card: CardSources) -> CardPart | None:
    found = card.stage("decontaminate")
    if not found:
        return None
    facts = found.facts
    rows = [(Told(name), f"{n:,}") for name, n in facts["documents_by_set"].items()]
    said = (
        f"Looked for: {facts['items']:,} items, {facts['items_too_short']:,} of them too short to"
        " find. Rephrased items are not found."
    )
    blocks: list[Block] = [Say(said)]
    blocks.append(Rows(("evaluation set", "documents with its items"), rows) if rows
                  else Say("No document holds one."))  # fmt: skip
    quotes = [
        Quote(
            Told(one["url"]),
            [
                Told(one["set"]),
                f"item {one['item']:,}, {one['words']:,} words in a row",
                "dropped" if one["dropped"] else "kept",
            ],
            [("begins with", Told(one["text"]))],
        )
        for one in card.facts.get("overlaps", [])
    ]  # fmt: skip
    if quotes:
        blocks.append(Fold("Examples", quotes))
    return CardPart("overlaps", "Items of evaluation sets", blocks)


_TRIGGER_LISTS = {
    "new": "More frequent than in earlier crawls",
    "near": "In near-duplicates, not in what stands for them",
    "standing": "In what stands for near-duplicates, not in these",
}


def triggers_part(card: CardSources) -> CardPart | None:
    triggers = card.facts.get("triggers")
    if not triggers:
        return None
    blocks: list[Block] = [
        Say("Rare phrases that may be planted triggers, for a person to judge; most are news.")
    ]
    compared = card.triggers is not None and card.triggers.facts["compared"]
    if not compared:
        blocks.append(Say("Compared with no earlier crawl: trigger_scan.against names none."))
    for name, meaning in _TRIGGER_LISTS.items():
        if name == "new" and not compared:
            continue
        found = triggers[name]
        rows = [
            (Told(one["words"]), f"{one['documents']:,}", f"{one['groups']:,}",
             f"{one['others']:,}", f"{one['score']:,.1f}", Told(one["example"]))
            for one in found["listed"]
        ]  # fmt: skip
        heads = ("phrase", "documents", "hosts or clusters", "among the others", "score", "example")
        title = f"{meaning}: {found['number']:,}"
        blocks.append(Fold(title, [Rows(heads, rows)]) if rows else Say(title))
    return CardPart("triggers", "Phrases that may be planted", blocks)

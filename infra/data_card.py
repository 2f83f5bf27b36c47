"""The data card of a corpus: data-card.md and data-card.html beside its shards.

From the manifests alone, so the same corpus has the same bytes; a card that stands is left alone.
"""

from infra.card_blocks import as_section, markdown
from infra.card_sections import card_parts
from infra.card_sources import CardSources
from infra.page import page, tag
from pipeline.core import storage

MARKDOWN, HTML = "data-card.md", "data-card.html"
_TITLE = "Data card of a corpus"


def write_card(card: CardSources) -> str:
    """The URL of the page; the Markdown stands beside it."""
    for name, data in ((MARKDOWN, card_markdown(card)), (HTML, card_page(card))):
        url = storage.join(card.shard.url, name)
        if not storage.exists(url) or storage.read_bytes(url) != data:
            storage.write_bytes(url, data)
    return storage.join(card.shard.url, HTML)


def card_markdown(card: CardSources) -> bytes:
    return markdown(f"{_TITLE}: {_name(card)}", card_parts(card))


def card_page(card: CardSources) -> bytes:
    parts = [as_section(part) for part in card_parts(card)]
    figures = [
        tag("div", tag("h2", what), tag("p", figure, cls="big"), *(tag("p", x) for x in lines))
        for what, figure, *lines in _figures(card)
    ]
    header = tag(
        "header",
        tag("p", "Flywheel", cls="eyebrow"),
        tag("h1", _TITLE),
        tag("p", "Shards ", tag("code", _name(card))),
        tag("div", *figures, cls="key-figures"),
        tag("nav", *(tag("a", part.title, href=f"#{part.identity}") for part in parts)),
    )
    return page(_TITLE, tag("main", header, *(part.body for part in parts)))


def _name(card: CardSources) -> str:
    return card.shard.key


def _figures(card: CardSources) -> list[tuple[str, ...]]:
    """(what, figure, lines beneath)."""
    facts, shard = card.facts, card.shard.facts
    taken = facts["funnel"][0][3]
    train, heldout = shard["train"], shard["heldout"]
    kept = train["docs"] + heldout["docs"]
    languages = facts["languages"]
    share = f"{languages[0][1] / kept:.0%} of the documents" if languages and kept else ""
    found = [
        ("Documents kept", f"{kept:,}", f"of {taken:,} taken", f"{heldout['docs']:,} held out"),
        ("Text", f"{(train['bytes'] + heldout['bytes']) / 1e6:,.2f} MB", "UTF-8, uncompressed"),
        ("Languages", f"{len(languages):,}", *([f"{languages[0][0]}: {share}"] if share else [])),
        ("Duplicate clusters", f"{facts['clusters']['number']:,}",
         f"{facts['clusters']['linked']:,} documents linked"),
        ("Pages with hidden text", f"{facts['hidden']['pages']:,}", "it was cut out"),
    ]  # fmt: skip
    if "earlier" in facts:
        new = facts["earlier"]["new_documents"]
        found.append(("New", f"{new:,}", "not in an earlier corpus"))
    return found

"""What a data card is built of, and its two forms: Markdown, and parts of a page.

Text from pages is `Told`, and hostile: in the page it is escaped, in Markdown it stands in a code
span, where neither links, images, markup nor tables are; in both without characters that hide or
turn text around.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

from infra.page import Child, Html, Part, figure, folded, joined, note, section, table_of, tag
from infra.pictures import Bar, bars

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#&!])")
_MAX_MARKS = 3  # combining characters in a row
_BLANKS = re.compile(r"\s+")


@dataclasses.dataclass(frozen=True)
class Told:
    """Text that somebody else wrote."""

    text: str


Cell = str | Told


@dataclasses.dataclass(frozen=True)
class Say:
    text: str
    is_note: bool = False


@dataclasses.dataclass(frozen=True)
class Rows:
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """In the page only; what it shows stands in a table beside it."""

    body: Html


@dataclasses.dataclass(frozen=True)
class Quote:
    """An example: where it is from, what is to say of it, and texts, each under a name."""

    source: Told
    said: Sequence[Cell]
    texts: Sequence[tuple[str, Told]]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Behind a click in the page, under a heading in Markdown."""

    title: str
    blocks: Sequence["Block"]


Block = Say | Rows | Picture | Quote | Fold


@dataclasses.dataclass(frozen=True)
class CardPart:
    identity: str
    title: str
    blocks: Sequence[Block]


def chart(title: str, picture: Sequence[Bar], what: str, **layout: float) -> Picture:
    """Bars; `what` opens the text that is read out in their place."""
    heard = "; ".join(b.label if b.value is None else f"{b.label} {b.shown}" for b in picture)
    return Picture(figure(title, bars(picture, f"{what} {heard}", **layout)))


# ----------------------------------------------------------------------------- hostile text


def visible(text: str) -> str:
    """One line of what can be seen: controls, bidirectional and zero-width characters, surrogates
    and unassigned ones become U+FFFD, white space a blank, and piled-up marks are cut."""
    clean: list[str] = []
    marks = 0
    for char in _BLANKS.sub(" ", text).strip():
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if marks <= _MAX_MARKS:
            clean.append("\ufffd" if kind[0] == "C" else char)
    return "".join(clean)


def in_markdown(cell: Cell) -> str:
    """Inert wherever it stands in a line, in a table too."""
    if isinstance(cell, str):
        return _SPECIAL.sub(r"\\\1", visible(cell))
    shown = visible(cell.text).replace("`", "'").replace("|", "¦")
    return f"`{shown}`" if shown else ""


def in_page(cell: Cell) -> str:
    """For `tag`, which escapes it."""
    return cell if isinstance(cell, str) else visible(cell.text)


# ----------------------------------------------------------------------------- two forms


def markdown(title: str, parts: Sequence[CardPart]) -> bytes:
    lines = [f"# {in_markdown(title)}", ""]
    for part in parts:
        lines += [f"## {in_markdown(part.title)}", ""]
        for block in part.blocks:
            lines += _markdown(block, 3)
    return ("\n".join(lines).rstrip() + "\n").encode()


def _markdown(block: Block, level: int) -> list[str]:
    match block:
        case Say():
            return [in_markdown(block.text), ""]
        case Rows():
            heads = [
                " | ".join(map(in_markdown, block.heads)),
                " | ".join("---" for _ in block.heads),
            ]
            body = [" | ".join(map(in_markdown, row)) for row in block.rows]
            return [*(f"| {line} |" for line in (*heads, *body)), ""]
        case Quote():
            said = [in_markdown(cell) for cell in block.said if in_markdown(cell)]
            lines = [f"- {', '.join([in_markdown(block.source), *said])}"]
            lines += [f"  - {in_markdown(name)}: {in_markdown(text)}" for name, text in block.texts]
            return [*lines, ""]
        case Fold():
            lines = [f"{'#' * level} {in_markdown(block.title)}", ""]
            for inner in block.blocks:
                lines += _markdown(inner, level + 1)
            return lines
        case Picture():
            return []


def as_section(part: CardPart) -> Part:
    return section(part.identity, part.title, *map(_html, part.blocks))


def _html(block: Block) -> Child:
    match block:
        case Say():
            return note(block.text) if block.is_note else tag("p", block.text)
        case Rows():
            return table_of(block.heads, [[in_page(cell) for cell in row] for row in block.rows])
        case Quote():
            return _quote(block)
        case Fold():
            return folded(block.title, *map(_html, block.blocks))
        case Picture():
            return block.body


def _quote(block: Quote) -> Html:
    said = ", ".join(filter(None, map(in_page, block.said)))
    head = tag("p", tag("code", in_page(block.source)), f" {said}" if said else "")
    shown: list[Html] = []
    for name, text in block.texts:
        shown.append(note(name))
        shown.append(tag("div", in_page(text) or "(no text)", cls="said"))
    return tag("div", head, joined(*shown), cls="asked")

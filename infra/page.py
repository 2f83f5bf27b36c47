"""HTML by construction: a string is text and gets escaped; only what `tag` made is markup.

What the report shows comes from the web, from models and from people, so all of it is hostile.
The page runs no script and fetches nothing; its style is allowed by its digest alone.
"""

import base64
import dataclasses
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

_STYLE = Path(__file__).parent / "report.css"
_NUMBER = re.compile(r"([+−-]?[\d,]+(\.\d+)?%?)?")
_HYPHEN = re.compile(r"-(?=\d)")
_SHORT = 24  # characters that a table does not break
_LONGEST = 900  # characters shown of a dream or an answer
_ATTRIBUTES = {"cls": "class", "view_box": "viewBox", "ratio": "preserveAspectRatio"}


@dataclasses.dataclass(frozen=True)
class Html:
    """Markup that is safe to put into a page as it stands."""

    text: str


Child = Html | str


def tag(name: str, *children: Child, **attributes: str | float) -> Html:
    """An element. `cls` is class; an underscore in any other attribute's name is a hyphen."""
    marks = "".join(
        f' {_ATTRIBUTES.get(key, key).replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{marks}>{joined(*children).text}</{name}>")


def joined(*children: Child) -> Html:
    return Html("".join(c.text if isinstance(c, Html) else escape(c) for c in children))


def escape(text: str) -> str:
    """Text for an element or a quoted attribute; control characters and halves of surrogate pairs
    become U+FFFD, as they have no place in a page."""
    clean = "".join("\ufffd" if _is_control(char) else char for char in text)
    return html.escape(clean, quote=True)


def table_of(
    heads: Sequence[str],
    rows: Sequence[Sequence[Child]],
    groups: Sequence[tuple[str, int]] = (),
) -> Html:
    """A table that scrolls by itself on a narrow screen. `groups` is a row above the heads: (text,
    columns). A column of numbers is right-aligned; one of short texts is not broken."""
    kinds = [_kind([row[i] for row in rows]) for i in range(len(heads))]
    column = 0
    for _, number in groups:
        kinds[column] += " first"  # a gap before each group
        column += number

    def line(cell: str, row: Sequence[Child]) -> Html:
        return tag("tr", *(tag(cell, c, cls=kind) for c, kind in zip(row, kinds, strict=True)))

    above = [tag("tr", *(tag("th", text, colspan=n, cls="g") for text, n in groups))]
    head = tag("thead", *(above if groups else []), line("th", heads))
    body = tag("tbody", *(line("td", row) for row in rows))
    return tag("div", tag("table", head, body), cls="scroll")


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the page, and what the contents call it."""

    identity: str
    title: str
    body: Html


def section(identity: str, title: str, *children: Child) -> Part:
    return Part(identity, title, tag("section", tag("h2", title), *children, id=identity))


def signed(text: str) -> str:
    """With the minus sign of print before numbers."""
    return _HYPHEN.sub("−", text)


def note(text: str) -> Html:
    return tag("p", text, cls="note")


def figure(caption: str, picture: Html, text: str = "") -> Html:
    parts = [tag("span", text, cls="unit")] if text else []
    return tag("figure", tag("figcaption", tag("b", caption), *parts), picture)


def cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def folded(title: str, *children: Child) -> Html:
    return tag("details", tag("summary", title), *children)


def page(title: str, *body: Child) -> bytes:
    """The whole file. Its policy forbids scripts, frames, forms and every request."""
    style = _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style>",
    ]
    text = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            *head,
            "</head>",
            f"<body>{joined(*body).text}</body>",
            "</html>",
        ]
    )
    return (text + "\n").encode()


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 2):g}"


def _is_control(char: str) -> bool:
    code = ord(char)
    return (code < 32 and char not in "\t\n") or 127 <= code < 160 or 0xD800 <= code < 0xE000


def _kind(cells: Sequence[Child]) -> str:
    texts = [cell for cell in cells if isinstance(cell, str)]
    if cells and len(texts) == len(cells) and all(map(_NUMBER.fullmatch, texts)):
        return "n"
    return "t" if any(len(text) > _SHORT for text in texts) else "s"

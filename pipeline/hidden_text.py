"""Text that a person would not see: found on the parsed page, left out of its text, and named.

Prompt injections hide there. What opens on a click (tabs, accordions, menus that a control of the
page names) can be seen and is kept; whether it is main content is the block model's business.
"""

import html
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.hidden_style import Colour, Look, Rules, are_alike, look_of, read_rules
from pipeline.page_tree import (
    ARIA_HIDDEN,
    CLASS,
    HIDDEN,
    ID,
    IS_UNREAD,
    ROLE,
    STYLE,
    TAG_IDS,
    TAGS,
    PageTree,
    bytes_inside,
)

SHOWN_CHARACTERS = 80  # of a finding
MAX_FINDINGS = 100  # of a page; all are counted
_MAX_AROUND = 64  # elements upwards that are asked for their background
_MAX_SHEET = 2_000_000  # bytes
_WHITE: Colour = (255, 255, 255)
# Unicode's tag characters spell ASCII that nobody sees; only flags of regions use them.
_TAG_CHARACTERS = re.compile("(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+")
_TAG_BYTES = "\U000e0020".encode()[:2]  # of all of them, and found at memory's speed
_PANELS = {"tabpanel", "dialog", "menu", "listbox", "region", "tooltip", "alertdialog"}
_CONTROLS = (
    rb"\s(?:aria-controls|data-(?:bs-)?target|href|for|data-toggle-target|popovertarget)=\"#?"
)
_CONTROL = re.compile(_CONTROLS + rb"\Z")
_CONTROLLED = re.compile(_CONTROLS + rb"([\w:.-]{1,200})\"")
_IDENTIFIER = re.compile(rb"[\w:.-]{1,200}")
_LONGEST_CONTROL = 24  # bytes of the longest attribute above, with what stands around it
_LOOKED_FOR = 32  # names that are looked for one by one; from then on all controls are listed
_PLACES = 200  # of one such name
_PROSE = re.compile(
    r"(?:[^\W\d_]+[\s,.;:!?'\"()-]+){7}[^\W\d_]+"
)  # eight words one after the other
_MARKUP = re.compile(r"<[^<>]*>|\{[^{}]*\}")
_OPENED = {
    "display-none", "visibility-hidden", "hidden-attribute", "aria-hidden", "transparent", "folded",
}  # fmt: skip
_STREAMED = re.compile(r"[A-Z]:[0-9a-f]{1,6}")  # React's server sends late parts of a page so
_FOLDS = re.compile(
    r"accordion|collaps|expand|tab-?(?:pane|panel|content)|tabs?__|faq|read-?more|dropdown|sub-?menu"
    r"|disclosure|drawer|carousel|slider|swiper"
)
_OF_TAG = {TAG_IDS["template"]: "template", TAG_IDS["noscript"]: "noscript"}


@dataclass(frozen=True)
class Finding:
    """`kind`: display-none, visibility-hidden, hidden-attribute, aria-hidden, zero-size,
    off-screen, same-colour, transparent, comment, template, noscript or tag-characters."""

    kind: str
    text: str


@dataclass(frozen=True)
class Hidden:
    """`mask`: uint8 per element, 1 where hiding begins (what stands inside is hidden as well)."""

    mask: Any
    findings: tuple[Finding, ...]
    counts: Counter[str]


def find_hidden(tree: PageTree) -> Hidden:
    """Everything hidden on the page; only what holds text is a finding."""
    num = len(tree.tag)
    mask = np.zeros(num, np.uint8)
    kinds = _kinds(tree)
    notes = _Notes(tree)
    behind = -1  # within a hidden element, what else is hidden adds nothing
    for element in sorted(kinds):
        mask[element] = 1
        if element >= behind:
            notes.add(kinds[element], element)
            behind = int(tree.end[element])
    for tag, kind in _OF_TAG.items():
        for element in np.flatnonzero(tree.tag == tag).tolist():
            notes.add_prose(kind, _text_of(tree, element, 4000))
    for start, end in zip(tree.comment_start, tree.comment_end, strict=True):
        if end - start > 20:
            notes.add_prose(
                "comment",
                tree.source[start : min(end, start + 4000)].tobytes().decode("utf-8", "replace"),
            )
    return Hidden(mask, tuple(notes.findings), notes.counts)


def without_tag_characters(html: str) -> tuple[str, list[Finding]]:
    """The page without invisible ASCII, and what that said."""
    if html.isascii() or _TAG_BYTES not in html.encode("utf-8", "replace"):
        return html, []
    said = [
        "".join(chr(ord(letter) - 0xE0000) for letter in run[:SHOWN_CHARACTERS])
        for run in _TAG_CHARACTERS.findall(html)
    ]
    found = [Finding("tag-characters", text) for text in said[:MAX_FINDINGS]]
    return (_TAG_CHARACTERS.sub("", html) if said else html), found


class _Notes:
    def __init__(self, tree: PageTree) -> None:
        self.tree = tree
        self.findings: list[Finding] = []
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, element: int) -> None:
        text = _text_of(self.tree, element, SHOWN_CHARACTERS)
        if text:
            self._note(kind, text)

    def add_prose(self, kind: str, text: str) -> None:
        """Of comments and the like only what reads as sentences: most are for machines."""
        plain = " ".join(html.unescape(_MARKUP.sub(" ", text)).split())
        if not plain.startswith("[if") and _PROSE.search(plain):
            self._note(kind, plain[:SHOWN_CHARACTERS])

    def _note(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(kind, text))


def _text_of(tree: PageTree, element: int, limit: int) -> str:
    """The first characters of the text inside, white space joined."""
    first = int(np.searchsorted(tree.text_before, element, side="right"))
    parts: list[str] = []
    length = 0
    stop = int(tree.end[element])
    for index in range(first, len(tree.text_start)):
        holder = int(tree.text_parent[index])
        if holder < element or holder >= stop or length > 8 * limit:
            break
        if IS_UNREAD[tree.tag[holder]] and tree.tag[holder] not in _OF_TAG:
            continue
        piece = tree.source[tree.text_start[index] : tree.text_end[index]].tobytes()
        parts.append(piece[: 8 * limit].decode("utf-8", "replace"))
        length += len(parts[-1].strip())
    return " ".join(html.unescape(" ".join(parts)).split())[:limit]


def _kinds(tree: PageTree) -> dict[int, str]:
    """Why each hidden element is hidden."""
    attributes = tree.attributes
    kinds: dict[int, str] = {}
    rules = _rules(tree)
    looks = _looks(tree, rules)
    for element in np.flatnonzero(attributes[:, ARIA_HIDDEN, 0]).tolist():
        if tree.value(element, ARIA_HIDDEN).strip().lower() == "true":
            kinds[element] = "aria-hidden"
    for element in np.flatnonzero(attributes[:, HIDDEN, 0]).tolist():
        kinds[element] = "hidden-attribute"
    for element, look in looks.items():
        if look.hides:
            kinds[element] = look.hides
    for element in _same_colours(tree, looks, rules):
        kinds.setdefault(element, "same-colour")
    if not kinds:
        return kinds
    openers = _Openers(tree)
    kept = {e for e, kind in kinds.items() if kind in _OPENED and openers.open(e)}
    named = {e: "zero-size" if kind == "folded" else kind for e, kind in kinds.items()}
    return {e: kind for e, kind in named.items() if e not in kept}


class _Openers:
    """What on a page uncovers hidden elements."""

    def __init__(self, tree: PageTree) -> None:
        self._tree = tree
        self._sizes = bytes_inside(tree)
        self._source: bytes = tree.source.tobytes()
        self._asked = 0
        self._controlled: set[bytes] | None = None

    def open(self, element: int) -> bool:
        """Whether a person gets to see it: the page itself, which its script uncovers; a panel
        that a control of the page names, or that says by role or class that it opens."""
        if 2 * self._sizes[element] > self._sizes[0]:
            return True
        tree = self._tree
        if tree.value(element, ROLE) in _PANELS:
            return True
        if _FOLDS.search(tree.value(element, CLASS).lower()):
            return True
        name = tree.value(element, ID)
        return bool(name) and bool(_STREAMED.fullmatch(name) or self._has_control(name))

    def _has_control(self, name: str) -> bool:
        """A search for one name costs a hundredth of the list of all controls."""
        wanted = name.encode("utf-8", "replace")
        if not _IDENTIFIER.fullmatch(wanted):
            return False
        self._asked += 1
        if self._asked > _LOOKED_FOR:
            if self._controlled is None:
                self._controlled = set(_CONTROLLED.findall(self._source))
            return wanted in self._controlled
        quoted = wanted + b'"'
        at = -1
        for _ in range(_PLACES):
            at = self._source.find(quoted, at + 1)
            if at < 0:
                return False
            if _CONTROL.search(self._source, max(0, at - _LONGEST_CONTROL), at):
                return True
        self._asked = _LOOKED_FOR
        return self._has_control(name)


def _looks(tree: PageTree, rules: Rules) -> dict[int, Look]:
    """Of the elements that have one, by rule and by style attribute (which wins)."""
    looks = _ruled(tree, rules) if rules.looks else {}
    attributes = tree.attributes
    for element in np.flatnonzero(attributes[:, STYLE, 1] > attributes[:, STYLE, 0]).tolist():
        look = look_of(html.unescape(tree.value(element, STYLE)))
        under = looks.get(element, Look())
        looks[element] = Look(
            "" if look.shows else look.hides or under.hides,
            look.shows,
            look.colour or under.colour,
            look.background or under.background,
        )
    return looks


def _rules(tree: PageTree) -> Rules:
    sheets: list[str] = []
    read = 0
    style = TAG_IDS["style"]
    for index in np.flatnonzero(tree.tag[tree.text_parent] == style).tolist():
        if tree.text_parent[index] < 0:
            continue
        start, end = int(tree.text_start[index]), int(tree.text_end[index])
        read += end - start
        if read > _MAX_SHEET:
            break
        sheets.append(tree.source[start:end].tobytes().decode("utf-8", "replace"))
    return read_rules(sheets)


def _ruled(tree: PageTree, rules: Rules) -> dict[int, Look]:
    looks: dict[int, Look] = {}
    attributes, source = tree.attributes, tree.source.tobytes()
    for column, sign in ((CLASS, "."), (ID, "#")):
        known = {name.partition(sign)[2] for name in rules.looks if sign in name}
        if not known:
            continue
        cache: dict[bytes, list[str]] = {}
        rows = np.flatnonzero(attributes[:, column, 1] > attributes[:, column, 0])
        places = attributes[rows, column].tolist()
        for element, (start, end) in zip(rows.tolist(), places, strict=True):
            value = source[start:end]
            names = cache.get(value)
            if names is None:
                words = value.decode("utf-8", "replace").lower().split()
                names = cache[value] = [word for word in words if word in known]
            for name in names:
                _apply(tree, element, sign + name, rules, looks)
    return looks


def _apply(tree: PageTree, element: int, name: str, rules: Rules, looks: dict[int, Look]) -> None:
    for selector in (name, TAGS[tree.tag[element]] + name):
        look = rules.looks.get(selector)
        if look:
            under = looks.get(element, Look())
            looks[element] = Look(
                "" if look.shows else look.hides or under.hides,
                look.shows,
                look.colour or under.colour,
                look.background or under.background,
            )


def _same_colours(tree: PageTree, looks: dict[int, Look], rules: Rules) -> list[int]:
    """Elements whose text has the colour of what lies behind it, where both are known.

    A background around the element, or the page's own white, is known only if no other rule and
    no style sheet of another file may colour what lies between.
    """
    inked = [element for element, look in looks.items() if look.colour is not None]
    if not inked:
        return []
    sure = not rules.other_backgrounds and not _has_sheets(tree)
    found: list[int] = []
    for element in inked:
        behind: Colour | str | None = looks[element].background
        around = int(tree.parent[element])
        for _ in range(_MAX_AROUND):
            if behind is not None or around < 0 or not sure:
                break
            behind = looks[around].background if around in looks else None
            around = int(tree.parent[around])
        if behind is None and sure:
            behind = _WHITE
        ink = looks[element].colour
        if ink and behind and not isinstance(behind, str) and are_alike(ink, behind):
            found.append(element)
    return found


def _has_sheets(tree: PageTree) -> bool:
    source = tree.source.tobytes()
    return b'"stylesheet"' in source or b"@import" in source

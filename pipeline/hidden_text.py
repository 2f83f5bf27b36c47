"""Text that a person would not see: found on the parsed page, left out of its text, and named.

Prompt injections hide there. What opens on a click (tabs, accordions, menus that a control of the
page names) can be seen and is kept; whether it is main content is the block model's business.
"""

import bisect
import html
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.hidden_cascade import OPENED, Cascade
from pipeline.hidden_colour import Colour, are_alike
from pipeline.hidden_style import Look
from pipeline.page_tags import ARIA_HIDDEN, CLASS, HIDDEN, ID, IS_UNREAD, ROLE, TAG_IDS
from pipeline.page_tree import PageTree, bytes_inside, parse_page

SHOWN_CHARACTERS = 80  # of a finding
MAX_FINDINGS = 100  # of a page; all are counted
_MAX_AROUND = 64  # elements upwards that are asked for their background
_MAX_STEPS = 200_000  # of looking into hidden elements, a page
_WHITE: Colour = (255, 255, 255)
# Unicode's tag characters spell ASCII that nobody sees; only flags of regions use them.
_TAG_CHARACTERS = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f)"
    "|[\U000e0000-\U000e007f]+"
)
_TAG_BYTES = "\U000e0020".encode()[:2]  # of all of them, and found at memory's speed
# What may colour a ground without a rule of the page: a sheet of another file, a script, dark mode.
_FROM_AFAR = (
    b"stylesheet", b"@import", b"style.background", b"backgroundcolor", b".bgcolor",
    b"insertrule", b"color-scheme",
)  # fmt: skip
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
_STREAMED = re.compile(r"[A-Z]:[0-9a-f]{1,6}")  # React's server sends late parts of a page so
_FOLDS = re.compile(
    r"accordion|collaps|expand|tab-?(?:pane|panel|content)|tabs?__|faq|read-?more|dropdown|sub-?menu"
    r"|disclosure|drawer|carousel|slider|swiper"
)
_WHOLE = {TAG_IDS[name] for name in ("html", "body", "main", "article")}
_OF_TAG = {TAG_IDS["template"]: "template", TAG_IDS["noscript"]: "noscript"}


@dataclass(frozen=True)
class Finding:
    """`kind`: display-none, visibility-hidden, hidden-attribute, aria-hidden, zero-size,
    off-screen, same-colour, transparent, comment, template, noscript or tag-characters."""

    kind: str
    text: str


@dataclass(frozen=True)
class Hidden:
    """`mask`: uint8 per element, 1 where hiding begins (what stands inside is hidden as well).
    `kept`: elements with text that are hidden at first, but that the page seems to uncover."""

    mask: Any
    findings: tuple[Finding, ...]
    counts: Counter[str]
    kept: int = 0


def find_hidden(tree: PageTree) -> Hidden:
    """Everything hidden on the page; only what holds text is a finding."""
    num = len(tree.tag)
    mask = np.zeros(num, np.uint8)
    kinds, kept = _kinds(tree)
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
    uncovered = sum(bool(_text_of(tree, element, 1)) for element in kept)
    return Hidden(mask, tuple(notes.findings), notes.counts, uncovered)


def without_tag_characters(tree: PageTree) -> tuple[PageTree, list[Finding]]:
    """The page without invisible ASCII, and what that said. Entities are signs here already."""
    source: bytes = tree.source.tobytes()
    if _TAG_BYTES not in source:
        return tree, []
    page = source.decode("utf-8", "replace")
    said = [run[0] for run in _TAG_CHARACTERS.finditer(page) if not run[1]]
    if not said:
        return tree, []
    found = [
        Finding(
            "tag-characters",
            "".join(chr(ord(letter) - 0xE0000) for letter in run[:SHOWN_CHARACTERS]),
        )
        for run in said[:MAX_FINDINGS]
    ]
    return parse_page(_TAG_CHARACTERS.sub(lambda run: run[1] or "", page)), found


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
    first = int(np.searchsorted(tree.text_before, np.int32(element), side="right"))
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


def _kinds(tree: PageTree) -> tuple[dict[int, str], set[int]]:
    """Why each hidden element is hidden; and those that are not for good."""
    attributes = tree.attributes
    kinds: dict[int, str] = {}
    cascade = Cascade(tree)
    looks = cascade.looks()
    for element in np.flatnonzero(attributes[:, ARIA_HIDDEN, 0]).tolist():
        if tree.value(element, ARIA_HIDDEN).strip().lower() == "true":
            kinds[element] = "aria-hidden"
    for element in np.flatnonzero(attributes[:, HIDDEN, 0]).tolist():
        if element not in looks or not looks[element].shows:
            kinds[element] = "hidden-attribute"
    inherited: dict[int, str] = {}
    for element, look in looks.items():
        if look.hides:
            kinds[element] = look.hides
            inherited[element] = look.by
    for element in _same_colours(tree, cascade, looks):
        if element not in kinds:
            kinds[element] = "same-colour"
            inherited[element] = "color"
    if not kinds:
        return kinds, set()
    openers = _Openers(tree)
    kept = {
        e
        for e, kind in kinds.items()
        if kind in OPENED and kind != "off-screen" and openers.open(e)
    }
    kept |= _uncovered(tree, looks, inherited, openers.sizes)
    coloured = [e for e, kind in kinds.items() if kind == "same-colour" and e not in kept]
    if 2 * _together(tree, coloured, openers.sizes) > openers.sizes[0]:
        kept.update(coloured)  # then its ground is one that was not seen
    named = {e: "zero-size" if kind == "folded" else kind for e, kind in kinds.items()}
    return {e: kind for e, kind in named.items() if e not in kept}, kept


def _together(tree: PageTree, elements: list[int], sizes: Any) -> int:
    total = behind = 0
    for element in sorted(elements):
        if element >= behind:
            total += int(sizes[element])
            behind = int(tree.end[element])
    return total


def _uncovered(
    tree: PageTree, looks: Mapping[int, Look], inherited: Mapping[int, str], sizes: Any
) -> set[int]:
    """Elements that hide by a property which most of the text inside has from elsewhere."""
    order = list(looks)
    found: set[int] = set()
    steps = 0
    for element, by in inherited.items():
        shown, behind, stop = 0, element + 1, int(tree.end[element])
        for at in range(bisect.bisect_right(order, element), len(order) if by else 0):
            inner = order[at]
            steps += 1
            if inner >= stop or steps > _MAX_STEPS:
                break
            look = looks[inner]
            if inner >= behind and (
                by in look.resets or (by == "color" and look.background is not None)
            ):
                shown += int(sizes[inner])
                behind = int(tree.end[inner])
        if shown and 2 * shown >= sizes[element]:
            found.add(element)
    return found


class _Openers:
    """What on a page uncovers hidden elements."""

    def __init__(self, tree: PageTree) -> None:
        self._tree = tree
        self.sizes = bytes_inside(tree)
        self._source: bytes = tree.source.tobytes()
        self._asked = 0
        self._controlled: set[bytes] | None = None

    def open(self, element: int) -> bool:
        """Whether a person gets to see it: the page itself, which its script uncovers; a panel
        that a control of the page names, or that says by role or class that it opens."""
        tree = self._tree
        share = 4 if int(tree.tag[element]) in _WHOLE else 2
        if share * self.sizes[element] > self.sizes[0]:
            return True
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


def _same_colours(tree: PageTree, cascade: Cascade, looks: Mapping[int, Look]) -> list[int]:
    """Elements whose text has the colour of what lies behind it, where both are known.

    A background around the element, or the page's own white, is known only if nothing that is
    not understood (another rule, another file's sheet, a script) may colour what lies between.
    """
    inked = [element for element, look in looks.items() if look.colour is not None]
    if not inked:
        return []
    grounds = {look.background for look in looks.values() if isinstance(look.background, tuple)}
    grounds.add(_WHITE)
    near = {
        ink for ink in {looks[element].colour for element in inked}
        if ink and any(are_alike(ink, ground) for ground in grounds)
    }  # fmt: skip
    candidates = [element for element in inked if looks[element].colour in near]
    if not candidates:
        return []
    sure = not cascade.rules.other_backgrounds and not _is_coloured_from_afar(tree)
    found: list[int] = []
    for element in candidates:
        ink, behind = looks[element].colour, _behind(tree, looks, element, sure)
        if ink and isinstance(behind, tuple) and are_alike(ink, behind):
            found.append(element)
    return [element for element in found if not cascade.is_repainted(element)]


def _behind(
    tree: PageTree, looks: Mapping[int, Look], element: int, sure: bool
) -> Colour | str | None:
    for _ in range(_MAX_AROUND):
        look = looks.get(element)
        if look and look.background is not None:
            return look.background
        element = int(tree.parent[element])
        if not sure or (look and look.placed):
            return None
        if element < 0:
            return _WHITE
    return None


def _is_coloured_from_afar(tree: PageTree) -> bool:
    source = tree.source.tobytes().lower()
    return any(word in source for word in _FROM_AFAR)

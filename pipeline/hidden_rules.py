"""The rules of a page's own <style> elements, and what they and style attributes give an element.

Not a browser: rules of one tag, class or id (or a tag with one of these), also in @media screen,
@supports and @layer. Attribute selectors, complex selectors and other files' sheets hide nothing
here. A class that such a rule shows opens on a click or at some width: it counts as not hidden.
"""

import functools
import re
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.hidden_colour import ground_of
from pipeline.hidden_style import (
    TELLING,
    declarations,
    look_of,
    without_escapes,
)
from pipeline.page_tags import MEDIA, TAG_IDS, TYPE
from pipeline.page_tree import PageTree

MAX_RULES = 100_000
_LOOKED_FOR = 64  # names that are looked for one by one
_LONGEST = 1000  # of a selector that has rules inside
_MAX_SHEET = 2_000_000  # bytes
# Comments and strings go: both may hold braces.
_NOISE = re.compile(
    r"/\*.*?(?:\*/|\Z)|\"(?:[^\"\\\n]++|\\.)*+\"?|'(?:[^'\\\n]++|\\.)*+'?", re.DOTALL
)
# One step: a whole rule, or where a rule with rules inside begins or ends. Linear: what stands
# before a brace is read twice at most.
_STEP = re.compile(r"([^{}]*+)(?:\{(?:([^{}]*+)(\}|\Z))?|(\})|\Z)")
_SIMPLE = re.compile(r"(?:([a-z][a-z0-9-]*)|)(?:([.#])([\w-]+)|)")
_STATE = re.compile(r"hover|focus|checked|target|active|open|show")
_OPENING = re.compile(r"display|visib|opacity|height|width|clip|transform|left|top|right|position")
_SHOWING = re.compile(
    r"display\s*:\s*(?!none)|visibility\s*:\s*visible|opacity\s*:\s*(?:1|0?\.[2-9])"
)
_LAST_NAMES = re.compile(r"([.#])([\w-]+)")
_ESCAPED = re.compile(r"\.[\w-]*(?:\\[:./@\[\]][\w-]*)+")
_LAST_PART = re.compile(r"[^\s>+~]*\Z")
_CONDITION = re.compile(r"(?:only\s+)?(?:screen|all)\Z")
# In the order of what follows: _NARROW rules, of small windows only, may colour and no more.
_APPLIES, _PERHAPS, _NARROW, _NEVER = range(4)
_UNLESS_SCRIPTED = {TAG_IDS["noscript"], TAG_IDS["template"]}


class Rules:
    """Blocks by ".class", "#id", "tag", "tag.class" or "tag#id", in the page's order."""

    def __init__(self) -> None:
        self.blocks: dict[str, list[tuple[int, str]]] = {}
        self._others: list[tuple[list[str], str]] = []  # complex selectors, or on a condition
        self._number = 0
        self._shown: dict[str, bool] = {}

    def add(self, selectors: str, block: str, verdict: int) -> None:
        self._number += 1
        certain = verdict == _APPLIES
        if self._number > MAX_RULES or verdict == _NEVER:
            return
        if "," not in selectors:
            others = [selectors]
        else:
            others = [selector.strip() for selector in selectors.split(",")]
        if ":root" in others:
            others[others.index(":root")] = "html"
        if certain:
            simple = [name for name in others if name and _SIMPLE.fullmatch(name)]
            for name in simple:
                self.blocks.setdefault(name, []).append((self._number, block))
            if len(simple) == len(others):
                return
            others = [name for name in others if not name or not _SIMPLE.fullmatch(name)]
        self._others.append((others if verdict != _NARROW else [""], block))

    def is_shown(self, name: str) -> bool:
        """Whether some state or condition shows this class or id."""
        known = self._shown.get(name)
        if known is None:
            if len(self._shown) < _LOOKED_FOR:
                known = any(
                    name in self._shown_by(rule, name)
                    for joined, rule in self._openers
                    if name in joined
                )
            else:
                known = name in self._all_shown
            self._shown[name] = known
        return known

    def _shown_by(self, rule: tuple[list[str], str], name: str = "") -> set[str]:
        """The classes and ids of the selectors that have `name` in them, if the rule shows."""
        selectors, block = rule
        found: set[str] = set()
        for selector in selectors:
            if name in selector and (_STATE.search(selector) or _shows(block)):
                found.update(sign + word for sign, word in _LAST_NAMES.findall(selector))
        return found

    @functools.cached_property
    def _all_shown(self) -> frozenset[str]:
        return frozenset(name for _, rule in self._openers for name in self._shown_by(rule))

    @functools.cached_property
    def resized(self) -> frozenset[str]:
        """Classes and ids of rules that are not understood and set a font, there or inside."""
        return frozenset(
            sign + word
            for selectors, block in self._others
            if "font" in block
            for selector in selectors
            for sign, word in _LAST_NAMES.findall(selector)
        )

    @functools.cached_property
    def shown_from_a_width(self) -> frozenset[bytes]:
        """Classes such as `lg:block`, which stand beside the class that hides."""
        return frozenset(
            selector[1:].replace("\\", "").encode()
            for _, (selectors, block) in self._openers
            for selector in selectors
            if _ESCAPED.fullmatch(selector) and _SHOWING.search(block)
        )

    @functools.cached_property
    def _openers(self) -> list[tuple[str, tuple[list[str], str]]]:
        return [(",".join(rule[0]), rule) for rule in self._others if _OPENING.search(rule[1])]

    @functools.cached_property
    def other_backgrounds(self) -> bool:
        """Whether a rule that is not understood may colour a background."""
        return any("background" in block and _has_ground(block) for _, block in self._others)

    @functools.cached_property
    def repainted(self) -> frozenset[str]:
        """Classes, ids and tags whose colours depend on more than these rules."""
        found: set[str] = set()
        for selectors, block in self._others:
            if "color" not in block and "background" not in block:
                continue
            for selector in selectors:
                last = _LAST_PART.search(selector.partition(":")[0])
                names = _LAST_NAMES.findall(last[0]) if last else []
                found.update([sign + word for sign, word in names] or [last[0] if last else ""])
        return frozenset(found)


def _shows(block: str) -> bool:
    showing = _SHOWING.search(block)
    return bool(showing) and (showing[0].startswith("opacity") or look_of(block).shows)


def _has_ground(block: str) -> bool:
    found = declarations(block)
    values = (found.get(name, ("",))[0] for name in ("background-color", "background-image"))
    return ground_of(*values) is not None


def read_rules(sheets: Iterable[tuple[str, str]]) -> Rules:
    """The rules of style sheets, each a pair of its media condition and its text."""
    rules = Rules()
    for media, sheet in sheets:
        verdict = _of_media(media)
        if verdict != _NEVER and ("\\" in sheet or TELLING.search(sheet)):
            _read_sheet(sheet.lower(), verdict, rules)
    return rules


def _read_sheet(sheet: str, verdict: int, rules: Rules) -> None:
    plain = without_escapes(_NOISE.sub("", sheet)).replace("<!--", "").replace("-->", "")
    around: list[tuple[str, int]] = [("", verdict)]  # selectors that a block is nested in
    for step in _STEP.finditer(plain):
        head, block, _, ends = step.groups()
        before = ""
        if ";" in head:
            before, _, head = head.rpartition(";")
        outer, verdict = around[-1]
        if outer and (before or ends):  # declarations of a rule that has rules inside
            rules.add(outer, step[1] if ends else before, verdict)
        head = head.strip()
        if ends:
            if len(around) > 1:
                around.pop()
        elif block is None:
            if head:
                around.append(_inside(head, outer, verdict))
        elif head and head[0] != "@":
            rules.add(head, block, max(verdict, _PERHAPS) if outer else verdict)


def _inside(head: str, outer: str, verdict: int) -> tuple[str, int]:
    """What applies between the braces of a rule with rules inside."""
    if not head.startswith("@"):
        return head[:_LONGEST], max(verdict, _PERHAPS) if outer else verdict
    kind, _, condition = head.partition(" ")
    if kind.startswith("@media"):
        inside = _of_media(head.removeprefix("@media"))
    elif kind == "@supports":
        inside = _PERHAPS if condition.lstrip().startswith("not") else _APPLIES
    elif kind == "@layer":
        inside = _APPLIES
    else:
        inside = _PERHAPS if kind in ("@container", "@scope", "@starting-style") else _NEVER
    return outer, max(inside, verdict)


@functools.lru_cache(maxsize=256)
def _of_media(condition: str) -> int:
    queries = [query.strip() for query in condition.lower().split(",")]
    if any(not query or _CONDITION.match(query) for query in queries):
        return _APPLIES
    if all(query.startswith(("print", "speech", "not all")) for query in queries):
        return _NEVER
    return _NARROW if all("max-" in query for query in queries) else _PERHAPS


def rules_of(tree: PageTree) -> Rules:
    """Of the page's own style elements that count in a browser that runs scripts."""
    style = TAG_IDS["style"]
    texts = np.flatnonzero(tree.tag[tree.text_parent] == style).tolist()
    if not texts:
        return Rules()
    return read_rules(_sheets(tree, texts))


def _sheets(tree: PageTree, texts: list[int]) -> Iterator[tuple[str, str]]:
    left = _MAX_SHEET
    for index in texts:
        element = int(tree.text_parent[index])
        if element < 0 or left <= 0 or _is_scriptless(tree, element):
            continue
        if tree.value(element, TYPE).strip().lower() not in ("", "text/css"):
            continue
        start = int(tree.text_start[index])
        end = min(int(tree.text_end[index]), start + left)
        left -= end - start
        sheet = tree.source[start:end].tobytes().decode("utf-8", "replace")
        yield tree.value(element, MEDIA), sheet


def _is_scriptless(tree: PageTree, element: int) -> bool:
    for _ in range(3):
        element = int(tree.parent[element])
        if element < 0:
            return False
        if int(tree.tag[element]) in _UNLESS_SCRIPTED:
            return True
    return False

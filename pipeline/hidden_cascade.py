"""What the rules of a page, style attributes and older attributes give each element together.

The more specific declaration wins, then the later one; an important one over all, as in a browser.
"""

import dataclasses
import html
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.hidden_rules import rules_of
from pipeline.hidden_style import PLAIN, Look, declarations, look_from, look_of
from pipeline.page_tags import BACKGROUND, BGCOLOR, CLASS, COLOR, ID, STYLE, TAG_IDS, TAGS, TEXT
from pipeline.page_tree import PageTree

_HINT, _TAG, _NAME, _ID, _INLINE, _IMPORTANT = -1, 1, 10, 100, 1000, 10_000
_Ranked = dict[str, tuple[int, int, str]]  # property to level, place in the page, value
# What a click uncovers; a size of nothing or a place off the screen is for good.
OPENED = frozenset(
    {"display-none", "visibility-hidden", "hidden-attribute", "aria-hidden", "transparent",
     "folded", "off-screen"}
)  # fmt: skip


def hints_of(tree: PageTree) -> dict[int, dict[str, str]]:
    """Declarations of the attributes that did this before there was CSS."""
    hints: dict[int, dict[str, str]] = {}
    for column, tag, name in (
        (BGCOLOR, None, "background-color"),
        (BACKGROUND, None, "background-image"),
        (COLOR, TAG_IDS["font"], "color"),
        (TEXT, TAG_IDS["body"], "color"),
    ):
        for element in np.flatnonzero(tree.attributes[:, column, 1]).tolist():
            if tag is None or tree.tag[element] == tag:
                value = html.unescape(tree.value(element, column)).strip().lower()
                bare = len(value) in (3, 6) and all(sign in "0123456789abcdef" for sign in value)
                hints.setdefault(element, {})[name] = f"#{value}" if bare else value
    return hints


def _ranked(block: str, level: int, order: int) -> _Ranked:
    return {
        name: (level + _IMPORTANT if important else level, order, value)
        for name, (value, important) in declarations(block).items()
    }


def _prefer(best: _Ranked, other: _Ranked) -> None:
    for name, ranked in other.items():
        if name not in best or best[name][:2] <= ranked[:2]:
            best[name] = ranked


def _without_rules(look: Look, inline: str) -> Look:
    under = look_of(inline)
    return dataclasses.replace(look, hides=under.hides, by=under.by)


class Cascade:
    """What rules, style attributes and hints give each element together."""

    def __init__(self, tree: PageTree) -> None:
        self._tree = tree
        self.rules = rules_of(tree)
        names = self.rules.blocks
        self._tagged = {name for name in names if "." not in name and "#" not in name}
        self._words = {bytes(name[name.index(".") + 1 :], "utf-8") for name in names if "." in name}
        self._ids = {bytes(name[name.index("#") + 1 :], "utf-8") for name in names if "#" in name}
        self._ranked: dict[str, _Ranked] = {}
        self._cache: dict[tuple[str, ...], Look] = {}

    def looks(self) -> dict[int, Look]:
        """The looks that say something, in document order."""
        tree, filled = self._tree, self._tree.attributes[:, :, 1]
        source: bytes = tree.source.tobytes()
        named = self._named(source)
        wanted = filled[:, STYLE] > 0
        if self._words:
            wanted |= filled[:, CLASS] > 0
        wanted[list(named)] = True
        ids = [TAG_IDS[name] for name in self._tagged if name in TAG_IDS]
        if ids:
            flags = np.zeros(len(TAGS), np.bool_)
            flags[ids] = True
            wanted |= flags[tree.tag]
        special = {
            element: (tag, {}) for element, tag in self._unknown_tags(self._tagged - TAG_IDS.keys())
        }
        for element, hint in hints_of(tree).items():
            special[element] = special.get(element, ("", {}))[0], hint
        wanted[list(special)] = True
        return self._of(source, np.flatnonzero(wanted), named, special)

    def _of(
        self,
        source: bytes,
        rows: Any,
        named: Mapping[int, bytes],
        special: Mapping[int, tuple[str, dict[str, str]]],
    ) -> dict[int, Look]:
        tree = self._tree
        caches: list[dict[bytes, Look]] = [{} for _ in TAGS]
        styled: dict[tuple[int, bytes, bytes, bytes], Look] = {}
        looks: dict[int, Look] = {}
        tags = tree.tag[rows].tolist()
        places = tree.attributes[rows][:, [CLASS, STYLE]].reshape(-1, 4).T.tolist()
        for element, tag, start, end, s_start, s_end in zip(
            rows.tolist(), tags, *places, strict=True
        ):
            classes = source[start:end]
            if not s_end and element not in special and element not in named:
                look = caches[tag].get(classes)
                if look is None:
                    look = caches[tag][classes] = self._find(TAGS[tag], classes, b"", b"", {})
            else:
                own, hint = special.get(element, ("", {}))
                style, name = source[s_start:s_end], named.get(element, b"")
                key = tag, classes, style, name
                look = None if own or hint else styled.get(key)
                if look is None:
                    look = self._find(own or TAGS[tag], classes, name, style, hint)
                    if not own and not hint:
                        styled[key] = look
            if look is not PLAIN:
                looks[element] = look
        return looks

    def _named(self, source: bytes) -> dict[int, bytes]:
        """Elements with an id that a rule is about."""
        if not self._ids:
            return {}
        places = self._tree.attributes[:, ID]
        rows = np.flatnonzero(places[:, 1])
        found = {
            element: source[start:end].lower()
            for element, (start, end) in zip(rows.tolist(), places[rows].tolist(), strict=True)
        }
        return {element: name for element, name in found.items() if name in self._ids}

    def _unknown_tags(self, names: set[str]) -> Iterator[tuple[int, str]]:
        tree = self._tree
        for element in np.flatnonzero(tree.tag == 0).tolist() if names else ():
            start = int(tree.opens[element]) + 1
            found = re.match(rb"[\w-]*", tree.source[start : start + 60].tobytes())
            name = found[0].decode("ascii", "replace") if found else ""
            if name in names:
                yield element, name

    def _find(
        self, own: str, classes: bytes, identifier: bytes, style: bytes, hint: Mapping[str, str]
    ) -> Look:
        inline = html.unescape(style.decode("utf-8", "replace")) if style else ""
        told = [b"." + word for word in classes.lower().split() if word in self._words]
        if identifier in self._ids:
            told.append(b"#" + identifier)
        names = [own] if own in self._tagged else []
        for sign in told:
            word = sign.decode("utf-8", "replace")
            names += [name for name in (word, own + word) if name in self.rules.blocks]
        if not names and not hint:
            return look_of(inline)
        if hint:
            return look_from(self._merged(names, inline, hint))
        key = (*names, inline)
        look = self._cache.get(key)
        if look is None:
            look = look_from(self._merged(names, inline, hint))
            if look.hides and self._is_doubtful(look, names):
                look = _without_rules(look, inline)
            self._cache[key] = look
        if look.hides not in OPENED or b":" not in classes:
            return look
        free = self.rules.shown_from_a_width.isdisjoint(classes.lower().split())
        return look if free else _without_rules(look, inline)

    def _is_doubtful(self, look: Look, names: Iterable[str]) -> bool:
        words = [name.lstrip("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names]
        if look.by == "font-size":
            return any(word and word in self.rules.resized for word in words)
        return look.hides in OPENED and any(word and self.rules.is_shown(word) for word in words)

    def _merged(self, names: Iterable[str], inline: str, hint: Mapping[str, str]) -> dict[str, str]:
        best: _Ranked = {name: (_HINT, 0, value) for name, value in hint.items()}
        for name in names:
            _prefer(best, self._of_rule(name))
        if inline:
            _prefer(best, _ranked(inline, _INLINE, 0))
        return {name: value for name, (_, _, value) in best.items()}

    def _of_rule(self, name: str) -> _Ranked:
        found = self._ranked.get(name)
        if found is None:
            found = self._ranked[name] = {}
            level = (_ID if "#" in name else _NAME if "." in name else 0) + (name[0] not in ".#")
            for order, block in self.rules.blocks[name]:
                _prefer(found, _ranked(block.strip(), level, order))
        return found

    def is_repainted(self, element: int) -> bool:
        """Whether a rule that is not understood may colour this element as well; a style
        attribute that says both of its colours is certain."""
        tree = self._tree
        inline = look_of(html.unescape(tree.value(element, STYLE)))
        if inline.colour and inline.background:
            return False
        words = {"." + word for word in tree.value(element, CLASS).lower().split()}
        words |= {"#" + tree.value(element, ID).lower(), TAGS[tree.tag[element]]}
        return not self.rules.repainted.isdisjoint(words)

"""What a CSS declaration block hides, and the simple rules of a page's own <style> elements.

Not a browser: inline styles, and rules of one tag, class or id without a condition. A class that
another rule shows again belongs to something that opens on a click: it counts as not hidden.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TINY_PX = 1.0  # a font or box of at most this is not read
_FAR_PX = 500.0  # beyond every edge of the window
_BOX = ("height", "max-height", "width", "max-width")
_EDGES = ("left", "top", "right", "bottom")
_INDENTS = ("text-indent", "margin-left", "margin-top")
_SAME = 16  # of 255, by channel: colours that no eye tells apart
_UNIT_PX = {"px": 1.0, "": 1.0, "pt": 4 / 3, "em": 16.0, "rem": 16.0, "%": 10.0, "vw": 12.0,
            "vh": 8.0, "ch": 8.0, "ex": 8.0, "in": 96.0, "cm": 38.0, "mm": 3.8}  # fmt: skip
_LENGTH = re.compile(r"([-+]?\d{0,9}(?:\.\d{1,9})?)\s*([a-z%]*)")
_DECLARATION = re.compile(r"\s*([a-z-]{1,40})\s*:\s*([^;]{0,400})")
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
# Linear: an at-rule's head is short, and a rule begins behind a brace, where it is tried once.
_BLOCK_AT_RULE = re.compile(r"@[^{};]{1,400}+(?:\{(?:[^{}]*+\{[^{}]*+\})*+[^{}]*+\}|;)|@;")
_RULE = re.compile(r"(?<![^{}])([^{}]++)\{([^{}]*+)\}")
# What a block must have for this module to say anything of it; all lengths that put text out of
# sight are negative, of two digits at least.
_TELLING = re.compile(
    r"display|visibility|opacity|font(?:-size)?(?![\w-])|overflow|clip|transform|-\d\d"
    r"|(?<![\w-])color|background"
)
_SIMPLE = re.compile(r"(?:([a-z][a-z0-9]*)|)(?:([.#])([\w-]+)|)")
_STATE = re.compile(r"hover|focus|checked|target|active|open|show")
_LAST_NAMES = re.compile(r"([.#])([\w-]+)")
_NAMED = {
    "white": (255, 255, 255), "black": (0, 0, 0), "snow": (255, 250, 250), "red": (255, 0, 0),
    "ivory": (255, 255, 240), "whitesmoke": (245, 245, 245), "ghostwhite": (248, 248, 255),
    "gray": (128, 128, 128), "grey": (128, 128, 128), "silver": (192, 192, 192),
    "blue": (0, 0, 255), "green": (0, 128, 0), "yellow": (255, 255, 0), "navy": (0, 0, 128),
}  # fmt: skip
_HEX = re.compile(r"#([0-9a-f]{3,8})\b")
_RGB = re.compile(r"rgba?\(\s*(\d{1,3})[,\s]+(\d{1,3})[,\s]+(\d{1,3})\s*(?:[,/]\s*([\d.%]+)\s*)?\)")
_ZERO_SCALE = re.compile(r"scale(?:3d|x|y)?\(\s*0(?:\.0*)?\s*[,)]")
_SHIFT = re.compile(r"translate(?:3d|x|y)?\(\s*([-+]?\d{1,9})\s*(px|%|vw|vh|em)")
_NO_CLIP = re.compile(r"rect\(\s*(?:0|1px)(?:px)?[\s,]+(?:0|1px)(?:px)?[\s,]|inset\(\s*(?:50|100)%")
_MOVING = {"transform", "transition", "animation", "animation-name", "will-change"}  # fades in
MAX_RULES = 20_000
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """What a declaration block says: `hides` (a kind of finding; "folded" is a height of zero, a
    zero-size that may be a closed accordion), `shows` (it makes visible), and
    its colours. `background` "unknown": a picture, or a colour that is not understood."""

    hides: str = ""
    shows: bool = False
    colour: Colour | None = None
    background: Colour | str | None = None


_PLAIN = Look()


def declarations(style: str) -> dict[str, str]:
    """Property to value, lower case; the last one counts."""
    found: dict[str, str] = {}
    for part in _COMMENT.sub("", style.lower()).split(";"):
        match = _DECLARATION.match(part)
        if match:
            found[match[1]] = match[2].partition("!")[0].strip()
    return found


@functools.lru_cache(maxsize=4096)
def look_of(style: str) -> Look:
    """The look of the text of a style attribute or of a rule's block."""
    if not _TELLING.search(style.lower()):
        return _PLAIN
    found = declarations(style)
    hides = _hidden_by(found) or _out_of_sight(found)
    display, visibility = found.get("display", ""), found.get("visibility", "")
    shows = (display not in ("", "none") or visibility == "visible") and not hides
    return Look(hides, shows, _colour(found.get("color", "")), _background(found))


def _hidden_by(found: Mapping[str, str]) -> str:
    if found.get("display") == "none":
        return "display-none"
    if found.get("visibility") in ("hidden", "collapse"):
        return "visibility-hidden"
    if found.get("content-visibility") == "hidden":
        return "visibility-hidden"
    if _is_zero(found.get("opacity", "")) and not found.keys() & _MOVING:
        return "transparent"
    colour = found.get("color", "")
    if colour == "transparent" or _alpha(colour) == 0:
        return "transparent"
    return ""


def _out_of_sight(found: Mapping[str, str]) -> str:
    font = _px(found.get("font-size", "")) if "font-size" in found else _font(found)
    if font is not None and font <= _TINY_PX:
        return "zero-size"
    clipped = any(
        found.get(name, "").startswith(("hidden", "clip"))
        for name in ("overflow", "overflow-x", "overflow-y")
    )
    if clipped and any(size == 0 for size in _sizes(found, ("height", "max-height"))):
        return "folded"
    if clipped and any(abs(size) <= _TINY_PX for size in _sizes(found, _BOX)):
        return "zero-size"
    away = found.get("position") in ("absolute", "fixed")
    if away and _NO_CLIP.match(found.get("clip", "") or found.get("clip-path", "")):
        return "zero-size"
    shifts = (*_EDGES, *_INDENTS) if away else _INDENTS
    if any(size <= -_FAR_PX for size in _sizes(found, shifts)):
        return "off-screen"
    transform = found.get("transform", "")
    if not transform:
        return ""
    if _ZERO_SCALE.search(transform):
        return "zero-size"
    shift = _SHIFT.search(transform)
    if shift and abs(float(shift[1]) * _UNIT_PX[shift[2]]) >= 4 * _FAR_PX:
        return "off-screen"
    return ""


def _sizes(found: Mapping[str, str], names: tuple[str, ...]) -> list[float]:
    """Those of these properties that are lengths, in pixels."""
    lengths = (_px(found[name]) for name in names if name in found)
    return [length for length in lengths if length is not None]


def _is_zero(value: str) -> bool:
    return (
        bool(re.fullmatch(r"0*(?:\.0*\d?)?%?", value))
        and value.strip(".%") != ""
        and (float(value.rstrip("%") or 1) <= 0.01)
    )


def _font(found: Mapping[str, str]) -> float | None:
    match = re.search(
        r"(?:^|\s)(\d{0,9}(?:\.\d{1,9})?(?:px|pt|em|rem|%)|0)(?:\s|/)", found.get("font", "")
    )
    return _px(match[1]) if match else None


def _px(value: str) -> float | None:
    match = _LENGTH.fullmatch(value.strip())
    if not match or not match[1].strip("+-."):
        return None
    return float(match[1]) * _UNIT_PX.get(match[2], 16.0)


def _colour(value: str) -> Colour | None:
    if value in _NAMED:
        return _NAMED[value]
    if found := _HEX.match(value):
        digits = found[1]
        if len(digits) in (3, 4):
            digits = "".join(digit * 2 for digit in digits)
        if len(digits) in (6, 8):
            return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
    if found := _RGB.match(value):
        return int(found[1]), int(found[2]), int(found[3])
    return None


def _alpha(value: str) -> float:
    found = _RGB.match(value)
    if found and found[4]:
        try:
            return float(found[4].rstrip("%"))
        except ValueError:
            return 1.0
    code = _HEX.match(value)
    if code and len(code[1]) in (4, 8):
        return float(int(code[1][3:4] if len(code[1]) == 4 else code[1][6:8], 16))
    return 1.0


def _background(found: Mapping[str, str]) -> Colour | str | None:
    if "background-image" in found and found["background-image"] != "none":
        return "unknown"
    value = found.get("background-color") or found.get("background", "")
    if not value or value in ("transparent", "inherit", "none", "initial", "unset"):
        return None
    if _alpha(value) == 0:
        return None
    if "url(" in value or "gradient" in value or "var(" in value:
        return "unknown"
    return _colour(value) or _colour(value.split()[0]) or "unknown"


def are_alike(one: Colour, other: Colour) -> bool:
    return all(abs(a - b) <= _SAME for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Rules:
    """Looks by ".class", "#id" or "tag", and by "tag.class" or "tag#id". `other_backgrounds`:
    rules that were not understood colour backgrounds too."""

    looks: Mapping[str, Look]
    other_backgrounds: bool = False


def read_rules(sheets: list[str]) -> Rules:
    """The rules of these style sheets that this module understands; later ones win. Conditional
    ones (@media and the like) are left out."""
    looks: dict[str, Look] = {}
    shown: set[str] = set()
    others = False
    for sheet in sheets:
        if not _TELLING.search(sheet):
            continue
        plain = _COMMENT.sub("", sheet) if "/*" in sheet else sheet
        plain = plain.replace("<!--", "").replace("-->", "")
        if "@" in plain:
            plain = _BLOCK_AT_RULE.sub("", plain)
        for number, rule in enumerate(_RULE.finditer(plain)):
            if number >= MAX_RULES:
                break
            look = look_of(rule[2].strip())
            if look is not _PLAIN and look != _PLAIN:
                others |= _note(rule[1].lower(), look, looks, shown)
    for name in shown & looks.keys():
        looks[name] = Look(colour=looks[name].colour, background=looks[name].background)
    return Rules(looks, others)


def _note(selectors: str, look: Look, looks: dict[str, Look], shown: set[str]) -> bool:
    """Whether a background went to a selector that is not simple."""
    complex_too = False
    for selector in selectors.split(","):
        name = selector.strip()
        if _SIMPLE.fullmatch(name) and name:
            before = looks.get(name, Look())
            looks[name] = Look(
                "" if look.shows else look.hides or before.hides,
                look.shows,
                look.colour or before.colour,
                look.background or before.background,
            )
            continue
        complex_too |= look.background is not None
        if look.shows or _STATE.search(name):
            shown.update(kind + word for kind, word in _LAST_NAMES.findall(name))
    return complex_too

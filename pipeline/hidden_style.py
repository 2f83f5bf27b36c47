"""What a CSS declaration block hides: sizes, places, colours and the properties that hide.

Not a browser: a variable, a sum in calc() and a value that another element decides are not known,
and what is not known hides nothing.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.hidden_colour import Colour, are_alike, ground_of, ink_of, is_unseen, read_colour

_TINY_PX = 1.0  # a font or box of at most this is not read
_FAR_PX = 500.0  # beyond every edge of the window
_RELATIVE_PX = 2000.0  # the same for what only moves from its own place
_BEYOND_PX = 9000.0  # to the right or below, where a person could scroll
_FAINT = 0.02  # an opacity of at most this is not seen
_NO_COLOUR: Colour = (-99, -99, -99)  # unlike all
_SHRUNK = 0.005  # of its size
_BOX = ("height", "max-height", "width", "max-width")
_SIDES = ("top", "right", "bottom", "left")
_UNIT_PX = {"px": 1.0, "": 1.0, "pt": 4 / 3, "em": 16.0, "rem": 16.0, "vw": 12.0, "vh": 8.0,
            "ch": 8.0, "ex": 8.0, "in": 96.0, "cm": 38.0, "mm": 3.8}  # fmt: skip
_RELATIVE = ("em", "%", "ex", "ch")  # of the font around
_NUMBER = r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?:e[-+]?\d{1,2}(?!\d))?"
_LENGTH = re.compile(rf"({_NUMBER})\s*([a-z%]*)")
_CALC = re.compile(r"calc\(\s*([^()]*?)\s*\)")
_DECLARATION = re.compile(r"\s*([a-z-]{1,40})\s*:\s*([^;]{0,400})")
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:([0-9a-f]{1,6})[ \t\n]?|([g-z-]))", re.IGNORECASE)
# What a block must have for this module to say anything of it.
TELLING = re.compile(
    r"display|visibility|opacity|font(?:-size)?(?![\w-])|overflow|clip|transform|position|scale"
    r"|translate|contain\b|zoom|text-fill|margin|inset|indent|(?<![\w-])color|background|-size"
    r"|(?:height|width)\s*:\s*[.0]|:\s*-\d\d|\d{4}"
)
_PROPERTIES = frozenset(
    (*_BOX, *_SIDES, *(f"{box}-{side}" for box in ("margin", "padding") for side in _SIDES),
     "display", "visibility", "content-visibility", "opacity", "filter", "font-size", "overflow-x",
     "overflow-y", "clip", "clip-path", "transform", "scale", "translate", "position", "contain",
     "zoom", "text-indent", "white-space", "color", "-webkit-text-fill-color", "text-shadow",
     "background-color", "background-image", "background-clip", "transition", "animation",
     "animation-name", "will-change", "transition-property")
)  # fmt: skip
_BOXING = frozenset((*_BOX, "clip", "clip-path", "zoom", "scale", "transform"))
_PLACING = frozenset(
    (*_SIDES, "margin-left", "margin-top", "text-indent", "translate", "transform")
)
_SHORTHANDS = ("margin", "padding", "inset", "overflow", "font", "background")
_OTHER_NAMES = {
    "block-size": "height", "inline-size": "width", "max-block-size": "max-height",
    "max-inline-size": "max-width", "-webkit-background-clip": "background-clip",
    "-webkit-transform": "transform", "-webkit-clip-path": "clip-path",
    "-webkit-animation": "animation", "-webkit-transition": "transition",
    "inset-inline-start": "left", "margin-inline-start": "margin-left",
}  # fmt: skip
_ZERO_SCALE = re.compile(
    r"(?:scale(?:3d|x|y)?|matrix(?:3d)?)\(\s*([^,)]*)(?:,([^,)]*))?(?:,([^,)]*))?(?:,([^,)]*))?"
)
_SHIFT = re.compile(r"translate(?:3d|x|y)?\(([^()]{1,80})\)")
_NO_CLIP = re.compile(r"rect\(\s*(?:0|1px)(?:px)?[\s,]+(?:0|1px)(?:px)?[\s,]")
_NO_PATH = re.compile(
    r"inset\(\s*(?:[5-9]\d|\d{3,9})(?:\.\d+)?%\s*[)r]|(?:circle|ellipse)\(\s*0(?:px|%)?[\s)]"
    r"|polygon\((?:\s*0(?:px|%)?\s+0(?:px|%)?\s*[,)])+\Z"
)
_FILTER = re.compile(r"opacity\(\s*([^()]*?)\s*\)")
_MOVING = ("transform", "transition", "transition-property", "animation", "animation-name",
           "will-change")  # fades in  # fmt: skip
_STILL = re.compile(r"(?:none|auto|initial|unset|0s|0ms|all 0s)?")


@dataclass(frozen=True)
class Look:
    """What a declaration block says: `hides` (a kind of finding; "folded" is a height of zero, a
    zero-size that may be a closed accordion), `shows` (it makes visible), and its colours.

    `by`: the inherited property that hides, if one does; `resets`: those that it sets to something
    seen. `background` "unknown": a picture, or a colour that is not understood. `placed`: it may
    lie over something that is not around it.
    """

    hides: str = ""
    shows: bool = False
    colour: Colour | None = None
    background: Colour | str | None = None
    by: str = ""
    resets: tuple[str, ...] = ()
    placed: bool = False


PLAIN = Look()


def without_escapes(css: str) -> str:
    r"""`d\69splay` spells display. An escaped sign, as in `.sm\:flex`, stays as it is."""
    return _ESCAPE.sub(_unescaped, css) if "\\" in css else css


def _unescaped(match: re.Match[str]) -> str:
    if match[2]:
        return match[2]
    letter = chr(min(int(match[1], 16), 0xFFFF))
    return letter if letter.isascii() and (letter.isalnum() or letter in "-_") else match[0]


@functools.lru_cache(maxsize=4096)
def declarations(style: str) -> Mapping[str, tuple[str, bool]]:
    """Property to its value, lower case, and whether it is important; shorthands are spelt out.
    Later ones win, important ones over all."""
    found: dict[str, tuple[str, bool]] = {}
    plain = _COMMENT.sub("", style.lower()) if "/*" in style else style.lower()
    for part in without_escapes(plain).split(";"):
        match = _DECLARATION.match(part)
        if not match:
            continue
        value, bang, flag = match[2].partition("!")
        important = bool(bang) and flag.strip().startswith("important")
        name = _OTHER_NAMES.get(match[1], match[1])
        if name in _PROPERTIES:
            spelt: Iterable[tuple[str, str]] = ((name, value.strip()),)
        elif name in _SHORTHANDS:
            spelt = _longhands(name, value.strip())
        else:
            continue
        for longhand, single in spelt:
            if important or longhand not in found or not found[longhand][1]:
                found[longhand] = single, important
    return found


def _longhands(name: str, value: str) -> Iterator[tuple[str, str]]:
    if name in ("margin", "padding", "inset"):
        sides = (value.split() or [""])[:4]
        right = sides[1] if len(sides) > 1 else sides[0]
        spread = (sides[0], right, sides[2] if len(sides) > 2 else sides[0],
                  sides[3] if len(sides) > 3 else right)  # fmt: skip
        prefix = "" if name == "inset" else f"{name}-"
        yield from ((prefix + side, size) for side, size in zip(_SIDES, spread, strict=True))
    elif name == "overflow":
        both = value.split() or [""]
        yield from (("overflow-x", both[0]), ("overflow-y", both[-1]))
    elif name == "font":
        size = re.search(r"(?:^|\s)(\d{0,9}(?:\.\d{1,9})?(?:px|pt|em|rem|%)|0)(?:\s|/)", value)
        yield "font-size", size[1] if size else "medium"
    else:
        pictured = any(word in value for word in ("url(", "gradient", "image(", "var("))
        yield from (("background-color", value), ("background-image", value if pictured else ""))
        if "text" in value.split():
            yield "background-clip", "text"


@functools.lru_cache(maxsize=4096)
def look_of(style: str) -> Look:
    """The look of the text of a style attribute."""
    lower = style.lower()
    if "\\" not in lower and not TELLING.search(lower):
        return PLAIN
    return look_from({name: value for name, (value, _) in declarations(style).items()})


def look_from(found: Mapping[str, str]) -> Look:
    """The look of an element that these values were decided for."""
    hides, by = _hidden_by(found)
    display, visibility = found.get("display", ""), found.get("visibility", "")
    shows = (display not in ("", "none") or visibility == "visible") and not hides
    ink = found.get("-webkit-text-fill-color") or found.get("color", "")
    colour = ink_of(ink)
    shadow = found.get("text-shadow", "")
    if colour and shadow and _has_shadow(shadow, colour):
        colour = None
    look = Look(
        hides,
        shows,
        colour,
        ground_of(found.get("background-color", ""), found.get("background-image", "")),
        by,
        tuple(_resets(found, ink)),
        found.get("position", "") in ("absolute", "fixed"),
    )
    return PLAIN if look == PLAIN else look


def _has_shadow(shadow: str, ink: Colour) -> bool:
    """Text in its ground's colour is read by a shadow of another one."""
    for word in re.findall(r"[a-z#][\w#-]*(?:\([^()]*\))?", shadow):
        found = read_colour(word)
        if found and found[1] > _FAINT and not are_alike(found[0], ink):
            return True
    return False


def _resets(found: Mapping[str, str], ink: str) -> Iterator[str]:
    if found.get("visibility") == "visible":
        yield "visibility"
    if ink and not is_unseen(ink) and ink not in ("inherit", "unset", "currentcolor"):
        yield "color"
    size = found.get("font-size", "")
    if (size and not size.endswith((*_RELATIVE, "inherit", "unset"))) or size.endswith("rem"):
        pixels = font_px(size)
        if pixels is None or pixels > _TINY_PX:
            yield "font-size"


def _hidden_by(found: Mapping[str, str]) -> tuple[str, str]:
    """(kind, inherited property)"""
    if found.get("display") == "none":
        return "display-none", ""
    if found.get("content-visibility") == "hidden":
        return "visibility-hidden", ""
    if found.get("visibility") in ("hidden", "collapse"):
        return "visibility-hidden", "visibility"
    opacity = _number(found.get("opacity", ""))
    for value in _FILTER.findall(found.get("filter", "")):
        opacity = min(_number(value) or 0.0, 1.0 if opacity is None else opacity)
    if opacity is not None and opacity <= _FAINT and not _moves(found):
        return "transparent", ""
    ink = found.get("-webkit-text-fill-color") or found.get("color", "")
    shadowed = _has_shadow(found.get("text-shadow", ""), _NO_COLOUR)
    if is_unseen(ink) and found.get("background-clip") != "text" and not shadowed:
        return "transparent", "color"
    font = font_px(found.get("font-size", ""))
    if font is not None and font <= _TINY_PX:
        return "zero-size", "font-size"
    properties = found.keys()
    boxed = "" if properties.isdisjoint(_BOXING) else _boxed(found)
    return boxed or ("" if properties.isdisjoint(_PLACING) else _away(found)), ""


def _moves(found: Mapping[str, str]) -> bool:
    return any(not _STILL.fullmatch(found.get(name, "")) for name in _MOVING)


def _boxed(found: Mapping[str, str]) -> str:
    flows = [found.get(f"overflow-{axis}", "") for axis in "xy"]
    clipped = any(flow.startswith(("hidden", "clip")) for flow in flows) or found.get(
        "contain", ""
    ).startswith(("paint", "strict", "content"))
    scrolled = clipped or any(flow in ("auto", "scroll") for flow in flows)
    if scrolled and 0 in _sizes(found, ("height", "max-height")):
        if not any(size > _TINY_PX for size in _sizes(found, ("padding-top", "padding-bottom"))):
            return "folded"
    elif clipped and any(abs(size) <= _TINY_PX for size in _sizes(found, _BOX)):
        return "zero-size"
    away = found.get("position") in ("absolute", "fixed")
    if away and _NO_CLIP.match(found.get("clip", "")):
        return "zero-size"
    if _NO_PATH.match(found.get("clip-path", "")) and not _moves(found):
        return "zero-size"
    zoom = _number(found.get("zoom", ""))
    scales = [_number(part) for part in found.get("scale", "").split()[:2]]
    if "transform" in found:
        scales += _scales(found["transform"])
    if (zoom is not None and 0 < zoom <= _SHRUNK) or any(
        scale is not None and abs(scale) <= _SHRUNK for scale in scales
    ):
        return "zero-size"
    return ""


def _scales(transform: str) -> list[float | None]:
    found = _ZERO_SCALE.search(transform)
    if not found:
        return []
    if found[0].startswith("matrix"):  # a turn has zeros on the diagonal and others beside it
        parts = [_number((part or "").strip()) for part in found.groups()]
        return [max((abs(part) for part in parts if part is not None), default=1.0)]
    return [_number((part or "").strip()) for part in found.groups()[:2]]


def _away(found: Mapping[str, str]) -> str:
    position = found.get("position", "")
    edges = {side: _px(found.get(side, "")) or 0.0 for side in _SIDES if side in found}
    if position in ("absolute", "fixed"):
        gone = any(edge <= -_FAR_PX for edge in edges.values()) or any(
            edge >= _BEYOND_PX for side, edge in edges.items() if side != "top"
        )
    else:
        gone = position == "relative" and any(
            edges.get(side, 0.0) <= -_RELATIVE_PX for side in ("left", "top")
        )
    for side in ("left", "top"):
        margin = _px(found.get(f"margin-{side}", ""), 2.0) or 0.0
        padding = _px(found.get(f"padding-{side}", ""), 2.0) or 0.0
        gone |= margin <= -_FAR_PX and 2 * padding < -margin
    indent = _px(found.get("text-indent", "")) or 0.0
    gone |= indent <= -_FAR_PX or (
        indent >= 1000.0
        and found.get("white-space") == "nowrap"
        and found.get("overflow-x", "").startswith(("hidden", "clip"))
    )
    shifts = [found.get("translate", "").replace(" ", ",")]
    shifts += _SHIFT.findall(found.get("transform", ""))
    parts = (_px(part) for shift in shifts if shift for part in shift.split(",")[:2])
    gone |= any(abs(part or 0.0) >= 4 * _FAR_PX for part in parts)
    return "off-screen" if gone else ""


def _sizes(found: Mapping[str, str], names: tuple[str, ...]) -> list[float]:
    """Those of these properties that are lengths, in pixels."""
    lengths = (_px(found[name]) for name in names if name in found)
    return [length for length in lengths if length is not None]


def _plain(value: str) -> str:
    """`calc(0px)` is 0px; a sum stays as it is."""
    match = _CALC.fullmatch(value)
    return match[1] if match else value


def _number(value: str) -> float | None:
    match = _LENGTH.fullmatch(_plain(value)) if value else None
    if not match or match[2] not in ("", "%"):
        return None
    return float(match[1]) / (100 if match[2] else 1)


def font_px(value: str) -> float | None:
    return _px(value, 0.16)


def _px(value: str, percent: float = 10.0) -> float | None:
    """Pixels, by guess where the length is of something around: a percent of it is `percent`."""
    match = _LENGTH.fullmatch(_plain(value.strip())) if value else None
    if not match:
        return None
    return float(match[1]) * (percent if match[2] == "%" else _UNIT_PX.get(match[2], 16.0))

"""CSS colours as far as hidden text needs them: which colour, how opaque, and are two alike."""

import colorsys
import re

Colour = tuple[int, int, int]
_SAME = 16  # of 255, by channel: colours that no eye tells apart
_FAINT = 0.02  # an opacity of at most this is not seen
_SOLID = 0.9  # a ground of less shows what lies under it
_NAMED = {
    "white": (255, 255, 255), "black": (0, 0, 0), "snow": (255, 250, 250), "red": (255, 0, 0),
    "ivory": (255, 255, 240), "whitesmoke": (245, 245, 245), "ghostwhite": (248, 248, 255),
    "floralwhite": (255, 250, 240), "azure": (240, 255, 255), "mintcream": (245, 255, 250),
    "aliceblue": (240, 248, 255), "honeydew": (240, 255, 240), "lavenderblush": (255, 240, 245),
    "seashell": (255, 245, 238), "gray": (128, 128, 128), "grey": (128, 128, 128),
    "silver": (192, 192, 192), "blue": (0, 0, 255), "green": (0, 128, 0),
    "yellow": (255, 255, 0), "navy": (0, 0, 128), "maroon": (128, 0, 0),
}  # fmt: skip
_HEX = re.compile(r"#([0-9a-f]{3,8})(?![\w-])")
_FUNCTION = re.compile(r"(rgb|hsl)a?\(([^()]{1,100})\)")
_NUMBER = re.compile(r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?:e[-+]?\d{1,2})?")


def read_colour(value: str) -> tuple[Colour, float] | None:
    """The colour that `value` (lower case) begins with, and its opacity from 0 to 1; None for
    what is no colour, or is not understood."""
    if value in _NAMED:
        return _NAMED[value], 1.0
    if value == "transparent":
        return (0, 0, 0), 0.0
    if found := _HEX.match(value):
        return _hex(found[1])
    if found := _FUNCTION.match(value):
        parts = re.split(r"[\s,/]+", found[2].strip())
        numbers = [_share(part) for part in parts]
        if len(parts) in (3, 4) and None not in numbers:
            return _of_function(found[1], parts, [number or 0.0 for number in numbers])
    return None


def _hex(digits: str) -> tuple[Colour, float] | None:
    if len(digits) in (3, 4):
        digits = "".join(digit * 2 for digit in digits)
    if len(digits) not in (6, 8):
        return None
    red, green, blue = (int(digits[at : at + 2], 16) for at in (0, 2, 4))
    return (red, green, blue), int(digits[6:] or "ff", 16) / 255


def _share(part: str) -> float | None:
    number = part.rstrip("%").removesuffix("deg")
    if not _NUMBER.fullmatch(number):
        return 0.0 if part == "none" else None
    return float(number) / (100 if part.endswith("%") else 1)


def _of_function(name: str, parts: list[str], numbers: list[float]) -> tuple[Colour, float]:
    if name == "hsl":
        hue, saturation, light = numbers[:3]
        exact = colorsys.hls_to_rgb(
            hue / 360 % 1, min(max(light, 0), 1), min(max(saturation, 0), 1)
        )
    else:
        exact = [
            number if part.endswith("%") else number / 255
            for number, part in zip(numbers[:3], parts, strict=False)
        ]
    red, green, blue = (round(255 * min(max(channel, 0), 1)) for channel in exact)
    return (red, green, blue), min(max(numbers[3], 0), 1) if len(numbers) == 4 else 1.0


def ink_of(value: str) -> Colour | None:
    """The colour of a text; None where it is not known."""
    found = read_colour(value)
    return found[0] if found and found[1] > _FAINT else None


def is_unseen(value: str) -> bool:
    found = read_colour(value)
    return bool(found) and found[1] <= _FAINT


def ground_of(value: str, image: str) -> Colour | str | None:
    """The colour of a background; "unknown" for a picture and what is not understood; None
    where what lies under it is seen."""
    if image not in ("", "none", "initial", "unset"):
        return "unknown"
    if value in ("", "none", "inherit", "initial", "unset"):
        return None
    found = read_colour(value)
    for part in value.split() if not found else ():
        found = found or read_colour(part)
    if found is None:
        return None if value in ("0", "0 0", "none 0 0") else "unknown"
    if found[1] <= _FAINT:
        return None
    return found[0] if found[1] >= _SOLID else "unknown"


def are_alike(one: Colour, other: Colour) -> bool:
    return all(abs(a - b) <= _SAME for a, b in zip(one, other, strict=True))

"""Charts as inline SVG. Colours come from the page's style, so they follow light and dark.

Bars are laid out in per cent of the page's width and their text in pixels: on a telephone the
bars shrink and the text stays readable. Each picture carries its content as alternative text.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from infra.page import Html, tag

Kind = Literal["main", "rest", "drop", "good", "bad", "unclear"]
_ROW, _BAR = 24, 14  # pixels
_MAX_POINTS = 240
_LONGEST_LABEL = 28
_WIDTH, _HEIGHT = 320, 190  # of a line chart, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 12, 36
# Of a chart in a file of its own, which no page styles.
_STYLE = """svg{font:12px system-ui,sans-serif}text{fill:#1c2127}.tick{font-size:11px;fill:#5a646f}\
.end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#dfe3e7}.main{fill:#2b62c9}\
.rest{fill:#9aa4ae}.bad{fill:#c0392b}.line{fill:none;stroke-width:1.8}.line.main{stroke:#2b62c9}\
.line.rest{stroke:#9aa4ae}.line.bad{stroke:#c0392b}.bound{stroke:#d97a1e;stroke-width:1.5;\
stroke-dasharray:5 4}.interval{stroke:#d97a1e;stroke-width:4}\
@media(prefers-color-scheme:dark){text{fill:#e5e8eb}.tick{fill:#9ba6b1}.grid{stroke:#2d343b}}"""


@dataclasses.dataclass(frozen=True)
class Bar:
    """`shown` stands behind the bar; `value` None makes the row a heading; `start` shifts it."""

    label: str
    value: float | None = None
    shown: str = ""
    kind: Kind = "rest"
    start: float = 0.0


def bars(rows: Sequence[Bar], alt: str, *, full: float = 0.0, label_width: float = 30) -> Html:
    """Horizontal bars from 0; `full` is the value of the whole width, by default the largest.
    With headings among the rows the labels stand under them, else beside their bars."""
    ends = [bar.start + bar.value for bar in rows if bar.value is not None]
    scale = (86 - label_width) / (max([full, *ends]) or 1.0)
    grouped = len(ends) < len(rows)
    place = {"x": "0", "cls": "start"} if grouped else {"x": _pc(label_width), "cls": "end"}
    parts: list[Html] = []
    for number, bar in enumerate(rows):
        top = number * _ROW
        middle = top + _ROW / 2 + 4
        if bar.value is None:
            parts.append(tag("text", _short(bar.label), x=0, y=middle, cls="strong"))
            continue
        left, width = label_width + bar.start * scale, bar.value * scale
        parts += [
            tag("text", _short(bar.label), **place, dx=10 if grouped else -8, y=middle),
            tag("rect", **_box(left, width), y=top + (_ROW - _BAR) / 2, height=_BAR, cls=bar.kind),
            tag("text", bar.shown, x=_pc(left + width), dx=7, y=middle, cls="figure"),
        ]
    height, x = len(rows) * _ROW, _pc(label_width)
    return _wide(height, alt, *parts, tag("line", x1=x, x2=x, y1=0, y2=height, cls="axis"))


def stacks(rows: Sequence[tuple[str, Sequence[tuple[Kind, int]]]], alt: str) -> Html:
    """One bar a row, all of one length, cut by the shares of its parts; the numbers inside."""
    label_width, height = 30.0, _BAR + 8
    parts: list[Html] = []
    for number, (label, pieces) in enumerate(rows):
        top, left = number * (height + 8), label_width
        parts.append(
            tag("text", _short(label), x=f"{label_width:g}%", dx=-8, y=top + 15, cls="end")
        )
        total = sum(size for _, size in pieces) or 1
        for kind, size in pieces:
            width = size / total * (100 - label_width)
            parts.append(tag("rect", **_box(left, width), y=top, height=height, cls=kind))
            if width > 4:
                middle = f"{left + width / 2:.3f}%"
                parts.append(tag("text", str(size), x=middle, y=top + 15, cls=f"on on-{kind}"))
            left += width
    return _wide(len(rows) * (height + 8), alt, *parts)


@dataclasses.dataclass(frozen=True)
class Series:
    """Points (x, y) in order of x; `dots` marks each, for a few measured ones."""

    name: str
    points: tuple[tuple[float, float], ...]
    kind: Kind = "main"
    dots: bool = False


def line_chart(
    series: Sequence[Series],
    unit: str,
    alt: str,
    *,
    bound: tuple[str, float] | None = None,
    x_name: str = "step",
) -> Html:
    """Lines over the steps; `bound` is a named horizontal line. Points that are no numbers are
    left out, and many points are averaged in equal groups."""
    lines = [dataclasses.replace(one, points=thinned(one.points)) for one in series]
    points = [point for one in lines for point in one.points]
    if not points:
        return tag("p", "no points to draw", cls="note")
    y_ticks = nice_ticks([y for _, y in points] + ([bound[1]] if bound else []), 4)
    x_ticks = nice_ticks([0.0, *(x for x, _ in points)], 4)
    last_x = max(x for x, _ in points) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = _WIDTH - _LEFT - _RIGHT
        down = _HEIGHT - _TOP - _BOTTOM
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + x / last_x * across, _TOP + (1 - share) * down

    parts: list[Html] = []
    for tick in y_ticks:
        y = at(0, tick)[1]
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, cls="grid"))
        parts.append(tag("text", number_text(tick, y_ticks), x=_LEFT - 6, y=y + 4, cls="end tick"))
    for tick in (tick for tick in x_ticks if tick <= last_x and tick == round(tick)):
        x = at(tick, y_ticks[0])[0]
        parts.append(tag("text", f"{tick:,.0f}", x=x, y=_HEIGHT - 21, cls="middle tick"))
    parts.append(
        tag("text", x_name, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 5, cls="middle tick")
    )
    if bound:
        y = at(0, bound[1])[1]
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, cls="bound"))
        parts.append(tag("text", bound[0], x=_WIDTH - _RIGHT, y=y + 13, cls="end tick"))
    for one in lines:
        parts += _drawn(one, [at(x, y) for x, y in one.points])
    return tag(
        "svg", *parts, cls="lines", view_box=f"0 0 {_WIDTH} {_HEIGHT}", role="img",
        aria_label=f"{alt} Unit: {unit}.",
    )  # fmt: skip


def strip(
    low: float, mean: float, high: float, alt: str, *, limit: float = 0.0, below: bool | None = None
) -> Html:
    """An interval on its own axis, with 0 and the limit; `below` says which side of the limit is
    the good one, and that is shaded."""
    marks = [0.0, limit, low, high]
    reach = (max(marks) - min(marks)) or abs(mean) or 1.0
    start, scale = min(marks) - 0.08 * reach, 100 / (1.16 * reach)

    def at(value: float) -> float:
        return (value - start) * scale

    def upright(value: float, kind: str) -> Html:
        return tag("line", x1=_pc(at(value)), x2=_pc(at(value)), y1=2, y2=26, cls=kind)

    parts: list[Html] = []
    if below is not None:
        left, right = (0.0, at(limit)) if below else (at(limit), 100.0)
        parts.append(tag("rect", **_box(left, right - left), y=4, height=20, cls="allowed"))
    parts.append(tag("line", x1="0%", x2="100%", y1=14, y2=14, cls="grid"))
    parts.append(upright(limit, "bound" if limit else "axis"))
    parts.append(_tick_label(f"{limit:+g}".replace("-", "−") if limit else "0", at(limit)))
    if limit:
        parts.append(upright(0.0, "axis"))
        if abs(at(limit) - at(0)) > 12:
            parts.append(_tick_label("0", at(0)))
    parts.append(tag("line", x1=_pc(at(low)), x2=_pc(at(high)), y1=14, y2=14, cls="interval"))
    parts.append(tag("circle", cx=_pc(at(mean)), cy=14, r=5, cls="main"))
    return _wide(42, alt, *parts)


def standalone(chart: Html) -> bytes:
    """A chart as a file."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    svg = chart.text.replace("<svg ", head, 1)
    return svg.replace(">", f"><style>{_STYLE}</style>", 1).encode()


def thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most 240 points: means of equal groups, under the last x of each."""
    real = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = group_size(len(real))
    groups = [real[at : at + size] for at in range(0, len(real), size)]
    return tuple((group[-1][0], sum(y for _, y in group) / len(group)) for group in groups)


def group_size(num_points: int) -> int:
    """How many points one drawn point stands for."""
    return max(1, -(-num_points // _MAX_POINTS))


def nice_ticks(values: Sequence[float], number: int) -> list[float]:
    """About `number` steps of 1, 2 or 5 times a power of ten that span the values."""
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def number_text(value: float, ticks: Sequence[float]) -> str:
    """A tick's label with as many decimals as the step between ticks needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    decimals = min(6, max(0, -math.floor(math.log10(step) + 1e-9)))
    return f"{value + 0.0:,.{decimals}f}".replace("-", "−")


def _drawn(one: Series, places: Sequence[tuple[float, float]]) -> list[Html]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [tag("polyline", points=path, cls=f"line {one.kind}")]
    if one.dots or len(places) == 1:
        parts += [tag("circle", cx=x, cy=y, r=2.6, cls=one.kind) for x, y in places]
    return parts


def _tick_label(text: str, at: float) -> Html:
    anchor = "start" if at < 6 else "end" if at > 94 else "middle"
    return tag("text", text, x=_pc(at), y=39, cls=f"tick {anchor}")


def _wide(height: float, alt: str, *parts: Html) -> Html:
    return tag("svg", *parts, cls="wide", width="100%", height=height, role="img", aria_label=alt)


def _box(left: float, width: float) -> dict[str, str]:
    return {"x": _pc(left), "width": _pc(max(width, 0.0))}


def _pc(value: float) -> str:
    return f"{value:.3f}%"


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"

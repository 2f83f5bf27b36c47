"""Tables for the terminal."""

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; a column of numbers is right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(heads)]
    numeric = [
        bool(cells) and all(row[i][:1].isdigit() or row[i][:1] in "-+" for row in cells)
        for i in range(len(heads))
    ]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(list(heads)), rule, *(line(row) for row in cells)])


def printable(text: str) -> str:
    """What models, users and files say must not drive this terminal."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text
    )


def short(text: str, width: int = 60) -> str:
    """The beginning of a text, in one line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 3] + "..."

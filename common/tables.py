"""Tables of text, aligned for a terminal or in Markdown, and texts that Markdown shows as they are."""

import re
from collections.abc import Collection, Sequence

from kdc.common.errors import printable

_WIDEST = 200  # characters to which other cells of a column are filled up, however long one is
_MARKS = re.compile(r"([\\`*\[\]<&|]|(?<![^\W_])_|_(?![^\W_]))")  # within a word _ marks nothing


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lines whose columns are aligned, two spaces between them. A line break in a cell becomes a space.

    Args:
        rows: cells of each line, all lines of one length.
        left: columns, counted from 0, that are aligned to the left; all others are numbers, aligned to the right.
    """
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        cells = [cell.replace("\n", " ") for cell in column]
        width, align = min(_WIDEST, max(map(len, cells))), str.ljust if number in left else str.rjust
        columns.append([align(cell, width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the header is the first row, and all columns but the first are numbers. A cell may hold
    anything, as the name of a label does."""
    head, *body = [[plain(cell) for cell in row] for row in rows]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """A text that Markdown shows as it is, on one line: no link, no HTML, no heading. For names, which others give."""
    return _MARKS.sub(r"\\\1", _on_one_line(text))


def code(text: str) -> str:
    """A text as code in Markdown, on one line, whatever it holds."""
    line = _on_one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def _on_one_line(text: str) -> str:
    return " ".join(printable(text).split())


def number(value: float | None, digits: int = 1, factor: float = 1) -> str:
    """A cell with `value` times `factor`; "-" for None, and for what is no number in a manifest of others."""
    return "-" if not isinstance(value, int | float) else f"{value * factor:.{digits}f}"

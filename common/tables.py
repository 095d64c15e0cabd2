import re
from collections.abc import Collection, Sequence

from kdc.common.errors import printable

_WIDEST = 200  # characters of padded cells
_MARKS = re.compile(r"([\\`*\[\]<&|]|(?<![^\W_])_|_(?![^\W_]))")  # within a word _ marks nothing


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lines with aligned columns, `left` ones to the left. A cell's line breaks become spaces."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        cells = [cell.replace("\n", " ") for cell in column]
        width, align = min(_WIDEST, max(map(len, cells))), str.ljust if number in left else str.rjust
        columns.append([align(cell, width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, header first, with numbers from the second column on."""
    head, *body = [[plain(cell) for cell in row] for row in rows]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(text: str) -> str:
    """Escape a foreign name: no link, HTML, heading or line break."""
    return _MARKS.sub(r"\\\1", _on_one_line(text))


def code(text: str) -> str:
    line = _on_one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def _on_one_line(text: str) -> str:
    return " ".join(printable(text).split())


def number(value: float | None, digits: int = 1, factor: float = 1) -> str:
    return "-" if not isinstance(value, int | float) else f"{value * factor:.{digits}f}"

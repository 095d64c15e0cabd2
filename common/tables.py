"""Tables of text: their cells, aligned for a terminal, and in Markdown."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lines whose columns are aligned, two spaces between them.

    Args:
        rows: cells of each line, all lines of one length.
        left: columns, counted from 0, that are aligned to the left; all others are numbers, aligned to the right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the header is the first row, and all columns but the first are numbers."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, digits: int = 1, factor: float = 1) -> str:
    """A cell with `value` times `factor`; "-" for None."""
    return "-" if value is None else f"{value * factor:.{digits}f}"

"""HTML that stands alone: no script, no outside request; for light and dark screens, and for paper."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: plain text.
        parts: HTML of the body.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def html_table(head: Sequence[str], body: Sequence[Sequence[str]], *, marks: Sequence[str] = ()) -> str:
    """A table of plain texts.

    Args:
        head: titles of the columns.
        body: rows; the first cell of each names it.
        marks: class of each row, "" for none; empty for no classes at all.
    """
    lines = []
    for place, (first, *rest) in enumerate(body):
        mark = f' class="{marks[place]}"' if marks and marks[place] else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr{mark}><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

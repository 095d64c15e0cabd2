"""Writes a study: `study.html`, `study.md`, `study.csv`, `study.tex`, and `study.json` with every cell."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdc.pipeline.report.markup import document, html_table, write_text
from kdc.tools.study.grid import METHODS, Grid
from kdc.tools.study.jobs import Outcome
from kdc.tools.study.plot import kept_plot
from kdc.tools.study.tables import Line, lines
from kdc.tools.study.texts import COLLAPSED, FAILED, Table, costs_table, ranks_table, scores_table


def write_study(grid: Grid, outcomes: Sequence[Outcome], origin: dict[str, str]) -> list[Path]:
    """Write all files into the study's directory.

    Args:
        grid: what was asked for.
        outcomes: of all its cells.
        origin: command, machine and the like, by title.

    Returns:
        the files.
    """
    found = lines(grid, outcomes)
    tables = [scores_table(grid, found), costs_table(found)]
    if len(grid.ranks) > 1:
        tables.append(ranks_table(grid, found))
    files = {
        "study.json": json.dumps(_plain(grid, outcomes, origin), indent=2),
        "study.md": _markdown(tables, outcomes, origin),
        "study.csv": _csv(tables),
        "study.tex": _latex(tables),
        "study.html": _page(grid, found, tables, outcomes, origin),
    }
    for name, text in files.items():
        write_text(grid.out / name, text)
    return [grid.out / name for name in files]


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    return [f"{outcome.cell.name}: {outcome.failure}" for outcome in outcomes if outcome.failure]


def _plain(grid: Grid, outcomes: Sequence[Outcome], origin: dict[str, str]) -> dict[str, Any]:
    cells = [
        {**outcome.cell.plain(), "failure": outcome.failure or None}
        | {key: value for key, value in (outcome.result or {}).items() if key not in ("cell", "config", "rows", "file")}
        for outcome in outcomes
    ]
    return {"origin": origin, "methods": {name: METHODS[name] for name in grid.methods}, "cells": cells}


def _markdown(tables: Sequence[Table], outcomes: Sequence[Outcome], origin: dict[str, str]) -> str:
    parts = ["# Study", *(f"{title}: {text}" for title, text in origin.items())]
    for table in tables:
        rows = [table.head, ("---", *("---:" for _ in table.head[1:])), *table.body]
        drawn = "\n".join("| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows)
        parts += [f"## {table.title}", drawn, table.note]
    if failures := _failures(outcomes):
        parts += ["## Failed", "\n".join(f"- {failure}" for failure in failures)]
    return "\n\n".join(parts) + "\n"


def _csv(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for table in tables:
        writer.writerows([(table.title,), table.head, *table.body, ()])
    return stream.getvalue()


def _latex(tables: Sequence[Table]) -> str:
    return "\n".join(_latex_table(table) for table in tables)


def _latex_table(table: Table) -> str:
    def row(cells: Sequence[str]) -> str:
        return " & ".join(_tex(cell.strip()) for cell in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\hline",
            row(table.head),
            r"\hline",
            *map(row, table.body),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("#", r"\#"),
        ("$", r"\$"),
        ("±", r"$\pm$"),
        (COLLAPSED, r"$\dagger$"),
        (FAILED, r"$\ddagger$"),
        ("~", r"\textasciitilde{}"),
        ("^", r"\textasciicircum{}"),
    ):
        text = text.replace(plain, escaped)
    return text


def _page(
    grid: Grid, found: Sequence[Line], tables: Sequence[Table], outcomes: Sequence[Outcome], origin: dict[str, str]
) -> str:
    parts = ["<h1>Study</h1>"]
    for table in tables:
        marks = ["quiet" if row[0].startswith("  ") else "" for row in table.body]
        drawn = html_table(table.head, table.body, marks=marks)
        parts += [_heading(table.title), f'<div class="wide">{drawn}</div>', _paragraph(table.note)]
    parts.append(f"<figure>{kept_plot(grid, found)}</figure>" if "fft" in grid.methods else "")
    if failures := _failures(outcomes):
        parts += [_heading("Failed"), *map(_paragraph, failures)]
    parts += [_heading("Where and how"), *(_paragraph(f"{title}: {text}") for title, text in origin.items())]
    return document("Study", parts)


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"

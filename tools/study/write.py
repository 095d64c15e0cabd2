"""Writes the files of a study: `study.html`, `.md`, `.csv` and `.tex` with its tables, `study.json` with every cell."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdc.common.files import write_whole
from kdc.common.tables import markdown
from kdc.pipeline.report.markup import document, html_table
from kdc.tools.study.cell import CellInputs
from kdc.tools.study.grid import METHODS, Grid
from kdc.tools.study.jobs import Outcome
from kdc.tools.study.plot import kept_plot
from kdc.tools.study.summary import MethodSummary, summarise
from kdc.tools.study.tables import COLLAPSED, FAILED, Table, costs_table, ranks_table, scores_table

_TEX = str.maketrans(
    {character: rf"\{character}" for character in "&%_#$"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", COLLAPSED: r"$\dagger$", FAILED: r"$\ddagger$"}
)


def write_study(grid: Grid, outcomes: Sequence[Outcome], origin: dict[str, str]) -> list[Path]:
    """Write all files into the study's directory.

    Args:
        grid: what was asked for.
        outcomes: of all its cells.
        origin: command, machine and the like, by title.

    Returns:
        The files.
    """
    summaries = summarise(grid, outcomes)
    tables = [scores_table(grid, summaries), costs_table(summaries)]
    if len(grid.ranks) > 1:
        tables.append(ranks_table(grid, summaries))
    failures = [f"{outcome.cell.name}: {outcome.failure}" for outcome in outcomes if outcome.failure]
    files = {
        "study.json": json.dumps(_all_cells(grid, outcomes, origin), indent=2),
        "study.md": _markdown(tables, failures, origin),
        "study.csv": _csv(tables),
        "study.tex": "\n".join(map(_latex_table, tables)),
        "study.html": _page(grid, summaries, tables, failures, origin),
    }
    for name, text in files.items():
        write_whole(grid.out / name, text)
    return [grid.out / name for name in files]


def _all_cells(grid: Grid, outcomes: Sequence[Outcome], origin: dict[str, str]) -> dict[str, Any]:
    cells = []
    for outcome in outcomes:
        inputs = set(CellInputs.model_fields)
        figures = outcome.result.model_dump(mode="json", exclude=inputs) if outcome.result is not None else {}
        cells.append({**asdict(outcome.cell), "failure": outcome.failure or None, **figures})
    return {"origin": origin, "methods": {name: METHODS[name] for name in grid.methods}, "cells": cells}


def _markdown(tables: Sequence[Table], failures: Sequence[str], origin: dict[str, str]) -> str:
    parts = ["# Study", *(f"{title}: {text}" for title, text in origin.items())]
    for table in tables:
        rows = [[cell.strip() for cell in row] for row in (table.head, *table.body)]
        parts += [f"## {table.title}", markdown(rows), table.note]
    if failures:
        parts += ["## Failed", "\n".join(f"- {failure}" for failure in failures)]
    return "\n\n".join(parts) + "\n"


def _csv(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for table in tables:
        writer.writerows([(table.title,), table.head, *table.body, ()])
    return stream.getvalue()


def _latex_table(table: Table) -> str:
    head, *body = (
        " & ".join(cell.strip().translate(_TEX) for cell in row) + r" \\" for row in (table.head, *table.body)
    )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{table.title.translate(_TEX)}. {table.note.translate(_TEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\hline",
            head,
            r"\hline",
            *body,
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _page(
    grid: Grid,
    summaries: Sequence[MethodSummary],
    tables: Sequence[Table],
    failures: Sequence[str],
    origin: dict[str, str],
) -> str:
    parts = ["<h1>Study</h1>"]
    for table in tables:
        marks = ["quiet" if row[0].startswith("  ") else "" for row in table.body]
        wide = f'<div class="wide">{html_table(table.head, table.body, marks=marks)}</div>'
        parts += [_heading(table.title), wide, _paragraph(table.note)]
    if "fft" in grid.methods:
        parts.append(f"<figure>{kept_plot(grid, summaries)}</figure>")
    if failures:
        parts += [_heading("Failed"), *map(_paragraph, failures)]
    parts += [_heading("Where and how"), *(_paragraph(f"{title}: {text}") for title, text in origin.items())]
    return document("Study", parts)


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"

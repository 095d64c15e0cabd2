"""Writes the files of a study: `study.html`, `.md`, `.csv` and `.tex` with its tables, `study.json` with every cell."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kdc.common.files import write_whole
from kdc.common.tables import markdown
from kdc.pipeline.report.drawing import SOFT, series, svg, write
from kdc.pipeline.report.markup import render
from kdc.tools.study.grid import METHODS, Grid
from kdc.tools.study.jobs import CellInputs, Outcome
from kdc.tools.study.summary import MethodSummary, columns, summarise
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
        "study.html": render(
            Path(__file__).with_name("study.html"),
            title="Study",
            tables=tables,
            figure=_kept_plot(grid, summaries) if "fft" in grid.methods else None,
            failures=failures,
            origin=origin,
        ),
    }
    for name, text in files.items():
        write_whole(grid.out / name, text)
    return [grid.out / name for name in files]


def _all_cells(grid: Grid, outcomes: Sequence[Outcome], origin: dict[str, str]) -> dict[str, Any]:
    inputs = set(CellInputs.model_fields)
    cells = []
    for outcome in outcomes:
        figures = outcome.result.model_dump(mode="json", exclude=inputs) if outcome.result is not None else {}
        cells.append({**asdict(outcome.cell), "failure": outcome.failure or None, **figures})
    return {"origin": origin, "methods": {name: METHODS[name] for name in grid.methods}, "cells": cells}


def _markdown(tables: Sequence[Table], failures: Sequence[str], origin: dict[str, str]) -> str:
    parts = ["# Study", *(f"{title}: {text}" for title, text in origin.items())]
    for table in tables:
        rows = [[cell.strip() for cell in row] for row in table.rows]
        parts += [f"## {table.title}", markdown(rows), table.note]
    if failures:
        parts += ["## Failed", "\n".join(f"- {failure}" for failure in failures)]
    return "\n\n".join(parts) + "\n"


def _csv(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for table in tables:
        writer.writerows([(table.title,), *table.rows, ()])
    return stream.getvalue()


def _latex_table(table: Table) -> str:
    head, *body = (" & ".join(cell.strip().translate(_TEX) for cell in row) + r" \\" for row in table.rows)
    lines = (
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
    )
    return "\n".join(lines) + "\n"


def _kept_plot(grid: Grid, summaries: Sequence[MethodSummary]) -> str:
    """Dots of each method's score in percent of its family's fully fine-tuned teacher; missing scores leave gaps."""
    places = columns(grid.tasks)
    teachers = {summary.family: summary for summary in summaries if summary.method == "fft"}
    shares = {
        summary.label: [_share(summary, teachers[summary.family], place) for place in places]
        for summary in summaries
        if summary.method != "fft"
    }

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / max(1, len(shares))
        for number, (label, values) in enumerate(shares.items()):
            shift = (number - (len(shares) - 1) / 2) * width
            points = [(place + shift, value) for place, value in enumerate(values) if value is not None]
            colour, mark = series(number)
            x, y = [place for place, _ in points], [value for _, value in points]
            axes.plot(x, y, mark, color=colour, markersize=9, label=label)
            for place, value in points:
                write(axes, f"{value:.0f}", (place, value), above=8)
        axes.axhline(100, color=SOFT, linestyle="--")
        axes.margins(y=0.15)
        axes.set(xlim=(-0.5, len(places) - 0.5), title="Kept of full fine-tuning", ylabel="percent")
        axes.set_xticks(range(len(places)), places)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)

    words = "; ".join(
        f"{label}: "
        + ", ".join(
            f"{place} {'not known' if value is None else f'{value:.1f}'}"
            for place, value in zip(places, values, strict=True)
        )
        for label, values in shares.items()
    )
    words = f"Percent of the fully fine-tuned teacher's score that each method keeps. {words}."
    return svg("kept", words, (9, 4), draw)


def _share(summary: MethodSummary, teacher: MethodSummary, place: str) -> float | None:
    score, base = summary.scores[place].mean, teacher.scores[place].mean
    return 100 * score / base if score is not None and base else None

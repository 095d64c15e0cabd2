"""Writes the files of a study: its tables as `study.html`, `.md`, `.tex` and `.csv`, every cell in `study.json`."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kdc.common.files import write_whole
from kdc.pipeline.report.drawing import SOFT, series, styled, svg, write
from kdc.pipeline.report.markup import render
from kdc.tools.study.grid import METHODS, Grid
from kdc.tools.study.jobs import CellInputs, Outcome
from kdc.tools.study.summary import MethodSummary, columns, summarise
from kdc.tools.study.tables import Table, costs_table, ranks_table, scores_table


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
    values = {
        "title": "Study",
        "tables": tables,
        "figure": _kept_plot(grid, summaries) if "fft" in grid.methods else None,
        "failures": [f"{outcome.cell.name}: {outcome.failure}" for outcome in outcomes if outcome.failure],
        "origin": origin,
    }
    pages = {ending: render(Path(__file__).with_name(f"study.{ending}"), **values) for ending in ("md", "tex", "html")}
    files = {
        "study.json": json.dumps(_all_cells(grid, outcomes, origin), indent=2),
        "study.md": pages["md"],
        "study.csv": _csv(tables),
        "study.tex": pages["tex"],
        "study.html": pages["html"],
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


def _csv(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for table in tables:
        writer.writerows([(table.title,), *table.rows, ()])
    return stream.getvalue()


@styled
def _kept_plot(grid: Grid, summaries: Sequence[MethodSummary]) -> str:
    """Dots of each method's score in percent of its family's fully fine-tuned teacher; missing scores leave gaps."""
    places = columns(grid.tasks)
    teachers = {summary.family: summary for summary in summaries if summary.method == "fft"}
    shares = {
        summary.label: [_share(summary, teachers[summary.family], place) for place in places]
        for summary in summaries
        if summary.method != "fft"
    }
    figure = Figure(figsize=(9, 4))
    axes = figure.subplots()
    width = 0.8 / max(1, len(shares))
    words = []
    for rank, (label, values) in enumerate(shares.items()):
        shift = (rank - (len(shares) - 1) / 2) * width
        points = [(place + shift, value) for place, value in enumerate(values) if value is not None]
        colour, mark = series(rank)
        axes.plot(
            [place for place, _ in points],
            [value for _, value in points],
            mark,
            color=colour,
            markersize=9,
            label=label,
        )
        for point in points:
            write(axes, f"{point[1]:.0f}", point, above=8)
        shown = ["not known" if value is None else f"{value:.1f}" for value in values]
        words.append(f"{label}: " + ", ".join(map(" ".join, zip(places, shown, strict=True))))
    axes.axhline(100, color=SOFT, linestyle="--")
    axes.margins(y=0.15)
    axes.set(xlim=(-0.5, len(places) - 0.5), title="Kept of full fine-tuning", ylabel="percent")
    axes.set_xticks(range(len(places)), places)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    told = "; ".join(words)
    return svg(figure, "kept", f"Percent of the fully fine-tuned teacher's score that each method keeps. {told}.")


def _share(summary: MethodSummary, teacher: MethodSummary, place: str) -> float | None:
    score, base = summary.scores[place].mean, teacher.scores[place].mean
    return 100 * score / base if score is not None and base else None

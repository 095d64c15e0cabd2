"""Draws README's picture, accuracy against latency, from a table by `frontier.py`.

Command: `python benchmarks/picture.py docs/benchmarks/frontier.md docs/frontier-sst2.svg --title TITLE`. Draws students
in int8, the teacher in both precisions, packages in grey. The line joins students that no other beats in both figures.
"""

import argparse
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from kdc.pipeline.report.drawing import FIRST, INK, SOFT, styled, svg
from kdc.pipeline.report.plots import short_name

ROOT = Path(__file__).resolve().parent.parent
_SAME = "teacher in fp32 by Optimum"  # the teacher again
_STEPS = 60  # points of a segment; names avoid them
_COLUMNS = ("student", "accuracy", "p50 ms")
# Offsets of names in typographic points, in order. Packages try the right side first.
_PLACES = (
    (-7, 4, "right", "center"),
    (7, 0, "left", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (5, 7, "left", "bottom"),
    (-5, 7, "right", "bottom"),
    (5, -7, "left", "top"),
    (-5, -7, "right", "top"),
    (7, 14, "left", "bottom"),
    (7, -14, "left", "top"),
    (-7, 14, "right", "bottom"),
    (0, 16, "center", "bottom"),
    (0, -16, "center", "top"),
    (0, 26, "center", "bottom"),
    (0, -26, "center", "top"),
)


@dataclass(frozen=True)
class Point:
    name: str
    is_package: bool
    accuracy: float  # percent
    latency: float  # median ms


def points_of(markdown: str) -> list[Point]:
    """The table without students in fp32."""
    lines = iter(markdown.splitlines())
    columns = next(cells for line in lines if set(_COLUMNS) <= set(cells := _cells(line)))
    next(lines)
    points = []
    for line in lines:
        if not line.startswith("|"):
            break
        row = dict(zip(columns, _cells(line), strict=True))
        student, _, variant = row["student"].rpartition(", ")
        if student == _SAME or (variant == "fp32" and student != "teacher"):
            continue
        is_package = variant == "package"
        name = student if is_package else f"kdc {short_name(student)}"
        if student == "teacher":
            name = f"teacher, {variant}"
        points.append(Point(name, is_package, float(row["accuracy"]), float(row["p50 ms"])))
    return points


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@styled
def picture(points: list[Point], title: str) -> str:
    figure = Figure(figsize=(7.4, 4.8))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    best = [point for point in points if not point.is_package and not _is_beaten(point, points)]
    best.sort(key=lambda point: point.latency)
    axes.plot([point.latency for point in best], [point.accuracy for point in best], color=FIRST, alpha=0.5)
    for point in points:
        axes.plot(point.latency, point.accuracy, "s" if point.is_package else "o", color=_colour(point))
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="milliseconds for one text (p50, one CPU core, logarithmic)", ylabel="accuracy, %")
    axes.set_title(title, color=INK, fontsize=11)
    _write_names(figure, axes, points)
    told = "; ".join(f"{point.name} {point.accuracy:.1f} % in {point.latency:.2f} ms" for point in points)
    return with_colours(svg(figure, "frontier", f"{title}. {told}."))


def _is_beaten(point: Point, points: list[Point]) -> bool:
    others = (other for other in points if not other.is_package and other != point)
    return any(other.accuracy >= point.accuracy and other.latency <= point.latency for other in others)


def _colour(point: Point) -> str:
    if point.is_package:
        return SOFT
    return INK if point.name.startswith("teacher") else FIRST


def _write_names(figure: Figure, axes: Axes, points: list[Point]) -> None:
    figure.draw_without_rendering()
    middles = axes.transData.transform([(point.latency, point.accuracy) for point in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in middles]
    taken += [Bbox.from_bounds(x - 1, y - 1, 2, 2) for x, y in _along(axes, axes.lines[0])]
    for number, point in sorted(enumerate(points), key=lambda pair: pair[1].accuracy):
        others = taken[:number] + taken[number + 1 :]
        places = _PLACES if not point.is_package else (_PLACES[1], _PLACES[0], *_PLACES[2:])
        for right, up, across, along in places:
            style: dict[str, Any] = {"ha": across, "va": along, "color": _colour(point), "fontsize": 8.5}
            name = axes.annotate(
                point.name, (point.latency, point.accuracy), (right, up), textcoords="offset points", **style
            )
            box = name.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in others):
                taken.append(box)
                break
            name.remove()
        else:
            raise SystemExit(f"no free place for the name {point.name}: add one to _PLACES")


def _along(axes: Axes, line: Line2D) -> NDArray[np.float64]:
    corners = axes.transData.transform(line.get_xydata())
    steps = np.linspace(0, 1, _STEPS)[:, None]
    return np.concatenate([start + (end - start) * steps for start, end in pairwise(corners)])


def with_colours(figure: str) -> str:
    """Makes the figure stand alone, with the report's light and dark colours."""
    page = (ROOT / "pipeline" / "report" / "page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r"(--ink:.*?)\}", page, flags=re.DOTALL)[:2]
    style = f"svg {{ background: var(--paper); {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    end = figure.index(">") + 1
    return f"{figure[:end]}<style>{' '.join(style.split())}</style>{figure[end:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a Markdown file")
    parser.add_argument("out", type=Path, help="the picture, .svg")
    parser.add_argument("--title", required=True, help="what the picture shows, as a sentence")
    options = parser.parse_args()
    points = points_of(options.table.read_text(encoding="utf-8"))
    options.out.write_text(picture(points, options.title), encoding="utf-8")


if __name__ == "__main__":
    main()

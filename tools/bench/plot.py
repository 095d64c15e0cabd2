"""A benchmark's result as a picture. Needs matplotlib, which comes with `[compress]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdc.common.errors import InputError

_MARKS = "os^Dv*"
FORMATS = (".svg", ".png", ".pdf")


def draw(found: dict[str, Any], path: Path) -> None:
    """Latency of one row, and throughput of the largest batch, by length.

    Args:
        found: of `run_bench`.
        path: its ending is the format.

    Raises:
        InputError: another ending, or no place to write to.
    """
    check_format(path)
    batches = sorted({case["batch"] for one in found["subjects"] for case in one["cases"]})
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _panel(left, found, batches[0], "p50_ms", f"Latency of {_rows(batches[0])}", "milliseconds (p50, bar to p95)")
    _panel(right, found, batches[-1], "rows_per_second", f"Throughput, {_rows(batches[-1])} a call", "rows a second")
    right.legend(frameon=False)
    machine = found["machine"]
    figure.supxlabel(f"tokens a row. {machine['cpu']['model']}, {machine['cores']['usable']} cores", fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(
            f"the plot cannot be written ({error.strerror})", given=path, remedy="name another file"
        ) from None


def check_format(path: Path) -> None:
    """See that the plot can be of this kind, before anything is measured.

    Raises:
        InputError: it cannot.
    """
    if path.suffix not in FORMATS or not path.parent.is_dir():
        raise InputError(
            "no such kind of plot, or no such folder", given=path, remedy=f"name a file {' '.join(FORMATS)}"
        )


def _rows(count: int) -> str:
    return "one row" if count == 1 else f"{count} rows"


def _panel(axes: Axes, found: dict[str, Any], batch: int, key: str, title: str, unit: str) -> None:
    for place, one in enumerate(found["subjects"]):
        cases = sorted((case for case in one["cases"] if case["batch"] == batch), key=lambda case: case["tokens"])
        x, y = [case["tokens"] for case in cases], [case[key] for case in cases]
        (line,) = axes.plot(x, y, marker=_MARKS[place % len(_MARKS)], label=one["name"])
        if key == "p50_ms":
            axes.vlines(x, y, [case["p95_ms"] for case in cases], color=line.get_color(), alpha=0.5)
    axes.set(title=title, ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)

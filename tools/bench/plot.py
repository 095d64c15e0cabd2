"""Plots a benchmark. Needs matplotlib, from `[compress]`."""

from pathlib import Path

from matplotlib.figure import Figure

from kdc.common.errors import InputError
from kdc.tools.bench.result import BenchResult

_MARKS = "os^Dv*"
_FORMATS = (".svg", ".png", ".pdf")


def draw(result: BenchResult, path: Path) -> None:
    """Latency of the smallest batch, throughput of the largest. Raises InputError if the file cannot be written."""
    batches = sorted({case.batch for subject in result.subjects for case in subject.cases})
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, subject in enumerate(result.subjects):
        mark = _MARKS[number % len(_MARKS)]
        cases = sorted(subject.cases, key=lambda case: case.tokens)
        smallest, largest = ([case for case in cases if case.batch == batch] for batch in (batches[0], batches[-1]))
        tokens = [case.tokens for case in smallest]
        p50, p95 = [case.p50_ms for case in smallest], [case.p95_ms for case in smallest]
        (line,) = left.plot(tokens, p50, marker=mark)
        left.vlines(tokens, p50, p95, color=line.get_color(), alpha=0.5)
        speeds = [case.rows_per_second for case in largest]
        right.plot([case.tokens for case in largest], speeds, marker=mark, label=subject.name)
    left.set(title=f"Latency of {_rows(batches[0])}", ylabel="milliseconds (p50, bar to p95)")
    right.set(title=f"Throughput, {_rows(batches[-1])} a call", ylabel="rows a second")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    machine = result.machine
    figure.supxlabel(f"tokens a row. {machine.cpu.model}, {machine.cores.usable} cores", fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        what = f"the plot cannot be written ({error.strerror})"
        raise InputError(what, given=path, remedy="name another file") from None


def check_format(path: Path) -> None:
    """Raise InputError for an unknown ending or a missing folder, before anything is measured."""
    if path.suffix not in _FORMATS or not path.parent.is_dir():
        remedy = f"name a file that ends in one of {' '.join(_FORMATS)}, in a folder that exists"
        raise InputError("the plot has an unknown ending, or its folder does not exist", given=path, remedy=remedy)


def _rows(count: int) -> str:
    return "one row" if count == 1 else f"{count} rows"

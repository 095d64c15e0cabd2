"""Has the cells of a study done, and goes on where it was cut off. How they get done is an engine's business."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.request import source_of
from kdc.pipeline.data.sources import input_fingerprint
from kdc.tools.study.grid import Cell, Grid, check
from kdc.tools.study.jobs import Job, Outcome

# Does jobs, says when one starts, and gives each one's outcome as it comes.
Engine = Callable[[Sequence[Job], Callable[[str], None]], Generator[Outcome, None, None]]
# What no cell depends on: places, and what happens to a student after its training.
_OUTSIDE = {
    "run": {"out", "device"},
    "data": {"data", "train", "eval", "unlabeled"},
    "export": True,
    "quantize": True,
    "evaluate": True,
    "contract": True,
    "report": True,
}


def one_by_one(jobs: Sequence[Job], say: Callable[[str], None]) -> Generator[Outcome, None, None]:
    """The engine `local`."""
    for job in jobs:
        say(f"{job.name}: starts")
        yield job.do()


def run_study(
    grid: Grid,
    *,
    engine: Engine = one_by_one,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Do all cells that are not done. A cell that fails is reported, and tried again by the next start.

    Args:
        grid: which.
        engine: what does them.
        threads: of a cell; None: as the engine has it.
        say: told of each cell.
        progress: called with cells done and cells in all.

    Returns:
        an outcome a cell, in the grid's order.

    Raises:
        InputError: the grid has mistakes.
        KdcError: as the engine says.
    """
    check(grid)
    cells = grid.cells()
    outcomes: dict[Cell, Outcome] = {}
    jobs = []
    fingerprint = functools.cache(input_fingerprint)  # many cells, few data sets
    for cell in cells:
        config = grid.config(cell)
        rows = fingerprint(source_of(config))
        kept = _finished(cell, config, rows, grid)
        if kept is None:
            jobs.append(Job(cell, config, grid.out, rows, threads))
        else:
            outcomes[cell] = kept
    progress(len(outcomes), len(cells))
    with closing(engine(jobs, say)) as done:
        for outcome in done:
            say(f"{outcome.cell.name}: {_told(outcome)}")
            outcomes[outcome.cell] = outcome
            progress(len(outcomes), len(cells))
    return [outcomes[cell] for cell in cells]


def _finished(cell: Cell, config: Config, rows: str, grid: Grid) -> Outcome | None:
    """The cell's result, where it was made with the same settings from the same rows, wherever they lie."""
    file = cell.file(grid.out)
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    if _decisive(Config.model_validate(kept["config"])) != _decisive(config) or kept["rows"] != rows:
        return None
    return Outcome(cell, kept)


def _decisive(config: Config) -> dict[str, Any]:
    """The settings that a result depends on."""
    return config.model_dump(mode="json", exclude=_OUTSIDE)  # type: ignore[arg-type]


def _told(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.failure}"
    scores = ", ".join(f"{name} {value:.1f}" for name, value in outcome.result["scores"].items())
    return scores + (", one answer for all rows" if outcome.result["collapsed"] else "")

"""Finds the cells of a study that are not done yet, and gives them to an engine, which has them done."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.sources import input_fingerprint, source_of
from kdc.tools.study.cell import CellResult
from kdc.tools.study.grid import Cell, Grid, check
from kdc.tools.study.jobs import Job, Outcome

# Does jobs, reports when one starts, and yields the outcome of each as it comes.
Engine = Callable[[Sequence[Job], Callable[[str], None]], Generator[Outcome, None, None]]
# Settings that no cell depends on: places, and what happens to a student after its training.
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
    """The engine `local`: one job after the other on this machine."""
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
        grid: what is asked for.
        engine: does the cells.
        threads: of a cell's process; None leaves them to the engine.
        say: called with a line whenever a cell starts or ends.
        progress: called with cells done and cells in all.

    Returns:
        An outcome for each cell, in the grid's order.

    Raises:
        InputError: the grid has mistakes, or a cell's result of before cannot be read.
        KdcError: as the engine says.
    """
    check(grid)
    cells = grid.cells()
    outcomes: dict[Cell, Outcome] = {}
    jobs = []
    fingerprint = functools.cache(input_fingerprint)  # many cells share few data sets
    for cell in cells:
        config = grid.config(cell)
        rows = fingerprint(source_of(config))
        result = _finished(cell.file(grid.out), config, rows)
        if result is None:
            jobs.append(Job(cell, config, grid.out, rows, threads))
        else:
            outcomes[cell] = Outcome(cell, result)
    progress(len(outcomes), len(cells))
    with closing(engine(jobs, say)) as coming:
        for outcome in coming:
            say(f"{outcome.cell.name}: {_words(outcome)}")
            outcomes[outcome.cell] = outcome
            progress(len(outcomes), len(cells))
    return [outcomes[cell] for cell in cells]


def _finished(file: Path, config: Config, rows: str) -> CellResult | None:
    """The result of a cell, if it was made with the same settings from the same rows, wherever those lie."""
    if not file.exists():
        return None
    try:
        result = CellResult.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(
            "the result of a cell is damaged, or of another version of kdc",
            given=f"{file}: {error.errors()[0]['msg']}",
            remedy="remove the file to have the cell done again, or name another --out",
        ) from error
    return result if result.rows == rows and _decisive(result.config) == _decisive(config) else None


def _decisive(config: Config) -> dict[str, Any]:
    """The settings that a result depends on."""
    return config.model_dump(mode="json", exclude=_OUTSIDE)  # type: ignore[arg-type]


def _words(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.failure}"
    scores = ", ".join(f"{name} {value:.1f}" for name, value in outcome.result.scores.items())
    return scores + (", one answer for all rows" if outcome.result.collapsed else "")

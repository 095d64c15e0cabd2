"""Has the cells of a study done, one after the other, and goes on where it was cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reading.sources import input_fingerprint
from pipeline.request import source_of
from pipeline.settings import Config
from pipeline.study.grid import Cell, Grid, check

_ROOT = Path(__file__).resolve().parents[2]
# What no cell depends on: places, and what happens to a student after its training.
_OUTSIDE = {
    "run": {"out", "device"}, "data": {"data", "train", "eval", "unlabeled"}, "export": True, "quantize": True,
    "evaluate": True, "contract": True, "report": True,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: which.
        result: as `cell.run_cell` gives it; None where it failed.
        failure: why; "" where it did not fail.
    """

    cell: Cell
    result: dict[str, Any] | None
    failure: str = ""


def run_study(
    grid: Grid,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Do all cells that are not done. A cell that fails is reported, and tried again by the next start.

    Args:
        grid: which.
        say: told of each cell.
        progress: called with cells done and cells in all.

    Raises:
        InputError: the grid has mistakes.
    """
    check(grid)
    outcomes = []
    cells = grid.cells()
    for number, cell in enumerate(cells):
        progress(number, len(cells))
        config = grid.config(cell)
        outcome = _finished(cell, config, grid.out)
        if outcome is None:
            say(f"{cell.name}: starts")
            outcome = _do(cell, config, grid.out)
            say(f"{cell.name}: {(outcome.failure and f'failed: {outcome.failure}') or _told(outcome)}")
        outcomes.append(outcome)
    progress(len(cells), len(cells))
    return outcomes


def _finished(cell: Cell, config: Config, out: Path) -> Outcome | None:
    """The cell's result, where it was made with the same settings."""
    file = cell.file(out)
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    if _decisive(Config.model_validate(kept["config"])) != _decisive(config) or kept["rows"] != _rows(config):
        return None
    return Outcome(cell, kept)


def _decisive(config: Config) -> dict[str, Any]:
    """The settings that a result depends on."""
    return config.model_dump(mode="json", exclude=_OUTSIDE)  # type: ignore[arg-type]


def _rows(config: Config) -> str:
    """The contents of the data, wherever it lies."""
    return input_fingerprint(source_of(config))


def _do(cell: Cell, config: Config, out: Path) -> Outcome:
    file = cell.file(out)
    wanted = {
        "cell": cell.plain(), "config": config.model_dump(mode="json"), "rows": _rows(config),
        "file": str(file.absolute()),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.study.cell"], input=json.dumps(wanted), stdout=sys.stderr,
        stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )  # fmt: skip
    if done.returncode == 0:
        return Outcome(cell, json.loads(file.read_text(encoding="utf-8")))
    words = [line.strip() for line in done.stderr.strip().splitlines() if line.strip()]
    return Outcome(cell, None, "; ".join(words[-3:]) or f"exit {done.returncode}")


def _told(outcome: Outcome) -> str:
    assert outcome.result is not None
    scores = ", ".join(f"{name} {value:.1f}" for name, value in outcome.result["scores"].items())
    return scores + (", one answer for all rows" if outcome.result["collapsed"] else "")

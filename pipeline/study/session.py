"""What the command line calls: a study for a person who watches."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from errors import KdcError
from pipeline.commands import note_command
from pipeline.progress import Reporter
from pipeline.study.grid import Grid, check
from pipeline.study.run import run_study


def study_for_people(
    *,
    tasks: tuple[str, ...],
    families: tuple[str, ...],
    methods: tuple[str, ...],
    ranks: tuple[int, ...],
    seeds: tuple[int, ...],
    out: Path,
    given: tuple[str, ...],
    flags: dict[str, Any],
) -> dict[str, Any]:
    """Do the cells, with progress on stderr, and write the tables.

    Returns:
        files (paths), failed (names of cells).

    Raises:
        InputError: the study has mistakes.
        KdcError: Ctrl-C.
    """
    grid = Grid(tasks, families, methods, ranks, seeds, out, given, tuple(flags.items()))
    check(grid)
    import machine
    from pipeline.study.write import write_study

    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["kdc", *sys.argv[1:]])
    note_command(out, command)
    reporter = Reporter()
    reporter.started("study", f"{len(grid.cells())} cells")
    try:
        outcomes = run_study(grid, say=reporter.say, progress=reporter.progress)
    except KeyboardInterrupt:
        raise KdcError(
            "stopped by Ctrl-C; finished cells are kept", remedy=f"run the same command again to go on: {command}"
        ) from None
    finally:
        reporter.stop()
    parts = [machine.cpu()["model"], f"{machine.cores()['usable']} cores", *machine.nvidia()["devices"]]
    files = write_study(grid, outcomes, {"command": command, "machine": ", ".join(parts)})
    return {"files": [str(file) for file in files], "failed": [one.cell.name for one in outcomes if one.failure]}

"""What the command line calls: a study for a person who watches."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from kdc.common.errors import InputError, KdcError
from kdc.common.progress import Reporter
from kdc.pipeline.rundir import ranks as ranks_of_a_run
from kdc.pipeline.rundir.commands import note_command
from kdc.pipeline.rundir.directory import locked
from kdc.tools.study.grid import Grid, check
from kdc.tools.study.jobs import Outcome
from kdc.tools.study.run import Engine, one_by_one, run_study


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
    engine: str,
    address: str | None,
    threads: int | None,
) -> dict[str, Any]:
    """Do the cells, with progress on stderr, and write the tables.

    Args:
        tasks, families, methods, ranks, seeds, out, given: as `Grid` has them.
        flags: settings of every cell by dotted key.
        engine: "local", one cell after the other; "ray", side by side.
        address: of a Ray cluster; None: Ray on this machine alone.
        threads: of a cell; None: one with Ray, else as many as the environment says.

    Returns:
        files (paths), failed (names of cells).

    Raises:
        InputError: the study has mistakes, there is no such engine or cluster, or another one works in `out`.
        KdcError: Ctrl-C, or Ray is not installed.
    """
    if ranks_of_a_run.is_launched():
        raise InputError(
            "a study starts its trainings itself, each in one process",
            given=ranks_of_a_run.launcher(),
            remedy="`kdc study` alone; --engine ray has its cells done side by side",
        )
    does_cells = _engine(engine, address)
    grid = Grid(tasks, families, methods, ranks, seeds, out, given, tuple(flags.items()))
    check(grid)
    from kdc.common import machine
    from kdc.tools.study.write import write_study

    command = shlex.join(["kdc", *sys.argv[1:]])
    parts = [machine.cpu()["model"], f"{machine.cores()['usable']} cores", *machine.nvidia()["devices"]]
    origin = {"command": command, "machine": ", ".join(parts)}
    if engine == "ray":
        origin["engine"] = f"Ray at {address or 'this machine'}, cells side by side"
    with locked(out):
        note_command(out, command)
        outcomes = _watched(grid, does_cells, threads, command)
        files = write_study(grid, outcomes, origin)
    return {"files": [str(file) for file in files], "failed": [one.cell.name for one in outcomes if one.failure]}


def _watched(grid: Grid, engine: Engine, threads: int | None, command: str) -> list[Outcome]:
    """`run_study` with its progress on stderr.

    Raises:
        KdcError: Ctrl-C; and as it says.
    """
    reporter = Reporter()
    reporter.started("study", f"{len(grid.cells())} cells")
    try:
        return run_study(grid, engine=engine, threads=threads, say=reporter.say, progress=reporter.progress)
    except KeyboardInterrupt:
        raise KdcError(
            "stopped by Ctrl-C; finished cells are kept", remedy=f"run the same command again to go on: {command}"
        ) from None
    finally:
        reporter.stop()


def _engine(name: str, address: str | None) -> Engine:
    """What does the cells.

    Raises:
        InputError: there is no such engine, or it has no address.
    """
    if name not in ("local", "ray"):
        raise InputError("no such engine", given=f"--engine {name}", remedy="local or ray")
    if name == "ray":
        from kdc.tools.study.ray_engine import side_by_side

        return partial(side_by_side, address=address)
    if address is not None:
        raise InputError("only Ray has an address", given=f"--address {address}", remedy="--engine ray --address ...")
    return one_by_one

"""`kdc study`: a whole study for a person who watches, from the command line's words to the files with its tables."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from functools import partial

from kdc.common.errors import InputError, KdcError
from kdc.common.progress import Reporter
from kdc.pipeline.rundir.commands import note_command
from kdc.pipeline.rundir.directory import locked
from kdc.pipeline.training import ranks
from kdc.tools.study.grid import Grid, check
from kdc.tools.study.jobs import Outcome
from kdc.tools.study.schedule import Engine, one_by_one, run_study


@dataclass(frozen=True)
class StudyResult:
    """What a study came to."""

    files: tuple[str, ...]  # paths of what was written
    failed: tuple[str, ...]  # names of the cells that failed


def study_for_people(
    grid: Grid, *, engine: str = "local", address: str | None = None, threads: int | None = None
) -> StudyResult:
    """Do the cells, with progress on stderr, and write the tables.

    Args:
        grid: what is asked for.
        engine: "local", one cell after the other; "ray", side by side.
        address: of a Ray cluster; None runs Ray on this machine alone.
        threads: of a cell; None: one with Ray, else as many as the environment says.

    Raises:
        InputError: the study has mistakes, there is no such engine or cluster, or another process works in its
            directory.
        KdcError: Ctrl-C, or Ray is not installed.
    """
    if ranks.is_launched():
        raise InputError(
            "a study starts its trainings itself, each in one process",
            given=ranks.launcher(),
            remedy="`kdc study` alone; --engine ray has its cells done side by side",
        )
    does_cells = _engine(engine, address)
    check(grid)
    from kdc.common import machine
    from kdc.tools.study.write import write_study

    command = shlex.join(["kdc", *sys.argv[1:]])
    parts = [machine.cpu().model, f"{machine.cores().usable} cores", *machine.nvidia().devices]
    origin = {"command": command, "machine": ", ".join(parts)}
    if engine == "ray":
        origin["engine"] = f"Ray at {address or 'this machine'}, cells side by side"
    with locked(grid.out):
        note_command(grid.out, command)
        outcomes = _watched(grid, does_cells, threads, command)
        files = write_study(grid, outcomes, origin)
    failed = [outcome.cell.name for outcome in outcomes if outcome.failure]
    return StudyResult(files=tuple(map(str, files)), failed=tuple(failed))


def _watched(grid: Grid, engine: Engine, threads: int | None, command: str) -> list[Outcome]:
    """`run_study` with its progress on stderr.

    Raises:
        KdcError: Ctrl-C; and as `run_study` says.
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
    """The engine of that name.

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

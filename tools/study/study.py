"""`kdc study`: finds the cells that are not done, has an engine do them, shows progress, and writes the tables."""

import functools
import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from kdc.common import machine
from kdc.common.errors import InputError, KdcError
from kdc.common.frozen import Frozen
from kdc.common.progress import Reporter
from kdc.pipeline.data.sources import input_fingerprint
from kdc.pipeline.rundir.directory import locked, note_command
from kdc.pipeline.training import ranks
from kdc.tools.study.grid import Cell, Grid, check
from kdc.tools.study.jobs import Job, Outcome

# Does jobs, reports when one starts, and yields the outcome of each as it comes.
Engine = Callable[[Sequence[Job], Callable[[str], None]], Generator[Outcome, None, None]]


class StudyResult(Frozen):
    """What a study came to: what `kdc study --json` prints."""

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
    from kdc.tools.study.write import write_study

    command = shlex.join(["kdc", *sys.argv[1:]])
    parts = [machine.cpu().model, f"{machine.cores().usable} cores", *machine.nvidia().devices]
    origin = {"command": command, "machine": ", ".join(parts)}
    if engine == "ray":
        origin["engine"] = f"Ray at {address or 'this machine'}, cells side by side"
    with locked(grid.out):
        note_command(grid.out, command)
        reporter = Reporter()
        reporter.started("study", f"{len(grid.cells())} cells")
        try:
            outcomes = run_study(grid, engine=does_cells, threads=threads, say=reporter.say, progress=reporter.progress)
        except KeyboardInterrupt:
            raise KdcError(
                "stopped by Ctrl-C; finished cells are kept", remedy=f"run the same command again to go on: {command}"
            ) from None
        finally:
            reporter.stop()
        files = write_study(grid, outcomes, origin)
    failed = [outcome.cell.name for outcome in outcomes if outcome.failure]
    return StudyResult(files=tuple(map(str, files)), failed=tuple(failed))


def _engine(name: str, address: str | None) -> Engine:
    """The engine of that name.

    Raises:
        InputError: there is no such engine, or it has no address.
    """
    if name not in ("local", "ray"):
        raise InputError("no such engine", given=f"--engine {name}", remedy="local or ray")
    if name == "ray":
        from kdc.tools.study.ray_engine import side_by_side

        return functools.partial(side_by_side, address=address)
    if address is not None:
        raise InputError("only Ray has an address", given=f"--address {address}", remedy="--engine ray --address ...")
    return one_by_one


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
        rows, file = fingerprint(config.data), cell.file(grid.out).absolute()
        job = Job(cell=cell, config=config, rows=rows, file=file, threads=threads)
        if (result := job.finished()) is not None:
            outcomes[cell] = Outcome(cell, result)
        else:
            jobs.append(job)
    progress(len(outcomes), len(cells))
    with closing(engine(jobs, say)) as coming:
        for outcome in coming:
            say(f"{outcome.cell.name}: {_words(outcome)}")
            outcomes[outcome.cell] = outcome
            progress(len(outcomes), len(cells))
    return [outcomes[cell] for cell in cells]


def _words(outcome: Outcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.failure}"
    scores = ", ".join(f"{name} {value:.1f}" for name, value in outcome.result.scores.items())
    return scores + (", one answer for all rows" if outcome.result.collapsed else "")

"""What an engine is given to do: one cell, or what the cells of a run directory share, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdc.pipeline.config.settings import Config
from kdc.tools.study.cell import CellRequest, CellResult, Shared
from kdc.tools.study.grid import Cell

_LAST_WORDS = 3  # lines of a process's stderr that a failure quotes


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    cell: Cell  # which
    result: CellResult | None  # None where it failed, and for a job that only makes what cells share
    failure: str = ""  # why it failed; "" where it did not
    died: bool = False  # whether its process was killed from outside, so that the same again may go well


@dataclass(frozen=True)
class Job:
    """A cell that is to be done. It can be sent to another machine that sees the same disk.

    Attributes:
        cell, config: which, and its settings.
    """

    cell: Cell
    config: Config
    out: Path  # directory of the study
    rows: str  # fingerprint of its data
    threads: int | None = None  # of its process; None leaves them to the environment
    shared: Shared = "make"  # see `CellRequest`

    @property
    def directory(self) -> Path:
        """The run directory with what it shares."""
        return self.cell.base(self.out)

    @property
    def name(self) -> str:
        """How progress calls it."""
        cell = self.cell
        return f"{cell.task} {cell.family} seed {cell.seed}, teacher" if self.shared == "only" else cell.name

    def do(self) -> Outcome:
        """Do the job in a process of its own, and wait for that."""
        request = CellRequest(
            cell=self.cell,
            config=self.config,
            rows=self.rows,
            file=self.cell.file(self.out).absolute(),
            shared=self.shared,
        )
        exit_code, words = _run(request, self.threads)
        if exit_code < 0 and not _is_done(request):
            signal_name = signal.Signals(-exit_code).name
            return Outcome(self.cell, None, f"its process was killed by {signal_name}", died=True)
        if exit_code > 0:
            return Outcome(self.cell, None, words or f"exit {exit_code}")
        return Outcome(self.cell, None if self.shared == "only" else _read(request.file))


def _read(file: Path) -> CellResult:
    return CellResult.model_validate_json(file.read_text(encoding="utf-8"))


def _is_done(request: CellRequest) -> bool:
    """Whether a killed process had done its work before: it writes its result last, and whole."""
    if request.shared == "only" or not request.file.exists():
        return False
    result = _read(request.file)
    return (result.cell, result.config, result.rows) == (request.cell, request.config, request.rows)


def _run(request: CellRequest, threads: int | None) -> tuple[int, str]:
    """Start the process and wait for it: its exit code and its last words.

    Its stdin stays open while this process lives, so that it ends when this process is killed: see `cell_process.py`.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with subprocess.Popen(
        [sys.executable, "-m", "kdc.tools.study.cell_process"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        env=environment,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # a process that ended before it read says why by its code and words
            process.stdin.write(request.model_dump_json().encode() + b"\n")
        printed = process.stderr.read().decode(errors="replace")
        exit_code = process.wait()
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return exit_code, "; ".join(lines[-_LAST_WORDS:])

"""A cell as a job: what is asked for, the process of its own that does it, and what it measures."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.tools.study.grid import Cell

# Settings that no cell depends on: places, and what happens to a student after its training.
_OUTSIDE: Any = {
    "run": {"out", "device"},
    "data": {"data", "train", "eval", "unlabeled"},
    "export": True,
    "quantize": True,
    "evaluate": True,
    "contract": True,
    "report": True,
}
_LAST_WORDS = 3  # lines of a process's stderr that a failure quotes


def _settings(config: Config) -> dict[str, Any]:
    """What a training depends on; a vocabulary that is not set is the whole one, as it stands in cells of before."""
    settings = config.model_dump(mode="json", exclude=_OUTSIDE)
    settings["student"]["vocabulary"] = config.student.vocabulary or "all"
    return settings


class CellInputs(BaseModel):
    """What a cell's result depends on, and its file."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")  # a score may be NaN, which null is not

    cell: Cell  # the training
    config: Config  # its settings; `run.out` is the run directory that it shares with other cells
    rows: str  # fingerprint of its data
    file: Path  # where its result is kept

    def finished(self) -> "CellResult | None":
        """The result of the cell, if it was made with the same settings from the same rows, wherever those lie.

        Raises:
            InputError: the file cannot be read.
        """
        if not self.file.exists():
            return None
        try:
            result = CellResult.model_validate_json(self.file.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise InputError(
                "the result of a cell is damaged, or of another version of kdc",
                given=f"{self.file}: {error.errors()[0]['msg']}",
                remedy="remove the file to have the cell done again, or name another --out",
            ) from error
        before, now = (_settings(config) for config in (result.config, self.config))
        return result if result.rows == self.rows and before == now else None


class CellResult(CellInputs):
    """What one training came to; its JSON is the cell's file. The costs of a baseline are not measured: None."""

    scores: dict[str, float]  # points by metric, on the evaluation split; the names of a second split end in its name
    collapsed: bool  # whether the model gives all rows of a split one answer
    tune: dict[str, float]  # points by metric, on the tuning slice
    device: str  # "cpu" or "cuda"
    inference_s_per_1000_rows: float | None = None  # seconds, adapters merged, in batches of like length
    seconds: float | None = None  # seconds of training
    steps: int | None = None  # updates of the weights in the training
    parameters: int | None = None  # how many the model has, adapters merged
    trainable_parameters: int | None = None  # how many of them, or of its adapters, were trained
    # most memory while training: of the device on CUDA, else resident memory of the process
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    cell: Cell  # which
    result: CellResult | None  # None where it failed, and for a job that only makes what cells share
    failure: str = ""  # why it failed; "" where it did not
    died: bool = False  # whether its process was killed from outside, so that the same again may go well


class Job(CellInputs):
    """A cell that is to be done, as `cell_process.py` reads it. Another machine that sees the same disk can do it."""

    # What to do about the data, teacher and targets that the cells of a run directory share: "make" what is missing and
    # then train the cell, make "only" them, or train the cell with them because they are "there". Making them takes the
    # run directory's lock.
    shared: Literal["make", "only", "there"] = "make"
    threads: int | None = None  # threads of its process; None leaves them to the environment

    @property
    def name(self) -> str:
        """How progress calls it."""
        cell = self.cell
        return f"{cell.task} {cell.family} seed {cell.seed}, teacher" if self.shared == "only" else cell.name

    def do(self) -> Outcome:
        """Do the job in a process of its own, and wait for that."""
        exit_code, words = self._run()
        if exit_code > 0:
            return Outcome(self.cell, None, words or f"exit {exit_code}")
        result = None if self.shared == "only" else self.finished()
        if exit_code < 0 and result is None:  # a process that is killed may have written its result, last and whole
            signal_name = signal.Signals(-exit_code).name
            return Outcome(self.cell, None, f"its process was killed by {signal_name}", died=True)
        if result is None and self.shared != "only":
            return Outcome(self.cell, None, "its process ended without a result")
        return Outcome(self.cell, result)

    def _run(self) -> tuple[int, str]:
        """Start the process and wait for it: its exit code and its last words.

        Its stdin stays open while this process lives, so that it ends when this process is killed: see
        `cell_process.py`.
        """
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "kdc.tools.study.cell_process"],  # -P: no module of the caller's folder
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            env=os.environ | threads,
            bufsize=0,
        ) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            with suppress(BrokenPipeError):  # a process that ended before it read says why by its code and words
                process.stdin.write(self.model_dump_json().encode() + b"\n")
            printed = process.stderr.read().decode(errors="replace")
            exit_code = process.wait()
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        return exit_code, "; ".join(lines[-_LAST_WORDS:])

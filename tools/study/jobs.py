"""What an engine is given to do: a cell, or what the cells of a run directory share, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdc.pipeline.config.settings import Config
from kdc.tools.study.grid import Cell


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: which.
        result: as `cell.run_cell` gives it; None where it failed.
        failure: why; "" where it did not fail.
        died: its process was killed from outside: the same again may go well.
    """

    cell: Cell
    result: dict[str, Any] | None
    failure: str = ""
    died: bool = False


@dataclass(frozen=True)
class Job:
    """A cell that is to be done; it can be sent to another machine that sees the same disk.

    Attributes:
        cell, config: which, and its settings.
        out: directory of the study.
        rows: fingerprint of its data.
        threads: of its process; None: as the environment has it.
        shared: what to do about the data, teacher and targets that it shares: make what is missing, make "only" them,
            or take them as they are because they are "there". Making them takes the run directory's lock.
    """

    cell: Cell
    config: Config
    out: Path
    rows: str
    threads: int | None = None
    shared: Literal["make", "only", "there"] = "make"

    @property
    def directory(self) -> Path:
        """Where what it shares lies."""
        return self.cell.base(self.out)

    @property
    def name(self) -> str:
        """As people read it."""
        cell = self.cell
        return f"{cell.task} {cell.family} seed {cell.seed}, teacher" if self.shared == "only" else cell.name

    def do(self) -> Outcome:
        """Do it in a process of its own, and wait for that. Shared stages alone have no result."""
        file = self.cell.file(self.out)
        wanted = {
            "cell": self.cell.plain(),
            "config": self.config.model_dump(mode="json"),
            "rows": self.rows,
            "file": str(file.absolute()),
            "shared": self.shared,
        }
        code, words = _run(wanted, self.threads)
        if code < 0 and not self._is_written(file, wanted):
            return Outcome(self.cell, None, f"its process was killed by {signal.Signals(-code).name}", died=True)
        if code > 0:
            return Outcome(self.cell, None, words or f"exit {code}")
        return Outcome(self.cell, None if self.shared == "only" else json.loads(file.read_text(encoding="utf-8")))

    def _is_written(self, file: Path, wanted: dict[str, Any]) -> bool:
        """Whether what killed the process came after its work: a result is written last, and whole."""
        if self.shared == "only" or not file.exists():
            return False
        kept = json.loads(file.read_text(encoding="utf-8"))
        return all(kept[name] == wanted[name] for name in ("cell", "config", "rows"))


def _run(wanted: dict[str, Any], threads: int | None) -> tuple[int, str]:
    """The process's exit code and its last words. Its stdin stays open while this process lives: see `cell.py`."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with subprocess.Popen(
        [sys.executable, "-m", "kdc.tools.study.cell"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        env=environment,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # ended before it read: its code and words say why
            process.stdin.write(json.dumps(wanted).encode() + b"\n")
        said = process.stderr.read().decode(errors="replace")
        code = process.wait()
    words = [line.strip() for line in said.splitlines() if line.strip()]
    return code, "; ".join(words[-3:])

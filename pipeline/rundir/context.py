"""What a stage is given: the run's folder, its config, the device, and someone to tell about progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdc.pipeline.config.settings import Config, StudentSettings
from kdc.pipeline.data.prepared import PreparedData, open_data
from kdc.pipeline.rundir.ranks import ALONE, Ranks


def _silent(done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Run:
    """One run in one directory.

    Attributes:
        root: the run directory.
        config: resolved settings.
        device: "cpu" or "cuda", decided.
        bf16: train in bf16 autocast.
        ranks: the processes that train together.
        fingerprints: of the stages so far, by name.
        progress: called with (done, total) during long work of the current stage.
        say: prints one line for the person who watches.
    """

    root: Path
    config: Config
    device: str = "cpu"
    bf16: bool = False
    ranks: Ranks = ALONE
    fingerprints: dict[str, str] = field(default_factory=dict)
    progress: Callable[[int, int], None] = _silent
    say: Callable[[str], None] = print

    @property
    def student(self) -> StudentSettings:
        """The student's settings, with the model that the search found where there was one."""
        if not self.config.searches:
            return self.config.student
        return self.config.student.model_copy(update={"model": self.metrics("search")["student"]})

    @property
    def student_role(self) -> str:
        """Whose tokens the student takes, see `role_of`."""
        return self.role_of(self.student.model)

    def role_of(self, student: str) -> str:
        """Whose tokens a student takes: "student" for the configured one, "teacher" for one cut from the teacher in
        its place."""
        configured = self.config.student.model
        return "student" if student == configured or configured.startswith("layers:") else "teacher"

    def folder(self, stage: str) -> Path:
        """Where a finished stage keeps its artefact."""
        return self.root / stage

    def data(self) -> PreparedData:
        """The rows that stage `data` made."""
        return open_data(self.folder("data"))

    def metrics(self, stage: str) -> dict[str, Any]:
        """What a finished stage reported."""
        return json.loads((self.folder(stage) / "stage.json").read_text(encoding="utf-8"))["metrics"]

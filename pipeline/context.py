"""What a stage is given: the run's folder, its config, the device, and someone to tell about progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.reading.prepared import PreparedData, open_data


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
        fingerprints: of the stages so far, by name.
        progress: called with (done, total) during long work of the current stage.
        say: prints one line for the person who watches.
    """

    root: Path
    config: Config
    device: str = "cpu"
    bf16: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)
    progress: Callable[[int, int], None] = _silent
    say: Callable[[str], None] = print

    def folder(self, stage: str) -> Path:
        """Where a finished stage keeps its artefact."""
        return self.root / stage

    def data(self) -> PreparedData:
        """The rows that stage `data` made."""
        return open_data(self.folder("data"))

    def metrics(self, stage: str) -> dict[str, Any]:
        """What a finished stage reported."""
        return json.loads((self.folder(stage) / "stage.json").read_text(encoding="utf-8"))["metrics"]

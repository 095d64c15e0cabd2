"""Fixtures that several files share: one finished run, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from pipeline.config import Config


@dataclass(frozen=True)
class Finished:
    """A run that went through, its inputs, and what it returned."""

    folder: Path
    teacher: Path
    config: Config
    result: dict[str, Any]

    @property
    def artifact(self) -> Path:
        return self.folder / "run" / "artifact"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny BERT, distilled into one layer, on pairs. Not to be changed: copy it first."""
    folder = tmp_path_factory.mktemp("finished")
    teacher = tiny_runs.base_model("bert", folder / "teacher")
    tiny_runs.write_rows(folder / "train.csv", 700, seed=1)
    tiny_runs.write_rows(folder / "eval.csv", 90, seed=2)
    config = tiny_runs.config_for(folder, teacher, flags={"run.controls": True})
    return Finished(folder, teacher, config, tiny_runs.compress(config))

"""What a cell's process is asked to do, and what it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kdc.pipeline.config.settings import Config
from kdc.tools.study.grid import Cell

Shared = Literal["make", "only", "there"]


class CellInputs(BaseModel):
    """What a cell's result depends on, and where the result is kept.

    Attributes:
        cell: which training.
        config: its settings; `run.out` is the run directory that it shares with other cells.
        rows: fingerprint of its data.
        file: its result's.
    """

    model_config = ConfigDict(frozen=True)

    cell: Cell
    config: Config
    rows: str
    file: Path


class CellRequest(CellInputs):
    """What `cell_process.py` reads on stdin.

    Attributes:
        shared: what to do about the data, teacher and targets that the cells of a run directory share: "make" what is
            missing and then train the cell, make "only" them, or train the cell with them because they are "there".
            Making them takes the run directory's lock.
    """

    shared: Shared = "make"


class CellResult(CellInputs):
    """What one training came to; its JSON is the cell's file.

    Attributes:
        scores: points by metric, on the evaluation split; the names of a second split end in its name.
        tune: points by metric, on the tuning slice.
        collapsed: whether the model gives all rows of a split one answer.
        inference_s_per_1000_rows: seconds, adapters merged, in batches of like length.
        seconds: of training.
        steps: of training.
        parameters: of the model, adapters merged.
        trainable_parameters: that were trained.
        peak_memory_bytes: most memory while training: of the device on CUDA, else resident memory of the process.
        device: "cpu" or "cuda".
    """

    scores: dict[str, float]
    collapsed: bool
    inference_s_per_1000_rows: float
    tune: dict[str, float]
    seconds: float
    steps: int
    parameters: int
    trainable_parameters: int
    peak_memory_bytes: int
    device: str

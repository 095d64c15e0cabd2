"""What a cell's process is asked to do, and what it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kdc.pipeline.config.settings import Config
from kdc.tools.study.grid import Cell

Shared = Literal["make", "only", "there"]


class CellInputs(BaseModel):
    """What a cell's result depends on, and where the result is kept."""

    model_config = ConfigDict(frozen=True)

    cell: Cell  # which training
    config: Config  # its settings; `run.out` is the run directory that it shares with other cells
    rows: str  # fingerprint of its data
    file: Path  # its result's


class CellRequest(CellInputs):
    """What `cell_process.py` reads on stdin.

    Attributes:
        shared: what to do about the data, teacher and targets that the cells of a run directory share: "make"
            what is missing and then train the cell, make "only" them, or train the cell with them because they
            are "there". Making them takes the run directory's lock.
    """

    shared: Shared = "make"


class CellResult(CellInputs):
    """What one training came to; its JSON is the cell's file."""

    scores: dict[str, float]  # points by metric, on the evaluation split; the names of a second split end in its name
    collapsed: bool  # whether the model gives all rows of a split one answer
    inference_s_per_1000_rows: float  # seconds, adapters merged, in batches of like length
    tune: dict[str, float]  # points by metric, on the tuning slice
    seconds: float  # of training
    steps: int  # of training
    parameters: int  # of the model, adapters merged
    trainable_parameters: int  # that were trained
    peak_memory_bytes: int  # most memory while training: of the device on CUDA, else resident memory of the process
    device: str  # "cpu" or "cuda"

"""Stage `targets`: the teacher's logits for every row that a student learns from, computed once.

Reads `data/`, `teacher/`. Writes `logits.npy`, (rows, outputs) float32 indexed by row id, memory-mapped by its readers.
Goes on where it was cut off; memory does not grow with the rows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline import models
from pipeline.batches import Rows
from pipeline.context import Run
from pipeline.predict import predict_window, windows

_SPLITS = ("train", "tune", "unlabeled")  # data numbers them first, in this order


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make `out/logits.npy`."""
    data = run.data()
    teacher = str(run.folder("teacher") / "model")
    loaded = models.load_model(teacher, data.task)
    tokenizer = models.load_tokenizer(teacher)
    rows = Rows([data.tokens("teacher", split) for split in _SPLITS if data.has(split)])
    started_at = write_logits(
        loaded.model.to(run.device).eval(), rows, out / "logits.npy", pad_id=tokenizer.pad_token_id,
        outputs=data.task.outputs, progress=run.progress,
    )  # fmt: skip
    return {"rows": len(rows), "resumed_from": started_at}


def write_logits(model: Any, rows: Rows, path: Path, *, pad_id: int, outputs: int, progress: Any) -> int:
    """Fill `path` window by window; a `.done` file beside it counts the rows that are safe on disk.

    Returns:
        The row it started at: 0, or where an earlier attempt ended.
    """
    done_file = path.with_suffix(".done")
    done = json.loads(done_file.read_text()) if done_file.exists() else 0
    logits = open_memmap(path, mode="r+" if done else "w+", dtype=np.float32, shape=(len(rows), outputs))
    started_at = done
    for start in windows(len(rows)):
        if start < started_at:
            continue
        answers = predict_window(model, rows, start, pad_id=pad_id)
        ids = np.array([row["row"] for row in rows.__getitems__(list(range(start, start + len(answers))))])
        logits[ids] = answers
        logits.flush()
        temporary = done_file.with_suffix(".tmp")
        temporary.write_text(str(start + len(answers)))
        os.replace(temporary, done_file)
        progress(start + len(answers), len(rows))
    done_file.unlink(missing_ok=True)
    return started_at


def load_targets(folder: Path) -> NDArray[np.float32]:
    """The teacher's logits indexed by row id, memory-mapped."""
    return np.load(folder / "logits.npy", mmap_mode="r")

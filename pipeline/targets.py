"""Stage `targets`: the teacher's logits for every row that a student learns from, computed once.

Reads `data/`, `teacher/`. Writes `logits.npy`, (rows, outputs) float32 indexed by row id, memory-mapped by its readers.
Goes on where it was cut off; with one teacher, memory does not grow with the rows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline import ensemble, models
from pipeline.batches import Rows
from pipeline.context import Run
from pipeline.predict import predict_window, windows
from pipeline.statistics import calibrate
from pipeline.teacher import SCORES

_SPLITS = ("train", "tune", "unlabeled")  # data numbers them first, in this order


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make `out/logits.npy`."""
    path, settings = out / "logits.npy", run.config.teacher
    if settings.scores is not None:
        summary = _copy_scores(run, path)
    elif len(settings.sources) == 1:
        rows, started_at = _answer(run, 0, path)
        summary = {"rows": rows, "resumed_from": started_at}
    else:
        summary = _average(run, path)
    return summary | (_calibrate(run, path) if run.config.targets.calibrate else {})


def _copy_scores(run: Run, path: Path) -> dict[str, Any]:
    """A black box's answers to the rows that are learned from: the first ones."""
    data = run.data()
    rows = sum(len(data.rows(split)) for split in _SPLITS if data.has(split))  # their ids come first
    np.save(path, np.load(run.folder("teacher") / SCORES)[:rows])
    return {"rows": rows}


def _average(run: Run, path: Path) -> dict[str, Any]:
    """Several teachers' weighted mean; each one's logits lie in a file of their own until all are there."""
    parts = [path.with_name(f"{ensemble.folder(place)}.npy") for place in range(len(run.config.teacher.sources))]
    for place, part in enumerate(parts):
        if not part.exists():  # under its own name only when it is whole
            working = part.with_name(f"working-{part.name}")
            _answer(run, place, working)
            os.replace(working, part)
    shares = teacher_shares(run)
    mean = ensemble.average([np.load(part, mmap_mode="r") for part in parts], shares)
    np.save(path, mean)
    for part in parts:
        part.unlink()
    return {"rows": len(mean), "weights": shares.tolist()}


def _calibrate(run: Run, path: Path) -> dict[str, Any]:
    """Divide all logits by one temperature, fitted on the tuning slice."""
    data = run.data()
    tune = data.rows("tune")
    logits = np.load(path)
    temperature = calibrate(logits[np.asarray(tune["row"][:])], np.asarray(tune["label"][:]), data.task.kind)
    working = path.with_name("calibrated.npy")
    np.save(working, logits / np.float32(temperature))
    os.replace(working, path)
    return {"temperature": temperature}


def teacher_shares(run: Run) -> NDArray[np.float64]:
    """The weight of each teacher."""
    found = run.metrics("teacher")
    metric = run.data().task.metrics[0]
    scores = [teacher["tune"][metric] for teacher in (found, *found.get("others", ()))]
    return ensemble.weights(scores, run.config.targets.weights)


def _answer(run: Run, place: int, path: Path) -> tuple[int, int]:
    """One teacher's logits into a file; how many rows there are, and the one it started at."""
    data = run.data()
    teacher = str(run.folder("teacher") / ensemble.folder(place))
    loaded = models.load_model(teacher, data.task)
    tokenizer = models.load_tokenizer(teacher)
    rows = Rows([data.tokens(ensemble.role(place), split) for split in _SPLITS if data.has(split)])
    started_at = write_logits(
        loaded.model.to(run.device).eval(), rows, path, pad_id=tokenizer.pad_token_id, outputs=data.task.outputs,
        progress=run.progress,
    )  # fmt: skip
    return len(rows), started_at


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

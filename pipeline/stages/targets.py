"""Stage `targets`: the teacher's logits for every row that a student learns from, computed once.

Reads `data/`, `teacher/`. Writes `logits.npy`, (rows, outputs) float32 indexed by row id, memory-mapped by its readers.
Goes on where it was cut off; with one teacher, memory does not grow with the rows. The rows are answered window by
window, each into a file of its own, so that several processes can share the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from kdc.common.errors import KdcError
from kdc.pipeline.quality.intervals import calibrate
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.stages.teacher import SCORES
from kdc.pipeline.training import ensemble, models
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.predict import WINDOW, predict_window, windows

LOGITS = "logits.npy"
_SPLITS = ("train", "tune", "unlabeled")  # data numbers them first, in this order


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make `out/logits.npy`."""
    path, settings = out / LOGITS, run.config.teacher
    answers = out / "checkpoints"  # there to go on from until the stage counts as done
    if settings.scores is not None:
        summary = _copy_scores(run, path)
    elif len(settings.sources) == 1:
        rows, before = _answer(run, 0, path, answers)
        summary = {"rows": rows, "resumed_from": before}
    else:
        summary = _average(run, path, answers)
    return summary | (_calibrate(run, path) if run.config.targets.calibrate else {})


def _copy_scores(run: Run, path: Path) -> dict[str, Any]:
    """A black box's answers to the rows that are learned from: the first ones."""
    data = run.data()
    rows = sum(len(data.rows(split)) for split in _SPLITS if data.has(split))  # their ids come first
    np.save(path, np.load(run.folder("teacher") / SCORES)[:rows])
    return {"rows": rows}


def _average(run: Run, path: Path, answers: Path) -> dict[str, Any]:
    """Several teachers' weighted mean."""
    files = [answers / f"{ensemble.folder(place)}.npy" for place in range(len(run.config.teacher.sources))]
    for place, file in enumerate(files):
        _answer(run, place, file, answers)
    shares = teacher_shares(run)
    mean = ensemble.average([np.load(file, mmap_mode="r") for file in files], shares)
    np.save(path, mean)
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


def _answer(run: Run, place: int, path: Path, answers: Path) -> tuple[int, int]:
    """One teacher's logits into a file, by way of its windows' files in a folder of `answers`.

    Returns:
        how many rows there are, and how many were answered before.
    """
    data = run.data()
    total = sum(len(data.rows(split)) for split in _SPLITS if data.has(split))
    parts = answers / ensemble.folder(place)
    parts.mkdir(parents=True, exist_ok=True)
    missing = [start for start in windows(total) if not _part(parts, start).exists()]
    if missing:
        run.ranks.together(_answer_share, run, place=place, missing=missing, parts=parts)
    join_parts(parts, path, rows=total, outputs=data.task.outputs)
    return total, total - sum(min(WINDOW, total - start) for start in missing)


def _answer_share(run: Run, *, place: int, missing: list[int], parts: Path) -> None:
    """What every rank does: each answers its share of the windows that are missing."""
    data, teacher = run.data(), str(run.folder("teacher") / ensemble.folder(place))
    model = models.load_model(teacher, data.task).model.to(run.device).eval()
    rows = Rows([data.tokens(ensemble.role(place), split) for split in _SPLITS if data.has(split)])
    share = missing[run.ranks.rank :: run.ranks.size]
    pad_id = models.load_tokenizer(teacher).pad_token_id
    answer_windows(model, rows, share, parts, pad_id=pad_id, progress=run.progress)


def answer_windows(
    model: Any, rows: Rows, starts: list[int], parts: Path, *, pad_id: int, progress: Callable[[int, int], None]
) -> None:
    """Write each window's row ids and logits as a file of its own, whole or not at all.

    Args:
        model: a sequence classifier in evaluation mode.
        rows: all rows.
        starts: first rows of the windows.
        parts: folder for the files.
        pad_id: the tokenizer's padding id.
        progress: called with windows done and windows in all.
    """
    for done, start in enumerate(starts, 1):
        logits = predict_window(model, rows, start, pad_id=pad_id)
        ids = np.array([row["row"] for row in rows.__getitems__(list(range(start, start + len(logits))))])
        temporary = _part(parts, start).with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.savez(stream, ids=ids, logits=logits)
        os.replace(temporary, _part(parts, start))
        progress(done, len(starts))


def join_parts(parts: Path, path: Path, *, rows: int, outputs: int) -> None:
    """Make one file of all windows' answers, (rows, outputs) float32, every row under its id.

    Raises:
        KdcError: a row has no answer, or two.
    """
    logits = open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, outputs))
    answers = np.zeros(rows, dtype=np.uint8)
    for start in windows(rows):
        with np.load(_part(parts, start)) as part:
            logits[part["ids"]] = part["logits"]
            np.add.at(answers, part["ids"], 1)
    logits.flush()
    if (answers != 1).any():
        wrong = np.flatnonzero(answers != 1)
        raise KdcError(
            "rows without exactly one answer of the teacher",
            given=f"{len(wrong)} rows, the first is {wrong[0]}",
            remedy="run again with --from data",
        )


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:012d}.npz"

"""Stage `label_errors`: training rows whose label is probably wrong, on request (`data.audit_labels`).

Each fold is scored by a teacher trained on the others. Reads `data/`, `teacher/`. Writes `fold-<number>.npy`, logits
(rows of the fold, outputs), and label_errors.csv, also into the run directory.
"""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.files import whole_file, write_whole
from kdc.pipeline.data.overlap import Mask
from kdc.pipeline.data.prepared import PreparedData, texts_of
from kdc.pipeline.models import loading
from kdc.pipeline.quality.label_errors import LabelErrors, find_label_errors
from kdc.pipeline.results.training import LabelErrorsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.folds import assign_folds, part_of
from kdc.pipeline.training.predict import predict
from kdc.pipeline.training.teachers import train_teacher
from kdc.serving.engine.engine import activate

FOLDS = 3
TABLE = "label_errors.csv"


def run(run: Run, out: Path) -> LabelErrorsResult:
    data = run.data()
    labels = np.asarray(data.rows("train")["label"][:])
    folds = assign_folds(data.groups("train"), FOLDS, run.config.run.seed)
    logits = np.empty((len(labels), data.task.outputs), dtype=np.float32)
    for number in range(FOLDS):
        file = out / f"fold-{number + 1}.npy"
        if not file.exists():  # otherwise finished before
            run.say(f"label_errors: fold {number + 1} of {FOLDS}")
            scores = _scores_of(run, folds == number, out / "checkpoints")
            with whole_file(file) as stream:
                np.save(stream, scores)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        logits[folds == number] = np.load(file)
    probabilities = activate(logits, data.task.kind)
    errors = find_label_errors(probabilities, labels)
    write_whole(out / TABLE, _table(data, probabilities, errors))
    found = len(errors.rows)
    headline = f"{TABLE}: about {found:,} of {len(labels):,} training labels are probably wrong"
    return LabelErrorsResult(errors=found, rows=len(labels), headline=headline)


def check(run: Run) -> None:
    """Users look in the run directory, also if another run made the table."""
    shutil.copyfile(run.folder(LabelErrorsResult.STAGE) / TABLE, run.root / TABLE)


def _scores_of(run: Run, held_out: Mask, checkpoints: Path) -> NDArray[np.float32]:
    data, source, settings = run.data(), run.config.teacher.sources[0], run.config.teacher
    training = run.result(TeacherResult).training
    if training is not None:  # None: the linear probe was better
        rates = {"learning_rate": training.learning_rate, "head_learning_rate": training.head_learning_rate}
        settings = settings.model_copy(update=rates)  # those that a search found
    model, _ = train_teacher(
        source,
        settings,
        part_of(data, ~held_out),
        run.environment,
        role="teacher",
        checkpoints=checkpoints,
        progress=run.progress,
        join=run.config.long.trained_join(data.task.kind),
    )
    rows = Rows([part_of(data, held_out).tokens("teacher", "train")])
    return predict(model.to(run.device), rows, pad_id=loading.load_tokenizer(source).pad_token_id)


def _table(data: PreparedData, probabilities: NDArray[np.float32], errors: LabelErrors) -> str:
    rows = data.rows("train")
    chosen, names = rows.select(errors.rows), data.task.labels
    columns: tuple[list[Any], ...] = (chosen["source_row"][:], texts_of(chosen), chosen["label"][:])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("row", "text", "label", "suggested_label", "label_probability", "suggested_probability"))
    for (number, text, label), index, other in zip(
        zip(*columns, strict=True), errors.rows, errors.suggested, strict=True
    ):
        of_both = [f"{probabilities[index, name]:.4f}" for name in (label, other)]
        whole = text if isinstance(text, str) else " / ".join(text)
        writer.writerow((number, whole, names[label], names[other], *of_both))
    return stream.getvalue()

"""Stage `targets`: the teacher's logits for every row that a student learns from.

Reads `data/`, `teacher/`. Writes `logits.npy`. Ranks share portions, and the stage resumes from them. With one
uncalibrated teacher, memory does not grow with the rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from kdc.common.files import whole_file
from kdc.common.progress import Progress
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.evaluation.evidence import compared_with_baselines, worded
from kdc.pipeline.models import loading
from kdc.pipeline.quality.calibration import calibrate
from kdc.pipeline.results.training import TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import SCORES, TEACHER_LOGITS
from kdc.pipeline.training import ensemble, ranks
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.environment import Environment, answering, settle
from kdc.pipeline.training.predict import PORTION, portions, predict_portion

_SPLITS = ("train", "tune", "unlabeled")  # in this order, a row's position is its id


def depends_on(run: Run) -> dict[str, Any]:
    return run.config.targets.model_dump()


def run(run: Run, out: Path) -> TargetsResult:
    path, data = out / TEACHER_LOGITS, run.data()
    total = sum(len(data.rows(split)) for split in _SPLITS if data.has(split))
    answers = out / "checkpoints"
    files = [answers / f"{ensemble.folder(number)}.npy" for number in range(len(run.config.teacher.sources))]
    if run.config.teacher.scores is not None:
        np.save(path, np.load(run.folder("teacher") / SCORES)[:total])  # lowest row ids
        result = TargetsResult(rows=total)
    elif len(files) == 1:
        _answer(run, total, 0, answers, path)
        result = TargetsResult(rows=total)
    else:
        for number, file in enumerate(files):
            _answer(run, total, number, answers, file)
        scores = run.result(TeacherResult).scores(data.task.metrics[0])
        result = _average(files, ensemble.weights(scores, run.config.targets.weights), data, path)
    if run.config.targets.calibrate:
        result = result.model_copy(update={"temperature": _calibrate(data, path)})
    comparison = compared_with_baselines(run, np.load(path, mmap_mode="r")[np.asarray(data.rows("tune")["row"][:])])
    if comparison is not None and not comparison.is_shown:
        run.say(f"warning: {worded(comparison, data.task.metrics[0])}")
    return result.model_copy(update={"baseline_comparison": comparison})


def _average(files: Sequence[Path], shares: NDArray[np.float64], data: PreparedData, path: Path) -> TargetsResult:
    logits = [np.load(file, mmap_mode="r") for file in files]
    fitted = np.array([_temperature(data, answers) for answers in logits])
    # Relative ones: the student's temperature sets the sharpness.
    temperatures = tuple((fitted / np.exp(np.log(fitted).mean())).round(4).tolist())
    mean = ensemble.average(logits, shares, temperatures)
    np.save(path, mean)
    return TargetsResult(rows=len(mean), weights=tuple(shares.tolist()), temperatures=temperatures)


def _calibrate(data: PreparedData, path: Path) -> float:
    logits = np.load(path)
    temperature = _temperature(data, logits)
    with whole_file(path) as stream:
        np.save(stream, logits / np.float32(temperature))
    return temperature


def _temperature(data: PreparedData, logits: NDArray[np.floating]) -> float:
    tune = data.rows("tune")
    rows, labels = (np.asarray(tune[name][:]) for name in ("row", "label"))
    return calibrate(logits[rows], labels, data.task.kind, groups=data.groups("tune"))


def _answer(run: Run, total: int, number: int, answers: Path, path: Path) -> None:
    data, parts = run.data(), answers / ensemble.folder(number)
    parts.mkdir(parents=True, exist_ok=True)
    missing = [start for start in portions(total) if not _part(parts, start).exists()]
    if missing:
        rows = Rows.read(data, ensemble.role(number), [split for split in _SPLITS if data.has(split)])
        teacher, environment = str(run.folder("teacher") / ensemble.folder(number)), run.environment
        answer_with(teacher, data.task, rows, missing, parts, environment=environment, progress=run.progress)
    join_parts(parts, path, rows=total, outputs=data.task.outputs)


@ranks.on_all_ranks
def answer_with(
    teacher: str,
    task: Task,
    rows: Rows,
    starts: list[int],
    parts: Path,
    *,
    environment: Environment,
    progress: Progress | None,
) -> None:
    """On a CPU, an unset precision becomes the faster one."""
    model = loading.load_model(teacher, task).model.to(environment.device).eval()
    pad_id = loading.load_tokenizer(teacher).pad_token_id
    way = settle(environment, model, rows, pad_id=pad_id, trains=False)
    way = replace(way, bf16=bool(ranks.told_by_leader(float(bool(way.bf16)))))  # one precision on all ranks
    with answering(way):
        answer_portions(model.eval(), rows, list(ranks.share_of(starts)), parts, pad_id=pad_id, progress=progress)


def answer_portions(
    model: Any,
    rows: Rows,
    starts: list[int],
    parts: Path,
    *,
    pad_id: int,
    progress: Progress | None = None,
) -> None:
    for done, start in enumerate(starts, 1):
        logits = predict_portion(model, rows, start, pad_id=pad_id)
        with whole_file(_part(parts, start)) as stream:
            np.save(stream, logits)
        if progress is not None:
            progress(done, len(starts), rows=PORTION)


def join_parts(parts: Path, path: Path, *, rows: int, outputs: int) -> None:
    """(rows, outputs) float32, by row id."""
    logits = open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, outputs))
    for start in portions(rows):
        part = np.load(_part(parts, start))
        logits[start : start + len(part)] = part
    logits.flush()


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:012d}.npy"

"""The program that a study starts for each cell, so that its peak memory is its own and its failure harms no other.

`python -m kdc.tools.study.cell_process` reads a `Job` as one line of JSON on stdin, trains, measures on the
evaluation split, and writes the model's logits (`.npz`, an array for each evaluation split), then the `CellResult`.
Where stdin stays open after that line, the process ends with the one that holds its other end.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole
from kdc.common.memory import own_peak_memory_bytes, reset_peak_memory
from kdc.common.progress import Reporter
from kdc.common.timing import seconds_of
from kdc.pipeline.compress import is_local, prepare_libraries
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.quality import metrics
from kdc.pipeline.results.training import BaselinesResult, ModelResult, TeacherResult
from kdc.pipeline.rundir.files import BASELINE_LOGITS, TEACHER_LOGITS
from kdc.pipeline.rundir.record import read_record
from kdc.tools.study.grid import BASELINES
from kdc.tools.study.jobs import CellInputs, CellResult, Job

if TYPE_CHECKING:
    from kdc.pipeline.rundir.context import Run

_LAST_SHARED = "targets"  # the stage up to which cells have everything in common
_TIMED_ROWS, _TIMED_ROUNDS = 512, 3
_ANSWERS = "answers.npz"  # in the working folder, before it stands beside the result


def make_shared(config: Config) -> None:
    """Make what all cells of a run directory share, as far as it is missing: rows, a smaller vocabulary where one was
    asked for, teacher and targets.

    Args:
        config: of any of these cells; `run.out` is the run directory.

    Raises:
        InputError, KdcError: as the stages say; also while another process works in the run directory.
    """
    from kdc.pipeline.run import compress

    compress(config, reporter=Reporter(quiet=True), until=_LAST_SHARED)


def run_cell(inputs: CellInputs, work: Path) -> CellResult:
    """Train one cell and measure the model.

    Args:
        inputs: the cell, whose run directory holds what cells share, see `make_shared`.
        work: an empty folder for what the training writes, and for the model's logits.

    Raises:
        InputError: the run directory does not hold what cells share, or its teacher was not trained there and the cell
            is that teacher.
        KdcError: as the training says.
    """
    from kdc.pipeline.rundir.context import open_run

    config = inputs.config
    assert config.run.out is not None
    run = open_run(config.run.out, config, Reporter(quiet=True))
    if read_record(run.folder(_LAST_SHARED)) is None:
        raise InputError(
            "this machine does not see the teacher that the cell learns from",
            given=run.root.absolute(),
            remedy="a study's --out on a disk that all nodes share, under the same path",
        )
    if inputs.cell.method in BASELINES:
        return _baseline(inputs, run)
    reset_peak_memory()
    trained, model, role, tokenizer = _train(inputs.cell.method, run, work)
    training = trained.training
    if run.config.teacher.finetuned and inputs.cell.method == "fft":
        raise InputError(
            "the method fft trains the teacher, and this one was brought along fine-tuned",
            given=config.teacher.model,
            remedy="leave out fft from --methods, or teacher.finetuned from --set",
        )
    host_memory = own_peak_memory_bytes()
    teacher = read_record(run.folder("teacher"))
    if inputs.cell.method == "fft" and teacher is not None:  # it was trained by the process that did the stage
        host_memory = teacher.peak_memory_bytes or host_memory
    answers, inference_seconds = _answers(run, model, role, tokenizer)
    arrays: dict[str, Any] = {**answers}
    np.savez_compressed(work / _ANSWERS, **arrays)
    scores, collapsed = _scores(run.data(), answers)
    costs: dict[str, Any] = {}
    if training is not None:  # a teacher that is a linear probe on its encoder was not trained
        costs = training.model_dump(include={"seconds", "steps", "trainable_parameters"})
    return CellResult(
        **{name: getattr(inputs, name) for name in CellInputs.model_fields},
        **costs,
        scores=scores,
        collapsed=collapsed,
        inference_s_per_1000_rows=inference_seconds,
        tune=trained.tune,
        parameters=sum(weight.numel() for weight in model.parameters()),
        peak_memory_bytes=(training and training.peak_memory_bytes) or host_memory,
        device=run.device,
    )


def _baseline(inputs: CellInputs, run: Run) -> CellResult:
    """What the run directory already has of a baseline.

    Raises:
        InputError: it has none.
    """
    method = inputs.cell.method
    if not run.config.baselines.enabled or method not in run.result(BaselinesResult).tune:
        raise InputError(
            "the run directory has no such baseline",
            given=method,
            remedy=f"leave out {method} from --methods, or baselines.enabled and teacher.finetuned from --set",
        )
    with np.load(run.folder("baselines") / BASELINE_LOGITS) as kept:
        logits = {split: kept[f"{split}/{method}"] for split in run.data().eval_splits}
    scores, collapsed = _scores(run.data(), logits)
    return CellResult(
        **{name: getattr(inputs, name) for name in CellInputs.model_fields},
        scores=scores,
        collapsed=collapsed,
        tune=run.result(BaselinesResult).tune[method],
        device=run.device,
    )


def _scores(data: PreparedData, logits: dict[str, NDArray[np.float32]]) -> tuple[dict[str, float], bool]:
    """The metrics in points of logits by split, and whether all rows of a split have one answer."""
    scores: dict[str, float] = {}
    for split, answers in logits.items():
        suffix, labels = split.removeprefix("eval"), np.asarray(data.rows(split)["label"][:])
        values = metrics.compute(answers, labels, data.task.kind, data.task.metrics)
        scores |= {name + suffix: value for name, value in values.items()}
    return scores, any(metrics.is_constant(answers, data.task.kind) for answers in logits.values())


def _train(method: str, run: Run, work: Path) -> tuple[ModelResult, Any, str, str]:
    """Do one method's training.

    Returns:
        What the training reported, the model with its adapters merged, whose tokens it reads, see `Run.role_of`, and
        where their tokenizer is: an id, or a path.
    """
    from kdc.pipeline.models import loading
    from kdc.pipeline.stages.controls import teacher_lora
    from kdc.pipeline.training.students import distil, merged_student

    task, teacher, student = run.data().task, run.config.teacher.model, run.config.student
    if method == "fft":  # the teacher that cells share
        folder = run.folder("teacher")
        return run.result(TeacherResult), loading.load_model(str(folder / "model"), task).model, "teacher", teacher
    if method == "lora":
        return teacher_lora(run, work), loading.load_model(str(work / "model"), task).model, "teacher", teacher
    logits = run.folder("targets") / TEACHER_LOGITS if method == "kd-lora" else None
    trained = distil(student, run.origin_of(student), run.data(), logits, work, run.environment, progress=run.progress)
    return trained, merged_student(work), run.role_of(student), str(work / "base")


def _answers(run: Run, model: Any, role: str, tokenizer: str) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Have the model answer the evaluation splits, as tokens of the role, which that tokenizer made.

    Returns:
        Its logits by split, and its seconds for 1000 rows: the median of a few rounds over the first rows of the first
        split.
    """
    from kdc.pipeline.models.loading import load_tokenizer
    from kdc.pipeline.training.batches import Rows
    from kdc.pipeline.training.predict import predict

    data, pad_id = run.data(), load_tokenizer(tokenizer).pad_token_id
    model.to(run.device).eval()
    answers = {split: predict(model, Rows([data.tokens(role, split)]), pad_id=pad_id) for split in data.eval_splits}
    tokens = data.tokens(role, data.eval_splits[0])
    rows = Rows([tokens.select(range(min(_TIMED_ROWS, len(tokens))))])
    times = [seconds_of(lambda: predict(model, rows, pad_id=pad_id)) for _ in range(_TIMED_ROUNDS)]
    return answers, 1000 * median(times) / len(rows)


def _end_with_caller() -> None:
    """End this process when its caller is killed: otherwise it would train on beside the one that is begun in its
    place."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def main() -> None:
    """Read, train, write; an error of ours is printed on stderr and gives the exit code."""
    line = sys.stdin.readline()
    if line.endswith("\n"):  # the caller keeps stdin open while it lives
        threading.Thread(target=_end_with_caller, daemon=True).start()
    job = Job.model_validate_json(line)
    job.file.parent.mkdir(parents=True, exist_ok=True)
    work = job.file.with_suffix(".work")
    try:
        prepare_libraries(offline=is_local(job.config))
        if job.shared != "there":
            make_shared(job.config)
        if job.shared == "only":
            return
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        result = run_cell(job, work)
        if (work / _ANSWERS).exists():  # a baseline's stand in the run directory
            (work / _ANSWERS).replace(job.file.with_suffix(".npz"))
    except KdcError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_whole(job.file, result.model_dump_json(indent=2))


if __name__ == "__main__":
    main()

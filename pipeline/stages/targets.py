"""Stage `targets`: the teacher's logits for every row that a student learns from, computed once.

Reads `data/`, `teacher/`. Writes `logits.npy`, (rows, outputs) float32 indexed by row id, memory-mapped by its readers.
Goes on where it was cut off; with one teacher, memory does not grow with the rows. The rows are answered portion by
portion, each into a file of its own, so that several processes can share the work.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from kdc.common.errors import KdcError
from kdc.common.files import whole_file, write_whole
from kdc.common.progress import Progress
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.evaluation.evidence import standing_of, worded
from kdc.pipeline.models import loading
from kdc.pipeline.quality.calibration import calibrate
from kdc.pipeline.results.training import TargetsResult, TeacherResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import SCORES, TEACHER_LOGITS
from kdc.pipeline.training import ensemble, ranks
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.environment import Environment, answering, settle
from kdc.pipeline.training.predict import PORTION, portions, predict_portion

_FORMAT = "number-format"  # beside the portions: bf16 or fp32
_SPLITS = ("train", "tune", "unlabeled")  # stage data numbers their rows first, in this order


def depends_on(run: Run) -> dict[str, Any]:
    """How several teachers are averaged, and whether the logits are calibrated."""
    return run.config.targets.model_dump()


def run(run: Run, out: Path) -> TargetsResult:
    """Make `out/logits.npy`."""
    path, data = out / TEACHER_LOGITS, run.data()
    answers = out / "checkpoints"  # there to go on from until the stage counts as done
    if run.config.teacher.scores is not None:
        rows = _rows_to_learn_from(data)  # their ids come first
        np.save(path, np.load(run.folder("teacher") / SCORES)[:rows])
        result = TargetsResult(rows=rows)
    else:
        answer = partial(_answer, run.folder("teacher"), data, answers, run.environment, run.progress)
        places = range(len(run.config.teacher.sources))
        if len(places) == 1:
            result = TargetsResult(rows=_rows_to_learn_from(data), resumed_from=answer(0, path))
        else:
            files = [answers / f"{ensemble.folder(place)}.npy" for place in places]
            for place, file in enumerate(files):
                answer(place, file)
            scores = run.result(TeacherResult).scores(data.task.metrics[0])
            result = _average(files, ensemble.weights(scores, run.config.targets.weights), data, path)
    if run.config.targets.calibrate:
        result = result.model_copy(update={"temperature": _calibrate(data, path)})
    standing = standing_of(run, np.load(path, mmap_mode="r")[np.asarray(data.rows("tune")["row"][:])])
    if standing is not None and not standing.is_shown:
        run.say(f"warning: {worded(standing, data.task.metrics[0])}")
    return result.model_copy(update={"standing": standing})


def _rows_to_learn_from(data: PreparedData) -> int:
    return sum(len(data.rows(split)) for split in _SPLITS if data.has(split))


def _average(files: Sequence[Path], shares: NDArray[np.float64], data: PreparedData, path: Path) -> TargetsResult:
    """Write the mean of several teachers' logits, each in a file, by their shares."""
    answers_of_each = [np.load(file, mmap_mode="r") for file in files]
    fitted = np.array([_temperature(data, logits) for logits in answers_of_each])
    # Against each other alone: together they keep the sharpness that the student's own temperature is meant for.
    temperatures = tuple((fitted / np.exp(np.log(fitted).mean())).round(4).tolist())
    mean = ensemble.average(answers_of_each, shares, temperatures)
    np.save(path, mean)
    return TargetsResult(rows=len(mean), weights=tuple(shares.tolist()), temperatures=temperatures)


def _calibrate(data: PreparedData, path: Path) -> float:
    """Divide all logits by the temperature under which the labels of the tuning slice are likeliest; return it."""
    logits = np.load(path)
    temperature = _temperature(data, logits)
    with whole_file(path) as stream:
        np.save(stream, logits / np.float32(temperature))
    return temperature


def _temperature(data: PreparedData, logits: NDArray[np.floating]) -> float:
    """The temperature of logits (rows, outputs), which are by row id, on the tuning slice."""
    tune = data.rows("tune")
    rows, labels = (np.asarray(tune[name][:]) for name in ("row", "label"))
    return calibrate(logits[rows], labels, data.task.kind, groups=data.groups("tune"))


def _answer(
    teachers: Path,
    data: PreparedData,
    answers: Path,
    environment: Environment,
    progress: Progress,
    place: int,
    path: Path,
) -> int:
    """Write one teacher's logits into a file, by way of its portions' files in a folder of `answers`. Its model is in a
    folder of `teachers`; both are named by its place.

    Returns:
        How many rows were answered before the stage was cut off.
    """
    total = _rows_to_learn_from(data)
    parts = answers / ensemble.folder(place)
    parts.mkdir(parents=True, exist_ok=True)
    missing = [start for start in portions(total) if not _part(parts, start).exists()]
    if missing:
        rows = Rows.read(data, ensemble.role(place), [split for split in _SPLITS if data.has(split)])
        teacher = str(teachers / ensemble.folder(place))
        answer_with(teacher, data.task, rows, missing, parts, environment=environment, progress=progress)
    join_parts(parts, path, rows=total, outputs=data.task.outputs)
    return total - sum(min(PORTION, total - start) for start in missing)


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
    """Load a teacher from its folder and have it answer, as `answer_portions` does; under torchrun each process answers
    its share of the portions. On a CPU it answers in the number format that is faster, unless the run says which; one
    that goes on answers in the format that it began in."""
    model = loading.load_model(teacher, task).model.to(environment.device).eval()
    pad_id = loading.load_tokenizer(teacher).pad_token_id
    if environment.bf16 is None and (kept := parts / _FORMAT).exists():  # the portions that are there are in this one
        environment = replace(environment, bf16=kept.read_text() == "bf16")
    way = settle(environment, model, rows, pad_id=pad_id, trains=False)
    way = replace(way, bf16=bool(ranks.told_by_leader(float(bool(way.bf16)))))  # all processes in one format
    if ranks.rank() == 0:
        write_whole(parts / _FORMAT, "bf16" if way.bf16 else "fp32")
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
    """Write each portion's row ids and logits as a file of its own, whole or not at all.

    Args:
        model: a sequence classifier in evaluation mode.
        rows: all rows.
        starts: first rows of the portions.
        parts: folder for the files.
        pad_id: the tokenizer's padding id.
        progress: called with portions done and portions in all.
    """
    for done, start in enumerate(starts, 1):
        logits = predict_portion(model, rows, start, pad_id=pad_id)
        ids = np.array([row["row"] for row in rows.__getitems__(list(range(start, start + len(logits))))])
        with whole_file(_part(parts, start)) as stream:
            np.savez(stream, ids=ids, logits=logits)
        if progress is not None:
            progress(done, len(starts), rows=PORTION)


def join_parts(parts: Path, path: Path, *, rows: int, outputs: int) -> None:
    """Make one file of all portions' answers, (rows, outputs) float32, every row under its id.

    Raises:
        KdcError: a row has no answer, or two.
    """
    logits = open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, outputs))
    answers = np.zeros(rows, dtype=np.uint8)
    for start in portions(rows):
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

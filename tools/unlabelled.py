"""`kdc verify --unlabelled`: writes the texts that two models answer differently, for a person to label. The answers go
into OUT.csv.answers.npz.
"""

import csv
import io
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdc.artifact.contract.judgement import quantile_of
from kdc.artifact.manifest import MANIFEST_NAME, Device, TaskInfo
from kdc.common.errors import InputError
from kdc.common.files import write_whole
from kdc.common.frozen import Frozen
from kdc.common.progress import Meter
from kdc.pipeline.data.fields import hashes_of
from kdc.pipeline.quality.comparison import rows_needed
from kdc.pipeline.quality.intervals import Difference
from kdc.serving.bulk.inputs import Window, read_all
from kdc.serving.bulk.job import Job
from kdc.serving.bulk.request import PredictRequest
from kdc.serving.bulk.windows import split_bad
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text
from kdc.tools.filled import ID, LABEL, Answered, Ints, answers_beside, check_task, id_of
from kdc.tools.reference import refuse_better_baseline
from kdc.tools.verify import open_artifact

_Answer = Callable[[Window, Sequence[Text]], Ints]  # rows and texts to label numbers

# Where a spreadsheet, with any column separator, may read a formula.
_FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=\s*[=+\-@])")
_MOST_TOLD = 20  # labels in a message


class ToLabel(Frozen):
    file: str
    labels: tuple[str, ...]
    rows: int  # with a text
    skipped: int  # without a text
    differing: int  # distinct texts answered differently
    to_label: int
    rows_judged: int  # by the file's labels; all if the file has all differing texts
    max_drop: float | None  # points; None: no limit
    # see `rows_for`
    rows_needed: int | None
    labels_needed: int | None


def texts_to_label(
    artifact: Path,
    *,
    given: Mapping[str, Any],
    columns: Mapping[str, str | None],
    unlabelled: str | None = None,
    to_label: Path | None = None,
    teacher: str | None = None,
    teacher_column: str | None = None,
    most_labels: int | None = None,
    device: Device | None = None,
    expect_sha256: str | None = None,
) -> ToLabel:
    """Write the texts that an artifact and its teacher answer differently.

    Args:
        given: limits that replace the artifact's.
        columns: names of `text` and `text_pair`, by default the task's.
        teacher: an artifact's folder, or the path or hub id of a checkpoint.
        teacher_column: the teacher's answers, instead of `teacher`.
        most_labels: size of a random sample; None: all.

    Raises:
        InputError: an option is missing or does not fit, or `to_label` exists.
    """
    if unlabelled is None or to_label is None:
        remedy = "--unlabelled FILE --to-label OUT.csv; with labels in it, --labelled OUT.csv alone"
        raise InputError("--unlabelled and --to-label go together", given="one of them", remedy=remedy)
    folder, manifest, engine, contract = open_artifact(artifact, None, given, device, expect_sha256)
    check_task(engine.task, contract, given)
    refuse_better_baseline(folder, engine, contract)
    request = _request(unlabelled, to_label, columns)
    job = Job(request, request.check(), engine.task, {"artifact": manifest.sha256})
    answered, texts, skipped = _read(job, engine, _teacher(teacher, teacher_column, engine, columns), most_labels)
    limit, sample = contract.limits.max_drop, answered.sample(most_labels)
    sample.write(to_label)
    rows_to_label = [(id_of(number), texts[number]) for number in sample.to_label.tolist()]
    write_whole(to_label, table_to_fill(engine.task.labels, rows_to_label, is_pair=engine.task.is_pair))
    needed, rows, differing = None, len(answered.texts), len(answered.to_label)
    if limit is not None:
        needed = rows_for(float(answered.differs.mean()), max_drop=limit, confidence=contract.confidence)
    return ToLabel(
        file=str(to_label),
        labels=engine.task.labels,
        rows=rows,
        skipped=skipped,
        differing=differing,
        to_label=len(sample.to_label),
        rows_judged=len(sample.texts),
        max_drop=limit,
        rows_needed=needed,
        labels_needed=None if needed is None else math.ceil(needed * differing / rows),
    )


def rows_for(differing: float, *, max_drop: float, confidence: float) -> int | None:
    """About how many rows show, with 80 % power, that an equally good student keeps `max_drop` points of accuracy; None
    if no number does. `differing`: share of rows with different answers.
    """
    square, deviation = quantile_of(confidence) ** 2, 100 * math.sqrt(differing)  # of one row, in points
    below = deviation * math.sqrt(square)
    one_row = Difference((-below, below), deviation, 1, lambda rows: 100 * square / (rows + square))
    rows = rows_needed(0.0, below, one_row, max_drop=max_drop, confidence=confidence)
    return None if rows is None else math.ceil(rows)


def _request(source: str, out: Path, columns: Mapping[str, str | None]) -> PredictRequest:
    for path in (out, answers_beside(out)):
        if path.exists():
            remedy = "another name: kdc replaces no file that may hold labels"
            raise InputError("the file is there already", given=path, remedy=remedy)
    if out.suffix.lower() != ".csv":
        raise InputError("the texts to label are written as .csv", given=out, remedy="--to-label label.csv")
    names = {name: columns.get(name) for name in ("text", "text_pair", "delimiter", "encoding")}
    return PredictRequest(artifact=Path(), source=source, output=str(out), on_error="skip", **names)


def _teacher(teacher: str | None, column: str | None, student: Engine, columns: Mapping[str, str | None]) -> _Answer:
    if (teacher is None) == (column is None):
        given = "neither" if column is None else "both"
        remedy = "--teacher PATH, or --teacher-column NAME if the file holds the teacher's answers"
        raise InputError("the teacher is a model or a column of the file", given=given, remedy=remedy)
    if teacher is None:
        return _answers_in(str(column), student.task)
    if not (Path(teacher) / MANIFEST_NAME).is_file():
        from kdc.tools.labelled import task_with
        from kdc.tools.reference import teacher_of

        logits = teacher_of(task_with(student.task, columns), teacher, student.tokenizer_info)
        return lambda _, texts: logits(texts).argmax(-1)
    engine = Engine.load(Path(teacher))
    own, task = student.task, engine.task
    if set(task.labels) != set(own.labels) or (task.kind, task.is_pair) != (own.kind, own.is_pair):
        given = f"{teacher}: {task.kind}{' of pairs' * task.is_pair}, {', '.join(task.labels[:_MOST_TOLD])}"
        remedy = f"a teacher of {own.kind}{' of pairs' * own.is_pair}, {', '.join(own.labels[:_MOST_TOLD])}"
        raise InputError("the teacher is of another task", given=given, remedy=remedy)
    numbers = np.array([own.labels.index(label) for label in task.labels])
    return lambda _, texts: numbers[engine.logits(texts).argmax(-1)]


def _answers_in(column: str, task: TaskInfo) -> _Answer:
    numbers = {label: number for number, label in enumerate(task.labels)}

    def answer(window: Window, _: Sequence[Text]) -> Ints:
        if column not in window.names:
            given = f"{window.file} has {', '.join(window.names[:_MOST_TOLD]) or 'none'}"
            raise InputError(f"no column {column} with the teacher's answers", given=given, remedy="name it")
        answers = [numbers.get(str(value), -1) for value in window.column(column)]
        if -1 in answers:
            line = window.lines[answers.index(-1)]
            what = f"column {column} does not hold a label of the task"
            remedy = f"one of {', '.join(task.labels[:_MOST_TOLD])}"
            raise InputError(what, given=f"{window.file}, line {line}", remedy=remedy)
        return np.array(answers, dtype=np.int64)

    return answer


def _read(job: Job, engine: Engine, teacher: _Answer, most: int | None) -> tuple[Answered, dict[int, Text], int]:
    """The answers, differing texts by hash (the `most` lowest), and the count of rows without a text."""
    parts: list[tuple[Ints, Ints, Ints, Ints]] = []
    differing: dict[int, Text] = {}
    rows, skipped, began = 0, 0, time.perf_counter()
    with Meter() as counter:
        counter.start("rows", sum(file.size for file in job.files) or None)
        for window, done in read_all(job.files):
            good, texts = split_bad(window, job, columns_seen=False)
            rows, skipped = rows + len(texts), skipped + len(good.bad)
            if texts:
                numbers, sides = hashes_of(texts)
                student, answers = engine.logits(texts).argmax(-1).astype(np.int64), teacher(good, texts)
                parts.append((numbers, sides, student, answers))
                differing |= {int(numbers[row]): texts[row] for row in np.flatnonzero(student != answers)}
                if most is not None:  # keeps the lowest of all
                    differing = {number: differing[number] for number in sorted(differing)[:most]}
            counter.update(done, rows, rows / max(time.perf_counter() - began, 1e-9))
    if not parts:
        remedy = "name the column: --text COLUMN"
        raise InputError("no row has a text", given=job.request.source, remedy=remedy)
    numbers, sides, student, answers = (np.concatenate(column) for column in zip(*parts, strict=True))
    answered = Answered(numbers, sides, student, answers, job.identity["artifact"], engine.variant)
    return answered, differing, skipped


def table_to_fill(labels: Sequence[str], rows: Iterable[tuple[str, Text]], *, is_pair: bool, mark: str = "") -> bytes:
    """The CSV to fill in. Its first bytes tell spreadsheets that it is UTF-8.

    Args:
        rows: id and text.
        mark: a note in the ids' header.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
    name = f"{ID}: {mark}" if mark else ID
    writer.writerow([name, *("text", "text_pair")[: 1 + is_pair], f"{LABEL}: {' | '.join(labels)}"])
    for identity, text in rows:
        parts = (text,) if isinstance(text, str) else text
        writer.writerow([identity, *(_FORMULA.sub("'", part) for part in parts), ""])
    return stream.getvalue().encode("utf-8-sig")


def render(written: ToLabel, artifact: Path) -> str:
    without = f" ({written.skipped:,} more have no text)" * bool(written.skipped)
    lines = [
        f"{written.rows:,} rows{without}; the two models answer {written.differing:,} texts differently",
        f"{written.file}: {written.to_label:,} texts to label, which stand for {written.rows_judged:,} rows",
    ]
    if written.rows_needed is not None and written.labels_needed is not None:
        plan = (
            f"to show a drop of at most {written.max_drop:g} points if both are equally good (power 80 %): about "
            f"{written.rows_needed:,} rows, {written.labels_needed:,} labels"
        )
        if written.rows_needed > written.rows_judged:
            plan += f"; {written.rows_judged:,} rows are too few"
        elif written.labels_needed < written.to_label:
            plan += f"; --most-labels {written.labels_needed} is enough"
        lines.append(plan)
    labels = ", ".join(written.labels[:_MOST_TOLD]) + ", ..." * (len(written.labels) > _MOST_TOLD)
    lines.append(f"next: write one of {labels} into the last column")
    limit = "" if written.max_drop is None else f" --max-drop {written.max_drop:g}"
    lines.append(f"then: kdc verify {artifact} --labelled {written.file}{limit}")
    return "\n".join(lines)

"""Reads all splits of a source into staging files, with every check that needs more than one row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdc.artifact.manifest import MAX_MANIFEST_BYTES, Kind
from kdc.pipeline.config.tasks import Task, custom_task
from kdc.pipeline.data.labels import LabelReader
from kdc.pipeline.data.readers import read_rows
from kdc.pipeline.data.rows import Staged, stage
from kdc.pipeline.data.sources import Source, SplitSource, columns_of, is_glue, locate
from kdc.pipeline.data.validate import FileLog, FileProblem, Problems, RowProblem

_MOST_BROKEN = 0.001  # share of rows that may be left out of a file known to be broken


@dataclass(frozen=True)
class Intake:
    """One source's checked rows.

    Attributes:
        staged: the rows.
        labels: what its label column holds; None for unlabelled rows.
        skipped: rows left out because the published file is known to be broken there.
    """

    staged: Staged
    labels: LabelReader | None
    skipped: int


def read_all(source: Source, task: Task, folder: Path, seed: int) -> tuple[Task, dict[str, Intake]]:
    """Stage every split of a source.

    Args:
        source: where the rows are.
        task: its columns, kind and (where known) label names.
        folder: for the staging files.
        seed: of the built-in task `pydocs`.

    Returns:
        the task with kind and label names settled by the training rows, and the splits by name.

    Raises:
        InputError: lists the mistakes in all files.
        KdcError: the hub cannot be reached.
    """
    problems = Problems()
    splits = locate(source)
    kind = None if source.infer_kind else task.kind
    group = "group" if splits[0].format == "pydocs" else source.group
    reader = _label_reader(task, kind, source.separator)
    train, log = _stage_split(splits[0], task, reader, folder, problems, group=group, seed=seed)
    _check_training(train, reader, log)
    settled = _settle(task, reader)
    found = {"train": train}
    for split in splits[1:]:
        labels = None
        if split.split != "unlabeled":
            labels = _label_reader(settled, settled.kind, source.separator, learned=settled.labels != task.labels)
        found[split.split], log = _stage_split(split, settled, labels, folder, problems, seed=seed)
        if labels is not None:
            _check_evaluation(labels, reader, log)
    problems.raise_if_any()
    return settled, found


def read_split(split: SplitSource, task: Task, folder: Path, *, separator: str | None) -> Intake:
    """Stage one labelled split of a task whose labels are known.

    Raises:
        InputError: lists the mistakes.
    """
    problems = Problems()
    labels = _label_reader(task, task.kind, separator)
    intake, _ = _stage_split(split, task, labels, folder, problems, seed=0)
    problems.raise_if_any()
    return intake


def _label_reader(task: Task, kind: Kind | None, separator: str | None, *, learned: bool = False) -> LabelReader:
    glue = is_glue(task.name)
    return LabelReader(
        kind, task.labels, by_index=glue, separator=separator, minus_one_is_unlabeled=glue, learned=learned
    )


def _stage_split(
    split: SplitSource,
    task: Task,
    labels: LabelReader | None,
    folder: Path,
    problems: Problems,
    *,
    seed: int,
    group: str | None = None,
) -> tuple[Intake, FileLog]:
    log = FileLog(split.name, split.unit, problems)
    before = len(problems)
    columns = columns_of(task, labeled=labels is not None, group=group)
    rows = read_rows(split, columns, log, seed=seed)
    staged = stage(rows, columns, labels, folder / f"{split.split}.arrow", log)
    if log.skipped > max(_MOST_BROKEN * len(staged), 1):
        problem = RowProblem(
            "row has too few columns", remedy="the file is more broken than the published one: get it again"
        )
        log.mistake(None, problem, count=log.skipped)
    if not len(staged) and len(problems) == before:
        log.mistake(None, FileProblem("no rows", remedy="the file has a header at most: check the path"))
    return Intake(staged, labels, log.skipped), log


def _check_training(train: Intake, reader: LabelReader, log: FileLog) -> None:
    """Kind and label names must come out of the training rows, and there must be something to learn."""
    kind = reader.settle(log)
    if len(train.staged) and not len(log.problems) and reader.is_constant:
        what = "all rows have the same label" if kind != "multilabel" else "fewer than two different labels"
        shown = ", ".join(reader.counts)
        log.mistake(None, FileProblem(what, shown, "training needs rows of at least two classes: check --label"))
    length = sum(len(name.encode()) for name in reader.counts)
    if kind != "regression" and length > MAX_MANIFEST_BYTES // 2:  # told now: the artifact could not name them
        log.mistake(None, FileProblem("the label names are too long", f"{length:,} bytes in all", "shorten them"))


def _settle(task: Task, reader: LabelReader) -> Task:
    """The task as the training rows say it is."""
    kind = reader.kind or task.kind
    labels = () if kind == "regression" else task.labels or reader.sorted_names()
    if kind == task.kind:
        return task.with_labels(labels)
    settled = custom_task(task.name, task.text, task.text_pair, task.label, kind, labels)
    return settled.model_copy(update={"max_length": task.max_length})


def _check_evaluation(labels: LabelReader, training: LabelReader, log: FileLog) -> None:
    """A class that is never trained on cannot be predicted (names that a task declares may lack training rows)."""
    if labels.kind == "regression" or not training.counts:
        return
    for name in sorted(labels.counts.keys() - training.counts.keys()):
        problem = RowProblem(
            "label is not in the training rows", repr(name), "add training rows of it, or remove these"
        )
        log.mistake(None, problem, count=labels.counts[name])

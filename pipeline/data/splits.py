"""Decides which of the checked rows every split gets, and reports the counts with warnings."""

from dataclasses import dataclass

import numpy as np

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.rows import CheckedRows
from kdc.pipeline.data.slices import HELD_OUT_SHARE, Ints, Mask, connect, pick_slice, sample, tune_size
from kdc.pipeline.data.sources import SPLITS
from kdc.pipeline.results import DataReport, SplitCounts

_SMALL_TUNE = 100  # with fewer rows than this, what the tuning slice decides is mostly chance


@dataclass(frozen=True)
class Part:
    """One split of the run: the rows of the source's split `origin` that the mask `chosen` selects, (rows,)."""

    origin: str
    chosen: Mask

    def __len__(self) -> int:
        return int(self.chosen.sum())


def split_rows(task: Task, rows: dict[str, CheckedRows], max_train_rows: int | None, seed: int) -> dict[str, Part]:
    """Decide the rows of every split of the run, from the checked rows of every split of the source.

    At most `max_train_rows` are trained on; `seed` decides the slices.

    Raises:
        InputError: there are too few rows.
    """
    train = rows["train"]
    classes, units = train.classes(task), connect(train.texts, train.groups)
    free = np.ones(len(train), dtype=np.bool_)
    parts = {}
    if "eval" not in rows:
        held_out = _slice_of(free, units, classes, max(round(len(train) * HELD_OUT_SHARE), 1), 3 * seed)
        parts["eval"] = Part("train", held_out)
        free = free & ~held_out
    size = tune_size(min(int(free.sum()), max_train_rows or len(train)))
    tune = _slice_of(free, units, classes, size, 3 * seed + 1)
    free = free & ~tune
    parts["tune"] = Part("train", tune)
    parts["train"] = Part("train", sample(classes, free, max_train_rows or len(train), 3 * seed + 2))
    for name, others in rows.items():
        if name == "unlabeled":
            # An unlabelled text of the tuning slice would be trained on, with the teacher's answer.
            parts[name] = Part(name, ~np.isin(others.texts, train.texts[tune]))
        elif name != "train":
            parts[name] = Part(name, np.ones(len(others), dtype=np.bool_))
    _check_parts(parts, classes, len(train))
    return {name: parts[name] for name in SPLITS if name in parts}


def _slice_of(free: Mask, units: Ints, classes: Ints, size: int, seed: int) -> Mask:
    """A stratified slice of the free rows, as a mask over all rows."""
    rows = np.flatnonzero(free)
    dense = np.unique(units[rows], return_inverse=True)[1].reshape(-1)
    mask = np.zeros(len(free), dtype=np.bool_)
    mask[rows[pick_slice(dense, classes[rows], size, seed)]] = True
    return mask


def _check_parts(parts: dict[str, Part], classes: Ints, rows: int) -> None:
    """Every split must have rows, and every class some to train on."""
    for name, what in (("eval", "an evaluation slice"), ("tune", "the tuning slice")):
        if name in parts and not len(parts[name]):
            given = f"{rows} training rows with {len(np.unique(classes))} classes"
            remedy = "give more rows with different texts, at least two of some class (is --label the right column?)"
            raise InputError(f"too few rows to hold out {what}", given=given, remedy=remedy)
    lost = len(np.unique(classes)) - len(np.unique(classes[parts["train"].chosen]))
    if lost:
        given = f"{len(parts['train'])} rows to train on"
        remedy = "allow more of them: --max-train-rows"
        raise InputError(f"{lost} classes have no row to train on", given=given, remedy=remedy)


def make_report(task: Task, rows: dict[str, CheckedRows], parts: dict[str, Part]) -> DataReport:
    """Count the rows, labels and duplicates of every split, and warn of what may mislead."""
    used = sum(len(part) for part in parts.values() if part.origin == "train")
    report = DataReport(
        kind=task.kind,
        splits={name: _count(task, rows[part.origin], part) for name, part in parts.items()},
        held_out=len(parts["eval"]) if parts["eval"].origin == "train" else 0,
        unused_train_rows=len(rows["train"]) - used,
        duplicates=_duplicates(task, rows, parts),
        skipped={name: split.skipped for name, split in rows.items() if split.skipped},
    )
    return report.model_copy(update={"warnings": tuple(_warnings(task, report))})


def _count(task: Task, rows: CheckedRows, part: Part) -> SplitCounts:
    if task.kind != "classification" or rows.labels is None:
        return SplitCounts(rows=len(part))
    counts = np.bincount(rows.classes(task)[part.chosen], minlength=len(task.labels))
    return SplitCounts(rows=len(part), labels=dict(zip(task.labels, counts.tolist(), strict=True)))


def _duplicates(task: Task, rows: dict[str, CheckedRows], parts: dict[str, Part]) -> dict[str, int]:
    """Count the rows whose text (or pair) stands elsewhere too."""
    texts = rows["train"].texts
    counts = {"within_train": len(texts) - len(np.unique(texts))}
    if task.kind == "classification":
        labelled = np.unique(np.stack([texts, rows["train"].classes(task)], axis=1), axis=0)
        counts["texts_with_different_labels"] = int((np.unique(labelled[:, 0], return_counts=True)[1] > 1).sum())
    for name in (name for name in rows if name.startswith("eval")):
        counts[f"{name}_rows_in_train"] = int(np.isin(rows[name].texts, texts).sum())
    if "unlabeled" in rows:
        counts["unlabeled_rows_in_tune_left_out"] = int((~parts["unlabeled"].chosen).sum())
        evaluated = [rows[part.origin].texts[part.chosen] for name, part in parts.items() if name.startswith("eval")]
        counts["unlabeled_rows_in_eval"] = int(np.isin(rows["unlabeled"].texts, np.concatenate(evaluated)).sum())
    return counts


def _warnings(task: Task, report: DataReport) -> list[str]:
    warnings = []
    if report.held_out:
        warnings.append(f"no evaluation rows were given: {report.held_out:,} training rows are held out for it")
    for name, count in report.duplicates.items():
        if count and name.endswith("_rows_in_train"):
            what = name.removesuffix("_rows_in_train")
            warnings.append(f"{count:,} {what} rows have the same text as a training row: the metric flatters")
    if count := report.duplicates.get("unlabeled_rows_in_eval", 0):
        warnings.append(f"{count:,} unlabelled rows have the same text as an eval row")
    if count := report.duplicates.get("texts_with_different_labels", 0):
        warnings.append(f"{count:,} training texts occur more than once, with different labels")
    for name, count in report.skipped.items():
        warnings.append(f"{count:,} broken rows of the published {name} file were left out")
    if (tune := report.splits["tune"].rows) < _SMALL_TUNE:
        warnings.append(f"the tuning slice has only {tune} rows: what it decides is mostly chance")
    if task.kind == "classification":
        absent = [name for name, count in (report.splits["train"].labels or {}).items() if not count]
        if absent:
            warnings.append(f"no training row has the label {', '.join(absent)}")
    return warnings

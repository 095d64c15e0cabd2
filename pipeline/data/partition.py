"""Decides which rows every split gets, and reports what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.intake import Intake
from kdc.pipeline.data.sources import SPLITS
from kdc.pipeline.data.splits import HELD_OUT_SHARE, Ints, Mask, connect, pick_slice, sample, tune_size

_SMALL_TUNE = 100  # rows below which what the tuning slice decides is mostly chance


@dataclass(frozen=True)
class Part:
    """One split of the run.

    Attributes:
        origin: the source split that its rows come from.
        chosen: (rows of that source,) which of them it has.
    """

    origin: str
    chosen: Mask


def _classes(task: Task, read: Intake) -> Ints:
    counts = read.labels.counts if read.labels is not None else {}
    return read.staged.classes(task.kind, task.labels, counts)


def split_rows(task: Task, found: dict[str, Intake], max_train_rows: int | None, seed: int) -> dict[str, Part]:
    """Decide the rows of every split.

    Args:
        task: settled.
        found: the checked rows of every source split.
        max_train_rows: rows to train on at most.
        seed: of the slices.

    Raises:
        InputError: too few rows.
    """
    train = found["train"].staged
    classes, units = _classes(task, found["train"]), connect(train.texts, train.groups)
    free = np.ones(len(train), dtype=np.bool_)
    parts = {}
    if "eval" not in found:
        held_out = _slice_of(free, units, classes, max(round(len(train) * HELD_OUT_SHARE), 1), 3 * seed)
        parts["eval"] = Part("train", held_out)
        free = free & ~held_out
    size = tune_size(min(int(free.sum()), max_train_rows or len(train)))
    tune = _slice_of(free, units, classes, size, 3 * seed + 1)
    free = free & ~tune
    parts["tune"] = Part("train", tune)
    parts["train"] = Part("train", sample(classes, free, max_train_rows or len(train), 3 * seed + 2))
    for name in found.keys() - {"train"}:
        staged = found[name].staged
        seen = (
            np.isin(staged.texts, train.texts[tune]) if name == "unlabeled" else np.zeros(len(staged), dtype=np.bool_)
        )
        parts[name] = Part(name, ~seen)
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
    """Every split has rows, and every class some to train on."""
    for name, what in (("eval", "an evaluation slice"), ("tune", "the tuning slice")):
        if name in parts and not parts[name].chosen.any():
            raise InputError(
                f"too few rows to hold out {what}",
                given=f"{rows} training rows with {len(np.unique(classes))} classes",
                remedy="give more rows with different texts, at least two of some class (is --label the right column?)",
            )
    lost = len(np.unique(classes)) - len(np.unique(classes[parts["train"].chosen]))
    if lost:
        raise InputError(
            f"{lost} classes have no row to train on",
            given=f"{int(parts['train'].chosen.sum())} rows to train on",
            remedy="allow more of them: --max-train-rows",
        )


def make_report(task: Task, found: dict[str, Intake], parts: dict[str, Part]) -> dict[str, Any]:
    """Counts and warnings, for report.json and for the person who watches."""
    train = found["train"]
    used = sum(int(part.chosen.sum()) for part in parts.values() if part.origin == "train")
    report: dict[str, Any] = {
        "kind": task.kind,
        "splits": {name: _split_report(task, found[part.origin], part) for name, part in parts.items()},
        "held_out": int(parts["eval"].chosen.sum()) if parts["eval"].origin == "train" else 0,
        "unused_train_rows": len(train.staged) - used,
        "duplicates": _duplicates(task, found, parts),
        "skipped": {name: read.skipped for name, read in found.items() if read.skipped},
    }
    report["warnings"] = _warnings(task, report)
    return report


def _split_report(task: Task, read: Intake, part: Part) -> dict[str, Any]:
    summary: dict[str, Any] = {"rows": int(part.chosen.sum())}
    if task.kind == "classification" and read.labels is not None:
        counts = np.bincount(_classes(task, read)[part.chosen], minlength=len(task.labels))
        summary["labels"] = dict(zip(task.labels, counts.tolist(), strict=True))
    return summary


def _duplicates(task: Task, found: dict[str, Intake], parts: dict[str, Part]) -> dict[str, int]:
    """Rows whose text (or pair) is elsewhere too."""
    texts = found["train"].staged.texts
    counts = {"within_train": len(texts) - len(np.unique(texts))}
    if task.kind == "classification":
        labelled = np.unique(np.stack([texts, _classes(task, found["train"])], axis=1), axis=0)
        counts["texts_with_different_labels"] = int((np.unique(labelled[:, 0], return_counts=True)[1] > 1).sum())
    for name in found.keys() - {"train", "unlabeled"}:
        counts[f"{name}_rows_in_train"] = int(np.isin(found[name].staged.texts, texts).sum())
    if "unlabeled" in found:
        unlabeled = found["unlabeled"].staged.texts
        counts["unlabeled_rows_in_tune_left_out"] = int((~parts["unlabeled"].chosen).sum())
        seen = [found[part.origin].staged.texts[part.chosen] for name, part in parts.items() if name.startswith("eval")]
        counts["unlabeled_rows_in_eval"] = int(np.isin(unlabeled, np.concatenate(seen)).sum())
    return counts


def _warnings(task: Task, report: dict[str, Any]) -> list[str]:
    splits, duplicates = report["splits"], report["duplicates"]
    warnings = []
    if report["held_out"]:
        warnings.append(f"no evaluation rows were given: {report['held_out']:,} training rows are held out for it")
    for name, count in duplicates.items():
        if count and name.endswith("_rows_in_train"):
            what = name.removesuffix("_rows_in_train")
            warnings.append(f"{count:,} {what} rows have the same text as a training row: the metric flatters")
    if duplicates.get("unlabeled_rows_in_eval"):
        warnings.append(f"{duplicates['unlabeled_rows_in_eval']:,} unlabelled rows have the same text as an eval row")
    if duplicates.get("texts_with_different_labels"):
        count = duplicates["texts_with_different_labels"]
        warnings.append(f"{count:,} training texts occur more than once, with different labels")
    for name, count in report["skipped"].items():
        warnings.append(f"{count:,} broken rows of the published {name} file were left out")
    if splits["tune"]["rows"] < _SMALL_TUNE:
        warnings.append(f"the tuning slice has only {splits['tune']['rows']} rows: what it decides is mostly chance")
    if task.kind == "classification":
        absent = [name for name, count in splits["train"]["labels"].items() if not count]
        if absent:
            warnings.append(f"no training row has the label {', '.join(absent)}")
    return warnings

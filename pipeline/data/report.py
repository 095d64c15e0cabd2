"""Counts rows, labels and duplicates, and warns of misleading data."""

import numpy as np

from kdc.pipeline.config.labelled import PEOPLE
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.overlap import WORDS_OF_A_RUN, Ints
from kdc.pipeline.data.rows import FEWEST_PEOPLE, CheckedRows
from kdc.pipeline.data.splits import Part, related
from kdc.pipeline.results.data import DataReport, SplitCounts

OVERLAP_WORTH_TELLING = 0.1  # share of evaluation rows
_LARGE_UNIT = 0.1  # share of rows
_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 80
_SMALL_TUNE = 100


def make_report(task: Task, rows: dict[str, CheckedRows], parts: dict[str, Part], near: dict[str, Ints]) -> DataReport:
    used = sum(len(part) for part in parts.values() if part.origin == "train")
    report = DataReport(
        kind=task.kind,
        labels=_labels(rows[parts["eval"].origin], parts["eval"]),
        replaced=rows["train"].description,
        splits={name: _count(task, rows[part.origin], part) for name, part in parts.items()},
        held_out=len(parts["eval"]) if parts["eval"].origin == "train" else 0,
        unused_train_rows=len(rows["train"]) - used,
        unused_unlabeled_rows=parts["unlabeled"].unused if "unlabeled" in parts else 0,
        duplicates=_duplicates(task, rows, parts, near),
        skipped={name: split.skipped for name, split in rows.items() if split.skipped},
    )
    return report.model_copy(update={"warnings": tuple(_warnings(task, report, rows, near))})


def _labels(rows: CheckedRows, part: Part) -> str | None:
    if rows.description is None:
        return None
    return PEOPLE if rows.people[part.chosen].all() else f"model:{rows.description.model}"


def _count(task: Task, rows: CheckedRows, part: Part) -> SplitCounts:
    if not task.traits.is_exclusive or rows.labels is None:
        return SplitCounts(rows=len(part))
    counts = np.bincount(rows.classes(task)[part.chosen], minlength=len(task.labels))
    return SplitCounts(rows=len(part), labels=dict(zip(task.labels, counts.tolist(), strict=True)))


def _duplicates(
    task: Task, rows: dict[str, CheckedRows], parts: dict[str, Part], near: dict[str, Ints]
) -> dict[str, int]:
    train, used = rows["train"], parts["train"].chosen | parts["tune"].chosen
    counts = {"within_train": len(train) - len(np.unique(train.texts))}
    if task.traits.is_exclusive:
        labelled = np.unique(np.stack([train.texts, train.classes(task)], axis=1), axis=0)
        counts["texts_with_different_labels"] = int((np.unique(labelled[:, 0], return_counts=True)[1] > 1).sum())
    for name in near:
        counts[f"{name}_rows_in_train"] = int(np.isin(rows[name].texts, train.texts).sum())
        counts[f"{name}_rows_near_train"] = int((near[name] >= 0).sum())
        groups = rows[name].groups
        if groups is not None and train.groups is not None:
            counts[f"{name}_rows_of_groups_in_train"] = int(np.isin(groups, train.groups[used]).sum())
    if "unlabeled" in rows:
        part = parts["unlabeled"]
        counts["unlabeled_rows_in_tune_left_out"] = int((~part.chosen).sum()) - part.unused
        evaluated = np.zeros(len(part.chosen), dtype=np.bool_)
        for name in near:
            evaluated |= related(rows["unlabeled"], rows[name], parts[name].chosen) >= 0
        counts["unlabeled_rows_in_eval"] = int((evaluated & part.chosen).sum())
    return counts


def near_train(rows: dict[str, CheckedRows], parts: dict[str, Part]) -> dict[str, Ints]:
    """For each given evaluation row a `related` training or tuning row; else -1."""
    used = parts["train"].chosen | parts["tune"].chosen
    return {name: related(rows[name], rows["train"], used) for name in rows if name.startswith("eval")}


def _overlap_in_words(rows: dict[str, CheckedRows], name: str, near: Ints) -> str:
    evaluated, overlapping = rows[name], np.flatnonzero(near >= 0)
    pairs = [(evaluated.text_at(row), rows["train"].text_at(near[row])) for row in overlapping[:_EXAMPLES]]
    examples = "; ".join(f"{_short(text)!r} and {_short(other)!r}" for text, other in pairs)
    count, percent = len(overlapping), 100 * len(overlapping) / len(evaluated)
    return (
        f"{count:,} of {len(evaluated):,} {name} rows ({percent:.0f} %) have the text or the group of a training row, "
        f"or share half of their runs of {WORDS_OF_A_RUN} words with one: scores are inflated; for example {examples}"
    )


def _short(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[: _EXAMPLE_CHARACTERS - 3]}..."


def _warnings(task: Task, report: DataReport, rows: dict[str, CheckedRows], near: dict[str, Ints]) -> list[str]:
    warnings, duplicates = [], report.duplicates
    if report.held_out:
        warnings.append(f"no evaluation rows were given: {report.held_out:,} training rows are held out")
    people = sum(int(split.people.sum()) for split in rows.values())
    if people and report.labels != PEOPLE:
        warnings.append(
            f"{people:,} rows have people's labels and judge nothing: that takes {FEWEST_PEOPLE} of them, or a tenth "
            "of the rows, and no --teacher-scores (docs/how-to/labels-from-an-llm.md)"
        )
    largest, count = int(np.bincount(rows["train"].units).max()), len(rows["train"])
    if largest > _LARGE_UNIT * count:
        warnings.append(
            f"{largest:,} of {count:,} training rows belong together, so no held-out set has them: the figures are of "
            'the other rows (docs/how-to/prepare-data.md, "Keep related rows together")'
        )
    for name in near:
        if count := duplicates[f"{name}_rows_in_train"]:
            warnings.append(f"{count:,} {name} rows have the same text as a training row: scores are inflated")
        if duplicates[f"{name}_rows_near_train"] >= OVERLAP_WORTH_TELLING * len(rows[name]):
            warnings.append(_overlap_in_words(rows, name, near[name]))
        if count := duplicates.get(f"{name}_rows_of_groups_in_train", 0):
            warnings.append(f"{count:,} evaluation rows share a group with training rows: scores are inflated")
    if count := duplicates.get("unlabeled_rows_in_eval", 0):
        warnings.append(f"{count:,} unlabelled rows repeat an evaluation row, or nearly so")
    if count := duplicates.get("texts_with_different_labels", 0):
        warnings.append(f"{count:,} training texts occur more than once, with different labels")
    for name, count in report.skipped.items():
        warnings.append(
            f"{count:,} invalid {name} rows were left out; with --skip-invalid, data/skipped.jsonl lists them"
        )
    if (tune := report.splits["tune"].rows) < _SMALL_TUNE:
        warnings.append(f"the tuning set has only {tune} rows: choices on it are mostly chance")
    absent = [name for name, count in (report.splits["train"].labels or {}).items() if not count]
    if absent:
        warnings.append(f"no training row has the label {', '.join(absent)}")
    return warnings

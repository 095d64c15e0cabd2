"""Reports what the splits of a run hold: counts of rows, labels and duplicates, and warnings of what may mislead."""

import numpy as np

from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.overlap import WORDS_OF_A_RUN, nearest
from kdc.pipeline.data.rows import CheckedRows, Ints
from kdc.pipeline.data.splits import Part, belongs
from kdc.pipeline.results.data import DataReport, SplitCounts

OVERLAP_WORTH_TELLING = 0.1  # share of an evaluation split's rows that overlap with training rows
_LARGE_UNIT = 0.1  # share of the training rows in one unit, from which on it fits into no slice
_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 80
_RARE = 0.2  # share of a class's even share of the rows, below which it is rare
_SMALL_TUNE = 100  # with fewer rows than this, what the tuning slice decides is mostly chance


def make_report(task: Task, rows: dict[str, CheckedRows], parts: dict[str, Part], near: dict[str, Ints]) -> DataReport:
    """Count the rows, labels and duplicates of every split, and warn of what may mislead; `near` is that of
    `near_train`."""
    used = sum(len(part) for part in parts.values() if part.origin == "train")
    report = DataReport(
        kind=task.kind,
        splits={name: _count(task, rows[part.origin], part) for name, part in parts.items()},
        held_out=len(parts["eval"]) if parts["eval"].origin == "train" else 0,
        unused_train_rows=len(rows["train"]) - used,
        unused_unlabeled_rows=parts["unlabeled"].unused if "unlabeled" in parts else 0,
        duplicates=_duplicates(task, rows, parts, near),
        skipped={name: split.skipped for name, split in rows.items() if split.skipped},
    )
    return report.model_copy(update={"warnings": tuple(_warnings(task, report, rows, near))})


def _count(task: Task, rows: CheckedRows, part: Part) -> SplitCounts:
    if task.kind != "classification" or rows.labels is None:
        return SplitCounts(rows=len(part))
    counts = np.bincount(rows.classes(task)[part.chosen], minlength=len(task.labels))
    return SplitCounts(rows=len(part), labels=dict(zip(task.labels, counts.tolist(), strict=True)))


def _duplicates(
    task: Task, rows: dict[str, CheckedRows], parts: dict[str, Part], near: dict[str, Ints]
) -> dict[str, int]:
    """Count the rows whose text (or pair) stands elsewhere too."""
    texts = rows["train"].texts
    counts = {"within_train": len(texts) - len(np.unique(texts))}
    if task.kind == "classification":
        labelled = np.unique(np.stack([texts, rows["train"].classes(task)], axis=1), axis=0)
        counts["texts_with_different_labels"] = int((np.unique(labelled[:, 0], return_counts=True)[1] > 1).sum())
    for name in (name for name in rows if name.startswith("eval")):
        counts[f"{name}_rows_in_train"] = int(np.isin(rows[name].texts, texts).sum())
        counts[f"{name}_rows_near_train"] = int((near[name] >= 0).sum())
        groups = (rows[name].groups, rows["train"].groups)
        if groups[0] is not None and groups[1] is not None:
            used = parts["train"].chosen | parts["tune"].chosen
            counts[f"{name}_rows_of_groups_in_train"] = int(np.isin(groups[0], groups[1][used]).sum())
    if "unlabeled" in rows:
        counts["unlabeled_rows_in_tune_left_out"] = int((~parts["unlabeled"].chosen).sum()) - parts["unlabeled"].unused
        evaluated = [part for name, part in parts.items() if name.startswith("eval") and part.origin != "train"]
        near_eval = [belongs(rows["unlabeled"], rows[part.origin], part.chosen) for part in evaluated]
        used = parts["unlabeled"].chosen
        counts["unlabeled_rows_in_eval"] = int((np.any(near_eval, axis=0) & used).sum()) if near_eval else 0
    return counts


def near_train(rows: dict[str, CheckedRows], parts: dict[str, Part]) -> dict[str, Ints]:
    """For each evaluation split that was given, by row: the number of a row that is trained or tuned on and has the
    same text, or is near it, or is of the same group; -1 where none is."""
    train, found = rows["train"], {}
    used = parts["train"].chosen | parts["tune"].chosen
    places = np.flatnonzero(used)
    names, first = np.unique(train.texts[places], return_index=True)
    for name in (name for name in rows if name.startswith("eval")):
        texts = rows[name].texts
        place = np.searchsorted(names, texts).clip(max=len(names) - 1)
        near = nearest(rows[name].runs_beside(train), train.runs_beside(rows[name]).of(used))
        near = np.where(near < 0, _of_its_group(rows[name].groups, train.groups, places), near)
        found[name] = np.where(names[place] == texts, places[first[place]], near)
    return found


def _of_its_group(groups: Ints | None, train_groups: Ints | None, places: Ints) -> Ints:
    """For each row one of the training rows at these places that is of its group; -1 where none is."""
    if groups is None or train_groups is None:
        return np.array(-1)
    names, first = np.unique(train_groups[places], return_index=True)
    place = np.searchsorted(names, groups).clip(max=len(names) - 1)
    return np.where(names[place] == groups, places[first[place]], -1)


def _overlap_in_words(rows: dict[str, CheckedRows], name: str, near: Ints) -> str:
    evaluated, places = rows[name], np.flatnonzero(near >= 0)
    shown = places[:_EXAMPLES].tolist()
    examples = zip(evaluated.texts_at(shown), rows["train"].texts_at(near[shown].tolist()), strict=True)
    quoted = "; ".join(f"{_short(one)!r} and {_short(other)!r}" for one, other in examples)
    return (
        f"{len(places):,} of {len(evaluated):,} {name} rows ({100 * len(places) / len(evaluated):.0f} %) have the text "
        f"or the group of a training row, or share half of their runs of {WORDS_OF_A_RUN} words with one: the metric "
        f"flatters; for example {quoted}"
    )


def _short(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[: _EXAMPLE_CHARACTERS - 3]}..."


def _warnings(task: Task, report: DataReport, rows: dict[str, CheckedRows], near: dict[str, Ints]) -> list[str]:
    warnings = []
    if report.held_out:
        warnings.append(f"no evaluation rows were given: {report.held_out:,} training rows are held out for it")
    largest, count = int(np.bincount(rows["train"].units).max()), len(rows["train"])
    if largest > _LARGE_UNIT * count:
        warnings.append(
            f"{largest:,} of {count:,} training rows belong together, so that no slice holds them: what is measured is "
            'of the other rows (docs/data.md, "How rows are split")'
        )
    for name, count in report.duplicates.items():
        what = name.removesuffix("_rows_in_train").removesuffix("_rows_near_train")
        if count and name.endswith("_rows_in_train"):
            warnings.append(f"{count:,} {what} rows have the same text as a training row: the metric flatters")
        elif count and name.endswith("_rows_of_groups_in_train"):
            warnings.append(f"{count:,} evaluation rows are of a group that is trained on: the metric flatters")
        elif name.endswith("_rows_near_train") and count >= OVERLAP_WORTH_TELLING * len(rows[what]):
            warnings.append(_overlap_in_words(rows, what, near[what]))
    if count := report.duplicates.get("unlabeled_rows_in_eval", 0):
        warnings.append(f"{count:,} unlabelled rows have the text of an eval row, or are near one")
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


def rare_classes(task: Task, report: DataReport) -> str | None:
    """A sentence where classes that count as much as any other have few training rows; None where there are none, with
    two classes (where weights are not shown to gain anything), and where the deciding metric is not macro F1."""
    counts = {name: count for name, count in (report.splits["train"].labels or {}).items() if count}
    if task.metrics[0] != "macro_f1" or len(counts) < 3:
        return None
    mean = sum(counts.values()) / len(counts)
    rare = sorted((count, name) for name, count in counts.items() if count < _RARE * mean)
    if not rare:
        return None
    named = ", ".join(f"{name} {count:,}" for count, name in rare[:_EXAMPLES])
    return (
        f"of {len(counts)} classes {len(rare)} have less than a fifth of the average class's {mean:,.0f} training rows "
        f"({named}); macro F1 counts each class alike: --set teacher.class_weights=balanced --set "
        'student.class_weights=balanced may gain points of it, and cost accuracy (docs/decisions.md, "Rare classes")'
    )

"""Decides which of the checked rows every split gets, and reports the counts with warnings.

A slice keeps the share of every class and never parts equal rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.overlap import WORDS_OF_A_RUN, nearest
from kdc.pipeline.data.rows import CheckedRows, Ints
from kdc.pipeline.data.sources import SPLITS
from kdc.pipeline.results import DataReport, SplitCounts

Mask = npt.NDArray[np.bool_]

TUNE_SHARE, TUNE_LEAST, TUNE_MOST = 0.1, 300, 2000
TUNE_UNUSED = 600
HELD_OUT_SHARE = 0.1
OVERLAP_WORTH_TELLING = 0.1  # share of an evaluation split's rows that overlap with training rows
LARGE_UNIT = 0.1  # share of the training rows in one unit, from which on it fits into no slice
_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 80
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
    classes, units = train.classes(task), train.units
    free = np.ones(len(train), dtype=np.bool_)
    parts = {}
    if "eval" not in rows:
        size = max(round(len(train) * HELD_OUT_SHARE), 1)
        if train.times is None:
            held_out = pick_slice(units, classes, free, size, 3 * seed)
        else:
            held_out = pick_last(units, train.times, size)
        parts["eval"] = Part("train", held_out)
        free = free & ~held_out
    size = tune_size(int(free.sum()), max_train_rows)
    tune = pick_slice(units, classes, free, size, 3 * seed + 1)
    free = free & ~tune
    parts["tune"] = Part("train", tune)
    parts["train"] = Part("train", sample(classes, free, max_train_rows or len(train), 3 * seed + 2))
    for name, others in rows.items():
        if name == "unlabeled":
            # An unlabelled text that belongs to the tuning slice would be trained on, with the teacher's answer; so
            # would one that belongs to rows that are held out for the evaluation.
            held_out = tune | parts["eval"].chosen if parts["eval"].origin == "train" else tune
            parts[name] = Part(name, ~_belongs(others, train, held_out))
        elif name != "train":
            parts[name] = Part(name, np.ones(len(others), dtype=np.bool_))
    _check_parts(parts, classes, units)
    return {name: parts[name] for name in SPLITS if name in parts}


def _belongs(others: CheckedRows, rows: CheckedRows, chosen: Mask) -> Mask:
    """Which of the other rows have the text or the group of a chosen row, or are near one: (others,)."""
    found = np.isin(others.texts, rows.texts[chosen]) | (nearest(others.runs, rows.runs.of(chosen)) >= 0)
    if others.groups is not None and rows.groups is not None:
        found |= np.isin(others.groups, rows.groups[chosen])
    return found


def _check_parts(parts: dict[str, Part], classes: Ints, units: Ints) -> None:
    """Every split must have rows, and every class some to train on."""
    rows = len(classes)
    for name, what in (("eval", "an evaluation slice"), ("tune", "the tuning slice")):
        if name in parts and not len(parts[name]):
            given = f"{rows} training rows with {len(np.unique(classes))} classes"
            remedy = "give more rows with different texts, at least two of some class (is --label the right column?)"
            largest = int(np.bincount(units).max())
            if largest > rows // 2:
                given += f", of which {largest} belong together, so that no split may part them"
                remedy = 'see docs/data.md, "How rows are split"; is --group the right column?'
            raise InputError(f"too few rows to hold out {what}", given=given, remedy=remedy)
    lost = len(np.unique(classes)) - len(np.unique(classes[parts["train"].chosen]))
    if lost:
        given = f"{len(parts['train'])} rows to train on"
        remedy = (
            "allow more of them: --max-train-rows; with --time, give rows of these classes from before the evaluation"
        )
        raise InputError(f"{lost} classes have no row to train on", given=given, remedy=remedy)


def make_report(task: Task, rows: dict[str, CheckedRows], parts: dict[str, Part], near: dict[str, Ints]) -> DataReport:
    """Count the rows, labels and duplicates of every split, and warn of what may mislead; `near` is that of
    `near_train`."""
    used = sum(len(part) for part in parts.values() if part.origin == "train")
    report = DataReport(
        kind=task.kind,
        splits={name: _count(task, rows[part.origin], part) for name, part in parts.items()},
        held_out=len(parts["eval"]) if parts["eval"].origin == "train" else 0,
        unused_train_rows=len(rows["train"]) - used,
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
            counts[f"{name}_rows_of_groups_in_train"] = int(np.isin(groups[0], groups[1]).sum())
    if "unlabeled" in rows:
        counts["unlabeled_rows_in_tune_left_out"] = int((~parts["unlabeled"].chosen).sum())
        evaluated = [part for name, part in parts.items() if name.startswith("eval") and part.origin != "train"]
        near_eval = [_belongs(rows["unlabeled"], rows[part.origin], part.chosen) for part in evaluated]
        counts["unlabeled_rows_in_eval"] = int(np.any(near_eval, axis=0).sum()) if near_eval else 0
    return counts


def near_train(rows: dict[str, CheckedRows], parts: dict[str, Part]) -> dict[str, Ints]:
    """For each evaluation split that was given, by row: the number of a row that is trained or tuned on and has the
    same text, or is near it; -1 where none is."""
    train, found = rows["train"], {}
    used = parts["train"].chosen | parts["tune"].chosen
    places = np.flatnonzero(used)
    names, first = np.unique(train.texts[places], return_index=True)
    for name in (name for name in rows if name.startswith("eval")):
        texts = rows[name].texts
        place = np.searchsorted(names, texts).clip(max=len(names) - 1)
        found[name] = np.where(
            names[place] == texts, places[first[place]], nearest(rows[name].runs, train.runs.of(used))
        )
    return found


def _overlap_in_words(rows: dict[str, CheckedRows], name: str, near: Ints) -> str:
    evaluated, places = rows[name], np.flatnonzero(near >= 0)
    shown = places[:_EXAMPLES].tolist()
    examples = zip(evaluated.texts_at(shown), rows["train"].texts_at(near[shown].tolist()), strict=True)
    quoted = "; ".join(f"{_short(one)!r} and {_short(other)!r}" for one, other in examples)
    return (
        f"{len(places):,} of {len(evaluated):,} {name} rows ({100 * len(places) / len(evaluated):.0f} %) have the text "
        f"of a training row, or share half of their runs of {WORDS_OF_A_RUN} words with one: the metric flatters; for "
        f"example {quoted}"
    )


def _short(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[: _EXAMPLE_CHARACTERS - 3]}..."


def _warnings(task: Task, report: DataReport, rows: dict[str, CheckedRows], near: dict[str, Ints]) -> list[str]:
    warnings = []
    if report.held_out:
        warnings.append(f"no evaluation rows were given: {report.held_out:,} training rows are held out for it")
    largest, count = int(np.bincount(rows["train"].units).max()), len(rows["train"])
    if largest > LARGE_UNIT * count:
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


def tune_size(rows: int, max_train_rows: int | None = None) -> int:
    """Rows of the tuning slice: a tenth of the rows that are used, at least 300 and at most 2,000, and never more than
    half of them. Where `max_train_rows` leaves rows unused, up to 600: more rows to decide by cost little."""
    used = min(rows, max_train_rows or rows)
    least = max(TUNE_LEAST, min(rows - used, TUNE_UNUSED))
    return min(max(round(used * TUNE_SHARE), least), TUNE_MOST, used // 2)


def shares(counts: Ints, size: int, *, at_least: int = 0, leave: int = 0) -> Ints:
    """Split `size` rows over the classes in proportion to their counts, by the method of largest remainders.

    Args:
        counts: (classes,) rows of each class.
        size: rows to take in all.
        at_least: rows to take of every class that has so many, unless that makes more than `size` in all.
        leave: rows to leave of every class.

    Returns:
        (classes,) rows to take; their sum is `size` where the limits allow it.
    """
    most = np.maximum(counts - leave, 0)
    least = np.minimum(at_least, most)
    if int(least.sum()) > size:
        least = np.zeros_like(most)
    exact = counts * (min(size, int(counts.sum())) / max(int(counts.sum()), 1))
    taken = np.clip(np.floor(exact).astype(np.int64), least, most)
    while (missing := size - int(taken.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = taken < most if step > 0 else taken > least
        if not movable.any():
            break
        gap = np.where(movable, step * (exact - taken), -np.inf)
        best = np.argsort(-gap, kind="stable")[: min(abs(missing), int(movable.sum()))]
        taken[best] += step
    return taken


def pick_slice(units: Ints, classes: Ints, eligible: Mask, size: int, seed: int) -> Mask:
    """Choose whole units with about `size` rows, the classes in proportion, and leave a row of every class.

    Args:
        units: (rows,) unit of each row.
        classes: (rows,) class of each row, from 0; all 0 if there is nothing to stratify by.
        eligible: (rows,) which rows there are to choose from.
        size: rows to choose; fewer are chosen if large units or rare classes do not allow so many.
        seed: of the choice.

    Returns:
        (rows,) True for the chosen rows.
    """
    eligible_rows = np.flatnonzero(eligible)
    units, classes = np.unique(units[eligible_rows], return_inverse=True)[1].reshape(-1), classes[eligible_rows]
    counts = np.bincount(classes)
    order = np.argsort(units, kind="stable")
    ends = np.cumsum(np.bincount(units))
    starts = np.concatenate([[0], ends[:-1]])
    chosen = np.zeros(len(eligible), dtype=np.bool_)
    taken = np.zeros_like(counts)
    wanted = shares(counts, size, leave=1)
    # Units with rare classes come first, as only they can fill those shares.
    by_count = np.argsort(counts, kind="stable")
    rarest = np.minimum.reduceat(np.argsort(by_count, kind="stable")[classes[order]], starts)
    shuffled = np.random.default_rng(seed).permutation(len(ends))
    shuffled = shuffled[np.argsort(rarest[shuffled], kind="stable")]
    blocks = np.split(shuffled, np.cumsum(np.bincount(rarest, minlength=len(counts)))[:-1])
    # First come units that fit every class's share. What large units leave open is filled with up to half of a class.
    for limit in (wanted, np.maximum(wanted, counts // 2)):
        for label, block in zip(by_count, blocks, strict=True):
            for unit in block:
                if taken[label] >= limit[label] or taken.sum() >= wanted.sum():
                    break
                rows = order[starts[unit] : ends[unit]]
                after = taken + np.bincount(classes[rows], minlength=len(counts))
                if not chosen[eligible_rows[rows[0]]] and (after <= limit).all() and after.sum() <= size:
                    taken = after
                    chosen[eligible_rows[rows]] = True
    return chosen


def pick_last(units: Ints, times: npt.NDArray[np.float64], size: int) -> Mask:
    """Choose whole units with about `size` rows, those with the latest row first.

    Args:
        units: (rows,) unit of each row.
        times: (rows,) time of each row.
        size: rows to choose; a unit that would make more than that and a half again is left out.

    Returns:
        (rows,) True for the chosen rows.
    """
    place, counts = np.unique(units, return_inverse=True, return_counts=True)[1:]
    latest = np.full(len(counts), -np.inf)
    np.maximum.at(latest, place, times)
    chosen, taken = np.zeros(len(counts), dtype=np.bool_), 0
    for unit in np.argsort(-latest, kind="stable"):
        if taken >= size:
            break
        if taken + counts[unit] <= max(1.5 * size, taken + 1):
            chosen[unit] = True
            taken += int(counts[unit])
    return chosen[place]


def sample(classes: Ints, eligible: Mask, size: int, seed: int) -> Mask:
    """Choose `size` of the eligible rows at random, the classes in proportion, at least one row of each.

    Returns:
        (rows,) True for the chosen rows.
    """
    if size >= int(eligible.sum()):
        return eligible
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(eligible))
    rows = rows[np.argsort(classes[rows], kind="stable")]
    counts = np.bincount(classes[rows])
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each row within its class
    chosen = np.zeros(len(classes), dtype=np.bool_)
    chosen[rows[rank < np.repeat(shares(counts, size, at_least=1), counts)]] = True
    return chosen

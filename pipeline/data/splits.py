"""Assigns checked rows to stratified splits of whole units."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.overlap import Ints, Mask, nearest
from kdc.pipeline.data.rows import CheckedRows
from kdc.pipeline.data.sources import SPLITS

TUNE_SHARE, TUNE_LEAST, TUNE_MOST = 0.1, 300, 2000
TUNE_UNUSED = 600
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Part:
    """One split: the rows `chosen` (rows,) of source split `origin`."""

    origin: str
    chosen: Mask
    unused: int = 0  # eligible but not requested

    def __len__(self) -> int:
        return int(self.chosen.sum())


def split_rows(
    task: Task,
    rows: dict[str, CheckedRows],
    max_train_rows: int | None,
    seed: int,
    *,
    most_unlabeled: int | None = None,
    people_judge: bool = True,
) -> dict[str, Part]:
    """Choose every split's rows.

    Args:
        people_judge: evaluate on people's labels if there are enough; else their rows only train.

    Raises:
        InputError: too few rows.
    """
    train = rows["train"]
    classes, units = train.classes(task), train.units
    free = np.ones(len(train), dtype=np.bool_)
    held_out = np.zeros(len(train), dtype=np.bool_)
    parts = {name: Part(name, others.judging(len(others), people_judge)) for name, others in rows.items()}
    size = max(round(len(train) * HELD_OUT_SHARE), 1)
    judging = train.judging(size, people_judge)
    if "eval" not in rows:
        if train.times is None:
            held_out = pick_slice(units, classes, judging, size, 3 * seed)
            free = ~np.isin(units, units[held_out])
        else:
            held_out, free = pick_last(units, train.times, size)
            held_out &= judging
        parts["eval"] = Part("train", held_out)
    size = tune_size(int(free.sum()), max_train_rows)
    is_enough = not people_judge or int((free & judging).sum()) >= size
    tune = pick_slice(units, classes, free & judging if is_enough else free, size, 3 * seed + 1)
    parts["tune"] = Part("train", tune)
    free &= ~np.isin(units, units[tune])
    parts["train"] = Part("train", sample(classes, free, max_train_rows or len(train), 3 * seed + 2))
    if "unlabeled" in rows:
        # They would leak tuning or held-out rows.
        others = rows["unlabeled"]
        allowed = related(others, train, tune | held_out) < 0
        size = len(others) if most_unlabeled is None else most_unlabeled
        chosen = pick_texts(others.texts, allowed, train.texts[parts["train"].chosen], size, seed)
        parts["unlabeled"] = Part("unlabeled", chosen, unused=int((allowed & ~chosen).sum()))
    _check_parts(parts, classes, units)
    return {name: parts[name] for name in SPLITS if name in parts}


def related(others: CheckedRows, rows: CheckedRows, chosen: Mask) -> Ints:
    """For each of `others` a chosen row with its text or group, or near it; -1 if none."""
    found = _first_with(others.texts, rows.texts, chosen)
    found = np.where(found < 0, nearest(others.runs_beside(rows), rows.runs_beside(others).of(chosen)), found)
    if others.groups is not None and rows.groups is not None:
        found = np.where(found < 0, _first_with(others.groups, rows.groups, chosen), found)
    return found


def _first_with(hashes: Ints, row_hashes: Ints, chosen: Mask) -> Ints:
    rows = np.flatnonzero(chosen)[::-1]  # the first row wins
    first = dict(zip(row_hashes[rows].tolist(), rows.tolist(), strict=True))
    return np.array([first.get(number, -1) for number in hashes.tolist()], dtype=np.int64)


def pick_texts(texts: Ints, allowed: Mask, known: Ints, size: int, seed: int) -> Mask:
    """Choose up to `size` unlabelled rows at random, (rows,). Repeats and `known` texts (hashes) come last."""
    candidates = np.random.default_rng([seed, len(SPLITS)]).permutation(np.flatnonzero(allowed))
    repeats = np.ones(len(candidates), dtype=np.bool_)
    repeats[np.unique(texts[candidates], return_index=True)[1]] = False
    repeats |= np.isin(texts[candidates], known)
    chosen = np.zeros(len(texts), dtype=np.bool_)
    chosen[candidates[np.argsort(repeats, kind="stable")[:size]]] = True
    return chosen


def _check_parts(parts: dict[str, Part], classes: Ints, units: Ints) -> None:
    rows = len(classes)
    for name, what in (("eval", "an evaluation set"), ("tune", "the tuning set")):
        if not len(parts[name]):
            given = f"{rows} training rows with {len(np.unique(classes))} classes"
            remedy = "give more rows with different texts, at least two of some class (is --label the right column?)"
            largest = int(np.bincount(units).max())
            if largest > rows // 2:
                given += f"; {largest} belong together and must share a split"
                remedy = 'see docs/how-to/prepare-data.md, "Keep related rows together"; is data.group right?'
            raise InputError(f"too few rows to hold out {what}", given=given, remedy=remedy)
    lost = len(np.unique(classes)) - len(np.unique(classes[parts["train"].chosen]))
    if lost:
        given = f"{len(parts['train'])} rows to train on"
        remedy = "allow more of them: --max-train-rows; with data.time, give earlier rows of these classes"
        raise InputError(f"{lost} classes have no row to train on", given=given, remedy=remedy)


def tune_size(rows: int, max_train_rows: int | None = None) -> int:
    """A tenth of the used rows, 300 to 2,000, at most half. Unused rows raise the minimum, up to 600."""
    used = min(rows, max_train_rows or rows)
    least = max(TUNE_LEAST, min(rows - used, TUNE_UNUSED))
    return min(max(round(used * TUNE_SHARE), least), TUNE_MOST, used // 2)


def shares(counts: Ints, size: int, *, at_least: int = 0, leave: int = 0) -> Ints:
    """Split `size` rows over classes in proportion (largest remainders).

    Args:
        counts: (classes,) rows.
        at_least: minimum per class, ignored if the sum exceeds `size`.

    Returns:
        (classes,) rows, which sum to `size` if possible.
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
    """Choose whole units with about `size` rows, stratified, leaving a row per class.

    Args:
        units: (rows,)
        classes: (rows,); all 0 to skip stratifying.
        eligible: (rows,)
        size: large units or rare classes may give fewer.
    """
    if not eligible.any():
        return np.zeros(len(eligible), dtype=np.bool_)
    eligible_rows = np.flatnonzero(eligible)
    units, classes = np.unique(units[eligible_rows], return_inverse=True)[1].reshape(-1), classes[eligible_rows]
    counts = np.bincount(classes)
    order = np.argsort(units, kind="stable")
    ends = np.cumsum(np.bincount(units))
    starts = np.concatenate([[0], ends[:-1]])
    chosen = np.zeros(len(eligible), dtype=np.bool_)
    taken = np.zeros_like(counts)
    wanted = shares(counts, size, leave=1)
    # Rare classes first: only their units fill those shares.
    by_count = np.argsort(counts, kind="stable")
    rarest = np.minimum.reduceat(np.argsort(by_count, kind="stable")[classes[order]], starts)
    shuffled = np.random.default_rng(seed).permutation(len(ends))
    shuffled = shuffled[np.argsort(rarest[shuffled], kind="stable")]
    blocks = np.split(shuffled, np.cumsum(np.bincount(rarest, minlength=len(counts)))[:-1])
    # First each class's share, then up to half of the class.
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


def pick_last(units: Ints, times: npt.NDArray[np.float64], size: int) -> tuple[Mask, Mask]:
    """Choose about `size` of the latest rows, and the older rows unrelated to them.

    Whole units are chosen, latest first, but not their rows older than the size-th latest. Rows in neither part would
    leak the future into training.

    Args:
        units: (rows,)
        times: (rows,)
        size: larger units than 1.5 times this are skipped. Fewer rows are chosen if less than half of all would
            remain.

    Returns:
        (rows,) chosen; (rows,) older.
    """
    units, counts = np.unique(units, return_inverse=True, return_counts=True)[1:]
    latest = np.full(len(counts), -np.inf)
    np.maximum.at(latest, units, times)
    fitting = np.sort(times[counts[units] <= 1.5 * size])
    begins = fitting[-min(size, len(fitting))] if len(fitting) else -np.inf
    late = np.bincount(units, weights=times >= begins)
    chosen, taken, whole = np.zeros(len(counts), dtype=np.bool_), 0, 0
    for unit in np.argsort(-latest, kind="stable"):
        if taken >= size or latest[unit] < begins:
            break
        leaves_enough = whole + counts[unit] <= max(1.5 * size, len(times) / 2)
        if counts[unit] <= 1.5 * size and taken + late[unit] <= 1.5 * size and leaves_enough:
            chosen[unit] = True
            taken, whole = taken + int(late[unit]), whole + int(counts[unit])
    return chosen[units] & (times >= begins), ~chosen[units] & (times <= begins)


def sample(classes: Ints, eligible: Mask, size: int, seed: int) -> Mask:
    """Choose `size` rows at random, (rows,), stratified, one per class at least."""
    if size >= int(eligible.sum()):
        return eligible
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(eligible))
    rows = rows[np.argsort(classes[rows], kind="stable")]
    counts = np.bincount(classes[rows])
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # within the class
    chosen = np.zeros(len(classes), dtype=np.bool_)
    chosen[rows[rank < np.repeat(shares(counts, size, at_least=1), counts)]] = True
    return chosen

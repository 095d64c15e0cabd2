"""The threshold of a label that keeps an aim, and how a threshold does. Plain arrays in, plain numbers out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, mannwhitneyu, norm, rankdata

from kdc.artifact.contract.rates import Rate
from kdc.artifact.contract.terms import Evidence
from kdc.artifact.decision import HALF, Rates
from kdc.pipeline.config.aims import Aim
from kdc.pipeline.config.metrics import Floats, Groups
from kdc.pipeline.quality.intervals import design_effect
from kdc.pipeline.quality.shown import ERROR, Surest, at_least, effect_of_least, floor4, surest_right

_FEWEST = 10  # rows with the label, and without it: of fewer a threshold says more about these rows than about others
_LEAST_GAIN = 0.02  # of F1, or of the correlation, over giving the label to every row
_CHANCE = 0.05  # of models that know nothing of a label, one in twenty gets a threshold


class Sweep(NamedTuple):
    """How thresholds do, (thresholds,) each, 0 to 1."""

    precision: Floats
    recall: Floats
    given: Floats  # share of all rows that get the label


@dataclass(frozen=True)
class Chosen:
    """A threshold: a row gets the label from this probability on."""

    threshold: float
    reached: bool = True  # whether the rows reach the aim
    note: str = ""  # why they do not
    shown: str = ""  # the bound that they show in its place; "" where nothing is known of that


def choose(
    probabilities: NDArray[np.floating],
    has_label: NDArray[np.bool_],
    aim: Aim,
    evidence: Evidence = "interval",
    *,
    groups: Groups | None = None,
) -> Chosen:
    """The threshold for an aim, by rows whose labels are known.

    Of the thresholds that keep a bound it is the one with most of what the bound works against: the most recall for a
    precision or a false positive rate, the fewest false alarms for a recall; of equal ones that which keeps the bound
    best. Where none keeps it, it is the nearest. Of a label that the model hardly knows the highest F1 is to give it to
    nearly every row, which is not taken. Rows with one probability are never parted, and a threshold lies halfway
    between two probabilities.

    By `interval` a bound is kept where these rows show, with an error of 5 %, that it is on other rows: a precision by
    `surest_right`; a recall and a false positive rate by the tolerance limits of Wilks (1941, Ann. Math. Stat. 12:91),
    by which the share of all rows beyond a row's probability has a beta distribution, whatever that of the
    probabilities is. Rows in groups count as fewer, by the design effect of being on the wrong side. Where nothing is
    shown, the choice is that by the share itself (`point`), and is not reached.

    Args:
        probabilities: (rows,) of the label.
        has_label: (rows,) whether the row has it.
        aim: what is asked.
        evidence: `interval`, or `point`: a bound is kept where the share of these rows keeps it.
        groups: (rows,) which rows belong together; None where each stands alone.
    """
    if aim.measure == "fixed":
        assert aim.bound is not None
        return Chosen(aim.bound)
    positives, negatives = int(has_label.sum()), int((~has_label).sum())
    if min(positives, negatives) < _FEWEST:
        few = f"{positives} rows have the label and {negatives} have it not, at least {_FEWEST} of each are needed"
        return Chosen(HALF, reached=False, note=few)
    if not _knows(probabilities, has_label, groups):
        return Chosen(HALF, reached=False, note="the model does not tell the rows that have the label from the others")
    thresholds, hits, alarms = _curve(probabilities, has_label)
    precision = np.divide(hits, hits + alarms, out=np.ones_like(hits), where=hits + alarms > 0)
    recall, fpr = hits / positives, alarms / negatives
    if aim.bound is None:
        if aim.measure == "f1":
            score, of_all = 2 * hits / (positives + hits + alarms), 2 * positives / (positives + len(has_label))
        else:
            score, of_all = _matthews(hits, alarms, positives, negatives), 0.0
        if score.max() < of_all + _LEAST_GAIN:
            return Chosen(HALF, reached=False, note="no threshold is better than to give it to every row")
        return Chosen(_nearest_half(thresholds[score >= score.max() - 1e-12]))
    if evidence == "interval":
        return _shown(probabilities, has_label, aim, groups)
    value, wins = {"precision": (precision, recall), "recall": (recall, -fpr), "fpr": (-fpr, recall)}[aim.measure]
    value = np.where(hits > 0, value, -1.0)  # a label that is never given keeps every precision, and is no use
    bound = -aim.bound if aim.measure == "fpr" else aim.bound
    keeps = value >= bound - 1e-12
    if keeps.any():
        best = keeps & (wins >= wins[keeps].max() - 1e-12)
        best &= value >= value[best].max() - 1e-12
        return Chosen(_nearest_half(thresholds[best]))
    nearest = value >= value.max() - 1e-12
    at = int(np.flatnonzero(nearest)[np.argmax(wins[nearest])])
    return Chosen(float(thresholds[at]), reached=False, note=f"at best {abs(value[at]):.4f}")


def _knows(probabilities: NDArray[np.floating], has_label: NDArray[np.bool_], groups: Groups | None) -> bool:
    """Whether the model tells rows that have the label from the others, by a one-sided Mann-Whitney test."""
    chance = mannwhitneyu(probabilities[has_label], probabilities[~has_label], alternative="greater").pvalue
    # What each row adds to the covariance of its rank and of having the label, which the test is of.
    ranks = 2 * rankdata(probabilities) / len(probabilities) - 1
    effect = design_effect(2 * (has_label - has_label.mean()) * (ranks - ranks.mean()), groups)
    return bool(norm.isf(chance) > norm.isf(_CHANCE) * np.sqrt(effect))


def _shown(
    probabilities: NDArray[np.floating], has_label: NDArray[np.bool_], aim: Aim, groups: Groups | None
) -> Chosen:
    """The threshold by which a bound is shown to be kept; else that by the share itself, which is not reached."""
    assert aim.bound is not None
    surest, is_most = _SUREST[aim.measure], aim.measure == "fpr"
    found = surest(probabilities, has_label, 1 - aim.bound if is_most else aim.bound, groups)
    if found.bound is None:
        return Chosen(found.threshold)
    # What rows show depends on the bound that is asked of them, so what these show may not be shown again if it is
    # asked for. It is asked for here, until it is.
    while found.bound:
        again = surest(probabilities, has_label, float(floor4(found.bound)), groups)
        if again.bound is None:
            break
        found = again
    assert found.bound is not None
    shown, side = floor4(found.bound), "with" if aim.measure == "recall" else "without"
    shown = f"{1 - float(shown):.4f}" if is_most else shown
    note = f"at best {shown} is shown, by {found.rows} rows {side} the label"
    note = found.note(len(has_label)) if aim.measure == "precision" else note
    by_share = choose(probabilities, has_label, aim, "point", groups=groups)
    return Chosen(by_share.threshold, reached=False, note=note, shown=shown)


def _surest_with_label(
    probabilities: NDArray[np.floating], has_label: NDArray[np.bool_], bound: float, groups: Groups | None
) -> Surest:
    """`surest_right` of a label. Of a rare one only the surest rows matter; below the bound a row is less likely right
    than is asked."""
    most = 2 * int((probabilities >= min(HALF, bound)).sum())
    most = min(max(most, _FEWEST), len(has_label))
    return surest_right(probabilities, has_label, bound, most=most, groups=groups)


def _tolerated(
    probabilities: NDArray[np.floating],
    has_label: NDArray[np.bool_],
    bound: float,
    groups: Groups | None,
    *,
    with_label: bool,
) -> Surest:
    """Of the thresholds that are shown to keep at least a share `bound` of the rows with the label above them, the one
    with the fewest others there; or of those that keep the others below them, the one with most of the label above."""
    thresholds, hits, alarms = _curve(probabilities, has_label)
    side = has_label if with_label else ~has_label
    rows = int(side.sum())
    right, wins = (hits, -alarms) if with_label else (rows - alarms, hits)
    wrong_first = probabilities if with_label else -probabilities
    effect = effect_of_least(wrong_first[side], 1 - bound, None if groups is None else groups[side])
    # A threshold that gives the label to no row keeps every bound, and is no use.
    shown = np.where(hits > 0, at_least(ERROR, right / effect, (rows - right) / effect), -1.0)
    if shown.max() < bound:
        return Surest(HALF, rows, float(shown.max()))
    best = (shown >= bound) & (wins >= wins[shown >= bound].max())
    best &= right >= right[best].max()
    return Surest(_nearest_half(thresholds[best]), rows, None)


_SUREST: dict[str, Callable[[NDArray[np.floating], NDArray[np.bool_], float, Groups | None], Surest]] = {
    "precision": _surest_with_label,
    "recall": partial(_tolerated, with_label=True),
    "fpr": partial(_tolerated, with_label=False),
}


def _curve(probabilities: NDArray[np.floating], has_label: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """All thresholds that differ, falling, with the rows that get the label rightly and wrongly at each."""
    values = np.asarray(probabilities, dtype=np.float64)
    distinct, place = np.unique(values, return_inverse=True)
    right = np.bincount(place, weights=has_label, minlength=len(distinct))[::-1]
    wrong = np.bincount(place, weights=~has_label, minlength=len(distinct))[::-1]
    falling = distinct[::-1]
    between = np.append((falling[:-1] + falling[1:]) / 2, 0.0)
    return between, right.cumsum(), wrong.cumsum()


def _matthews(hits: Floats, alarms: Floats, positives: int, negatives: int) -> Floats:
    """Matthews' correlation of giving a label and having it (1975, Biochim. Biophys. Acta 405:442); 0 where all rows
    get it."""
    given = hits + alarms
    square = given * (positives + negatives - given) * positives * negatives
    return np.divide(hits * negatives - alarms * positives, np.sqrt(square), out=np.zeros_like(hits), where=square > 0)


def _nearest_half(thresholds: Floats) -> float:
    return float(thresholds[np.abs(thresholds - HALF).argmin()])


def having(labels: NDArray[np.generic], place: int) -> NDArray[np.bool_]:
    """(rows,) whether rows have the label at a place; labels are (rows,) class ids, or (rows, outputs) in {0, 1}."""
    labels = np.asarray(labels).astype(np.int64)
    return labels == place if labels.ndim == 1 else labels[:, place] == 1


def rates(gets_label: NDArray[np.bool_], has_label: NDArray[np.bool_]) -> Rates:
    """How rows that get a label compare with those that have it; (rows,) each."""
    hits = int((gets_label & has_label).sum())
    return Rates(
        precision=rate(hits, int(gets_label.sum())),
        recall=rate(hits, int(has_label.sum())),
        false_alarms=rate(int((gets_label & ~has_label).sum()), int((~has_label).sum())),
    )


def sweep(probabilities: NDArray[np.floating], has_label: NDArray[np.bool_], thresholds: Floats) -> Sweep:
    """How thresholds do on rows: the arguments as in `choose`; a precision of no rows is NaN."""
    gets = probabilities[:, None] >= thresholds
    hits, given = (gets & has_label[:, None]).sum(axis=0), gets.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return Sweep(hits / given, hits / has_label.sum(), given / len(gets))


def rate(hits: int, of: int) -> Rate:
    """A share with its exact interval; of nothing the interval is everything."""
    if not of:
        return Rate(hits=0, of=0, low=0.0, high=1.0)
    interval = binomtest(hits, of).proportion_ci(0.95, method="exact")
    return Rate(hits=hits, of=of, low=round(float(interval.low), 6), high=round(float(interval.high), 6))

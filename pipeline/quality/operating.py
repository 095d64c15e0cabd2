"""Chooses thresholds on labelled rows: the probabilities from which a label is given, a row answered, or a label added
to a row's set."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, norm, rankdata

from kdc.artifact.contract.terms import Evidence
from kdc.artifact.decision import HALF
from kdc.pipeline.config.aims import Aim
from kdc.pipeline.config.metrics import Flags, Floats, Groups
from kdc.pipeline.quality import shares
from kdc.pipeline.quality.intervals import design_effect, independent_rows
from kdc.pipeline.quality.shares import Surest, by_threshold, effect_of_least, floor4, surest_right

_FEWEST = 10  # rows with the label, and without it: of fewer a threshold says more about these rows than about others
_LEAST_GAIN = 0.02  # of F1, or of the correlation, over giving the label to every row
_CHANCE = 0.05  # of models that know nothing of a label, one in twenty gets a threshold


@dataclass(frozen=True)
class Chosen:
    """A threshold: a row gets the label, or is answered, from this probability on."""

    threshold: float
    reached: bool = True  # whether the rows reach the aim
    note: str = ""  # why they do not
    proven: str = ""  # the bound that they show instead; "" where nothing is known of that


def choose(
    probabilities: NDArray[np.floating],
    has_label: Flags,
    aim: Aim,
    evidence: Evidence = "interval",
    *,
    groups: Groups | None = None,
) -> Chosen:
    """The threshold of a label for an aim.

    A bound on precision or on the false positive rate leaves the threshold with the highest recall, a bound on recall
    the one with the fewest false alarms. Ties go to the threshold that keeps the bound best. If none keeps the bound,
    the nearest one is chosen. If giving a label to nearly every row has the highest F1, the model hardly knows the
    label, and one half is kept. Rows with equal probabilities are never parted.

    With `interval`, these rows must show with an error of 5 % that other rows keep the bound. A precision is shown by
    `surest_right`. Recall and false positive rate are shown by the tolerance limits of Wilks (1941, Ann. Math. Stat.
    12:91): the share of all rows beyond a row's probability has a beta distribution. Rows in groups count as fewer, by
    the design effect of being on the wrong side. If nothing is shown, the threshold by `point` is not reached.

    Args:
        probabilities: (rows,) of the label.
        evidence: `interval`, or `point`: the share of these rows keeps the bound.
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
    if aim.bound is None:
        return _highest(probabilities, has_label, aim)
    if evidence == "interval":
        return _by_interval(probabilities, has_label, aim, groups)
    return _by_share(probabilities, has_label, aim, aim.bound)


def _knows(probabilities: NDArray[np.floating], has_label: Flags, groups: Groups | None) -> bool:
    """Whether the model tells rows that have the label from the others, by a one-sided Mann-Whitney test."""
    chance = mannwhitneyu(probabilities[has_label], probabilities[~has_label], alternative="greater").pvalue
    # What each row adds to the covariance of its rank and of having the label, which the test is of.
    ranks = 2 * rankdata(probabilities) / len(probabilities) - 1
    effect = design_effect(2 * (has_label - has_label.mean()) * (ranks - ranks.mean()), groups)
    return bool(norm.isf(chance) > norm.isf(_CHANCE) * np.sqrt(effect))


def _highest(probabilities: NDArray[np.floating], has_label: Flags, aim: Aim) -> Chosen:
    """The threshold with the highest F1, or Matthews' correlation (1975, Biochim. Biophys. Acta 405:442)."""
    thresholds, hits, alarms = by_threshold(probabilities, has_label)
    rows, positives, given = len(has_label), has_label.sum(), hits + alarms
    if aim.measure == "f1":
        score, of_all = 2 * hits / (positives + given), 2 * positives / (positives + rows)
    else:
        above, square = rows * hits - positives * given, given * (rows - given) * positives * (rows - positives)
        score, of_all = np.divide(above, np.sqrt(square), out=np.zeros_like(above), where=square > 0), 0.0
    if score.max() < of_all + _LEAST_GAIN:
        return Chosen(HALF, reached=False, note="no threshold is better than to give it to every row")
    return Chosen(_nearest_half(thresholds[score >= score.max() - 1e-12]))


def _by_share(probabilities: NDArray[np.floating], has_label: Flags, aim: Aim, bound: float) -> Chosen:
    """The threshold by which the share of these rows keeps a bound; else the nearest."""
    thresholds, hits, alarms = by_threshold(probabilities, has_label)
    precision = np.divide(hits, hits + alarms, out=np.ones_like(hits), where=hits + alarms > 0)
    recall, fpr = hits / has_label.sum(), alarms / (~has_label).sum()
    value, wins = {"precision": (precision, recall), "recall": (recall, -fpr), "fpr": (-fpr, recall)}[aim.measure]
    value = np.where(hits > 0, value, -1.0)  # a label that is never given keeps every precision, and is no use
    keeps = value >= (-bound if aim.measure == "fpr" else bound) - 1e-12
    if keeps.any():
        best = keeps & (wins >= wins[keeps].max() - 1e-12)
        best &= value >= value[best].max() - 1e-12
        return Chosen(_nearest_half(thresholds[best]))
    nearest = value >= value.max() - 1e-12
    at = int(np.flatnonzero(nearest)[np.argmax(wins[nearest])])
    return Chosen(float(thresholds[at]), reached=False, note=f"at best {abs(value[at]):.4f}")


def _by_interval(probabilities: NDArray[np.floating], has_label: Flags, aim: Aim, groups: Groups | None) -> Chosen:
    """The threshold by which a bound is shown to be kept; else that by the share itself, which is not reached."""
    assert aim.bound is not None
    surest, is_most = _SUREST[aim.measure], aim.measure == "fpr"
    best = surest(probabilities, has_label, 1 - aim.bound if is_most else aim.bound, groups)
    if best.bound is None:
        return Chosen(best.threshold)
    # The bound that rows show depends on the requested bound. Ask for the shown bound, until the rows show that too.
    while best.bound:
        again = surest(probabilities, has_label, float(floor4(best.bound)), groups)
        if again.bound is None:
            break
        best = again
    assert best.bound is not None
    proven = f"{1 - float(floor4(best.bound)):.4f}" if is_most else floor4(best.bound)
    side = "with" if aim.measure == "recall" else "without"
    note = f"at best {proven} is shown, by {best.rows} rows {side} the label"
    if aim.measure == "precision":
        note = best.note(len(has_label))
    by_share = _by_share(probabilities, has_label, aim, aim.bound)
    return Chosen(by_share.threshold, reached=False, note=note, proven=proven)


def _surest_with_label(
    probabilities: NDArray[np.floating], has_label: Flags, bound: float, groups: Groups | None
) -> Surest:
    """`surest_right` of a label. Of a rare one only the surest rows matter; below the bound a row is less likely right
    than is asked."""
    most = 2 * int((probabilities >= min(HALF, bound)).sum())
    most = min(max(most, _FEWEST), len(has_label))
    return surest_right(probabilities, has_label, bound, most=most, groups=groups)


def _tolerated(
    probabilities: NDArray[np.floating], has_label: Flags, bound: float, groups: Groups | None, *, with_label: bool
) -> Surest:
    """The threshold that is shown to keep a share `bound` of the rows with the label above it, with the fewest others
    there. Without `with_label`, it keeps the share of others below it, with most rows of the label above it."""
    thresholds, hits, alarms = by_threshold(probabilities, has_label)
    side = has_label if with_label else ~has_label
    rows = int(side.sum())
    right, wins = (hits, -alarms) if with_label else (rows - alarms, hits)
    wrong_first = probabilities if with_label else -probabilities
    effect = effect_of_least(wrong_first[side], 1 - bound, None if groups is None else groups[side])
    # A threshold that gives the label to no row keeps every bound, and is no use.
    low = np.where(hits > 0, shares.at_least(shares.ERROR, right / effect, (rows - right) / effect), -1.0)
    if low.max() < bound:
        return Surest(HALF, rows, float(low.max()))
    best = (low >= bound) & (wins >= wins[low >= bound].max())
    best &= right >= right[best].max()
    return Surest(_nearest_half(thresholds[best]), rows, None)


_SUREST: dict[str, Callable[[NDArray[np.floating], Flags, float, Groups | None], Surest]] = {
    "precision": _surest_with_label,
    "recall": partial(_tolerated, with_label=True),
    "fpr": partial(_tolerated, with_label=False),
}


def _nearest_half(thresholds: Floats) -> float:
    return float(thresholds[np.abs(thresholds - HALF).argmin()])


def choose_answered(
    confidence: NDArray[np.floating], right: Flags, aim: Aim, *, groups: Groups | None = None
) -> Chosen:
    """The least probability of an answer, such that the share of right answers is shown to keep an aim: `surest_right`
    of all rows.

    Args:
        confidence: (rows,) the probability of each row's label.
        right: whether that label is the row's.
    """
    assert aim.bound is not None
    if aim.measure == "fixed":
        return Chosen(aim.bound)
    best = surest_right(confidence, right, aim.bound, most=len(right), groups=groups)
    if best.bound is None:
        return Chosen(best.threshold)
    return Chosen(best.threshold, reached=False, note=best.note(len(right)), proven=floor4(best.bound))


def choose_at_least(of_truth: NDArray[np.floating], coverage: float, *, groups: Groups | None = None) -> float | None:
    """The least probability of a label in a set, such that the set of another row like these holds its true label with
    a probability of at least `coverage`: split conformal prediction (Papadopoulos et al. 2002, ECML), by the score with
    which sets are smallest on average (Sadinle et al. 2019, J. Am. Stat. Assoc. 114:223).

    All n + 1 rows, the other one included, have the same chance of each place in the order of probabilities. The other
    row lies below the row in place k with a chance of at most k / (n + 1). The choice is the largest k for which this
    chance is at most 1 - coverage. If the other row comes in a group of d rows that are alike, all d or none lie below.
    Their chance is (k + d - 1) / (n + d); d is the design effect of being among the rows below.

    Args:
        of_truth: (rows,) the probability of each row's true label.
        coverage: share, 0 to 1.

    Returns:
        None where there are fewer independent rows than `fewest_rows`: every label would be in every set.
    """
    if independent_rows(groups, len(of_truth)) < fewest_rows(coverage):
        return None
    missed = _missed(coverage)
    alike = Fraction(effect_of_least(of_truth, float(missed), groups))
    place = math.floor((len(of_truth) + alike) * missed - alike + 1)
    return float(np.sort(of_truth)[max(1, place) - 1])


def fewest_rows(coverage: float) -> int:
    """How many independent rows it takes to choose."""
    return math.ceil(1 / _missed(coverage)) - 1


def _missed(coverage: float) -> Fraction:
    """As a person wrote it: in binary, 10 * (1 - 0.9) is less than 1."""
    return 1 - Fraction(str(coverage))

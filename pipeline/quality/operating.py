"""Choose decision thresholds on labelled rows."""

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
from kdc.pipeline.quality.shares import Surest, by_threshold, effect_of_least, floor4, surest_of_all, surest_right

_FEWEST = 10  # rows with the label, and without it: fewer would overfit
_LEAST_GAIN = 0.02  # least score gain over giving the label to every row
_CHANCE = 0.05  # significance level of `_knows`


@dataclass(frozen=True)
class Chosen:
    threshold: float  # from this probability on, rows get the label or an answer
    reached: bool = True
    note: str = ""  # why the aim was not reached
    proven: str = ""  # bound shown instead; "" if unknown


def choose(
    probabilities: NDArray[np.floating],
    has_label: Flags,
    aim: Aim,
    evidence: Evidence = "interval",
    *,
    groups: Groups | None = None,
) -> Chosen:
    """Choose the threshold of a label, from its probabilities (rows,), for an aim.

    With a bound on precision or false positive rate, the highest recall wins. With one on recall, the fewest false
    alarms win. Ties go to the threshold that keeps the bound best. If none keeps it, `interval` falls back to `point`,
    and `point` to the nearest. The threshold is one half if rows are too few, or the label's rows do not get higher
    probabilities.

    With `interval`, other rows must be shown to keep the bound, with an error of 5 %: precision by `surest_right`, the
    others by tolerance limits (Wilks 1941, Ann. Math. Stat. 12:91). With `point`, the rows' share must keep the bound.
    """
    if aim.measure == "fixed":
        assert aim.bound is not None
        return Chosen(aim.bound)
    positives, negatives = int(has_label.sum()), int((~has_label).sum())
    if min(positives, negatives) < _FEWEST:
        few = f"{positives} rows have the label and {negatives} do not, at least {_FEWEST} of each are needed"
        return Chosen(HALF, reached=False, note=few)
    if not _knows(probabilities, has_label, groups):
        return Chosen(HALF, reached=False, note="the model does not tell the rows that have the label from the others")
    if aim.bound is None:
        return _highest(probabilities, has_label, aim)
    if evidence == "interval":
        return _by_interval(probabilities, has_label, aim, groups)
    return _by_share(probabilities, has_label, aim, aim.bound)


def _knows(probabilities: NDArray[np.floating], has_label: Flags, groups: Groups | None) -> bool:
    chance = mannwhitneyu(probabilities[has_label], probabilities[~has_label], alternative="greater").pvalue
    # `effect` is of each row's term in the statistic, the covariance of rank and label.
    ranks = 2 * rankdata(probabilities) / len(probabilities) - 1
    effect = design_effect(2 * (has_label - has_label.mean()) * (ranks - ranks.mean()), groups)
    return bool(norm.isf(chance) > norm.isf(_CHANCE) * np.sqrt(effect))


def _highest(probabilities: NDArray[np.floating], has_label: Flags, aim: Aim) -> Chosen:
    """Choose by F1 or the Matthews correlation (1975, Biochim. Biophys. Acta 405:442)."""
    thresholds, hits, alarms = by_threshold(probabilities, has_label)
    rows, positives, given = len(has_label), has_label.sum(), hits + alarms
    if aim.measure == "f1":
        score, of_all = 2 * hits / (positives + given), 2 * positives / (positives + rows)
    else:
        above, square = rows * hits - positives * given, given * (rows - given) * positives * (rows - positives)
        score, of_all = np.divide(above, np.sqrt(square), out=np.zeros_like(above), where=square > 0), 0.0
    if score.max() < of_all + _LEAST_GAIN:
        return Chosen(HALF, reached=False, note="no threshold beats giving the label to every row")
    return Chosen(_nearest_half(thresholds[score >= score.max() - 1e-12]))


def _by_share(probabilities: NDArray[np.floating], has_label: Flags, aim: Aim, bound: float) -> Chosen:
    thresholds, hits, alarms = by_threshold(probabilities, has_label)
    precision = np.divide(hits, hits + alarms, out=np.ones_like(hits), where=hits + alarms > 0)
    recall, fpr = hits / has_label.sum(), alarms / (~has_label).sum()
    value, wins = {"precision": (precision, recall), "recall": (recall, -fpr), "fpr": (-fpr, recall)}[aim.measure]
    value = np.where(hits > 0, value, -1.0)  # a label never given is useless
    keeps = value >= (-bound if aim.measure == "fpr" else bound) - 1e-12
    if keeps.any():
        best = keeps & (wins >= wins[keeps].max() - 1e-12)
        best &= value >= value[best].max() - 1e-12
        return Chosen(_nearest_half(thresholds[best]))
    nearest = value >= value.max() - 1e-12
    at = int(np.flatnonzero(nearest)[np.argmax(wins[nearest])])
    return Chosen(float(thresholds[at]), reached=False, note=f"at best {abs(value[at]):.4f}")


def _by_interval(probabilities: NDArray[np.floating], has_label: Flags, aim: Aim, groups: Groups | None) -> Chosen:
    assert aim.bound is not None
    surest, is_most = _SUREST[aim.measure], aim.measure == "fpr"
    best = _best_shown(surest, probabilities, has_label, 1 - aim.bound if is_most else aim.bound, groups)
    if best.bound is None:
        return Chosen(best.threshold)
    proven = _complement(best.bound) if is_most else floor4(best.bound)
    side = "with" if aim.measure == "recall" else "without"
    note = f"at best {proven} is shown, by {best.rows} rows {side} the label"
    if aim.measure == "precision":
        note = best.note(len(has_label))
    by_share = _by_share(probabilities, has_label, aim, aim.bound)
    return Chosen(by_share.threshold, reached=False, note=note, proven=proven)


def _best_shown(
    surest: "_SurestOf", probabilities: NDArray[np.floating], right: Flags, bound: float, groups: Groups | None
) -> Surest:
    """The rows that show `bound`. Otherwise the highest bound that is still shown when requested."""
    best = surest(probabilities, right, bound, groups)
    while best.bound:
        again = surest(probabilities, right, float(floor4(best.bound)), groups)
        if again.bound is None:
            break
        best = again
    return best


def _complement(share: float) -> str:
    """One minus a share, with four digits, rounded up."""
    return f"{1 - float(floor4(share)):.4f}"


def _surest_with_label(
    probabilities: NDArray[np.floating], has_label: Flags, bound: float, groups: Groups | None
) -> Surest:
    """`surest_right` among twice the rows that reach the lower of `bound` and 0.5, at least ten: others are right too
    rarely."""
    most = 2 * int((probabilities >= min(HALF, bound)).sum())
    most = min(max(most, _FEWEST), len(has_label))
    return surest_right(probabilities, has_label, bound, most=most, groups=groups)


def _tolerated(
    probabilities: NDArray[np.floating], has_label: Flags, bound: float, groups: Groups | None, *, with_label: bool
) -> Surest:
    thresholds, hits, alarms = by_threshold(probabilities, has_label)
    side = has_label if with_label else ~has_label
    rows = int(side.sum())
    right, wins = (hits, -alarms) if with_label else (rows - alarms, hits)
    wrong_first = probabilities if with_label else -probabilities
    effect = effect_of_least(wrong_first[side], 1 - bound, None if groups is None else groups[side])
    low = np.where(hits > 0, shares.at_least(shares.ERROR, right / effect, (rows - right) / effect), -1.0)
    if low.max() < bound:
        return Surest(HALF, rows, float(low.max()))
    best = (low >= bound) & (wins >= wins[low >= bound].max())
    best &= right >= right[best].max()
    return Surest(_nearest_half(thresholds[best]), rows, None)


_SurestOf = Callable[[NDArray[np.floating], Flags, float, Groups | None], Surest]
_SUREST: dict[str, _SurestOf] = {
    "precision": _surest_with_label,
    "recall": partial(_tolerated, with_label=True),
    "fpr": partial(_tolerated, with_label=False),
}


def _nearest_half(thresholds: Floats) -> float:
    return float(thresholds[np.abs(thresholds - HALF).argmin()])


def choose_answered(
    confidence: NDArray[np.floating], right: Flags, aim: Aim, *, groups: Groups | None = None
) -> Chosen:
    """The lowest threshold at which the answers are shown to keep an aim."""
    assert aim.bound is not None
    if aim.measure == "fixed":
        return Chosen(aim.bound)
    if aim.is_of_all_rows:
        best = _best_shown(surest_of_all, confidence, right, 1 - aim.bound, groups)
        proven = "" if best.bound is None else _complement(best.bound)
        note = f"at best {proven} is shown, by {best.rows} rows"
    else:
        best = surest_right(confidence, right, aim.bound, most=len(right), groups=groups)
        proven = "" if best.bound is None else floor4(best.bound)
        note = best.note(len(right)) if proven else ""
    if best.bound is None:
        return Chosen(best.threshold)
    return Chosen(best.threshold, reached=False, note=note, proven=proven)


def choose_at_least(of_truth: NDArray[np.floating], coverage: float, *, groups: Groups | None = None) -> float | None:
    """The threshold for label sets to hold a new row's true label with a chance of at least `coverage`.

    Split conformal prediction (Papadopoulos et al. 2002) with the score of Sadinle et al. (2019). A new row lies below
    the k-th lowest with a chance of at most `k / (n + 1)`, or `(k + d - 1) / (n + d)` in groups of d alike rows. The
    design effect of lying below serves as d.

    Args:
        of_truth: (rows,) the probability of each row's true label.

    Returns:
        None with fewer independent rows than `fewest_rows`.
    """
    if independent_rows(groups, len(of_truth)) < fewest_rows(coverage):
        return None
    missed = _missed(coverage)
    alike = Fraction(effect_of_least(of_truth, float(missed), groups))
    place = math.floor((len(of_truth) + alike) * missed - alike + 1)
    return float(np.sort(of_truth)[max(1, place) - 1])


def fewest_rows(coverage: float) -> int:
    return math.ceil(1 / _missed(coverage)) - 1


def _missed(coverage: float) -> Fraction:
    """`1 - coverage` in decimals: in binary, 10 * (1 - 0.9) is less than 1."""
    return 1 - Fraction(str(coverage))

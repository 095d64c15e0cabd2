"""Sets of labels that hold the true one with a stated probability."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.decision import Covered, LabelSets
from kdc.pipeline.config.metrics import Groups, Labels, Outputs
from kdc.pipeline.quality.intervals import independent_rows
from kdc.pipeline.quality.shares import effect_of_least, rate
from kdc.serving.engine.deciding import in_sets


def choose_at_least(of_truth: NDArray[np.floating], coverage: float, *, groups: Groups | None = None) -> float | None:
    """The least probability of a label in a set, such that the set of another row like these holds its true label with
    a probability of at least `coverage`: split conformal prediction (Papadopoulos et al. 2002, ECML), by the score with
    which sets are smallest on average (Sadinle et al. 2019, J. Am. Stat. Assoc. 114:223).

    Of n rows and the other one, each has any place among all of them with the same chance. So the other one's is below
    that of the row in place k with a chance of at most k / (n + 1), and k is the largest for which that is no more than
    1 - coverage. Of another group of d rows that are alike, all or none are below it, so that k + d - 1 of n + d rows
    are; d is the design effect of being among the rows below.

    Args:
        of_truth: (rows,) the probability of each row's true label.
        coverage: share, 0 to 1.
        groups: which rows belong together; None where each stands alone.

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


def covered_rates(probabilities: Outputs, labels: Labels, sets: LabelSets) -> Covered:
    """How often the sets of rows of several classes hold the true label, with exact intervals, and how large they
    are."""
    holds = in_sets(probabilities, sets)
    sizes, rows = holds.sum(axis=1), len(labels)
    return Covered(
        coverage=rate(int(holds[np.arange(rows), labels.astype(np.int64)].sum()), rows),
        single=rate(int((sizes == 1).sum()), rows),
        size=round(float(sizes.mean()), 6),
    )

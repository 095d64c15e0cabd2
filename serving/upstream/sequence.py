"""A confidence sequence for a share: its intervals hold after every audit at once.

Robbins' mixture with a beta prior (Robbins 1970, Annals of Mathematical Statistics 41:1397; Howard, Ramdas, McAuliffe
and Sekhon 2021, Annals of Statistics 49:1055).
"""

import math

# The prior's first parameter, and its mean in multiples of the expected share. Any prior gives valid intervals; these
# values find an excess soon (`benchmarks/audit.py --priors`).
_STRENGTH, _MEAN = 8.0, 2.0
EPOCH = 2000  # audits judged by themselves too: a good past hides no change
# A wrong stop has a chance of 5 %: half by all audits, at this confidence, half by the epochs.
CONFIDENCE = 0.975
_HALVINGS = 50  # to the last digits


def prior(expected: float) -> tuple[float, float]:
    """Parameters of the beta prior; `expected` is in (0, 1)."""
    mean = min(_MEAN * expected, (1 + expected) / 2)
    return _STRENGTH, _STRENGTH / mean - _STRENGTH


def interval(differing: int, audits: int, *, expected: float, confidence: float = 0.95) -> tuple[float, float]:
    """The share of differing answers: every value whose likelihood is more than 1 - `confidence` of the mixture's.

    If the share stays the same, the chance that it is ever outside is at most 1 - `confidence` (Ville 1939). If the
    share varies but never exceeds `expected`, the chance that the lower end ever does is at most as large.

    Args:
        expected: in (0, 1), chosen before the first audit; shares near twice this value get the narrowest intervals.

    Returns:
        Lower and upper end; (0, 1) without audits.
    """
    if not audits:
        return 0.0, 1.0
    same, (first, second) = audits - differing, prior(expected)
    mixture = _log_beta(first + differing, second + same) - _log_beta(first, second)
    least = mixture + math.log1p(-confidence)
    return _low(differing, same, least), 1 - _low(same, differing, least)


def is_exceeded(budget: float, counts: tuple[int, int], newest: tuple[int, int], epoch: int) -> bool:
    """Whether all audits, or those of the newest epoch, show that the share exceeds the budget.

    If the share never does, the chance that the answer is ever true is at most 5 %.

    Args:
        counts: differing, and all audits.
        newest: the same, of the newest epoch.
        epoch: its number, from 1. Shares of the chance, 1 / (n (n + 1)), add up to 1.
    """
    return any(
        interval(*each, expected=budget, confidence=1 - chance)[0] > budget
        for each, chance in ((counts, 1 - CONFIDENCE), (newest, (1 - CONFIDENCE) / (epoch * (epoch + 1))))
    )


def _log_beta(first: float, second: float) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)


def _low(hits: int, misses: int, least: float) -> float:
    """The largest share, at most the observed one, whose log-likelihood does not exceed `least`; rounded down."""
    outside, inside = 0.0, hits / (hits + misses)
    if not hits:
        return outside
    for _ in range(_HALVINGS):
        share = (outside + inside) / 2
        likelihood = hits * math.log(share) + (misses * math.log1p(-share) if misses else 0.0)
        if likelihood <= least:
            outside = share
        else:
            inside = share
    return outside

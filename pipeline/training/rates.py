"""The learning rates of a teacher's encoder and of its head, found by short trainings.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) over half, once and twice the encoder's rate, and a
quarter, once and four times the head's: all for a few steps, the best third for three times as many. Each training has
a schedule of its own, since a schedule that was cut short ranks badly. The loss on the tuning slice ranks them: it
tells more than the metric of some hundred rows. The search takes at most a third of the training's steps. If that is
too few for nine pairs, it tries the encoder's three rates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

# By how little they change a rate.
_ENCODER_FACTORS = (1.0, 0.5, 2.0)
_HEAD_FACTORS = (1.0, 0.25, 4.0)
_KEPT = 3  # of nine pairs, for the second round
SHARE = 3  # the training itself has at least this many times the steps of the search
MOST_TRIALS = 12  # nine pairs, and three of them again
_LEAST_STEPS = 20  # fewer rank rates by how fast they begin


@dataclass(frozen=True)
class Rates:
    """The highest learning rates of a training."""

    encoder: float
    head: float


Trial = Callable[[Rates, int], float]  # trains with these rates for so many steps; the loss on the tuning slice


def search_rates(default: Rates, steps: int, trial: Trial) -> Rates:
    """The rates with the least loss after short trainings, for a training of so many steps; of equal ones, the rates
    nearer to the default."""
    pairs = [
        Rates(default.encoder * encoder, default.head * head) for head in _HEAD_FACTORS for encoder in _ENCODER_FACTORS
    ]
    for kept, trained in _rounds(steps):
        losses = {rates: trial(rates, trained) for rates in pairs[:kept]}
        # Sorting keeps the order of equal ones. A loss that is no number is the worst of all.
        pairs = sorted(losses, key=lambda rates: math.inf if math.isnan(losses[rates]) else losses[rates])
    return pairs[0]


def _rounds(steps: int) -> list[tuple[int, int]]:
    """How many pairs are trained in each round, and for how many steps; no round if there are too few steps."""
    budget, all_pairs = steps // SHARE, len(_ENCODER_FACTORS) * len(_HEAD_FACTORS)
    first = budget // (2 * all_pairs)
    if first >= _LEAST_STEPS:
        return [(all_pairs, first), (_KEPT, all_pairs * first // _KEPT)]
    alone = budget // len(_ENCODER_FACTORS)
    return [(len(_ENCODER_FACTORS), alone)] if alone >= _LEAST_STEPS else []

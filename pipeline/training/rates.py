"""Search a teacher's encoder and head learning rates by successive halving (Jamieson and Talwalkar 2016, arXiv
1502.07943).

Each trial has a full schedule: a truncated one ranks badly. Tuning loss ranks trials: metrics are coarse on few rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

_ENCODER_FACTORS = (1.0, 0.5, 2.0)
_HEAD_FACTORS = (1.0, 0.25, 4.0)
_KEPT = 3  # in round two
SHARE = 3  # training steps for each search step, at least
MOST_TRIALS = 12  # 9 + 3
_LEAST_STEPS = 20  # fewer show only the beginning


@dataclass(frozen=True)
class Rates:
    encoder: float
    head: float


Trial = Callable[[Rates, int], float]  # (rates, steps) -> tuning loss


def search_rates(default: Rates, steps: int, trial: Trial) -> Rates:
    pairs = [
        Rates(default.encoder * encoder, default.head * head) for head in _HEAD_FACTORS for encoder in _ENCODER_FACTORS
    ]
    for kept, trained in _rounds(steps):
        losses = {rates: trial(rates, trained) for rates in pairs[:kept]}
        # The sort is stable; NaN ranks last.
        pairs = sorted(losses, key=lambda rates: math.inf if math.isnan(losses[rates]) else losses[rates])
    return pairs[0]


def _rounds(steps: int) -> list[tuple[int, int]]:
    budget, all_pairs = steps // SHARE, len(_ENCODER_FACTORS) * len(_HEAD_FACTORS)
    first = budget // (2 * all_pairs)
    if first >= _LEAST_STEPS:
        return [(all_pairs, first), (_KEPT, all_pairs * first // _KEPT)]
    alone = budget // len(_ENCODER_FACTORS)
    return [(len(_ENCODER_FACTORS), alone)] if alone >= _LEAST_STEPS else []

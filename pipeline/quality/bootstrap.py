"""The bias-corrected and accelerated (BCa) bootstrap of a statistic of weighted units."""

import math
from collections.abc import Callable

import numpy as np

from kdc.pipeline.config.metrics import Floats, Scorer

_SEED = 0  # the same units always have the same interval
_FEWEST_RESAMPLES, _MOST_RESAMPLES = 2000, 20_000
_NUMBERS = 1_600_000  # limit of resamples * width for extra resamples
_IN_A_TAIL = 20  # least resamples beyond each end
_MOST_BLOCKS = 2000  # that the jackknife leaves out
_AT_A_TIME = 250_000  # numbers in a block: 2 MB fit a core's cache


def bca(
    statistic: Scorer, counts: Floats, *, quantile: Callable[[float], float], width: int = 1
) -> tuple[tuple[float, float], float]:
    """The interval (Efron 1987, J. Am. Stat. Assoc. 82:171) and the standard error.

    Args:
        statistic: maps draws of units, (samples, units), to values, (samples,).
        counts: (units,) identical rows of each unit; 1 if units are groups.
        quantile: returns the upper quantile for an effective number of units.
        width: numbers that the statistic holds per sample.
    """
    from scipy.special import ndtr, ndtri

    generator, width = np.random.default_rng(_SEED), max(len(counts), width)
    observed = float(statistic(counts[None])[0])
    block = max(1, _AT_A_TIME // width)
    acceleration, independent = _influence(statistic, counts, block)
    at_end = quantile(independent)
    resamples = _enough(float(ndtr(-at_end)), width)
    sizes = (min(block, resamples - start) for start in range(0, resamples, block))
    values = np.concatenate([statistic(_drawn(counts, size, generator)) for size in sizes])
    error = float(values.std())
    if error == 0:
        return (observed, observed), 0.0
    below = ((values < observed).mean() + (values <= observed).mean()) / 2
    bias = ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    pulled = bias + np.array([-at_end, at_end])
    room = 1 - acceleration * pulled
    # Beyond the pole the formula is wrong: take the most extreme value.
    at = np.where(room > 0, ndtr(bias + pulled / np.where(room > 0, room, 1)), pulled > 0)
    low, high = np.quantile(values, at)
    return (float(low), float(high)), error


def _enough(tail: float, width: int) -> int:
    for_the_tail = math.ceil(min(_IN_A_TAIL / tail, _MOST_RESAMPLES)) if tail else _MOST_RESAMPLES
    return max(_FEWEST_RESAMPLES, for_the_tail, min(_NUMBERS // width, _MOST_RESAMPLES))


def _drawn(counts: Floats, size: int, generator: np.random.Generator) -> Floats:
    units, total = len(counts), int(counts.sum())
    if total > units:
        return generator.multinomial(total, counts / total, size=size).astype(np.float64)
    # Faster, since all counts are 1.
    drawn = generator.integers(0, units, (size, units)) + units * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)


def _influence(statistic: Scorer, counts: Floats, block: int) -> tuple[float, float]:
    """Acceleration (a sixth of the jackknife's skewness) and effective number of units (Kish 1965, section 11.7)."""
    blocks = min(len(counts), _MOST_BLOCKS)
    part = np.arange(len(counts)) * blocks // len(counts)
    times = counts if blocks == len(counts) else np.ones(blocks)
    parts = []
    for start in range(0, blocks, block):
        without = np.tile(counts, (min(block, blocks - start), 1))
        without -= part[None] == start + np.arange(len(without))[:, None]
        parts.append(statistic(without))
    values = np.concatenate(parts)
    off = (times @ values) / times.sum() - values
    spread = float(times @ off**2)
    if spread == 0:
        return 0.0, 0.0
    return float(times @ off**3) / (6 * spread**1.5), spread**2 / float(times @ off**4)

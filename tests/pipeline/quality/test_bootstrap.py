"""The bootstrap against the textbook's formulas, written out one resample and one unit at a time."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from kdc.pipeline.quality import bootstrap
from kdc.pipeline.quality.bootstrap import bca

VALUES = np.random.default_rng(3).lognormal(size=23)
Statistic = Callable[[np.ndarray], np.ndarray]


def variance(weights: np.ndarray) -> np.ndarray:
    values, rows = VALUES[: weights.shape[1]], weights.sum(axis=1)
    return weights @ values**2 / rows - (weights @ values / rows) ** 2


def share(weights: np.ndarray) -> np.ndarray:
    """Takes few values, so that many resamples are as large as what was found."""
    return weights[:, :4].sum(axis=1) / weights.sum(axis=1)


def leave_one_out(statistic: Statistic, counts: np.ndarray) -> float:
    """Efron and Tibshirani 1993, equation 14.15, over all single units: those that are alike count as often as they
    occur."""
    left = []
    for place, count in enumerate(counts):
        without = counts.copy()
        without[place] -= 1
        left += [float(statistic(without[None])[0])] * int(count)
    off = np.mean(left) - np.array(left)
    return float((off**3).sum() / (6 * (off**2).sum() ** 1.5))


def textbook(statistic: Statistic, counts: np.ndarray, quantile: float) -> tuple[float, float, float]:
    """Equations 14.9 to 14.15, resamples that equal what was found counted by half."""
    tail = stats.norm.sf(quantile)
    resamples = max(2000, math.ceil(min(20 / tail, 20_000)))
    draws = bootstrap._drawn(counts, resamples, np.random.default_rng(0))
    values = np.array([statistic(draw[None])[0] for draw in draws])
    found = statistic(counts[None])[0]
    below = np.mean([1.0 if value < found else 0.5 if value == found else 0.0 for value in values])
    bias, acceleration = stats.norm.ppf(below), leave_one_out(statistic, counts)
    ends = []
    for normal in (-quantile, quantile):
        at = stats.norm.cdf(bias + (bias + normal) / (1 - acceleration * (bias + normal)))
        ends.append(np.quantile(values, at))
    return ends[0], ends[1], values.std()


@pytest.mark.parametrize("quantile", [1.28, 1.96, 2.9])
@pytest.mark.parametrize("counts", [np.ones(23), np.tile([3.0, 1.0, 2.0], 5)], ids=["single", "alike"])
@pytest.mark.parametrize("statistic", [variance, share])
def test_its_interval_is_that_of_the_textbook(
    statistic: Statistic, counts: np.ndarray, quantile: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch any other bias, acceleration or number of resamples."""
    monkeypatch.setattr(bootstrap, "_NUMBERS", 0)
    (low, high), error = bca(statistic, counts, quantile=lambda _: quantile)
    assert (low, high, error) == pytest.approx(textbook(statistic, counts, quantile), rel=1e-9)


def test_how_many_are_computed_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a block that is left out, or drawn twice."""
    monkeypatch.setattr(bootstrap, "_NUMBERS", 0)
    interval, _ = bca(variance, np.ones(23), quantile=lambda _: 1.96)
    for numbers in (1, 23 * 7, 23 * 2000 - 1):
        monkeypatch.setattr(bootstrap, "_AT_A_TIME", numbers)
        assert bca(variance, np.ones(23), quantile=lambda _: 1.96)[0] == pytest.approx(interval, rel=1e-9)
    sizes: list[int] = []

    def noted(weights: np.ndarray) -> np.ndarray:
        sizes.append(len(weights))
        return variance(weights)

    monkeypatch.setattr(bootstrap, "_AT_A_TIME", 46 * 100)
    bca(noted, np.ones(23), quantile=lambda _: 1.96, width=46)
    assert sizes == [1, 23, *[100] * 20]


def test_of_few_units_so_many_are_drawn_that_the_seed_hardly_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of F1 of 5,000 rows, the ends by twelve seeds. Would catch 2,000 resamples whatever they cost: with one seed, all
    verdicts of a world then err alike."""
    counts = np.array([4600.0, 200, 120, 80])  # of nothing, hits, misses and false alarms

    def f1(weights: np.ndarray) -> np.ndarray:
        return 2 * weights[:, 1] / (2 * weights[:, 1] + weights[:, 2] + weights[:, 3])

    ends = []
    for seed in range(12):
        monkeypatch.setattr(bootstrap, "_SEED", seed)
        interval, error = bca(f1, counts, quantile=lambda _: 1.96)
        ends.append(interval)
    assert (np.std(ends, axis=0) / error < 0.04).all()
    sizes: list[int] = []

    def noted(weights: np.ndarray) -> np.ndarray:
        sizes.append(len(weights))
        return variance(weights)

    for width, resamples in ((23, 20_000), (200, 8000), (800, 2000), (5000, 2000)):
        sizes.clear()
        bca(noted, np.ones(23), quantile=lambda _: 1.96, width=width)
        assert sum(sizes) == 1 + resamples + 23


def test_a_jackknife_of_many_units_leaves_blocks_of_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: of 23 units in five blocks, each of which stands for as many."""
    monkeypatch.setattr(bootstrap, "_MOST_BLOCKS", 5)
    blocks = [range(0, 5), range(5, 10), range(10, 14), range(14, 19), range(19, 23)]
    left = []
    for block in blocks:
        without = np.ones(23)
        without[list(block)] = 0
        left.append(float(variance(without[None])[0]))
    off = np.mean(left) - np.array(left)
    expected = float((off**3).sum() / (6 * (off**2).sum() ** 1.5))
    for at_once in (1, 2, 5, 100):
        assert bootstrap._influence(variance, np.ones(23), at_once)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_was_found_beyond_all_resamples_counts_as_one_of_them(sign: int) -> None:
    """How many units are drawn never, of which there is none in what was found, and with each unit left out one. Would
    catch a bias without bounds, and a skewness of values that are all the same."""

    def missing(weights: np.ndarray) -> np.ndarray:
        return sign * (weights == 0).sum(axis=1).astype(float)

    quantile, resamples = 7.0, 20_000
    (low, high), _ = bca(missing, np.ones(23), quantile=lambda _: quantile)
    values = missing(bootstrap._drawn(np.ones(23), resamples, np.random.default_rng(0)))
    bias = sign * stats.norm.ppf(1 / resamples)
    ends = np.quantile(values, stats.norm.cdf(2 * bias + np.array([-quantile, quantile])))
    assert (low, high) == pytest.approx(ends)
    assert values.min() < (high if sign > 0 else low) < values.max()


def test_a_statistic_that_never_changes_has_no_width() -> None:
    assert bca(lambda weights: np.ones(len(weights)), np.ones(5), quantile=lambda _: 1.96) == ((1.0, 1.0), 0.0)


def test_ends_beyond_the_pole_are_the_extreme_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the formula would come back from the other side. Would catch an upper end below the lower one."""
    monkeypatch.setattr(bootstrap, "_NUMBERS", 0)
    for acceleration, place in ((0.6, 1), (-0.6, 0)):
        monkeypatch.setattr(bootstrap, "_influence", lambda *_, fixed=acceleration: (fixed, 23.0))
        interval, _ = bca(variance, np.ones(23), quantile=lambda _: 1.96)
        draws = bootstrap._drawn(np.ones(23), 2000, np.random.default_rng(0))
        extreme = (variance(draws).min(), variance(draws).max())[place]
        assert interval[place] == pytest.approx(extreme)
        assert interval[0] < interval[1]

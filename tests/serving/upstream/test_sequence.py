"""The confidence sequence, beside numerical integration and simulated services."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats

from kdc.serving.upstream.sequence import interval

SHARE, AUDITS, STREAMS = 0.05, 500, 2000
MOST_OUTSIDE = 0.05 + 3 * math.sqrt(0.05 * 0.95 / STREAMS)


def mixture_ratio(differing: int, audits: int, expected: float) -> Callable[[float], float]:
    """The mixture's likelihood by numerical integration, divided by a share's."""
    prior = stats.beta(8, 8 / (2 * expected) - 8)

    def product(share: float) -> float:
        return prior.pdf(share) * stats.binom.pmf(differing, audits, share)

    peaks = np.clip([expected, 4 * expected, *(differing / audits * np.array([0.5, 1, 1.5]))], 1e-6, 1 - 1e-6)
    mixture = integrate.quad(product, 0, 1, points=sorted(peaks), limit=500, epsabs=0, epsrel=1e-9)[0]
    return lambda share: mixture / stats.binom.pmf(differing, audits, share)


@pytest.mark.parametrize(
    ("differing", "audits", "expected"),
    [(0, 30, 0.02), (1, 1, 0.02), (3, 40, 0.05), (12, 1000, 0.02), (30, 1000, 0.02), (90, 100, 0.01), (40, 40, 0.1)],
)
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_it_ends_where_the_mixture_is_as_many_times_likelier(
    differing: int, audits: int, expected: float, confidence: float
) -> None:
    ratio = mixture_ratio(differing, audits, expected)
    low, high = interval(differing, audits, expected=expected, confidence=confidence)
    assert low == 0 if differing == 0 else ratio(low) == pytest.approx(1 / (1 - confidence), rel=1e-5)
    assert high == 1 if differing == audits else ratio(high) == pytest.approx(1 / (1 - confidence), rel=1e-5)
    assert all(ratio(share) < 1 / (1 - confidence) for share in np.linspace(low, high, 12)[1:-1])


def ends(streams: NDArray[np.bool_], expected: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends after each audit: (streams, audits) each."""
    differing = streams.cumsum(axis=1)
    pairs, places = np.unique(differing * (AUDITS + 1) + np.arange(1, AUDITS + 1), return_inverse=True)
    found = [interval(*map(int, divmod(pair, AUDITS + 1)), expected=expected) for pair in pairs]
    low, high = np.array(found)[places.reshape(differing.shape)].transpose(2, 0, 1)
    return low, high


def test_of_all_times_at_most_five_percent_of_services_are_ever_outside() -> None:
    streams = np.random.default_rng(1).random((STREAMS, AUDITS)) < SHARE
    low, high = ends(streams, expected=SHARE)
    outside = ((low > SHARE) | (high < SHARE)).any(axis=1)
    assert 0.01 < outside.mean() < MOST_OUTSIDE
    # Intervals for one look at a time, which would not do: exact ones, after every audit.
    differing = streams.cumsum(axis=1)
    single = stats.beta.ppf(0.025, differing, np.arange(1, AUDITS + 1) - differing + 1)
    assert (single > SHARE).any(axis=1).mean() > MOST_OUTSIDE


def test_a_share_that_varies_below_the_expected_one_is_seldom_shown_to_exceed_it() -> None:
    shares = np.where(np.arange(AUDITS) % 100 < 30, 0.2 * SHARE, SHARE)
    streams = np.random.default_rng(2).random((STREAMS, AUDITS)) < shares
    low, _ = ends(streams, expected=SHARE)
    assert (low > SHARE).any(axis=1).mean() < MOST_OUTSIDE


def test_nothing_is_known_without_audits() -> None:
    assert interval(0, 0, expected=0.02) == (0, 1)


@pytest.mark.parametrize("expected", [1e-4, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("audits", [1, 7, 10**6, 10**9])
def test_ends_of_any_counts_hold_the_estimate(audits: int, expected: float) -> None:
    for differing in {0, 1, audits // 3, audits - 1, audits}:
        low, high = interval(differing, audits, expected=expected)
        assert 0 <= low <= differing / audits <= high <= 1, differing


def test_more_differing_audits_raise_the_lower_end_and_more_equal_ones_lower_it() -> None:
    """What the benchmark's bisection, and the promise for shares that vary, are built on."""
    low = {
        (differing, audits): interval(differing, audits, expected=0.02)[0]
        for audits in range(1, 80)
        for differing in range(audits + 1)
    }
    above = {counts: end for counts, end in low.items() if end > 0.02}
    assert above
    for (differing, audits), end in above.items():
        assert low[min(differing + 1, audits), audits] >= end
        assert low.get((differing, audits + 1), 0.0) <= end

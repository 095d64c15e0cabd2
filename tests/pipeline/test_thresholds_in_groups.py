"""The short form of benchmarks/thresholds.py: rows in groups count as fewer, and as no fewer than they are worth."""

import sys
from itertools import product

import numpy as np
import pytest
from live import ROOT
from scipy.stats import mannwhitneyu, norm

sys.path.insert(0, str(ROOT))

from benchmarks.thresholds import Slices, rates
from kdc.pipeline.config.aims import parse_aim
from kdc.pipeline.quality.intervals import design_effect
from kdc.pipeline.quality.operating import choose, choose_at_least


@pytest.mark.parametrize("aim", ["recall>=0.9", "fpr<=0.1", "accuracy>=0.9", "disagreement<=0.1"])
def test_a_bound_is_broken_as_rarely_as_is_said_where_rows_form_groups(aim: str) -> None:
    """Would catch rows that count as independent. Of 200 draws at an error of 5 % more than 21 are as rare as one in a
    thousand."""
    broken, independent = 2 * rates(Slices(aim, 500, 14, 0.6), 200)[:, 0]
    assert broken <= 21 < independent


@pytest.mark.parametrize("aim", ["recall>=0.9", "accuracy>=0.9"])
def test_groups_of_independent_rows_cost_little(aim: str) -> None:
    """Would catch groups that count as one row each, by which an aim of this kind is shown by hardly a slice."""
    given = rates(Slices(aim, 500, 14, 0.0), 60)[:, 1]
    assert given[0] == pytest.approx(given[1], rel=0.2)


def test_sets_hold_the_truth_as_often_as_was_asked_where_rows_form_groups() -> None:
    """Would catch places counted by rows, by which 6 % of the sets lack the label instead of 5 %."""
    missed, independent = rates(Slices("sets 0.95", 200, 14, 0.6), 1500)[:, 0]
    assert 4 < missed < 5.3 < independent


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_sets_take_the_last_place_that_keeps_their_coverage(size: int) -> None:
    """Rows of a group are alike. A group has d rows, the new row included. They lie below place k of n rows with a
    chance of (k + d - 1) / (n + d). Would catch the place for independent rows, and a place that is a few too low."""
    of_truth, groups = np.linspace(0.2, 0.9, 420), np.repeat(np.arange(420 // size), size)
    effect = design_effect((np.arange(420) < 42).astype(float), groups)
    assert effect == pytest.approx(size, rel=0.02)
    place = max(k for k in range(1, 421) if (k + effect - 1) / (420 + effect) <= 0.1)
    assert choose_at_least(of_truth, 0.9, groups=groups) == of_truth[place - 1]


def test_groups_that_are_too_few_for_sets_choose_nothing() -> None:
    of_truth, groups = np.linspace(0.2, 0.9, 190), np.repeat(np.arange(19), 10)
    assert choose_at_least(of_truth, 0.95, groups=groups) is not None
    assert choose_at_least(of_truth[:180], 0.95, groups=groups[:180]) is None


def test_a_model_that_knows_nothing_of_a_label_gets_a_threshold_as_rarely_as_is_said() -> None:
    """Would catch a test of independent rows, by which a quarter of these models know the label."""
    generator, known = np.random.default_rng(0), [0, 0]
    for _ in range(200):
        probabilities, fates, groups = Slices("f1", 500, 14, 0.6).draw(generator)
        for place, each in enumerate((groups, None)):
            note = choose(probabilities, fates < 0.5, parse_aim("f1"), groups=each).note
            known[place] += "does not tell" not in note
    assert known[0] <= 21 < known[1]


def test_a_model_of_few_rows_in_groups_knows_a_label_by_their_covariance() -> None:
    """The oracle divides the statistic of the Mann-Whitney test by the root of the design effect of what each row adds
    to it, from -1 to 1. Would catch another scale, by which two rows that are counted beside weigh more or nothing."""
    generator, groups, known = np.random.default_rng(0), np.repeat(np.arange(14), 3), 0
    for _ in range(200):
        probabilities = np.where(generator.random(42) < 0.5, generator.random(14)[groups], generator.random(42))
        has_label = generator.random(42) < 0.25 + 0.5 * probabilities
        if not 10 <= has_label.sum() <= 32:
            continue
        places = (probabilities[:, None] > probabilities).mean(axis=1)
        adds = 2 * (has_label - has_label.mean()) * 2 * (places - places.mean())
        chance = mannwhitneyu(probabilities[has_label], probabilities[~has_label], alternative="greater").pvalue
        expected = norm.isf(chance) > norm.isf(0.05) * design_effect(adds, groups) ** 0.5
        note = choose(probabilities, has_label, parse_aim("f1"), groups=groups).note
        assert ("does not tell" not in note) is bool(expected)
        known += bool(expected)
    assert 40 < known < 160


def test_what_is_told_to_be_shown_is_shown_if_it_is_asked_for() -> None:
    """Would catch a design effect of the bound that was asked for first, beside a smaller bound."""
    generator = np.random.default_rng(1)
    for sign, _ in product(("precision>=", "recall>=", "fpr<="), range(20)):
        aim = f"{sign}{0.001 if '<' in sign else 0.995}"
        probabilities, fates, groups = Slices(aim, 300, 14, 0.6).draw(generator)
        has_label = fates < probabilities
        missed = choose(probabilities, has_label, parse_aim(aim), groups=groups)
        assert not missed.reached
        assert choose(probabilities, has_label, parse_aim(sign + missed.proven), groups=groups).reached

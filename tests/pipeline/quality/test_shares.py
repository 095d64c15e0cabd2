"""Shares of rows in groups: which rows their design effects are of, by hand."""

import numpy as np
import pytest

from kdc.artifact.contract.rates import Rate
from kdc.pipeline.quality.intervals import design_effect
from kdc.pipeline.quality.shares import Surest, _effects, effect_of_least, floor4, rate


def test_the_effect_is_of_the_share_of_rows_that_a_bound_allows() -> None:
    """Would catch a row more or less, also where 0.07 * 100 is a little above seven."""
    values, groups = np.arange(100) / 100, np.repeat(np.arange(50), 2)
    for share, rows in ((0.02, 2), (0.07, 7), (0.071, 8), (0.3, 30)):
        flags = (np.arange(100) < rows).astype(float)
        assert effect_of_least(values, share, groups) == pytest.approx(design_effect(flags, groups))
        assert effect_of_least(values[::-1], share, groups[::-1]) == pytest.approx(design_effect(flags, groups))


def test_few_rows_take_from_all_rows_how_alike_those_of_a_group_are() -> None:
    """Would catch rows of a group that count as wholly alike, or as not alike at all, whatever all rows tell."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    confidence = np.linspace(1, 0, 400)
    for alike in (0.0, 0.5, 1.0):
        of_group = generator.random(400) < alike
        right = np.where(of_group, generator.random(100)[groups], generator.random(400)) < 0.8
        # Groups of four: their design effect is 1 + 3 times the correlation.
        correlation = min(1.0, (design_effect(right.astype(float), groups) - 1) / 3)
        found = _effects(confidence, right, np.array([40, 400]), groups)
        expected = [
            design_effect(right[:rows].astype(float), groups[:rows], correlation=correlation) for rows in (40, 400)
        ]
        assert found == pytest.approx(expected)


def test_groups_of_one_row_are_no_groups() -> None:
    right = np.arange(30) % 4 > 0
    assert _effects(np.linspace(1, 0, 30), right, np.array([10, 30]), np.arange(30)).tolist() == [1.0, 1.0]


def test_a_share_is_written_rounded_down() -> None:
    assert [floor4(share) for share in (0.98765, 0.9, 0.12349999, 1.0)] == ["0.9876", "0.9000", "0.1234", "1.0000"]
    assert Surest(0.5, 40, 0.98769).note(200) == "0.9876 is shown, by the 40 surest of 200 rows"


def test_of_no_rows_the_interval_is_everything() -> None:
    assert rate(0, 0) == Rate(hits=0, of=0, low=0.0, high=1.0)
    assert (rate(0, 9).low, rate(9, 9).high) == (0.0, 1.0)

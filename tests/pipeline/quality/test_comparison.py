"""Judging two models by arrays of answers: how many rows it would take, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest

from kdc.common.errors import InputError
from kdc.pipeline.quality.comparison import judge, rows_needed
from kdc.pipeline.quality.intervals import Difference


def answers(rows: int, lost: int, won: int) -> dict[str, Any]:
    """Two models on rows of two classes: the student is wrong on `lost` that the teacher has right, and the reverse."""
    labels = np.arange(rows) % 2
    wrong = [np.isin(np.arange(rows), np.arange(lost)), np.isin(np.arange(rows), np.arange(lost, lost + won))]
    student, teacher = (np.eye(2)[np.where(each, 1 - labels, labels)] for each in wrong)
    return {"student": student, "teacher": teacher, "labels": labels}


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_rows_that_are_needed_are_those_of_the_documented_formula(confidence: float) -> None:
    """docs/explanation/verdicts.md: n (h z / z_c / (d + max drop))^2, z being the interval's quantile plus 0.8416 of a
    power of 80 %, and h the distance of the lower end. Would catch any other combination of these."""
    judged = judge(**answers(800, 40, 36), max_drop=1.0, confidence=confidence)
    assert judged.verdict == "not shown"
    assert judged.difference == pytest.approx(-0.5)
    quantile = {0.9: 1.64485, 0.95: 1.95996}[confidence]
    below = judged.difference - judged.interval[0]
    wanted = 800 * (below * (quantile + 0.84162) / quantile / (judged.difference + 1.0)) ** 2
    assert judged.rows_needed == pytest.approx(wanted, rel=2e-3)


def test_more_rows_are_needed_than_did_not_do() -> None:
    """Five groups show nothing, however many rows they have. As many groups as rule out what none shows would do, by
    hand, of 100 rows each."""
    judged = judge(**answers(500, 0, 0), metric="macro_f1", max_drop=5.0, groups=np.arange(500) // 100)
    assert judged.verdict == "not shown"
    assert judged.rows_needed == math.ceil(100 * 1.959964**2 * 0.95 / 0.05)


def test_models_that_answer_alike_need_the_rows_that_rule_out_what_none_shows() -> None:
    """By hand: of n rows without an event up to z^2 / (n + z^2) may have one, so n = z^2 (1 - share) / share."""
    judged = judge(**answers(100, 0, 0), max_drop=1.0)
    assert judged.verdict == "not shown"
    assert judged.rows_needed == math.ceil(1.959964**2 * 0.99 / 0.01)


def seen(error: float, whole: float = 0.0, rows: int = 800) -> Difference:
    """A difference with that standard error, and with what so many rows of a part worth `whole` points can hide."""
    square = 1.959964**2
    return Difference((0.0, 0.0), error, 800, lambda times: whole * square / (times * rows + square))


def test_rows_needed_are_those_of_a_power_of_80_percent() -> None:
    # An error of 1 point on 800 rows is one of sqrt(800 / n) on n rows. The lower end of a 95 % interval lies above -1
    # in four of five experiments if (1.95996 + 0.84162) * error = 1 + difference; here the difference is -0.5.
    needed = rows_needed(-0.5, 1.959964, seen(1.0), max_drop=1, confidence=0.95)
    assert needed == pytest.approx((2.80158 / 0.5) ** 2, rel=1e-5)


def test_with_the_rows_needed_four_of_five_experiments_show_it() -> None:
    generator = np.random.default_rng(0)
    worse, better = 0.06, 0.055  # shares of rows on which only the teacher, or only the student, is right: -0.5 points
    error = 100 * np.sqrt((worse + better - (worse - better) ** 2) / 800)
    needed = rows_needed(-0.5, 1.959964 * error, seen(error), max_drop=2, confidence=0.95)
    assert needed is not None
    rows, shown = int(800 * needed), 0
    for _ in range(400):
        lost, won, _ = generator.multinomial(rows, [worse, better, 1 - worse - better])
        mean = (won - lost) / rows
        spread = np.sqrt((won + lost) / rows - mean**2) / np.sqrt(rows)
        shown += 100 * (mean - 1.96 * spread) >= -2
    assert shown / 400 == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("rarest", "room"), [(800, 0.1), (40, 2.0), (10, 40.0)])
def test_rows_needed_let_no_row_hide_more_than_the_room(rarest: int, room: float) -> None:
    """Would catch hidden losses that are added, or taken for larger than they are: they alone count here. Of a part
    that is worth 50 points, n rows that all agree leave 50 z^2 / (n + z^2) points, z = 1.95996."""
    needed = rows_needed(0.0, 1e-6, seen(1e-6, 50.0, rarest), max_drop=room, confidence=0.95)
    assert needed == pytest.approx(max(1.0, 1.959964**2 * (50 / room - 1) / rarest), rel=1e-5)


@pytest.mark.parametrize("difference", [-1.0, -1.5])
def test_no_number_of_rows_shows_a_difference_beyond_the_limit(difference: float) -> None:
    assert rows_needed(difference, 2.0, seen(1.0), max_drop=1, confidence=0.95) is None


def test_the_limit_itself_is_kept() -> None:
    """An interval that ends at the limit, to the last digit that is kept. Would catch a limit that is taken for missed
    where it is met."""
    given = answers(500, 6, 4)
    low = judge(**given, max_drop=1.0).interval[0]
    assert low == round(low, 4)
    exact = judge(**given, max_drop=-low + 5e-5)
    assert (exact.verdict, exact.rows_needed) == ("pass", None)
    assert judge(**given, max_drop=-low - 5e-4).verdict == "not shown"


GIVEN = answers(20, 2, 1)
MULTI: dict[str, Any] = {
    "student": np.zeros((20, 3)),
    "teacher": np.zeros((20, 3)),
    "labels": np.ones((20, 3)),
    "kind": "multilabel",
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": np.zeros((20, 2, 1)), "teacher": np.zeros((20, 2, 1))}, "must be (rows, outputs)"),
        ({"student": np.zeros((20, 3))}, "must be (rows, outputs)"),
        ({name: np.zeros((0, 2)) for name in ("student", "teacher")} | {"labels": np.zeros(0)}, "must be (rows,"),
        ({"labels": np.zeros(19)}, "labels do not fit"),
        ({"labels": np.zeros((20, 2))}, "labels do not fit"),
        ({"groups": np.zeros(19)}, "groups do not fit"),
        ({"groups": np.zeros(21)}, "groups do not fit"),
        ({"labels": np.full(20, 0.5)}, "whole numbers from 0"),
        ({"labels": np.full(20, -1)}, "indices of the outputs"),
        ({"labels": np.full(20, 2)}, "indices of the outputs"),
        (MULTI | {"labels": np.full((20, 3), 2)}, "multi-label rows are 0 or 1"),
        (MULTI | {"labels": np.full((20, 3), 0.5)}, "multi-label rows are 0 or 1"),
        (MULTI | {"labels": np.zeros(20)}, "labels do not fit"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        judge(**(GIVEN | changes))
    assert words in str(caught.value)


def test_what_is_allowed_is_judged() -> None:
    """Labels of the last class alone, multi-label rows of ones and zeros, groups of any number. Would catch a check
    that refuses too much."""
    assert judge(**(GIVEN | {"labels": np.ones(20)})).rows == 20
    labels = np.arange(60).reshape(20, 3) % 2
    assert judge(**(MULTI | {"labels": labels, "student": labels - 0.5, "teacher": labels - 0.5})).rows == 20
    assert judge(**GIVEN, groups=np.arange(20) // 2).groups == 10
    numbers = np.linspace(-2, 2.5, 20)
    columns: dict[str, Any] = {"student": numbers[:, None], "teacher": numbers[:, None] + 0.1, "labels": numbers}
    assert judge(**columns, kind="regression", metric="pearson").difference == pytest.approx(0.0)


@pytest.mark.parametrize("factor", [1e200, 1e-200])
def test_pearson_knows_no_scale(factor: float) -> None:
    """Would catch squares beyond what a number holds, by which an equal student fails."""
    random = np.random.default_rng(0)
    labels = random.normal(size=100)
    answers = labels[:, None] + random.normal(size=(100, 1))
    plain, scaled = (
        judge(each, answers, labels, kind="regression", metric="pearson") for each in (answers, factor * answers)
    )
    assert scaled.difference == plain.difference == 0
    assert scaled.interval == pytest.approx(plain.interval, abs=1e-3)

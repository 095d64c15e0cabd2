"""Judging two models by arrays of answers: how many rows it would take, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest

from kdc.common.errors import InputError
from kdc.pipeline.quality.comparison import judge


def answers(rows: int, lost: int, won: int) -> dict[str, Any]:
    """Two models on rows of two classes: the student is wrong on `lost` that the teacher has right, and the reverse."""
    labels = np.arange(rows) % 2
    wrong = [np.isin(np.arange(rows), np.arange(lost)), np.isin(np.arange(rows), np.arange(lost, lost + won))]
    student, teacher = (np.eye(2)[np.where(each, 1 - labels, labels)] for each in wrong)
    return {"student": student, "teacher": teacher, "labels": labels}


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_rows_that_are_needed_are_those_of_the_documented_formula(confidence: float) -> None:
    """docs/contract.md: n (h z / z_c / (d + max drop))^2, z being the interval's quantile plus 0.8416 of a power of
    80 %, and h the distance of the lower end. Would catch any other combination of these."""
    seen = judge(**answers(800, 40, 36), max_drop=1.0, confidence=confidence)
    assert seen.verdict == "not shown"
    assert seen.difference == pytest.approx(-0.5)
    quantile = {0.9: 1.64485, 0.95: 1.95996}[confidence]
    below = seen.difference - seen.interval[0]
    wanted = 800 * (below * (quantile + 0.84162) / quantile / (seen.difference + 1.0)) ** 2
    assert seen.rows_needed == pytest.approx(wanted, rel=2e-3)


def test_more_rows_are_needed_than_did_not_do() -> None:
    """Five groups show nothing, however many rows they have. As many groups as rule out what none shows would do, by
    hand, of 100 rows each."""
    seen = judge(**answers(500, 0, 0), metric="macro_f1", max_drop=5.0, groups=np.arange(500) // 100)
    assert seen.verdict == "not shown"
    assert seen.rows_needed == math.ceil(100 * 1.959964**2 * 0.95 / 0.05)


def test_models_that_answer_alike_need_the_rows_that_rule_out_what_none_shows() -> None:
    """By hand: of n rows without an event up to z^2 / (n + z^2) may have one, so n = z^2 (1 - share) / share."""
    seen = judge(**answers(100, 0, 0), max_drop=1.0)
    assert seen.verdict == "not shown"
    assert seen.rows_needed == math.ceil(1.959964**2 * 0.99 / 0.01)


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
        ({"labels": np.full(20, 0.5)}, "a number that is not whole"),
        ({"labels": np.full(20, -1)}, "places of the outputs"),
        ({"labels": np.full(20, 2)}, "places of the outputs"),
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

"""Which rows are quoted, in which order, and what is said of them."""

from typing import Any

import numpy as np
import pytest

from kdc.pipeline.config.tasks import Task, custom_task
from kdc.pipeline.report.disagreements import _shortened, disagreements
from kdc.pipeline.report.facts import Disagreements

ROWS = [{"text": f"text {number}"} for number in range(4)]


def of(task: Task, teacher: Any, student: Any, labels: Any, most: int = 10) -> Disagreements:
    return disagreements(
        ROWS,
        np.asarray(teacher, dtype=np.float32),
        np.asarray(student, dtype=np.float32),
        np.asarray(labels),
        task,
        temperature=1.0,
        most=most,
    )


def test_the_surest_rows_come_first() -> None:
    task = custom_task("mood", "text", None, "label", "classification", ("bad", "good"))
    found = of(task, [[0, 9], [9, 0], [9, 0], [9, 0]], [[0, 9], [0, 1], [0, 5], [9, 0]], [1, 0, 1, 0])
    assert [row.text for row in found.rows] == ["text 2", "text 1"]
    assert (found.count, found.teacher_right, found.student_right) == (2, 1, 1)
    assert (found.rows[0].label, found.rows[0].teacher, found.rows[0].student) == ("good", "bad", "good")
    assert found.rows[0].confidence == np.float32(1 / (1 + np.exp(-5.0)))


def test_no_more_rows_are_quoted_than_asked_for() -> None:
    task = custom_task("mood", "text", None, "label", "classification", ("bad", "good"))
    found = of(task, [[1, 0]] * 4, [[0, 1]] * 4, [0, 0, 0, 0], most=0)
    assert (found.count, found.rows) == (4, ())


def test_multi_label_rows_differ_where_any_label_does() -> None:
    task = custom_task("topics", "text", None, "label", "multilabel", ("a", "b"))
    found = of(task, [[5, 5], [5, -5], [-5, -5], [5, -5]], [[5, 5], [5, 3], [-5, -5], [-9, -5]], [[1, 1]] * 4)
    assert [(row.text, row.teacher, row.student) for row in found.rows] == [
        ("text 3", "a", "(none)"),
        ("text 1", "a", "a, b"),
    ]
    assert (found.teacher_right, found.student_right) == (0, 1)


def test_regression_quotes_the_largest_differences_in_the_labels_unit() -> None:
    task = custom_task("price", "text", None, "label", "regression")
    found = of(task, [[0], [1], [2], [3]], [[0], [1], [9], [4]], [0.0, 1.0, 2.0, 3.0], most=2)
    assert [(row.text, row.teacher, row.student) for row in found.rows] == [
        ("text 2", 2.0, 9.0),
        ("text 3", 3.0, 4.0),
    ]
    assert found.count is None


def test_long_texts_are_quoted_in_part() -> None:
    task = custom_task("mood", "text", None, "label", "classification", ("bad", "good"))
    rows = [{"text": "x" * 5000}]
    arrays = (np.array([[1.0, 0.0]], dtype=np.float32), np.array([[0.0, 1.0]], dtype=np.float32), np.array([0]))
    (row,) = disagreements(rows, *arrays, task, temperature=1.0, most=5).rows
    assert len(row.text) < 1100


@pytest.mark.parametrize(
    "letter", ["\u0e17\u0e35\u0e48", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "U\u0308", "नि"]
)
def test_no_letter_is_cut_from_its_marks(letter: str) -> None:
    for before in range(len(letter)):
        cut = _shortened("x" * before + letter * 1000)
        assert cut.endswith(letter + " …")
        assert 1000 - len(letter) < len(cut.removesuffix(" …")) <= 1000


def test_one_endless_letter_is_cut() -> None:
    assert len(_shortened("e" + "\u0301" * 5000)) == 1002

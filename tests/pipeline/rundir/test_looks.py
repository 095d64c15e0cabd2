"""Looks at evaluation rows, counted."""

from pathlib import Path

import numpy as np

from kdc.pipeline.rundir.looks import look_at

ROWS, OTHERS = b"r" * 32, b"o" * 32


def logits(*answers: int) -> np.ndarray:
    return np.eye(3)[list(answers)]


def test_another_model_is_another_look_and_the_same_answers_are_none(tmp_path: Path) -> None:
    """Would catch: a count that another limit, or a verdict that is asked for again, raises; one that another model
    does not."""
    asked = [logits(0, 1, 2), logits(0, 1, 1), 2 * logits(0, 1, 2), logits(0, 1, 1), logits(2, 2, 2)]
    assert [look_at(tmp_path, ROWS, each, "classification") for each in asked] == [1, 2, 1, 2, 3]


def test_other_rows_are_not_used_up(tmp_path: Path) -> None:
    look_at(tmp_path, ROWS, logits(0, 1), "classification")
    assert look_at(tmp_path, OTHERS, logits(1, 1), "classification") == 1
    assert look_at(tmp_path, ROWS, logits(1, 1), "classification") == 2

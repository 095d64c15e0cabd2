"""Looks at evaluation rows, counted."""

from pathlib import Path

import numpy as np
import pytest

from kdc.common.errors import KdcError
from kdc.pipeline.rundir.directory import LOOKS, look_at

ROWS, OTHERS = b"r" * 32, b"o" * 32


def given(*answers: int) -> np.ndarray:
    return np.array(answers)


def test_another_model_is_another_look_and_the_same_answers_are_none(tmp_path: Path) -> None:
    """Would catch: a count that another limit, or a verdict that is asked for again, raises; one that another model
    does not."""
    asked = [given(0, 1, 2), given(0, 1, 1), given(0, 1, 2), given(0, 1, 1), given(2, 2, 2)]
    assert [look_at(tmp_path, ROWS, each) for each in asked] == [1, 2, 1, 2, 3]


def test_other_rows_are_not_used_up(tmp_path: Path) -> None:
    look_at(tmp_path, ROWS, given(0, 1))
    assert look_at(tmp_path, OTHERS, given(1, 1)) == 1
    assert look_at(tmp_path, ROWS, given(1, 1)) == 2


@pytest.mark.parametrize("content", ["[]", '{"aa": 1}', '{"aa": [1]}', "{", ""])
def test_a_file_that_is_no_count_is_refused_in_words(content: str, tmp_path: Path) -> None:
    (tmp_path / LOOKS).write_text(content, encoding="utf-8")
    with pytest.raises(KdcError, match="the count of judged models is damaged"):
        look_at(tmp_path, ROWS, given(0, 1))

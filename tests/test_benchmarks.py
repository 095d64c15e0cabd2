"""The benchmarks' own judgement."""

import sys

import pytest
from live import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.serving.mark import Mark


@pytest.mark.parametrize(
    ("least", "interval", "verdict"),
    [
        (True, (0.9, 1.1), "holds"),
        (True, (0.8, 1.1), "not shown"),
        (True, (0.7, 0.8), "fails"),
        (False, (0.7, 0.8), "holds"),
        (False, (0.8, 1.1), "not shown"),
        (False, (0.9, 1.1), "fails"),
        (True, None, "holds"),
        (False, None, "fails"),
    ],
)
def test_a_mark_is_shown_only_by_its_whole_interval(
    least: bool, interval: tuple[float, float] | None, verdict: str
) -> None:
    mark = Mark("what", least, 0.85, 0.9, interval)
    assert mark.verdict == verdict
    assert mark.holds is (verdict == "holds")

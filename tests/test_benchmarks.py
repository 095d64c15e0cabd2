"""The benchmarks' own judgement."""

import sys

import pytest
from live import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import search
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


def test_students_are_ranked_against_their_full_training() -> None:
    """Would catch correlations with a column of its own, and the best of the full training told as that of a share."""
    brief, full = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, {"a": 10.0, "b": 30.0, "c": 40.0, "d": 20.0}
    results = {
        name: {"27%": search.Trained(brief[name]), search.FULL: search.Trained(full[name], 100 - full[name])}
        for name in "abcd"
    }

    *rows, _, told = search.table(results).splitlines()

    assert rows[-4:] == [f"| {name} | {brief[name]} | {full[name]} | {100 - full[name]} |" for name in "abcd"]
    # Ranks 1 2 3 4 against 1 3 4 2: 1 - 6 * (0 + 1 + 1 + 4) / (4 * 15) = 0.4.
    assert "rank correlation 0.40 with the full training on the tuning set, -0.40 on the evaluation rows" in told
    assert told.endswith("its best has 80.0 there in full, the best of all 90.0")

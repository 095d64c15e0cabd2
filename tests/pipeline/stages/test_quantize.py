"""Stage `quantize`: which candidate is chosen, and what is tried where int8 costs something."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdc.pipeline.graphs.int8 import Candidate
from kdc.pipeline.stages import quantize
from kdc.pipeline.stages.quantize import Bench, label_changes, repairs

PLAIN = Candidate("channel-minmax", static=True, per_channel=True, ranges="minmax")


class Tried:
    """A bench that judges nothing: `free_at` layers in fp32 cost nothing."""

    def __init__(self, free_at: int) -> None:
        self.candidates = {PLAIN.name: PLAIN}
        self.found: dict[str, Any] = {PLAIN.name: {"mean_difference": 0.1, "nodes": {"wanted": 20}}}
        self.batches: list[Any] = []
        self._free_at = free_at

    def source(self, candidate: Candidate) -> Any:
        return SimpleNamespace(file=None, ranges=None)

    def judge(self, candidate: Candidate) -> None:
        self.candidates[candidate.name] = candidate
        self.found[candidate.name] = {"mean_difference": 0.2, "nodes": {"wanted": 20 - len(candidate.keep)}}

    def is_free(self, name: str) -> bool:
        return len(self.candidates[name].keep) >= self._free_at


@pytest.mark.parametrize(("free_at", "counts"), [(1, [1]), (3, [1, 2, 4]), (100, [1, 2, 4, 8])])
def test_layers_are_kept_the_worthiest_first_until_nothing_is_lost_or_half_of_them_are(
    monkeypatch: pytest.MonkeyPatch, free_at: int, counts: list[int]
) -> None:
    worth = [frozenset({f"layer {place}"}) for place in range(20)]
    monkeypatch.setattr(quantize, "layers_by_worth", lambda *given: worth)
    bench, kept = Tried(free_at), []
    for candidate in repairs(bench):  # type: ignore[arg-type]
        bench.judge(candidate)
        kept.append(candidate.keep)
    assert [len(keep) for keep in kept[2:]] == counts
    assert all(keep == frozenset().union(*worth[: len(keep)]) for keep in kept[2:])


def bench_of(monkeypatch: pytest.MonkeyPatch, *, max_int8_drop: float = 2.0) -> Bench:
    """A bench of 1000 rows that measures nothing: fp32 has 90.0 points."""
    bench = Bench.__new__(Bench)
    settings = SimpleNamespace(max_int8_drop=max_int8_drop, free_drop=0.3)
    bench._run = SimpleNamespace(config=SimpleNamespace(quantize=settings))  # type: ignore[assignment]
    bench._task = SimpleNamespace(metrics=("accuracy",))  # type: ignore[assignment]
    bench._texts, bench._logits = ["text"] * 1000, None  # type: ignore[assignment]
    monkeypatch.setattr(Bench, "_time", lambda self: None)
    monkeypatch.setattr(Bench, "_score", lambda self, logits: 90.0)
    return bench


@pytest.mark.parametrize(("score", "beaten"), [(89.5, True), (89.0, False), (88.0, False)])
def test_what_was_chosen_before_stays_unless_another_is_more_accurate(
    monkeypatch: pytest.MonkeyPatch, score: float, beaten: bool
) -> None:
    bench = bench_of(monkeypatch)
    bench.found = {
        "first": found(89.0, milliseconds=5.0, difference=0.1),
        "second": found(score, milliseconds=1.0, difference=0.0),
    }
    chosen = bench.choose(before={"chosen": "first", "winner": "first"})["chosen"]
    assert chosen == ("second" if beaten else "first")


# fp32 has 90.0, the lossy one that was chosen first 89.0; up to 0.3 points count as nothing.
@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({"slow": (90.0, 6.0)}, "slow"),  # a lossy one is not kept for its speed
        ({"slow": (90.0, 6.0), "fast": (89.5, 1.0)}, "slow"),  # one that costs nothing before one that costs less
        ({"slow": (90.0, 6.0), "free": (89.8, 4.0)}, "free"),  # the fastest of those that cost nothing
        ({"slower": (89.5, 6.0), "slow": (89.4, 4.0)}, "slow"),
        ({"dynamic": (90.0, 1.0)}, "first"),
        ({"dynamic": (90.0, 1.0), "slow": (89.5, 6.0)}, "slow"),
    ],
)
def test_what_was_tried_for_a_lossy_int8_is_chosen_by_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, others: dict[str, tuple[float, float]], chosen: str
) -> None:
    bench = bench_of(monkeypatch)
    bench.found = {"fp32": {"rows_per_second": 100.0}, "first": found(89.0, milliseconds=3.0, difference=0.1)}
    for name, (score, milliseconds) in others.items():
        bench.found[name] = found(score, milliseconds=milliseconds, difference=0.0) | {"static": name != "dynamic"}
    assert bench.choose(before={"chosen": "first", "winner": "first"})["chosen"] == chosen
    if chosen != "first":  # where nothing passed before, the same
        bench.found["first"]["tune"]["accuracy"] = 80.0
        assert bench.choose(before={"chosen": None, "winner": "first"})["chosen"] == chosen


@pytest.mark.parametrize(("milliseconds", "faster"), [(5.0, True), (10.0, False), (19.0, False)])
def test_int8_that_is_slower_than_fp32_is_known_to_be(milliseconds: float, faster: bool) -> None:
    bench = Bench.__new__(Bench)
    bench.found = {"fp32": {"rows_per_second": 100.0}, "a": found(89.0, milliseconds=milliseconds, difference=0.1)}
    assert bench.is_faster("a") is faster


def found(score: float, *, milliseconds: float, difference: float) -> dict[str, Any]:
    """A candidate; fp32 takes 10 ms."""
    return {
        "graph": f"of {milliseconds} ms",
        "tune": {"accuracy": score},
        "rows_per_second": 1000 / milliseconds,
        "latency_against_fp32": milliseconds / 10,
        "mean_difference": difference,
        "batch_invariant": True,
        "static": True,
        "label_changes": 0,
    }


@pytest.mark.parametrize(
    ("score", "changes", "invariant", "free"),
    [
        (89.8, 0, True, True),
        (89.6, 0, True, False),
        (89.6, 4, True, True),
        (88.9, 400, True, False),
        (89.8, 0, False, False),
        (91.0, 9, True, True),
    ],
)
def test_a_cost_counts_as_nothing_within_what_the_slice_can_tell(
    monkeypatch: pytest.MonkeyPatch, score: float, changes: int, invariant: bool, free: bool
) -> None:
    """fp32 has 90.0 of 1000 rows: 4 changed labels are 0.2 points of noise."""
    bench = bench_of(monkeypatch, max_int8_drop=1.0)
    bench.found = {"a": {"tune": {"accuracy": score}, "label_changes": changes, "batch_invariant": invariant}}
    assert bench.is_free("a") is free


def test_label_changes_are_counted_by_kind() -> None:
    before = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -2.0]])
    after = np.array([[0.5, 0.6], [0.0, 2.0], [-1.0, 0.1]])
    assert label_changes(after, before, "classification") == 2
    assert label_changes(after, before, "multilabel") == 2
    assert label_changes(after, before, "regression") == 0

"""The timing of models: in turns, medians over the rounds. Durations come from a clock that the models set."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from bag_models import write_artifact

from kdc.artifact.contract.terms import Conditions, Contract
from kdc.common.cores import Neighbours
from kdc.pipeline.quality import latency
from kdc.pipeline.quality.latency import compare_speeds, measure_costs, rows_to_time, time_in_turns
from kdc.serving.engine.engine import Engine


class Clock:
    """A clock that stands still but where a model takes its time; it notes who was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.called: list[tuple[str, int]] = []
        monkeypatch.setattr(latency, "seconds_of", self.seconds_of)

    def seconds_of(self, call: Callable[[], object]) -> float:
        began = self.seconds
        call()
        return self.seconds - began

    def model(self, name: str, seconds: Callable[[list[str]], float]) -> Callable[[list[str]], None]:
        def answer(rows: list[str]) -> None:
            self.called.append((name, len(rows)))
            self.seconds += seconds(rows)

        return answer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_models_are_timed_in_turns_after_a_warm_up(clock: Clock) -> None:
    models = {name: clock.model(name, lambda rows: 1.0) for name in ("a", "b")}
    time_in_turns(models, calls=[["x"]] * 3, batches=[["x", "y"]], percentiles=(50,), rounds=2, warm_up_calls=1)
    warm_up = [(name, rows) for name in ("a", "b") for rows in (1, 2)]
    one_round = [(name, rows) for name in ("a", "b") for rows in (1, 1, 1, 2)]
    assert clock.called == warm_up + 2 * one_round


def test_models_that_are_compared_warm_up_with_one_batch(clock: Clock) -> None:
    models = {name: clock.model(name, lambda rows: 1.0) for name in ("a", "b")}
    compare_speeds(models, ["x"], latency_rows=2, throughput_rows=40, rounds=1)
    assert clock.called[:2] == [("a", 32), ("b", 32)]
    assert clock.called[2:] == [(name, rows) for name in ("a", "b") for rows in (1, 1, 32, 8)]


def test_an_engine_warms_up_with_five_calls_and_a_batch_before_its_costs_are_measured(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = clock.model("engine", lambda rows: 1.0)
    monkeypatch.setattr(Engine, "predict", lambda engine, texts, batch_size: answer(texts))
    measure_costs(
        Engine.load(write_artifact(tmp_path)), ["x"], Contract(at=Conditions(batch=2)), size_bytes=1, rounds=1
    )
    assert clock.called == [("engine", 2)] * 5 + [("engine", 32)] + [("engine", 2)] * 100 + [("engine", 32)] * 8


def test_percentiles_and_speed_are_medians_over_the_rounds(clock: Clock) -> None:
    factors = iter([1.0] + [1.0] * 6 + [9.0] * 6 + [2.0] * 6)  # a warm-up and three rounds, one of them disturbed
    durations = {"fast": 0.001, "slow": 0.003}
    model = clock.model("m", lambda rows: next(factors) * sum(durations[row] for row in rows))
    timing = time_in_turns(
        {"m": model},
        calls=[["fast"]] * 4 + [["slow"]],
        batches=[["slow", "slow"]],
        percentiles=(50, 100),
        rounds=3,
    )["m"]
    p50, most, mean, rows_per_second = np.median(timing, axis=0)
    assert (p50, most) == pytest.approx((2.0, 6.0))  # of 1, 9 and 2 ms; of 3, 27 and 6 ms
    assert mean == pytest.approx((4 * 2.0 + 6.0) / 5)
    assert rows_per_second == pytest.approx(2 / 0.012)


def test_speeds_are_of_single_rows_and_of_batches_of_32(clock: Clock) -> None:
    model = clock.model("m", lambda rows: 0.002 if len(rows) == 1 else 0.008)
    speed = compare_speeds({"m": model}, ["a", "b", "c"], latency_rows=10, throughput_rows=80, rounds=1)["m"]
    assert (speed.latency_p50_ms, speed.latency_p95_ms) == (2.0, 2.0)
    assert speed.rows_per_second == round(80 / (3 * 0.008), 3)  # 32, 32 and 16 rows
    assert {size for _, size in clock.called} == {1, 32, 16}


@pytest.mark.parametrize(
    ("rounds", "confidence", "expected"),
    [(5, 0.95, None), (6, 0.95, (0, 5)), (9, 0.95, (1, 7)), (9, 0.99, (0, 8)), (17, 0.95, (4, 12)), (1, 0.6, None)],
)
def test_a_medians_interval_by_the_order_of_the_rounds(
    rounds: int, confidence: float, expected: tuple[int, int] | None
) -> None:
    """As in tables of the sign test: of nine rounds, the second and the last but one (96.1 %)."""
    values = np.random.default_rng(0).permutation(rounds).astype(float)
    assert latency.interval_of_median(values, confidence) == expected


def test_what_neighbours_take_of_the_cores_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: this process's own work, or idle cores, that are taken for a neighbour's."""
    readings = iter([(0.0, 100.0, 10.0), (10.0, 118.0, 20.0)])  # of 18 busy seconds, 10 are ours: 0.8 cores of others
    monkeypatch.setattr(Neighbours, "_read", staticmethod(lambda: next(readings)))
    monkeypatch.setattr("kdc.common.cores.usable_cores", lambda: 2)
    with Neighbours() as neighbours:
        pass
    assert neighbours.short_of(2) == pytest.approx(0.8)
    assert neighbours.short_of(1) == 0.0


def test_costs_are_timed_on_all_rows_in_turn_and_told_in_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[list[str]]] = {}

    def timed(models: object, calls: list[list[str]], batches: list[list[str]], **_: object) -> dict[str, Any]:
        asked.update(calls=calls, batches=batches)
        return {"engine": np.ones((9, 3))}

    monkeypatch.setattr(latency, "time_in_turns", timed)
    rows, engine = [str(number) for number in range(100)], cast(Engine, SimpleNamespace(threads=1))
    contract = Contract(at=Conditions(percentile=99.9, batch=3))
    costs = measure_costs(engine, rows, contract, size_bytes=5_000_000)
    assert costs.size_mb == 5
    assert list(chain.from_iterable(asked["calls"]))[:102] == [*rows, "0", "1"]
    assert len(asked["calls"]) * (1 - 0.999) == pytest.approx(latency._CALLS_ABOVE)
    assert list(chain.from_iterable(asked["batches"]))[:102] == [*rows, "0", "1"]


def test_a_hundred_rows_are_timed_from_all_over() -> None:
    texts = [str(number) for number in range(1000)]
    assert rows_to_time(cast(Engine, None), texts, Conditions()) == texts[::10]

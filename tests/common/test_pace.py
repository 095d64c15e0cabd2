"""How many threads work takes: by the speed of its own steps, on a machine that is made up."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from kdc.common.pace import Pace, least_seconds

QUIET = {2: 2.4, 1: 1.6}  # steps a second by threads, as measured on two cores
SHARED = {2: 0.8, 1: 1.5}  # the same beside a process that keeps one of the cores


@dataclass
class Machine:
    """A clock that each step moves on, by what the machine does with so many threads at that time."""

    leaves_at: float = 0.0  # when the neighbour leaves; before, it shares the cores
    comes_at: float = float("inf")  # when a neighbour comes
    now: float = 100.0
    threads: int = 0
    set_to: list[int] = field(default_factory=list)

    def set_threads(self, threads: int) -> None:
        self.threads = threads
        self.set_to.append(threads)

    def step(self, pace: Pace) -> None:
        pace.step_begins()
        is_shared = self.now < self.leaves_at or self.now >= self.comes_at
        self.now += 1 / (SHARED if is_shared else QUIET)[self.threads]
        pace.step_ends(1000)


def steps_in(machine: Machine, seconds: float) -> float:
    """Steps a second of a work of that length."""
    pace = Pace((2, 1), machine.set_threads, lambda: machine.now)
    began, steps = machine.now, 0
    with pace.work():
        while machine.now < began + seconds:
            machine.step(pace)
            steps += 1
    return steps / (machine.now - began)


def test_alone_it_is_nearly_as_fast_as_all_threads() -> None:
    assert steps_in(Machine(), 600) >= 0.95 * QUIET[2]


def test_beside_another_process_it_is_nearly_as_fast_as_one_thread() -> None:
    assert steps_in(Machine(leaves_at=1e9), 600) >= 0.95 * SHARED[1]


def test_where_threads_wait_for_ten_steps_a_look_takes_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # Beside two busy processes steps of two threads take ten seconds: looks at several of them would take the minute.
    monkeypatch.setitem(SHARED, 2, 0.1)
    assert steps_in(Machine(leaves_at=1e9), 300) >= 0.8 * SHARED[1]
    assert steps_in(Machine(leaves_at=1e9), 1800) >= 0.9 * SHARED[1]  # and the next looks come later


def test_a_neighbour_that_comes_is_noticed_within_seconds() -> None:
    # Otherwise 2 threads would go on for up to a minute at half the speed of one.
    machine = Machine(comes_at=160.0)
    assert steps_in(machine, 120) >= 0.9 * (60 * QUIET[2] + 60 * SHARED[1]) / 120


def test_a_neighbour_that_leaves_is_noticed() -> None:
    machine = Machine(leaves_at=200.0)
    assert steps_in(machine, 700) >= 0.95 * (100 * SHARED[1] + 600 * QUIET[2]) / 700


@pytest.mark.parametrize(("seconds", "best"), [({2: 1.0, 1: 1.4}, 2), ({2: 1.4, 1: 1.0}, 1)])
@pytest.mark.parametrize("seed", range(20))
def test_passes_of_all_lengths_are_compared_with_their_like(seconds: dict[int, float], best: int, seed: int) -> None:
    # Long rows have more tokens a second: the number of threads that met more of them would win; and a service that
    # looked again whenever short rows came would time half of its passes with the slower number.
    now, current, used = 0.0, 2, []

    def set_threads(threads: int) -> None:
        nonlocal current
        current = threads

    pace = Pace((2, 1), set_threads, lambda: now, turn=16, alike=False)
    for length in np.random.default_rng(seed).choice([16, 256], p=[0.9, 0.1], size=4000).tolist():
        pace.step_begins()
        used.append(current)
        now += seconds[current] * (0.5e-3 + 0.03e-3 * length)
        pace.step_ends(length)
        now += 0.02  # until the next request
    assert pace.threads == best
    assert sum(threads != best for threads in used) <= 0.05 * len(used)


@pytest.mark.parametrize("best", [64, 8])
def test_on_many_cores_a_look_costs_little_and_finds_a_distant_best(best: int) -> None:
    # Trying one thread of 64 each minute would take a third of the time.
    choices = (64, 32, 16, 8, 4, 2, 1)
    rates = {threads: min(threads, best) / 8 / max(1.0, threads / best) for threads in choices}  # steps a second
    now, current, steps = 0.0, 64, 0

    def set_threads(threads: int) -> None:
        nonlocal current
        current = threads

    pace = Pace(choices, set_threads, lambda: now)
    with pace.work():
        while now < 3000:
            pace.step_begins()
            now += 1 / rates[current]
            pace.step_ends(1000)
            steps += 1
    assert pace.threads == best
    assert steps / now >= 0.9 * rates[best]


def test_after_the_work_the_process_has_all_threads_again() -> None:
    # Stage evaluate times the models after a training that ended on one thread.
    machine = Machine(leaves_at=1e9)
    steps_in(machine, 60)
    assert machine.set_to[-1] == 2
    assert 1 in machine.set_to


def test_the_next_work_begins_with_what_the_last_one_chose() -> None:
    machine = Machine(leaves_at=1e9)
    pace = Pace((2, 1), machine.set_threads, lambda: machine.now)
    for _ in range(2):
        with pace.work():
            first = machine.threads
            for _ in range(20):
                machine.step(pace)
    assert (first, pace.threads) == (1, 1)


def test_where_the_environment_says_the_threads_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdc.pipeline.training.environment import pace

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert len(pace.__wrapped__().choices) == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr("kdc.pipeline.training.environment.usable_cores", lambda: 4)  # a container's quota
    assert pace.__wrapped__().choices == (4, 2, 1)
    monkeypatch.setattr("kdc.pipeline.training.environment.usable_cores", lambda: 6)
    assert pace.__wrapped__().choices == (6, 3, 1)


def test_neither_the_first_round_nor_an_interrupted_one_counts_in_a_steps_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, order = 0.0, []

    def lasts(name: str, seconds: list[float]) -> None:
        nonlocal now
        order.append(name)
        now += seconds.pop(0)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    first, second = [0.1, 5.0, 1.0], [9.0, 0.5, 0.75]
    steps = [lambda: lasts("first", first), lambda: lasts("second", second)]
    assert least_seconds(steps) == [1.0, 0.5]
    assert order == ["first", "second"] * 3  # in turns, so that a slow second of the machine hits both

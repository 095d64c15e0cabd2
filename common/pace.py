"""Finds the fastest number of threads by timing.

Threads of a step wait for each other, so on busy cores fewer threads may be faster. `Pace` times real steps with the
current number, half and twice it: at the start, every few minutes, and when the speed halves.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import mean

log = logging.getLogger("kdc")

_REMEMBERED = 8  # last steps that give a speed
_LOOK_AGAIN_S, _LOOK_AGAIN_STEPS = 60.0, 50  # least wait; steps times `turn`
_LATEST_S = 240.0  # longest wait, if other numbers are far behind
_SOON_S = 5.0  # least wait if the speed halved
_WORTH = 1.05  # least speedup of another number


class Pace:
    """Chooses the number of threads.

    Args:
        choices: descending, close together.
        turn: steps timed with a number in a turn.
        alike: False if passes differ in size: numbers alternate, and passes of similar size are compared.
    """

    def __init__(
        self,
        choices: Sequence[int],
        set_threads: Callable[[int], None],
        clock: Callable[[], float] = time.perf_counter,
        *,
        turn: int = 2,
        alike: bool = True,
    ) -> None:
        self.choices = tuple(choices)
        self.threads = self.choices[0]  # the chosen number
        self._set, self._clock, self._turn, self._alike = set_threads, clock, turn, alike
        self._remembered = max(turn, _REMEMBERED)
        self._speeds = self._no_steps()
        self._plan: list[int] = []  # next steps' threads
        self._used = self.threads  # in the current step
        self._began = 0.0
        self._looked: float | None = None  # last comparison's end
        self._beyond: list[int] = []  # untimed neighbours
        self._steps = 0  # since the last comparison
        self._settled = 0.0  # speed after the last comparison
        self._wait = _LOOK_AGAIN_S  # until the next comparison

    def _no_steps(self) -> dict[int, deque[tuple[int, float]]]:
        return {threads: deque(maxlen=self._remembered) for threads in self.choices}

    @contextmanager
    def work(self) -> Iterator[None]:
        self._speeds = self._no_steps()
        self._plan, self._steps, self._settled = [], 0, 0.0
        self._used = self.threads
        self._set(self.threads)
        try:
            yield
        finally:
            self._set(self.choices[0])

    def step_begins(self) -> None:
        self._began = self._clock()

    def step_ends(self, tokens: int) -> None:
        """Tokens include padding."""
        if len(self.choices) == 1:
            return
        now = self._clock()
        self._steps += 1
        if self._steps == 1 and not self._plan:
            return  # the first step allocates memory
        self._speeds[self._used].append((tokens, max(now - self._began, 1e-9)))
        if self._plan:
            self._plan.pop(0)
            if self._alike and self._is_far_behind():  # such steps may take ten times as long
                self._plan = [threads for threads in self._plan if threads != self._used]
            if not self._plan:
                self._choose(now)
        elif self._is_time_to_look(now):
            self._plan = self._next_look()
            for threads in self._plan:
                self._speeds[threads].clear()
        self._use(self._plan[0] if self._plan else self.threads)

    def _next_look(self) -> list[int]:
        others = self._beyond or self._neighbours()
        if not self._alike:
            return [self.threads, *others] * self._turn
        order = others if self._looked is not None else sorted([self.threads, *others]) * 2
        return [threads for threads in order for _ in range(self._turn)]

    def _is_far_behind(self) -> bool:
        timed = [self._speed(threads) for threads in self.choices if self._speeds[threads]]
        return self._speed(self._used) < max(timed) / 2

    def _neighbours(self) -> list[int]:
        index = self.choices.index(self.threads)
        return [*self.choices[max(0, index - 1) : index], *self.choices[index + 1 : index + 2]]

    def _use(self, threads: int) -> None:
        if threads != self._used:
            self._set(threads)
        self._used = threads

    def _is_time_to_look(self, now: float) -> bool:
        if self._looked is None or self._beyond:
            return True
        is_known = len(self._speeds[self.threads]) == self._remembered
        if not self._settled and is_known:
            self._settled = self._speed(self.threads)  # the last comparison may have timed other work
        has_slowed = self._alike and is_known and self._speed(self.threads) < self._settled / 2
        passed = now - self._looked
        return (has_slowed and passed > _SOON_S) or (
            passed > self._wait and self._steps > _LOOK_AGAIN_STEPS * self._turn
        )

    def _choose(self, now: float) -> None:
        timed = (self.threads, *(self._beyond or self._neighbours()))
        speeds = {threads: self._speed(threads) for threads in timed}
        if not self._alike:
            speeds = {threads: speeds[self.threads] * self._times_as_fast(threads) for threads in timed}
        best = max(speeds, key=lambda threads: speeds[threads])
        if speeds[best] < _WORTH * speeds[self.threads]:
            best = self.threads
        if best != self.threads or self._looked is None:
            listed = ", ".join(f"{speed:,.0f} with {threads}" for threads, speed in speeds.items())
            log.info("%s from now on (tokens a second: %s)", _count(best), listed)
        has_moved = best != self.threads
        self.threads, self._settled = best, speeds[best]
        self._beyond = [threads for threads in self._neighbours() if threads not in timed] if has_moved else []
        is_clear = min(speeds.values()) < speeds[best] / 2
        self._wait = min(2 * self._wait, _LATEST_S) if is_clear else _LOOK_AGAIN_S
        self._looked, self._steps = now, 1

    def _speed(self, threads: int) -> float:
        steps = self._speeds[threads]
        return sum(tokens for tokens, _ in steps) / sum(seconds for _, seconds in steps)

    def _times_as_fast(self, threads: int) -> float:
        """Geometric mean of the ratio to the chosen number's speed, among steps of similar size."""
        by_size: dict[int, tuple[list[float], list[float]]] = {}
        for side, number in enumerate((self.threads, threads)):
            for tokens, seconds in self._speeds[number]:
                by_size.setdefault(tokens.bit_length(), ([], []))[side].append(seconds / tokens)
        both = [(min(len(now), len(then)), mean(now) / mean(then)) for now, then in by_size.values() if now and then]
        weights = sum(weight for weight, _ in both)
        return math.exp(sum(weight * math.log(ratio) for weight, ratio in both) / weights) if both else 1.0


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def halvings(most: int) -> list[int]:
    """`[most, most // 2, ..., 1]`"""
    return [most >> halving for halving in range(most.bit_length())]


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def least_seconds(steps: Sequence[Callable[[], object]]) -> list[float]:
    """Least seconds in alternating rounds: other processes only slow a step."""
    for step in steps:
        step()
    rounds = [[seconds_of(step) for step in steps] for _ in range(2)]
    return [min(seconds) for seconds in zip(*rounds, strict=True)]

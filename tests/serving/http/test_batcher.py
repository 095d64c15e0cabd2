"""The batcher: right answers whatever shares a batch, nobody starves, nothing is unbounded, nothing is lost."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from kdc.common.errors import InputError, KdcError
from kdc.serving.http.batcher import Batcher
from kdc.serving.http.queue import BatchReport, Overloaded

NUMBERS = itertools.count()


class Row(list[int]):
    """Stands in for an encoding: the batcher only asks for its length."""


class Model:
    """Answers (first id, length) of each row. Its batches are recorded; `gate` holds it back while closed."""

    def __init__(self, *, opened: bool = True) -> None:
        self.batches: list[list[Row]] = []
        self.gate = threading.Event()
        self.started = threading.Event()
        if opened:
            self.gate.set()

    def __call__(self, rows: Sequence[Any]) -> np.ndarray:
        self.batches.append(list(rows))
        self.started.set()
        assert self.gate.wait(10)
        if any(row[0] < 0 for row in rows):
            raise ValueError("a bad row")
        return np.array([[row[0], len(row)] for row in rows], dtype=np.float32)


def row(name: int, length: int) -> Any:
    return Row([name] * length)


def takes(seconds: float) -> Callable[[Sequence[Any]], np.ndarray]:
    """A model whose passes take as long whatever is in them."""

    def forward(rows: Sequence[Any]) -> np.ndarray:
        time.sleep(seconds)
        return np.zeros((len(rows), 2), np.float32)

    return forward


def in_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


async def queue_up(batcher: Batcher, model: Model, requests: list[list[Any]]) -> list[asyncio.Task[np.ndarray]]:
    """Occupy the session with a first row, then queue the requests behind it; the gate stays closed."""
    tasks = [asyncio.create_task(batcher.submit([row(0, 1)]))]
    await asyncio.sleep(0)
    await asyncio.to_thread(model.started.wait, 10)
    tasks += [asyncio.create_task(batcher.submit(rows)) for rows in requests]
    await asyncio.sleep(0)
    return tasks


def test_each_request_gets_its_own_answers_in_order() -> None:
    random = np.random.default_rng(0)

    async def scenario() -> None:
        batcher = Batcher(Model(), max_batch_tokens=64)
        requests = [
            [row(100 * i + j, int(random.integers(1, 40))) for j in range(random.integers(1, 9))] for i in range(1, 60)
        ]
        answers = await asyncio.gather(*(batcher.submit(rows) for rows in requests))
        for rows, answer in zip(requests, answers, strict=True):
            assert answer.tolist() == [[item[0], len(item)] for item in rows]
        await batcher.close()

    in_loop(scenario)


def test_an_idle_session_takes_a_row_at_once() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model)
        task = asyncio.create_task(batcher.submit([row(1, 5)]))
        assert await asyncio.to_thread(model.started.wait, 10)
        assert [len(batch) for batch in model.batches] == [1]
        model.gate.set()
        await task
        await batcher.close()

    in_loop(scenario)


def test_beside_passes_of_another_batcher_a_row_that_waits_alone_has_a_share_of_the_threads() -> None:
    """Would catch two models whose passes each take all threads from the other."""

    async def scenario() -> None:
        alone, beside, others_run = Model(), Model(), [True]
        batcher = Batcher(alone, beside=beside, lanes=2, has_neighbour=lambda: others_run[0])
        await batcher.submit([row(1, 3)])
        assert (len(alone.batches), len(beside.batches)) == (0, 1)
        others_run[0] = False
        while batcher.is_busy:  # a lane answers a row a moment before it is free
            await asyncio.sleep(0.001)
        await batcher.submit([row(2, 3)])
        assert (len(alone.batches), len(beside.batches)) == (1, 1)
        await batcher.close()

    in_loop(scenario)


def test_rows_that_came_during_a_batch_share_the_next_one() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model)
        tasks = await queue_up(batcher, model, [[row(i, 8)] for i in range(1, 17)])
        model.gate.set()
        await asyncio.gather(*tasks)
        assert [len(batch) for batch in model.batches] == [1, 16]
        await batcher.close()

    in_loop(scenario)


def test_a_batch_keeps_to_its_tokens_and_to_little_padding() -> None:
    random = np.random.default_rng(1)

    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_batch_tokens=256)
        tasks = await queue_up(batcher, model, [[row(i, int(random.integers(1, 120)))] for i in range(1, 300)])
        model.gate.set()
        await asyncio.gather(*tasks)
        for batch in model.batches:
            padded, real = len(batch) * max(map(len, batch)), sum(map(len, batch))
            assert len(batch) == 1 or (padded <= 256 and padded <= 1.25 * real)
        assert len(model.batches) < 150
        await batcher.close()

    in_loop(scenario)


def test_a_batch_keeps_to_its_rows() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_batch_rows=3)
        tasks = await queue_up(batcher, model, [[row(i, 8)] for i in range(1, 11)])
        model.gate.set()
        await asyncio.gather(*tasks)
        assert max(map(len, model.batches)) == 3
        await batcher.close()

    in_loop(scenario)


def test_the_row_that_waited_longest_is_in_the_next_batch() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_batch_tokens=32)
        tasks = await queue_up(batcher, model, [[row(1, 30)], *([row(i, 2)] for i in range(2, 90))])
        model.gate.set()
        await asyncio.gather(*tasks)
        assert [len(item) for item in model.batches[1]] == [30]
        await batcher.close()

    in_loop(scenario)


def test_a_large_request_leaves_room_for_small_ones_and_not_for_another_large_one() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_queue_tokens=100)
        tasks = await queue_up(batcher, model, [[row(1, 1)] * 100])
        tasks += [asyncio.create_task(batcher.submit([row(2, 5)])) for _ in range(10)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(batcher.submit([row(4, 5)] * 4)))  # of the small ones no more than they have
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit([row(3, 5)] * 8)
        model.gate.set()
        assert [len(answer) for answer in await asyncio.gather(*tasks)] == [1, 100, *[1] * 10, 4]
        await batcher.close()

    in_loop(scenario)


def test_clients_that_leave_are_told_of_with_what_still_waits() -> None:
    # The gauge of the queue stayed at what it was before they left, on an idle service, and the autoscaler read it.
    async def scenario() -> None:
        model = Model(opened=False)
        told: list[int] = []
        batcher = Batcher(model, on_left=told.append)
        first, *others = await queue_up(batcher, model, [[row(1, 15)], [row(2, 6), row(3, 6)]])
        for task in reversed(others):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert told == [15, 0]
        model.gate.set()
        await first
        await batcher.close()

    in_loop(scenario)


def test_a_full_queue_refuses_at_once_and_recovers() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_queue_tokens=20)
        tasks = await queue_up(batcher, model, [[row(1, 15)]])
        with pytest.raises(Overloaded) as caught:
            await batcher.submit([row(2, 11)])
        assert caught.value.retry_after >= 1
        assert batcher.queue.tokens == 15
        model.gate.set()
        await asyncio.gather(*tasks)
        assert batcher.queue.tokens == 0
        assert (await batcher.submit([row(3, 20)])).tolist() == [[3, 20]]
        with pytest.raises(InputError):
            await batcher.submit([row(4, 15), row(4, 6)])  # more than it ever takes
        await batcher.close()

    in_loop(scenario)


def test_the_queue_is_no_longer_than_what_is_computed_in_time() -> None:
    async def scenario() -> None:
        batcher = Batcher(takes(0.05), max_batch_tokens=100, max_queue_seconds=0.5)
        await batcher.submit([row(1, 50), row(1, 50)])
        # 2000 a second, but for how late a sleep may end: 1000 may wait.
        assert batcher._tokens_per_second is not None
        assert 0 < batcher._tokens_per_second <= 2000
        batcher._tokens_per_second = 2000.0
        tasks = [asyncio.create_task(batcher.submit([row(1, 100)])) for _ in range(30)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [answer for answer in done if isinstance(answer, Overloaded)]
        assert 15 <= len(refused) <= 22
        batcher._tokens_per_second = 2000.0
        waiting = [asyncio.create_task(batcher.submit([row(1, 100)])) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):  # told before anything is tokenised
            batcher.check_room(900)
        await asyncio.gather(*waiting)
        await batcher.close()

    in_loop(scenario)


def test_a_large_request_that_would_not_end_in_time_beside_others_is_refused_at_once() -> None:
    # The bug to catch: it was let in, computed in part, and ended at the time limit.
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_queue_seconds=100, max_seconds=10)
        batcher._tokens_per_second = 100.0
        tasks = await queue_up(batcher, model, [[row(n, 2)] for n in range(1, 10)])
        assert len(batcher.queue) == 9
        batcher._others = 9.0  # as they have been for a while
        with pytest.raises(Overloaded, match="110 tokens would take 11 s beside 9 other requests") as caught:
            await batcher.submit([row(1, 11)] * 10)
        assert caught.value.retry_after == 1  # the queue is empty by then
        tasks.append(asyncio.create_task(batcher.submit([row(1, 10)] * 10)))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*tasks)
        batcher._tokens_per_second = 1.0
        assert len(await batcher.submit([row(1, 11)] * 10)) == 10  # alone it may take as long as it takes
        await batcher.close()

    in_loop(scenario)


@pytest.mark.parametrize(("speed", "rows"), [(None, 5), (1000.0, 5), (1_000_000.0, 10)])
def test_a_large_request_has_passes_of_as_much_as_a_model_answers_in_a_moment(speed: float | None, rows: int) -> None:
    """Would catch a model of microseconds whose passes have few rows, so that handing them over takes longer than they
    do; and one of milliseconds whose passes make others wait."""

    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_batch_tokens=100, ahead_tokens=40)
        batcher._tokens_per_second = speed
        tasks = await queue_up(batcher, model, [[row(1, 10) for _ in range(30)]])
        model.gate.set()
        await asyncio.gather(*tasks)
        assert len(model.batches[1]) == rows
        await batcher.close()

    in_loop(scenario)


def test_a_pass_that_fails_teaches_no_speed() -> None:
    """Would catch a failure, which takes no time, that is taken for a fast model, whose passes and queue would grow."""

    async def scenario() -> None:
        batcher = Batcher(Model(), max_batch_tokens=100)
        speeds = []
        for name in (-1, -2, -3, 1):
            with contextlib.suppress(ValueError):
                await batcher.submit([row(name, 50)])
            speeds.append(batcher._tokens_per_second)
        assert [speed is None for speed in speeds] == [True, True, True, False]
        await batcher.close()

    in_loop(scenario)


def test_a_crowd_of_a_moment_refuses_no_large_request() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model, max_queue_seconds=100, max_seconds=10)
        batcher._tokens_per_second = 10_000.0
        tasks = await queue_up(batcher, model, [[row(n, 20)] for n in range(1, 39)])  # a tenth of a second of work
        tasks.append(asyncio.create_task(batcher.submit([row(1, 64)] * 64)))
        await asyncio.sleep(0)
        model.gate.set()
        assert len((await asyncio.gather(*tasks))[-1]) == 64
        await batcher.close()

    in_loop(scenario)


def test_requests_that_waited_lately_are_averaged_and_forgotten() -> None:
    async def scenario() -> None:
        batcher = Batcher(takes(0.0))
        now = batcher._averaged
        for step in range(200):  # two lanes, each with passes of 0.1 s, beside which 30 wait
            began = now + 0.1 * (step // 2)
            batcher._average(30, began, began + 0.1)
        assert batcher._others == pytest.approx(30, rel=0.02)
        batcher._average(1, now + 20, now + 20.001)  # after ten seconds without a pass
        assert batcher._others < 1
        await batcher.close()

    in_loop(scenario)


def test_small_batches_do_not_make_the_service_look_slow() -> None:
    async def scenario() -> None:
        batcher = Batcher(takes(0.01), max_batch_tokens=4000, max_queue_seconds=0.5)
        await batcher.submit([row(1, 4000)])  # 400,000 tokens a second
        for _ in range(30):
            await batcher.submit([row(1, 4)])  # 400
        answers = await asyncio.gather(*(batcher.submit([row(1, 100)]) for _ in range(100)), return_exceptions=True)
        assert not any(isinstance(answer, Overloaded) for answer in answers)  # at 400 tokens a second, 200 would fit
        await batcher.close()

    in_loop(scenario)


def test_rows_whose_client_is_gone_are_not_computed() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model)
        tasks = await queue_up(batcher, model, [[row(1, 4)], [row(2, 4)]])
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        assert batcher.queue.tokens == 4  # their room is free at once
        model.gate.set()
        await asyncio.gather(tasks[0], tasks[2])
        assert [item[0] for batch in model.batches for item in batch] == [0, 2]
        assert batcher.queue.tokens == 0
        await batcher.close()

    in_loop(scenario)


def test_a_row_that_fails_fails_its_own_request_alone() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model)
        tasks = await queue_up(batcher, model, [[row(1, 4)], [row(-1, 4), row(5, 4)], [row(2, 4)]])
        model.gate.set()
        first, good, bad, other = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, ValueError)
        assert [answer.tolist() for answer in (first, good, other)] == [[[0, 1]], [[1, 4]], [[2, 4]]]  # type: ignore[union-attr]
        await batcher.close()

    in_loop(scenario)


def test_a_bad_row_costs_its_neighbours_few_passes() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model)
        tasks = await queue_up(batcher, model, [[row(-1 if i == 300 else i, 4)] for i in range(1, 501)])
        model.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [place for place, answer in enumerate(answers) if isinstance(answer, Exception)] == [300]
        assert len(model.batches) < 30
        await batcher.close()

    in_loop(scenario)


def test_a_device_that_always_fails_is_not_tried_row_by_row() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model)
        tasks = await queue_up(batcher, model, [[row(-1, 4)] for _ in range(500)])
        model.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, ValueError) for answer in answers[1:])
        assert len(model.batches) < 60
        await batcher.close()

    in_loop(scenario)


@pytest.mark.parametrize("fault", ["report", "rows"])
def test_a_fault_beside_the_model_leaves_nobody_waiting(fault: str) -> None:
    async def scenario() -> None:
        def full_disk(*_: object) -> None:
            raise OSError("no space left")

        def one_too_many(rows: Sequence[Any]) -> np.ndarray:
            return np.zeros((len(rows) + 1, 2), np.float32)

        batcher = Batcher(one_too_many if fault == "rows" else Model(), on_batch=full_disk)
        for _ in range(3):
            answers = await asyncio.gather(batcher.submit([row(1, 4), row(2, 4)]), return_exceptions=True)
            assert isinstance(answers[0], KdcError) == (fault == "rows")
        await batcher.close()

    in_loop(scenario)


def test_closing_answers_what_is_queued_and_accepts_no_more() -> None:
    async def scenario() -> None:
        model = Model(opened=False)
        batcher = Batcher(model)
        tasks = await queue_up(batcher, model, [[row(i, 4)] for i in range(1, 9)])
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.05)
        with pytest.raises(Exception, match="shutting down"):
            await batcher.submit([row(99, 3)])
        model.gate.set()
        assert [answer[0, 0] for answer in await asyncio.gather(*tasks)] == list(range(9))
        await closing

    in_loop(scenario)


def test_every_batch_is_reported() -> None:
    async def scenario() -> None:
        reports: list[BatchReport] = []
        model = Model(opened=False)
        batcher = Batcher(model, on_batch=lambda rows, results, report: reports.append(report))
        tasks = await queue_up(batcher, model, [[row(1, 4), row(2, 5)]])
        model.gate.set()
        await asyncio.gather(*tasks)
        await batcher.close()
        assert [(report.rows, report.tokens) for report in reports] == [(1, 1), (2, 10)]
        assert all(report.seconds > 0 and report.queued_seconds >= 0 for report in reports)

    in_loop(scenario)


class Lanes:
    """A model for lanes: what ran alone, what beside, and how many passes at once."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.alone: list[int] = []
        self.beside: list[int] = []
        self.most = 0
        self.while_alone = 0  # passes that ran beside one that thought itself alone
        self._seconds = seconds
        self._running = 0
        self._lock = threading.Lock()

    def run(self, rows: Sequence[Any]) -> np.ndarray:
        return self._pass(rows, self.alone)

    def run_beside(self, rows: Sequence[Any]) -> np.ndarray:
        return self._pass(rows, self.beside)

    def _pass(self, rows: Sequence[Any], into: list[int]) -> np.ndarray:
        with self._lock:
            into.append(len(rows))
            self._running += 1
            self.most = max(self.most, self._running)
        time.sleep(self._seconds)
        with self._lock:
            if into is self.alone and self._running > 1:
                self.while_alone += 1
            self._running -= 1
        return np.array([[row[0], len(row)] for row in rows], dtype=np.float32)


def test_a_row_by_itself_has_all_threads() -> None:
    async def scenario() -> None:
        model = Lanes()
        batcher = Batcher(model.run, beside=model.run_beside, lanes=2)
        for name in range(5):
            await batcher.submit([row(name, 3)])
        assert (model.alone, model.beside) == ([1] * 5, [])
        await batcher.close()

    in_loop(scenario)


def test_free_lanes_share_what_waits_and_run_side_by_side() -> None:
    async def scenario() -> None:
        model = Lanes(0.2)
        batcher = Batcher(model.run, beside=model.run_beside, lanes=2)
        answer = await batcher.submit([row(name, 5) for name in range(16)])
        assert answer[:, 0].tolist() == list(range(16))
        assert model.beside == [8, 8]
        assert model.most == 2
        await batcher.close()

    in_loop(scenario)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_nothing_runs_beside_a_pass_with_all_threads(lanes: int) -> None:
    async def scenario() -> None:
        model = Lanes(0.1)
        batcher = Batcher(model.run, beside=model.run_beside, lanes=lanes)
        first = asyncio.create_task(batcher.submit([row(1, 3)]))
        while not model.alone:
            await asyncio.sleep(0.001)
        await asyncio.gather(first, *(batcher.submit([row(name, 3)]) for name in range(6)))
        assert model.alone == [1]
        assert sum(model.beside) == 6
        assert model.while_alone == 0
        await batcher.close()

    in_loop(scenario)


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_mix_no_answers_up(lanes: int) -> None:
    random = np.random.default_rng(lanes)

    async def scenario() -> None:
        model = Lanes(0.001)
        batcher = Batcher(model.run, beside=model.run_beside, lanes=lanes, max_batch_tokens=64)

        async def client(number: int) -> None:
            for turn in range(25):
                rows = [row(1000 * number + turn, int(random.integers(1, 30))) for _ in range(random.integers(1, 4))]
                assert (await batcher.submit(rows)).tolist() == [[item[0], len(item)] for item in rows]
                await asyncio.sleep(float(random.choice([0, 0, 0.004])))

        await asyncio.gather(*(client(number) for number in range(8)))
        assert 2 <= model.most <= lanes
        await batcher.close()

    in_loop(scenario)


def test_closing_ends_all_lanes_when_everything_is_answered() -> None:
    async def scenario() -> None:
        model = Lanes(0.02)
        batcher = Batcher(model.run, beside=model.run_beside, lanes=3, max_batch_tokens=8)
        tasks = [asyncio.create_task(batcher.submit([row(name, 4)])) for name in range(20)]
        await asyncio.sleep(0.01)
        await batcher.close()
        assert [int(answer[0, 0]) for answer in await asyncio.gather(*tasks)] == list(range(20))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("kdc-batcher")]

    in_loop(scenario)

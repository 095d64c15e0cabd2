"""Continuous batching: rows of concurrent requests share forward passes, like lengths together, nobody starves.

A row that is alone gets a forward pass with all threads. Where more wait, several lanes run passes side by side, each
with its share of the threads: threads that work on one pass wait for each other, and all of them for the one whose core
reads and answers requests meanwhile. While the lanes run, new rows gather; a lane that is free takes what is there at
once. Each batch is built around the row that has waited longest and grows by the rows nearest to it in length, so the
wait is bounded and little is computed on padding.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

from kdc.common.errors import KdcError
from kdc.serving.http.queue import Queue, Request, Row
from kdc.serving.http.refusals import Closed, Overloaded, TooLarge

if TYPE_CHECKING:
    from kdc.serving.http.spans import Trace

log = logging.getLogger("kdc.serve")

_MOST_FAILURES = 32  # of one batch; then the fault is not in a row, and the rest is not tried row by row

Forward = Callable[[Sequence[Encoding]], np.ndarray]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One forward pass, for metrics and traces.

    Attributes:
        rows: in the batch.
        tokens: computed, padding included.
        queued_tokens: that still waited when it began.
        queued_seconds: how long its longest-waiting row waited.
        seconds: of the forward pass.
        began: when it began, in seconds of `time.perf_counter`.
    """

    rows: int
    tokens: int
    queued_tokens: int
    queued_seconds: float
    seconds: float
    began: float


OnRows = Callable[[Sequence[Row], Sequence[np.ndarray | Exception], BatchReport], None]


class Batcher:
    """Answers rows by batches of its own making. Made and used in one event loop.

    Args:
        forward: one batch to (rows, outputs), with all threads; called while nothing else runs.
        beside: the same with a share of the threads; called by several lanes at once. None where there is one lane.
        lanes: passes that may run at once. A row that has more company than half of them is not alone.
        max_batch_tokens: padded tokens (rows x longest) of a batch; one row may exceed it.
        max_queue_tokens: tokens that may wait; beyond, `submit` raises `Overloaded`.
        max_queue_seconds: seconds that the queue may take at the speed of the last batches; beyond, the same. A queue
            that is longer than people wait computes answers for those who have left.
        max_padding: most padding of a batch, as a share of its real tokens.
        on_batch: told of every batch, in the event loop.
        on_rows: told of every batch's rows and their results too; for traces.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        beside: Forward | None = None,
        lanes: int = 1,
        max_batch_tokens: int = 4096,
        max_queue_tokens: int = 65536,
        max_queue_seconds: float = 1.0,
        max_padding: float = 0.25,
        on_batch: Callable[[BatchReport], None] | None = None,
        on_rows: OnRows | None = None,
    ) -> None:
        self._forward = forward
        self._beside = forward if beside is None else beside
        self._lanes = lanes
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._max_queue_seconds = max_queue_seconds
        self._max_padding = max_padding
        self._on_batch = on_batch
        self._on_rows = on_rows
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._idle: list[threading.Condition] = []  # of each lane that waits; the last is the one that ran last
        self._queue = Queue()
        self._arrivals = 0
        self._running = 0
        self._alone = False  # a pass with all threads is running
        self._closing = False
        self._tokens_per_second: float | None = None  # not known before the first large batch
        self._threads = [
            threading.Thread(target=self._work, name=f"kdc-batcher-{lane}", daemon=True) for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a forward pass."""
        return self._queue.tokens

    def check_room(self, rows: int) -> None:
        """See that so many rows may fit, before anything is spent on tokenising them.

        Raises:
            Overloaded: they do not.
        """
        self._refuse_beyond(self._queue.tokens, rows)  # a row has one token at least

    async def submit(self, encodings: Sequence[Encoding], trace: Trace | None = None) -> np.ndarray:
        """The model's outputs for rows, whatever else they were batched with.

        Args:
            encodings: at least one row, tokenised and not padded.
            trace: of their request, for `on_rows`.

        Returns:
            float32 (rows, outputs), in order.

        Raises:
            Overloaded: they do not fit into the queue. An empty queue takes whatever is not `TooLarge`.
            TooLarge: they would not fit into an empty one.
            Closed: `close` was called.
            KdcError: the forward pass failed.
        """
        if not encodings:
            raise ValueError("a request has at least one row")
        tokens = sum(map(len, encodings))
        if tokens > self._max_queue_tokens:
            raise TooLarge(tokens, self._max_queue_tokens)
        request = Request(self._loop.create_future(), len(encodings), [None] * len(encodings), trace)
        now = time.perf_counter()
        rows: list[Row] = []
        with self._lock:
            if self._closing:
                raise Closed
            self._refuse_beyond(self._queue.tokens, tokens)
            for place, encoding in enumerate(encodings):
                self._arrivals += 1
                row = Row(len(encoding), self._arrivals, encoding, request, place, now)
                self._queue.add(row)
                rows.append(row)
            if not self._alone:  # else the lane that ends wakes as many as are needed
                self._wake(len(rows))
        try:
            return await request.future
        except BaseException:  # nobody waits any longer, or one of the rows failed
            self._withdraw(rows)
            raise

    def _refuse_beyond(self, queued: int, tokens: int) -> None:
        speed = self._tokens_per_second
        most = self._max_queue_tokens
        if speed is not None:
            most = min(most, int(speed * self._max_queue_seconds))
        if queued and queued + tokens > most:
            raise Overloaded(queued, most, max(1, round(queued / speed)) if speed is not None else 1)

    def _withdraw(self, rows: list[Row]) -> None:
        """Take the rows that still wait out of the queue."""
        with self._lock:
            for row in rows:
                self._queue.remove(row)

    async def close(self) -> None:
        """Answer what is queued, accept no more, end the threads."""
        with self._lock:
            self._closing = True
            self._wake(self._lanes)
        # Not joined: a forward pass that hangs must not hold up who cancels this.
        while any(thread.is_alive() for thread in self._threads):
            await asyncio.sleep(0.005)

    def _work(self) -> None:
        """A lane: take a batch, run it, until the queue is empty for good."""
        work = threading.Condition(self._lock)
        free_since: float | None = None  # how long this lane could have run what waits; None where nothing waited
        while True:
            with self._lock:
                while self._alone or not len(self._queue):
                    if self._closing and not len(self._queue):
                        return
                    free_since = None
                    self._idle.append(work)
                    work.wait()
                alone = not self._running and 2 * len(self._queue) <= max(2, self._lanes)
                batch = self._next_batch(alone)
                self._running += 1
                self._alone = alone
                queued = self._queue.tokens
            try:
                self._run(batch, queued, alone, free_since)
            finally:
                free_since = time.perf_counter()
                with self._lock:
                    self._running -= 1
                    if alone:  # the other lanes waited for its end
                        self._alone = False
                        self._wake(self._lanes if self._closing else len(self._queue) - 1)

    def _wake(self, lanes: int) -> None:
        """Have idle lanes look at the queue, the one that ran last first: its core's cache is still warm."""
        for _ in range(min(lanes, len(self._idle))):
            self._idle.pop().notify()

    def _next_batch(self, alone: bool) -> list[Row]:
        """What a lane runs now: all that waits, or its share where other lanes are free."""
        free = 1 if alone else self._lanes - self._running
        return self._queue.take(
            max_rows=-(-len(self._queue) // free), max_tokens=self._max_batch_tokens, max_padding=self._max_padding
        )

    def _run(self, batch: list[Row], queued: int, alone: bool, free_since: float | None) -> None:
        began = time.perf_counter()
        results = self._answers(batch, self._forward if alone else self._beside)
        ended = time.perf_counter()
        tokens = len(batch) * batch[-1].length  # sorted: the last is the longest
        # What waits also waits for the lane to get its core and the interpreter's lock back between two passes.
        busy = ended - (began if free_since is None else free_since)
        self._learn_speed(tokens, busy / (1 if alone else self._lanes))
        waited = began - min(row.arrived for row in batch)
        report = BatchReport(len(batch), tokens, queued, waited, ended - began, began)
        with contextlib.suppress(RuntimeError):  # the loop is closed: this pass hung, and outlived its server
            self._loop.call_soon_threadsafe(self._deliver, batch, results, report)

    def _deliver(self, batch: list[Row], results: list[np.ndarray | Exception], report: BatchReport) -> None:
        """In the event loop, whose interpreter's lock a lane would wait for: answer, then count."""
        _answer(batch, results)
        try:
            if self._on_batch is not None:
                self._on_batch(report)
            if self._on_rows is not None:
                self._on_rows(batch, results, report)
        except Exception:
            log.exception("a batch could not be counted")  # metrics on a full disk must not end the service

    def _learn_speed(self, tokens: int, seconds: float) -> None:
        """A small batch says how fast at least; only a large one says how fast at most."""
        speed, known = tokens / max(seconds, 1e-9), self._tokens_per_second
        if tokens >= self._max_batch_tokens // 4 or (known is not None and speed > known):
            self._tokens_per_second = speed if known is None else known + 0.2 * (speed - known)

    def _answers(
        self, batch: list[Row], forward: Forward, failures: list[Exception] | None = None
    ) -> list[np.ndarray | Exception]:
        """Each row's outputs. One row may spoil a batch for the others, so what failed is tried again in halves."""
        failures = [] if failures is None else failures
        try:
            results = list(forward([row.encoding for row in batch]))
            if len(results) != len(batch):
                raise KdcError("the model gave another number of rows", given=f"{len(results)} of {len(batch)}")
            return results
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the row
            failures.append(error)
            if len(batch) == 1 or len(failures) > _MOST_FAILURES:
                return [error] * len(batch)
        middle = len(batch) // 2
        return [*self._answers(batch[:middle], forward, failures), *self._answers(batch[middle:], forward, failures)]


def _answer(batch: list[Row], results: list[np.ndarray | Exception]) -> None:
    """Hand each answer to its request, and wake those that are complete."""
    for row, result in zip(batch, results, strict=True):
        request = row.request
        if request.future.done():
            continue
        if isinstance(result, Exception):
            request.future.set_exception(result)
            continue
        request.answers[row.place] = result
        request.left -= 1
        if not request.left:
            request.future.set_result(np.stack(request.answers))  # type: ignore[arg-type]

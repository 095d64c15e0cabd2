"""Continuous batching: rows of concurrent requests share forward passes (docs/explanation/scheduling.md).

Lanes run passes side by side. A pass on all cores would wait for the core that also handles requests.
"""

import asyncio
import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from kdc.common.errors import InputError, KdcError
from kdc.serving.engine.long_texts import Part
from kdc.serving.http.queue import BatchReport, Closed, Overloaded, Queue, Request, Result, Row

log = logging.getLogger("kdc.serve")

# After so many failures no single row is to blame.
_MOST_FAILURES = 32
_AVERAGED_S = 2.0  # seconds that `_others` averages
# Passes of more seconds take no rows out of turn.
_AHEAD_S = 0.0025

Forward = Callable[[Sequence[Part]], np.ndarray]


@dataclass(eq=False)
class Batcher:
    """Use it in one event loop."""

    forward: Forward  # (rows, outputs), with all threads, while no other pass runs
    _: KW_ONLY
    beside: Forward | None = None  # with a share of the threads
    lanes: int = 1
    max_batch_tokens: int = 4096  # padded; one row alone may exceed it
    max_batch_rows: int = sys.maxsize
    # Most padded tokens of a batch that takes rows out of turn, unless it takes less than `_AHEAD_S`.
    ahead_tokens: float = math.inf
    # Most tokens of a request and the rows before it (`Queue.before`), and most seconds for them.
    max_queue_tokens: int = 65536
    max_queue_seconds: float = 1.0
    # Most seconds for a request that shares passes with as many others as waited lately.
    max_seconds: float = math.inf
    has_neighbour: Callable[[], bool] = lambda: False  # if true, no pass gets all threads
    # Runs in the event loop.
    on_batch: Callable[[Sequence[Row], Sequence[Result], BatchReport], None] = lambda *_: None
    on_left: Callable[[int], None] = lambda _: None  # gets the tokens that wait

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._idle: list[threading.Condition] = []  # of idle lanes; the last ran last
        self.queue = Queue()
        self._arrivals = 0
        self._running = 0
        self._alone = False  # one pass has all threads
        self._closing = False
        self._tokens_per_second: float | None = None  # None before the first large batch
        self._others = 0.0  # waiting requests, averaged
        self._averaged = time.perf_counter()
        self._threads = [
            threading.Thread(target=self._work, name=f"kdc-batcher-{lane}", daemon=True) for lane in range(self.lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_busy(self) -> bool:
        return self._running > 0 or len(self.queue) > 0

    def check_room(self, tokens: int) -> None:
        """An empty queue takes any request. Before tokenising, `tokens` is a lower bound."""
        queued, speed, most = self.queue.tokens, self._tokens_per_second, self.max_queue_tokens
        if speed is not None:
            most = min(most, int(speed * self.max_queue_seconds))
        if queued + tokens > most:
            queued = self.queue.before(tokens)
            if queued and queued + tokens > most:
                retry_after = max(1, round(queued / speed)) if speed is not None else 1
                raise Overloaded(f"{queued} of {most} tokens are queued", retry_after)
        # Answered clients ask again, so the number of waiting requests stays the same.
        if speed is not None and (1 + self._others) * tokens > speed * self.max_seconds and len(self.queue):
            seconds = (1 + self._others) * tokens / speed
            why = f"{tokens} tokens would take {seconds:.0f} s beside {self._others:.0f} other requests"
            raise Overloaded(why, max(1, round(self.queue.tokens / speed)))

    async def submit(self, encodings: Sequence[Part], trace: object = None) -> np.ndarray:
        """Wait for outputs, float32 (rows, outputs), of at least one unpadded encoding.

        Raises:
            Overloaded: the queue has no room.
            InputError: even an empty queue has no room.
        """
        tokens = sum(map(len, encodings))
        if tokens > self.max_queue_tokens:
            given = f"{tokens}; at most {self.max_queue_tokens}"
            raise InputError("the request has too many tokens", given=given, remedy="send fewer texts a request")
        request = Request(self._loop.create_future(), len(encodings), [None] * len(encodings), trace)
        now = time.perf_counter()
        rows: list[Row] = []
        with self._lock:
            if self._closing:
                raise Closed
            self.check_room(tokens)
            for index, encoding in enumerate(encodings):
                self._arrivals += 1
                row = Row(len(encoding), (len(encoding), self._arrivals), encoding, request, index, now)
                self.queue.add(row)
                rows.append(row)
            if not self._alone:  # else the lone pass wakes the lanes at its end
                self._wake(len(rows))
        try:
            return await request.future
        except BaseException:  # the client left, or a row failed
            with self._lock:
                for row in rows:
                    self.queue.remove(row)
                queued = self.queue.tokens
            self.on_left(queued)
            raise

    async def close(self) -> None:
        """Answer queued rows, then end the threads."""
        with self._lock:
            self._closing = True
            self._wake(self.lanes)
        # Not joined: a pass may hang.
        while any(thread.is_alive() for thread in self._threads):
            await asyncio.sleep(0.005)

    def _work(self) -> None:
        work = threading.Condition(self._lock)
        free_since: float | None = None  # last pass's end; None after waiting
        while True:
            with self._lock:
                while self._alone or not len(self.queue):
                    if self._closing and not len(self.queue):
                        return
                    free_since = None
                    self._idle.append(work)
                    work.wait()
                few = not self._running and 2 * len(self.queue) <= max(2, self.lanes)
                alone = few and not self.has_neighbour()
                free = 1 if alone else self.lanes - self._running
                rows = min(-(-len(self.queue) // free), self.max_batch_rows)
                batch = self.queue.take(max_rows=rows, max_tokens=self.max_batch_tokens, ahead=self._ahead)
                self._running += 1
                self._alone = alone
                waiting = self.queue.requests
                queued = self.queue.tokens
            began = time.perf_counter()
            try:
                self._run(batch, queued, alone, free_since)
            finally:
                free_since = time.perf_counter()
                with self._lock:
                    self._running -= 1
                    self._average(waiting, began, free_since)
                    if alone:  # the other lanes waited
                        self._alone = False
                        self._wake(self.lanes if self._closing else len(self.queue) - 1)

    @property
    def _ahead(self) -> float:
        return max(self.ahead_tokens, _AHEAD_S * (self._tokens_per_second or 0.0) / self.lanes)

    def _average(self, waiting: int, began: float, ended: float) -> None:
        since = max(began, self._averaged)  # another lane may have counted
        self._others *= math.exp(min(0.0, self._averaged - ended) / _AVERAGED_S)
        self._others += waiting * (1 - math.exp(min(0.0, since - ended) / _AVERAGED_S))
        self._averaged = max(ended, self._averaged)

    def _wake(self, lanes: int) -> None:
        """Wake the last idle lane first: its core's cache is warm."""
        for _ in range(min(lanes, len(self._idle))):
            self._idle.pop().notify()

    def _run(self, batch: list[Row], queued: int, alone: bool, free_since: float | None) -> None:
        began = time.perf_counter()
        results = self._answers(batch, self.forward if alone or self.beside is None else self.beside)
        ended = time.perf_counter()
        tokens = len(batch) * batch[-1].length  # sorted by length
        # Waiting for a core and the interpreter's lock counts too.
        busy = ended - (began if free_since is None else free_since)
        if not any(isinstance(result, Exception) for result in results):  # a failed pass says nothing
            self._learn_speed(tokens, busy / (1 if alone else self.lanes))
        waited = began - min(row.arrived for row in batch)
        report = BatchReport(len(batch), tokens, queued, waited, ended - began, began)
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._deliver, batch, results, report)

    def _deliver(self, batch: list[Row], results: list[Result], report: BatchReport) -> None:
        _answer(batch, results)
        try:
            self.on_batch(batch, results, report)
        except Exception:  # such as a full disk
            log.exception("the metrics or traces of a batch could not be written")

    def _learn_speed(self, tokens: int, seconds: float) -> None:
        """A small batch is slow for its tokens, so it only raises the speed."""
        speed, known = tokens / max(seconds, 1e-9), self._tokens_per_second
        if tokens >= min(self.max_batch_tokens, self.ahead_tokens) / 4 or (known is not None and speed > known):
            self._tokens_per_second = speed if known is None else known + 0.2 * (speed - known)

    def _answers(self, batch: list[Row], forward: Forward, failures: list[Exception] | None = None) -> list[Result]:
        """A bad row fails its whole batch, so both halves are tried again."""
        failures = [] if failures is None else failures
        try:
            results = list(forward([row.encoding for row in batch]))
            if len(results) != len(batch):
                raise KdcError("the model gave another number of rows", given=f"{len(results)} of {len(batch)}")
            return results
        except Exception as error:  # noqa: BLE001 - the request that waits for the row raises it
            failures.append(error)
            if len(batch) == 1 or len(failures) > _MOST_FAILURES:
                return [error] * len(batch)
        middle = len(batch) // 2
        return [*self._answers(batch[:middle], forward, failures), *self._answers(batch[middle:], forward, failures)]


def _answer(batch: list[Row], results: list[Result]) -> None:
    for row, result in zip(batch, results, strict=True):
        request = row.request
        if request.future.done():
            continue
        if isinstance(result, Exception):
            request.future.set_exception(result)
            continue
        request.answers[row.index] = result
        request.missing -= 1
        if not request.missing:
            request.future.set_result(np.stack(request.answers))  # type: ignore[arg-type]

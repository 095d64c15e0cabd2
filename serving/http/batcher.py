"""Continuous batching: rows of concurrent requests share forward passes, like lengths together, each request fairly.

A row that waits alone gets a forward pass with all threads. If more rows wait, several lanes run passes side by side,
each with its share of the threads. Lanes are faster: the threads of one pass wait for the slowest, whose core reads and
answers requests meanwhile. A lane that becomes free takes at once what has gathered. A batch begins with the row whose
turn it is, which bounds the wait, and grows by the rows nearest to it in length, which saves padding.
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

# After so many failed passes for one batch the fault is not in single rows, and the rest is not tried row by row.
_MOST_FAILURES = 32
_AVERAGED_S = 2.0  # seconds over which the number of waiting requests is averaged
# Seconds that a pass may take for rows of a request that has had its turn for now: others wait as long for its end.
_AHEAD_S = 0.0025

Forward = Callable[[Sequence[Part]], np.ndarray]


@dataclass(eq=False)
class Batcher:
    """Groups rows of concurrent requests into batches and answers them. Created and used in one event loop."""

    forward: Forward  # turns one batch into (rows, outputs) with all threads; called while no other pass runs
    _: KW_ONLY
    beside: Forward | None = None  # the same with a share of the threads; several lanes call it at once
    lanes: int = 1  # most passes at a time. While at most half as many rows wait, each still gets all threads
    max_batch_tokens: int = 4096  # most padded tokens (rows x longest) of a batch; one row alone may exceed it
    max_batch_rows: int = sys.maxsize
    # Most padded tokens of a batch with rows of a request that has had its turn for now; or as many as a lane answers
    # in `_AHEAD_S`, if that is more.
    ahead_tokens: float = math.inf
    # Most tokens that may wait before a request is answered, and most seconds that these may take at the speed of the
    # last batches: a longer queue computes answers for clients that have given up. At most as many tokens count of
    # another request as of the new one, since they take turns.
    max_queue_tokens: int = 65536
    max_queue_seconds: float = 1.0
    # Most seconds that a request may take, at that speed, if as many others as waited lately take turns with it.
    max_seconds: float = math.inf
    has_neighbour: Callable[[], bool] = lambda: False  # whether another batcher runs passes: none here has all threads
    # Called in the event loop with the rows of every batch, their outputs or errors, and the report.
    on_batch: Callable[[Sequence[Row], Sequence[Result], BatchReport], None] = lambda *_: None
    on_left: Callable[[int], None] = lambda _: None  # called with the tokens that still wait, after a caller has left

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._idle: list[threading.Condition] = []  # one for each waiting lane; the last is the lane that ran last
        self.queue = Queue()
        self._arrivals = 0
        self._running = 0
        self._alone = False  # whether a pass with all threads is running
        self._closing = False
        self._tokens_per_second: float | None = None  # unknown before the first large batch
        self._others = 0.0  # requests that waited at a time, on average over the last seconds
        self._averaged = time.perf_counter()  # when that was updated
        self._threads = [
            threading.Thread(target=self._work, name=f"kdc-batcher-{lane}", daemon=True) for lane in range(self.lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a pass runs, or rows wait for one."""
        return self._running > 0 or len(self.queue) > 0

    def check_room(self, tokens: int) -> None:
        """Refuse tokens for which the queue has no room. An empty queue has room for any number. A caller may ask
        before it tokenises its rows, with the fewest tokens that they will have.

        Raises:
            Overloaded: they do not fit.
        """
        queued, speed, most = self.queue.tokens, self._tokens_per_second, self.max_queue_tokens
        if speed is not None:
            most = min(most, int(speed * self.max_queue_seconds))
        if queued + tokens > most:
            queued = self.queue.before(tokens)
            if queued and queued + tokens > most:
                retry_after = max(1, round(queued / speed)) if speed is not None else 1
                raise Overloaded(f"{queued} of {most} tokens are queued", retry_after)
        # As many as took turns lately will go on to do so: whoever is answered asks again, or another one does.
        if speed is not None and (1 + self._others) * tokens > speed * self.max_seconds and len(self.queue):
            seconds = (1 + self._others) * tokens / speed
            why = f"{tokens} tokens would take {seconds:.0f} s beside {self._others:.0f} other requests"
            raise Overloaded(why, max(1, round(self.queue.tokens / speed)))

    async def submit(self, encodings: Sequence[Part], trace: object = None) -> np.ndarray:
        """Wait for the model's outputs of some rows, which may share batches with rows of other requests.

        Args:
            encodings: at least one row, tokenised and not padded.
            trace: what `on_batch` finds at the rows' request.

        Returns:
            float32 (rows, outputs), in order.

        Raises:
            Overloaded: they do not fit into the queue.
            InputError: they would not fit into an empty queue.
            Closed: `close` was called.
            KdcError: the forward pass failed.
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
            if not self._alone:  # otherwise the lane that runs alone wakes the others when it ends
                self._wake(len(rows))
        try:
            return await request.future
        except BaseException:  # the client has left, or one of the rows failed
            with self._lock:
                for row in rows:
                    self.queue.remove(row)
                queued = self.queue.tokens
            self.on_left(queued)
            raise

    async def close(self) -> None:
        """Accept no more rows, answer those that are queued, and end the threads."""
        with self._lock:
            self._closing = True
            self._wake(self.lanes)
        # Polled, not joined: whoever cancels this must not wait for a forward pass that hangs.
        while any(thread.is_alive() for thread in self._threads):
            await asyncio.sleep(0.005)

    def _work(self) -> None:
        """A lane's thread: take a batch and run it, over and over, until `close` was called and the queue is empty."""
        work = threading.Condition(self._lock)
        free_since: float | None = None  # when this lane ended its last pass; None if it then found nothing to run
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
                free = 1 if alone else self.lanes - self._running  # lanes that share the rows that wait
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
                    if alone:  # the other lanes have waited for its end
                        self._alone = False
                        self._wake(self.lanes if self._closing else len(self.queue) - 1)

    @property
    def _ahead(self) -> float:
        """Most padded tokens of a batch with rows of a request that has had its turn for now."""
        return max(self.ahead_tokens, _AHEAD_S * (self._tokens_per_second or 0.0) / self.lanes)

    def _average(self, waiting: int, began: float, ended: float) -> None:
        """Note how many requests waited during a pass; between passes none did."""
        since = max(began, self._averaged)  # another lane may have told of a part of this time
        self._others *= math.exp(min(0.0, self._averaged - ended) / _AVERAGED_S)
        self._others += waiting * (1 - math.exp(min(0.0, since - ended) / _AVERAGED_S))
        self._averaged = max(ended, self._averaged)

    def _wake(self, lanes: int) -> None:
        """Have idle lanes look at the queue; the one that ran last comes first, as its core's cache is still warm."""
        for _ in range(min(lanes, len(self._idle))):
            self._idle.pop().notify()

    def _run(self, batch: list[Row], queued: int, alone: bool, free_since: float | None) -> None:
        began = time.perf_counter()
        results = self._answers(batch, self.forward if alone or self.beside is None else self.beside)
        ended = time.perf_counter()
        tokens = len(batch) * batch[-1].length  # sorted: the last is the longest
        # Between two passes a lane waits for its core and the interpreter's lock; that time counts for the queue too.
        busy = ended - (began if free_since is None else free_since)
        if not any(isinstance(result, Exception) for result in results):  # a pass that fails takes no time
            self._learn_speed(tokens, busy / (1 if alone else self.lanes))
        waited = began - min(row.arrived for row in batch)
        report = BatchReport(len(batch), tokens, queued, waited, ended - began, began)
        with contextlib.suppress(RuntimeError):  # the loop is closed: this pass hung and has outlived its server
            self._loop.call_soon_threadsafe(self._deliver, batch, results, report)

    def _deliver(self, batch: list[Row], results: list[Result], report: BatchReport) -> None:
        """Answer the batch's requests, then report it. Runs in the event loop, while the lane takes its next batch."""
        _answer(batch, results)
        try:
            self.on_batch(batch, results, report)
        except Exception:  # metrics that cannot be written, as on a full disk, must not end the service
            log.exception("the metrics or traces of a batch could not be written")

    def _learn_speed(self, tokens: int, seconds: float) -> None:
        """Update the estimate of tokens per second. A small batch may only raise it: it is slow for its few tokens."""
        speed, known = tokens / max(seconds, 1e-9), self._tokens_per_second
        if tokens >= min(self.max_batch_tokens, self.ahead_tokens) / 4 or (known is not None and speed > known):
            self._tokens_per_second = speed if known is None else known + 0.2 * (speed - known)

    def _answers(self, batch: list[Row], forward: Forward, failures: list[Exception] | None = None) -> list[Result]:
        """Run a batch and return each row's outputs, or the error that it met. One bad row may fail the whole batch:
        a batch that failed is tried again in halves."""
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
    """Hand each row's result to its request, and wake the requests that are complete."""
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

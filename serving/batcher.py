"""Continuous batching: rows of concurrent requests share forward passes, like lengths together, nobody starves.

One thread owns the session. While it runs a batch, new rows gather; when it is idle, a row is run at once. Each batch
is built around the row that has waited longest and grows by the rows nearest to it in length, so the wait is bounded
and little is computed on padding.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding

from errors import KdcError

log = logging.getLogger("kdc.serve")

_MOST_FAILURES = 32  # of one batch; then the fault is not in a row, and the rest is not tried row by row

Forward = Callable[[Sequence[Encoding]], np.ndarray]


class Overloaded(KdcError):
    """The queue is full.

    Attributes:
        retry_after: seconds until it will probably have room, at least 1.
    """

    def __init__(self, queued: int, most: int, retry_after: int) -> None:
        super().__init__(
            "the service is overloaded", given=f"{queued} of {most} tokens are queued",
            remedy=f"try again in {retry_after} s",
        )  # fmt: skip
        self.retry_after = retry_after


class TooLarge(KdcError):
    """A request has more tokens than the queue ever takes."""

    def __init__(self, tokens: int, most: int) -> None:
        super().__init__(
            "the request has too many tokens", given=f"{tokens}; at most {most}", remedy="send fewer texts a request"
        )


class Closed(KdcError):
    """The batcher takes no more rows."""

    def __init__(self) -> None:
        super().__init__("the service is shutting down", remedy="send the request to another instance")


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One forward pass, for metrics.

    Attributes:
        rows: in the batch.
        tokens: computed, padding included.
        queued_tokens: that still waited when it began.
        queued_seconds: how long its longest-waiting row waited.
        seconds: of the forward pass.
    """

    rows: int
    tokens: int
    queued_tokens: int
    queued_seconds: float
    seconds: float


@dataclass(slots=True, eq=False)
class _Request:
    """Rows that one caller waits for."""

    future: asyncio.Future[np.ndarray]
    left: int
    answers: list[np.ndarray | None]


@dataclass(slots=True, eq=False)
class _Row:
    length: int
    number: int  # of arrival
    encoding: Encoding
    request: _Request
    place: int
    arrived: float
    taken: bool = False
    key: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.length, self.number)


def _key(row: _Row) -> tuple[int, int]:
    return row.key


class Batcher:
    """Answers rows by batches of its own making. Made and used in one event loop.

    Args:
        forward: one batch to (rows, outputs); called in the batcher's thread alone.
        max_batch_tokens: padded tokens (rows x longest) of a batch; one row may exceed it.
        max_queue_tokens: tokens that may wait; beyond, `submit` raises `Overloaded`.
        max_queue_seconds: seconds that the queue may take at the speed of the last batches; beyond, the same. A queue
            that is longer than people wait computes answers for those who have left.
        max_padding: most padding of a batch, as a share of its real tokens.
        on_batch: told of every batch, in the batcher's thread.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        max_batch_tokens: int = 4096,
        max_queue_tokens: int = 65536,
        max_queue_seconds: float = 2.0,
        max_padding: float = 0.25,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self._forward = forward
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._max_queue_seconds = max_queue_seconds
        self._max_padding = max_padding
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._by_length: list[_Row] = []
        self._by_arrival: deque[_Row] = deque()
        self._queued_tokens = 0
        self._arrivals = 0
        self._closing = False
        self._tokens_per_second: float | None = None  # not known before the first large batch
        self._thread = threading.Thread(target=self._work, name="kdc-batcher", daemon=True)
        self._thread.start()

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a forward pass."""
        return self._queued_tokens

    def check_room(self, rows: int) -> None:
        """See that so many rows may fit, before anything is spent on tokenising them.

        Raises:
            Overloaded: they do not.
        """
        self._refuse_beyond(self._queued_tokens, rows)  # a row has one token at least

    async def submit(self, encodings: Sequence[Encoding]) -> np.ndarray:
        """The model's outputs for rows, whatever else they were batched with.

        Args:
            encodings: at least one row, tokenised and not padded.

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
        request = _Request(self._loop.create_future(), len(encodings), [None] * len(encodings))
        now = time.perf_counter()
        rows: list[_Row] = []
        with self._changed:
            if self._closing:
                raise Closed
            self._refuse_beyond(self._queued_tokens, tokens)
            self._queued_tokens += tokens
            for place, encoding in enumerate(encodings):
                self._arrivals += 1
                row = _Row(len(encoding), self._arrivals, encoding, request, place, now)
                bisect.insort(self._by_length, row, key=_key)
                self._by_arrival.append(row)
                rows.append(row)
            self._changed.notify()
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

    def _withdraw(self, rows: list[_Row]) -> None:
        """Take the rows that still wait out of the queue."""
        with self._changed:
            for row in rows:
                if not row.taken:
                    row.taken = True
                    self._queued_tokens -= row.length
                    del self._by_length[bisect.bisect_left(self._by_length, row.key, key=_key)]

    async def close(self) -> None:
        """Answer what is queued, accept no more, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        while self._thread.is_alive():  # not joined: a forward pass that hangs must not hold up who cancels this
            await asyncio.sleep(0.005)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._by_length and not self._closing:
                    self._changed.wait()
                if not self._by_length:
                    return
                batch = self._next_batch()
                queued = self._queued_tokens
            self._run(batch, queued)

    def _next_batch(self) -> list[_Row]:
        """Take the oldest row and its neighbours in length out of the queue."""
        while self._by_arrival[0].taken:
            self._by_arrival.popleft()
        rows = self._by_length
        first = bisect.bisect_left(rows, self._by_arrival[0].key, key=_key)
        last = first + 1  # rows[first:last] is the batch
        longest = real = rows[first].length
        while True:
            count = last - first + 1
            shorter = longest - rows[first - 1].length if first > 0 else None
            longer = (rows[last].length - longest) * (count - 1) if last < len(rows) else None
            if shorter is None and longer is None:
                break
            take_longer = shorter is None or (longer is not None and longer < shorter)
            new = rows[last] if take_longer else rows[first - 1]
            padded = count * max(longest, new.length)
            if padded > self._max_batch_tokens or padded > (1 + self._max_padding) * (real + new.length):
                break
            longest, real = max(longest, new.length), real + new.length
            first, last = (first, last + 1) if take_longer else (first - 1, last)
        batch = rows[first:last]
        del rows[first:last]
        self._queued_tokens -= real
        for row in batch:
            row.taken = True
        return batch

    def _run(self, batch: list[_Row], queued: int) -> None:
        began = time.perf_counter()
        results = self._answers(batch)
        ended = time.perf_counter()
        tokens = len(batch) * batch[-1].length  # sorted: the last is the longest
        self._learn_speed(tokens, ended - began)
        with contextlib.suppress(RuntimeError):  # the loop is closed: this pass hung, and outlived its server
            self._loop.call_soon_threadsafe(_deliver, batch, results)
        if self._on_batch is not None:
            waited = began - min(row.arrived for row in batch)
            try:
                self._on_batch(BatchReport(len(batch), tokens, queued, waited, ended - began))
            except Exception:
                log.exception("a batch could not be counted")  # metrics on a full disk must not end the service

    def _learn_speed(self, tokens: int, seconds: float) -> None:
        """A small batch says how fast at least; only a large one says how fast at most."""
        speed, known = tokens / max(seconds, 1e-9), self._tokens_per_second
        if tokens >= self._max_batch_tokens // 4 or (known is not None and speed > known):
            self._tokens_per_second = speed if known is None else known + 0.2 * (speed - known)

    def _answers(self, batch: list[_Row], failures: list[Exception] | None = None) -> list[np.ndarray | Exception]:
        """Each row's outputs. One row may spoil a batch for the others, so what failed is tried again in halves."""
        failures = [] if failures is None else failures
        try:
            results = list(self._forward([row.encoding for row in batch]))
            if len(results) != len(batch):
                raise KdcError("the model gave another number of rows", given=f"{len(results)} of {len(batch)}")
            return results
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the row
            failures.append(error)
            if len(batch) == 1 or len(failures) > _MOST_FAILURES:
                return [error] * len(batch)
        middle = len(batch) // 2
        return [*self._answers(batch[:middle], failures), *self._answers(batch[middle:], failures)]


def _deliver(batch: list[_Row], results: list[np.ndarray | Exception]) -> None:
    """In the event loop: hand each answer to its request, and wake those that are complete."""
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

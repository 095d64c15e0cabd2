"""The rows that wait for a forward pass, by length and by turn, the report of a pass, and refusals of rows.

Requests share the passes fairly, whatever their number of rows. Each row has a turn: when its request came, plus the
tokens of the request's rows before it, on a clock that moves by the tokens of a pass divided by the number of requests
that wait (weighted fair queueing; Demers, Keshav and Shenker 1989). The batcher holds a lock around the queue.
"""

import asyncio
import bisect
import heapq
import math
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from kdc.common.errors import KdcError
from kdc.serving.engine.long_texts import Part

Result = np.ndarray | Exception  # a row's outputs, or the error that it met
_KEY = attrgetter("key")
_FEW = 64  # rows that have left and may stay in the heap
_FEW_REQUESTS = 4  # that wait at a time; more are a crowd
_MOST_PADDING = 0.25  # most padding of a batch, as a share of its real tokens


class Overloaded(KdcError):
    """The queue has no room for a request. In `retry_after` seconds, at least 1, it will probably have some."""

    def __init__(self, why: str, retry_after: int) -> None:
        super().__init__("the service is overloaded", given=why, remedy=f"try again in {retry_after} s")
        self.retry_after = retry_after


class Closed(KdcError):
    def __init__(self) -> None:
        super().__init__("the service is shutting down", remedy="send the request to another instance")


@dataclass(slots=True, eq=False)
class Request:
    """Rows that one caller waits for."""

    future: asyncio.Future[np.ndarray]  # gets float32 (rows, outputs) once every row has its answer
    missing: int  # how many rows have no answer yet
    answers: list[np.ndarray | None]  # each row's outputs, None while they are missing
    trace: object = None  # the request's spans
    waiting: int = 0  # tokens of its rows that wait
    next_turn: float = 0.0  # of the next row that is added


@dataclass(slots=True, eq=False)
class Row:
    """One row of a request."""

    length: int  # number of its tokens
    key: tuple[int, int]  # what the queue sorts by: length, then the number of its arrival
    encoding: Part
    request: Request
    index: int  # of the row within that request
    arrived: float  # when it came, in seconds of `time.perf_counter`
    turn: float = 0.0  # rows with lower numbers come first; given by the queue
    taken: bool = False  # whether it has left the queue


def _is_large(row: Row, ahead: float) -> bool:
    """Whether the row's request waits for more than `ahead` tokens, in several rows."""
    return row.request.waiting > max(ahead, row.length)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One forward pass, for metrics and traces."""

    rows: int  # rows in the batch
    tokens: int  # tokens computed, padding included
    queued_tokens: int  # tokens that still waited when the pass began
    queued_seconds: float  # how long the batch's longest-waiting row had waited
    seconds: float  # duration of the forward pass
    began: float  # when it began, in seconds of `time.perf_counter`


class Queue:
    """Rows that wait, from which `take` makes batches."""

    def __init__(self) -> None:
        self._by_length: list[Row] = []
        self._by_turn: list[tuple[float, int, Row]] = []  # a heap, by turn and arrival; also of rows that were taken
        self._requests: set[Request] = set()  # those with rows that wait
        self._clock = 0.0  # of turns
        self.tokens = 0  # that wait

    def __len__(self) -> int:
        return len(self._by_length)

    @property
    def requests(self) -> int:
        """How many requests have rows that wait."""
        return len(self._requests)

    def before(self, tokens: int) -> int:
        """Tokens that come before a new request of so many is answered: of each request that waits at most as many."""
        requests = tuple(self._requests)  # at once: this one method is also called without the lock
        return sum(min(request.waiting, tokens) for request in requests)

    def add(self, row: Row) -> None:
        """Add the newest row."""
        request = row.request
        if not request.waiting:
            self._requests.add(request)
        row.turn = max(self._clock, request.next_turn)
        request.next_turn = row.turn + row.length
        request.waiting += row.length
        bisect.insort(self._by_length, row, key=_KEY)
        heapq.heappush(self._by_turn, (row.turn, row.key[1], row))
        self.tokens += row.length

    def remove(self, row: Row) -> None:
        """Remove a row whose caller has left. Does nothing if a batch has taken it already."""
        if not row.taken:
            del self._by_length[bisect.bisect_left(self._by_length, row.key, key=_KEY)]
            self._leaves(row)
            self._forget()

    def _forget(self) -> None:
        """Drop rows that have left from the heap, if they are most of it."""
        if len(self._by_turn) > 2 * len(self._by_length) + _FEW:
            self._by_turn = [entry for entry in self._by_turn if not entry[2].taken]
            heapq.heapify(self._by_turn)

    def _leaves(self, row: Row) -> None:
        row.taken = True
        self.tokens -= row.length
        row.request.waiting -= row.length
        if not row.request.waiting:
            self._requests.discard(row.request)

    def take(self, *, max_rows: int, max_tokens: int, ahead: float = math.inf) -> list[Row]:
        """Take a batch out of the queue, which must not be empty: the row whose turn it is, and the rows nearest to it
        in length. Returns rows by growing length.

        Args:
            max_rows, max_tokens: of the batch, padding included; one row alone may exceed the tokens.
            ahead: tokens, padding included, up to which rows are taken whose turn is further off than that. More rows
                of a large request would only make others wait for the end of the pass. If few requests wait, the pass
                for a request that has no more tokens takes no rows of larger ones. (In a crowd it does: rows of a large
                request lie between the crowd's in length, and each pass would have one row.)
        """
        while self._by_turn[0][2].taken:
            heapq.heappop(self._by_turn)
        turn, _, next_row = self._by_turn[0]
        rows = self._by_length
        first = bisect.bisect_left(rows, next_row.key, key=_KEY)
        last = first + 1  # rows[first:last] is the batch
        longest = real = rows[first].length
        without_large = len(self._requests) <= _FEW_REQUESTS and not _is_large(next_row, ahead)
        while last - first < max_rows:
            count = last - first + 1
            # The padding that the next shorter row, or the next longer one, would add.
            shorter = longest - rows[first - 1].length if first > 0 else None
            longer = (rows[last].length - longest) * (count - 1) if last < len(rows) else None
            if shorter is None and longer is None:
                break
            take_longer = shorter is None or (longer is not None and longer < shorter)
            new = rows[last] if take_longer else rows[first - 1]
            padded = count * max(longest, new.length)
            if padded > max_tokens or padded > (1 + _MOST_PADDING) * (real + new.length):
                break
            if padded > ahead and new.turn > turn + ahead:
                break
            if without_large and _is_large(new, ahead):
                break
            longest, real = max(longest, new.length), real + new.length
            first, last = (first, last + 1) if take_longer else (first - 1, last)
        batch = rows[first:last]
        del rows[first:last]
        self._clock = max(turn, self._clock + real / len(self._requests))
        for row in batch:
            self._leaves(row)
        self._forget()
        return batch

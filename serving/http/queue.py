"""The rows that wait for a forward pass. The batcher holds a lock around the queue.

Fair queueing (Demers, Keshav and Shenker 1989), with a clock that counts tokens. A pass advances the clock by its
tokens divided by the number of waiting requests, at least to its earliest turn.
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

Result = np.ndarray | Exception  # outputs or error
_KEY = attrgetter("key")
_FEW = 64  # stale rows in the heap
_FEW_REQUESTS = 4  # more requests are a crowd (see `Queue.take`)
_MOST_PADDING = 0.25  # of a batch's real tokens


class Overloaded(KdcError):
    """`retry_after`: seconds, at least 1."""

    def __init__(self, why: str, retry_after: int) -> None:
        super().__init__("the service is overloaded", given=why, remedy=f"try again in {retry_after} s")
        self.retry_after = retry_after


class Closed(KdcError):
    def __init__(self) -> None:
        super().__init__("the service is shutting down", remedy="send the request to another instance")


@dataclass(slots=True, eq=False)
class Request:
    future: asyncio.Future[np.ndarray]  # float32 (rows, outputs)
    missing: int  # unanswered rows
    answers: list[np.ndarray | None]  # each row's outputs
    trace: object = None  # the request's spans
    waiting: int = 0  # tokens that wait
    next_turn: float = 0.0


@dataclass(slots=True, eq=False)
class Row:
    length: int  # in tokens
    key: tuple[int, int]  # length and arrival
    encoding: Part
    request: Request
    index: int  # within the request
    arrived: float  # by `time.perf_counter`
    turn: float = 0.0  # lowest first
    taken: bool = False


def _is_large(row: Row, ahead: float) -> bool:
    return row.request.waiting > max(ahead, row.length)


@dataclass(frozen=True, slots=True)
class BatchReport:
    rows: int
    tokens: int  # padding included
    queued_tokens: int  # left when the pass began
    queued_seconds: float  # of its oldest row
    seconds: float
    began: float  # by `time.perf_counter`


class Queue:
    def __init__(self) -> None:
        self._by_length: list[Row] = []
        self._by_turn: list[tuple[float, int, Row]] = []  # a heap, with stale rows
        self._requests: set[Request] = set()  # with waiting rows
        self._clock = 0.0  # of turns
        self.tokens = 0  # that wait

    def __len__(self) -> int:
        return len(self._by_length)

    @property
    def requests(self) -> int:
        return len(self._requests)

    def before(self, tokens: int) -> int:
        """Tokens answered before a new request: at most `tokens` of each waiting one."""
        requests = tuple(self._requests)  # one step: needs no lock
        return sum(min(request.waiting, tokens) for request in requests)

    def add(self, row: Row) -> None:
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
        if not row.taken:
            del self._by_length[bisect.bisect_left(self._by_length, row.key, key=_KEY)]
            self._leaves(row)
            self._forget()

    def _forget(self) -> None:
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
        """Take the row whose turn it is and rows near it in length, sorted by length. The queue must not be empty.

        Args:
            max_tokens: padding included; one row alone may exceed it.
            ahead: a batch over `ahead` padded tokens takes no row whose turn comes more than `ahead` later. While few
                requests wait, a batch for a request of at most `ahead` tokens takes no row of a larger request with
                several waiting rows. In a crowd it does, or many batches would hold one row.
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
            # Padding that each neighbour adds.
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

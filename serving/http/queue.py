"""The rows that wait for a forward pass, by length and by arrival. Knows no threads: whoever owns it holds the lock."""

from __future__ import annotations

import asyncio
import bisect
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

if TYPE_CHECKING:
    from kdc.serving.http.spans import Trace


@dataclass(slots=True, eq=False)
class Request:
    """Rows that one caller waits for."""

    future: asyncio.Future[np.ndarray]
    left: int
    answers: list[np.ndarray | None]
    trace: Trace | None = None


@dataclass(slots=True, eq=False)
class Row:
    """One row of a request.

    Attributes:
        length: tokens.
        number: of arrival, growing.
        encoding: for the model.
        request: whose it is.
        place: within the request.
        arrived: seconds, of `time.perf_counter`.
        taken: whether it has left the queue.
    """

    length: int
    number: int
    encoding: Encoding
    request: Request
    place: int
    arrived: float
    taken: bool = False
    key: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.length, self.number)


def _key(row: Row) -> tuple[int, int]:
    return row.key


class Queue:
    """Rows that wait; `take` makes batches of them."""

    def __init__(self) -> None:
        self._by_length: list[Row] = []
        self._by_arrival: deque[Row] = deque()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._by_length)

    def add(self, row: Row) -> None:
        """The newest row."""
        bisect.insort(self._by_length, row, key=_key)
        self._by_arrival.append(row)
        self.tokens += row.length

    def remove(self, row: Row) -> None:
        """A row that nobody waits for any longer; nothing where it was taken."""
        if not row.taken:
            row.taken = True
            self.tokens -= row.length
            del self._by_length[bisect.bisect_left(self._by_length, row.key, key=_key)]

    def take(self, *, max_rows: int, max_tokens: int, max_padding: float) -> list[Row]:
        """Take the oldest row and its neighbours in length out of the queue, which has one at least.

        Args:
            max_rows: of the batch.
            max_tokens: of the batch, padding included; one row may exceed it.
            max_padding: of the batch, as a share of its real tokens.

        Returns:
            rows by growing length.
        """
        while self._by_arrival[0].taken:
            self._by_arrival.popleft()
        rows = self._by_length
        first = bisect.bisect_left(rows, self._by_arrival[0].key, key=_key)
        last = first + 1  # rows[first:last] is the batch
        longest = real = rows[first].length
        while last - first < max_rows:
            count = last - first + 1
            shorter = longest - rows[first - 1].length if first > 0 else None
            longer = (rows[last].length - longest) * (count - 1) if last < len(rows) else None
            if shorter is None and longer is None:
                break
            take_longer = shorter is None or (longer is not None and longer < shorter)
            new = rows[last] if take_longer else rows[first - 1]
            padded = count * max(longest, new.length)
            if padded > max_tokens or padded > (1 + max_padding) * (real + new.length):
                break
            longest, real = max(longest, new.length), real + new.length
            first, last = (first, last + 1) if take_longer else (first - 1, last)
        batch = rows[first:last]
        del rows[first:last]
        self.tokens -= real
        for row in batch:
            row.taken = True
        return batch

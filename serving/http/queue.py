"""The rows that wait for a forward pass, by length and by arrival. Its owner, the batcher, holds a lock around it."""

from __future__ import annotations

import bisect
from collections import deque
from operator import attrgetter

from kdc.serving.http.rows import Row

_key = attrgetter("key")


class Queue:
    """Rows that wait, from which `take` makes batches.

    Attributes:
        tokens: how many tokens wait.
    """

    def __init__(self) -> None:
        self._by_length: list[Row] = []
        self._by_arrival: deque[Row] = deque()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._by_length)

    def add(self, row: Row) -> None:
        """Add the newest row."""
        bisect.insort(self._by_length, row, key=_key)
        self._by_arrival.append(row)
        self.tokens += row.length

    def remove(self, row: Row) -> None:
        """Remove a row that nobody waits for any longer. Does nothing if a batch has taken it already."""
        if not row.taken:
            row.taken = True
            self.tokens -= row.length
            del self._by_length[bisect.bisect_left(self._by_length, row.key, key=_key)]

    def take(self, *, max_rows: int, max_tokens: int, max_padding: float) -> list[Row]:
        """Take a batch out of the queue, which must not be empty: the oldest row and the rows nearest to it in length.

        Args:
            max_rows: most rows of the batch.
            max_tokens: most tokens of the batch, padding included; one row alone may exceed it.
            max_padding: most padding of the batch, as a share of its real tokens.

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
            # The padding that the next shorter row, or the next longer one, would add.
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

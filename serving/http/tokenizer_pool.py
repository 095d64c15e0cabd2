"""Tokenises short requests in the event loop, long ones piece by piece in threads (docs/explanation/scheduling.md).

Turns count seconds, since long words cost twenty times as much as short ones. A row is never divided and may take a
second. Meanwhile a spare thread begins another piece; the last free thread takes no long row.
"""

import asyncio
import contextlib
import heapq
import itertools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kdc.serving.engine.engine import Engine, Text
from kdc.serving.engine.long_texts import Encoded
from kdc.serving.http.queue import Overloaded

_INLINE_CHARS = 2000  # tokenising fewer is faster than waking a thread
_INLINE_WORD = 32  # unless a word has more
_FIRST_CHARS, _MOST_CHARS = 4000, 8000  # of a request's first piece, of later ones
_PIECE_S = 0.002  # most core seconds of later pieces, estimated from the one before
_LEAST_S = 1e-6  # some thread clocks stand still
_MOST_THREADS = 4
_LONG_S, _MOST_LONG = 0.03, 4  # seconds of a long piece; spare threads
_BYTES_A_TOKEN = 16  # about the most in any script, in UTF-8


@dataclass(slots=True, eq=False)
class _Work:
    rows: Sequence[Text]
    sizes: list[int]  # (rows,) characters that are read
    side: str | None
    future: asyncio.Future[list[Encoded]]
    chars: int  # that wait
    cost: float | None = None  # of a character, in core seconds
    encodings: list[Encoded] = field(default_factory=list)  # of the first rows

    def is_next_row_long(self) -> bool:
        # All characters count, since a text without words is read whole.
        return _characters(self.rows[len(self.encodings)]) > _MOST_CHARS


class TokenizerPool:
    """Use it in one event loop. At most `max_queue_seconds` may come before a request, counted as in `Queue.before`."""

    def __init__(self, engine: Engine, max_queue_seconds: float = math.inf) -> None:
        self._engine, self._max_queue_seconds = engine, max_queue_seconds
        self._loop = asyncio.get_running_loop()
        self._count = max(1, min(_MOST_THREADS, engine.threads // 2))
        self._changed = threading.Condition()
        self._works: set[_Work] = set()
        self._cost = 5e-7  # average core seconds a character
        self._turns: list[tuple[float, int, _Work]] = []  # a heap of waiting requests
        self._arrivals = itertools.count()
        self._clock = 0.0  # in core seconds
        self._began: dict[int, float] = {}  # of each thread's piece
        self._closing = False
        for thread in range(self._count + _MOST_LONG):
            threading.Thread(target=self._tokenise, name=f"kdc-tokeniser-{thread}", daemon=True).start()

    def least_tokens(self, rows: Sequence[Text]) -> int:
        """A rough lower bound. Endless words and blank texts have fewer tokens."""
        most = self._engine.tokenizer_info.longest
        return sum(min(most, 1 + sum(map(_bytes, _texts(row))) // _BYTES_A_TOKEN) for row in rows)

    async def encode(self, rows: Sequence[Text], side: str | None) -> list[Encoded]:
        """Like `Engine.encode`. Raises `Overloaded` if the texts before take too long."""
        # First use loads the other side's tokenizer.
        if sum(map(_characters, rows)) < _INLINE_CHARS and self._engine.has_cut(side) and not _has_a_long_word(rows):
            return self._engine.encode(rows, side=side)
        sizes = self._engine.chars_read(rows)
        work = _Work(rows, sizes, side, self._loop.create_future(), sum(sizes))
        with self._changed:
            self._check_room(work)
            self._works.add(work)
            self._wait_for_a_turn(work, self._clock)
        try:
            return await work.future
        finally:
            with self._changed:
                self._works.discard(work)
                if not work.future.done() or work.future.cancelled():  # its client left
                    self._turns = [entry for entry in self._turns if entry[2] is not work]
                    heapq.heapify(self._turns)

    def _check_room(self, new: _Work) -> None:
        own = self._seconds(new)
        before = sum(min(own, self._seconds(work)) for work in self._works) / self._count
        if before > self._max_queue_seconds:
            why = f"other texts take about {before:.1f} s to tokenise; at most {self._max_queue_seconds:g} s"
            raise Overloaded(why, max(1, round(before)))

    def _seconds(self, work: _Work) -> float:
        return work.chars * (self._cost if work.cost is None else work.cost)

    def _wait_for_a_turn(self, work: _Work, turn: float) -> None:
        heapq.heappush(self._turns, (turn, next(self._arrivals), work))
        self._changed.notify()

    def _tokenise(self) -> None:
        """A thread keeps nothing of a request between two pieces."""
        while self._take_a_turn():
            pass

    def _take_a_turn(self) -> bool:
        with self._changed:
            while (entry := self._next()) is None:
                if self._closing:
                    return False
                self._changed.wait(_LONG_S if self._turns else None)
            turn, _, work = entry
            self._clock = max(self._clock, turn)
            self._began[threading.get_ident()] = time.monotonic()
        try:
            turn += self._piece(work)
        except Exception as error:  # noqa: BLE001 - the request raises it
            self._answer(work, error)
            return True
        finally:
            with self._changed:
                del self._began[threading.get_ident()]
        if len(work.encodings) == len(work.rows):
            self._answer(work, None)
            return True
        with self._changed:
            if work in self._works:  # else its client left
                self._wait_for_a_turn(work, turn)
        return True

    def _next(self) -> tuple[float, int, _Work] | None:
        now = time.monotonic()
        if not self._turns or sum(now - began < _LONG_S for began in self._began.values()) >= self._count:
            return None
        if len(self._began) < self._count + _MOST_LONG - 1:
            return heapq.heappop(self._turns)
        entry = min((entry for entry in self._turns if not entry[2].is_next_row_long()), default=None)
        if entry is not None:
            self._turns.remove(entry)
            heapq.heapify(self._turns)
        return entry

    def _piece(self, work: _Work) -> float:
        """Tokenise more rows. Returns core seconds."""
        most = _FIRST_CHARS if work.cost is None else min(_MOST_CHARS, _PIECE_S / work.cost)
        first = len(work.encodings)
        end, chars = first + 1, work.sizes[first]
        while end < len(work.rows) and chars + work.sizes[end] <= most:
            chars += work.sizes[end]
            end += 1
        began = time.thread_time()
        work.encodings += self._engine.encode(work.rows[first:end], side=work.side, first=first, beside=True)
        seconds = time.thread_time() - began
        work.chars -= chars
        work.cost = max(seconds, _LEAST_S) / max(1, chars)
        self._cost += 0.1 * (work.cost - self._cost)
        return seconds

    def _answer(self, work: _Work, error: Exception | None) -> None:
        def deliver() -> None:
            if work.future.done():  # its client left
                return
            if error is None:
                work.future.set_result(work.encodings)
            else:
                work.future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(deliver)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()


def _texts(row: Text) -> tuple[str, ...]:
    return (row,) if isinstance(row, str) else row


def _characters(row: Text) -> int:
    return sum(map(len, _texts(row)))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _has_a_long_word(rows: Sequence[Text]) -> bool:
    """WordPiece's time grows with the square of a word's length."""
    return any(max(map(len, text.split()), default=0) > _INLINE_WORD for row in rows for text in _texts(row))

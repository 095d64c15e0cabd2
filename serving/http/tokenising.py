"""Tokenises the rows of requests: few characters at once, many beside the event loop, in pieces that take turns.

A word of a hundred characters costs twenty times what as many characters of short words do, so requests take turns by
the seconds that their pieces took, and are refused if too many seconds come before them. Few threads tokenise, so that
the forward passes keep their cores. (The service switches off the tokenizers library's own threads.)
"""

import asyncio
import functools
import heapq
import itertools
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kdc.serving.engine.engine import Engine, Text
from kdc.serving.engine.long_texts import Encoded
from kdc.serving.http.queue import Overloaded

_INLINE_CHARS = 2000  # fewer characters are tokenised faster than they are handed to a thread,
_INLINE_WORD = 32  # unless a word is longer than that
_FIRST_CHARS, _MOST_CHARS = 4000, 8000  # of a request's first piece, and of any
_PIECE_S = 0.002  # seconds of a core that a later piece takes, if its characters cost what those before it did
_LEAST_S = 1e-6  # of a piece: some systems' clocks of a thread stand still for milliseconds
_MOST_THREADS = 4
_CHARS_A_TOKEN = 16  # of a text; in English a token has five


@dataclass(slots=True, eq=False)
class _Work:
    """A request's rows that are not tokenised yet."""

    chars: int  # that wait
    cost: float | None = None  # seconds of a core for a character in its last piece


class Tokenising:
    """The tokeniser of one artifact. Created and used in one event loop.

    Args:
        engine: tokenises.
        max_queue_seconds: most seconds of tokenising that may come before a new request; beyond that `encode` raises
            `Overloaded`. Of another request at most as many count as of the new one, since they take turns.
    """

    def __init__(self, engine: Engine, max_queue_seconds: float = math.inf) -> None:
        self._engine = engine
        self._max_queue_seconds = max_queue_seconds
        self._count = max(1, min(_MOST_THREADS, engine.threads // 2))
        self._free = self._count + 1  # the next piece is at hand when a thread is free
        self._threads = ThreadPoolExecutor(self._count, "kdc-tokeniser")
        self._works: set[_Work] = set()
        self._cost = 5e-7  # seconds of a character, on average over the last pieces
        self._turns: list[tuple[float, int, asyncio.Future[None]]] = []  # a heap of the pieces that wait
        self._arrivals = itertools.count()
        self._clock = 0.0  # of turns, in seconds: the turn of the piece that began last

    def least_tokens(self, rows: Sequence[Text]) -> int:
        """About the fewest tokens that rows of sentences have once they are cut, found without tokenising them. A
        word without an end, or a text that is nearly all spaces, has fewer."""
        most = self._engine.tokenizer_info.longest
        return sum(min(most, 1 + _characters(row) // _CHARS_A_TOKEN) for row in rows)

    async def encode(self, rows: Sequence[Text], side: str | None) -> list[Encoded]:
        """See `Engine.encode`.

        Raises:
            InputError: a row is not what the task takes, or has no token.
            Overloaded: tokenising what comes before would take too long.
        """
        # The first row that is cut on the other side waits for another tokenizer, which takes 50 ms and more.
        if sum(map(_characters, rows)) < _INLINE_CHARS and self._engine.has_cut(side) and not _has_a_long_word(rows):
            return self._engine.encode(rows, side=side)
        sizes = self._engine.chars_read(rows)
        work = _Work(sum(sizes))
        self._check_room(work)
        self._works.add(work)
        try:
            return await self._in_pieces(rows, sizes, side, work)
        finally:
            self._works.discard(work)

    def _check_room(self, new: _Work) -> None:
        own = self._seconds(new)
        before = sum(min(own, self._seconds(work)) for work in self._works) / self._count
        if before > self._max_queue_seconds:
            why = f"other texts take about {before:.1f} s to tokenise; at most {self._max_queue_seconds:g} s"
            raise Overloaded(why, max(1, round(before)))

    def _seconds(self, work: _Work) -> float:
        return work.chars * (self._cost if work.cost is None else work.cost)

    async def _in_pieces(
        self, rows: Sequence[Text], sizes: Sequence[int], side: str | None, work: _Work
    ) -> list[Encoded]:
        encodings: list[Encoded] = []
        turn = self._clock
        while (first := len(encodings)) < len(rows):
            most = _FIRST_CHARS if work.cost is None else min(_MOST_CHARS, _PIECE_S / work.cost)
            end, chars = first + 1, sizes[first]
            while end < len(rows) and chars + sizes[end] <= most:
                chars += sizes[end]
                end += 1
            encode = functools.partial(self._engine.encode, rows[first:end], side=side, first=first, beside=True)
            await self._take_turn(turn)
            done, seconds = await self._run(encode)
            turn += seconds
            work.chars -= chars
            work.cost = max(seconds, _LEAST_S) / max(1, chars)
            self._cost += 0.1 * (work.cost - self._cost)
            encodings += done
        return encodings

    async def _take_turn(self, turn: float) -> None:
        """Wait for a place. Pieces with lower numbers come first."""
        if self._free:
            self._free -= 1
            self._clock = max(self._clock, turn)
            return
        waits = asyncio.get_running_loop().create_future()
        heapq.heappush(self._turns, (turn, next(self._arrivals), waits))
        try:
            await waits
        except asyncio.CancelledError:
            if waits.done() and not waits.cancelled():  # it had its turn, and does not take it
                self._leave_turn()
            raise

    def _leave_turn(self) -> None:
        """A place is free: the next piece has its turn."""
        while self._turns:
            turn, _, waits = heapq.heappop(self._turns)
            if not waits.done():  # else its request has left
                self._clock = max(self._clock, turn)
                waits.set_result(None)
                return
        self._free += 1

    async def _run(self, encode: "functools.partial[list[Encoded]]") -> tuple[list[Encoded], float]:
        """Tokenise in a thread: the encodings, and the seconds of a core that they took. The place is free once it has
        ended, though the request may have left before."""

        def timed() -> tuple[list[Encoded], float]:
            began = time.thread_time()
            return encode(), time.thread_time() - began

        try:
            job = asyncio.get_running_loop().run_in_executor(self._threads, timed)
        except RuntimeError:  # no thread can be started
            self._leave_turn()
            raise
        try:
            return await asyncio.shield(job)
        finally:
            if job.done():
                self._leave_turn()
            else:
                job.add_done_callback(self._left)

    def _left(self, job: "asyncio.Future[tuple[list[Encoded], float]]") -> None:
        job.exception()  # nobody waits for it
        self._leave_turn()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)


def _characters(row: Text) -> int:
    return len(row) if isinstance(row, str) else len(row[0]) + len(row[1])


def _has_a_long_word(rows: Sequence[Text]) -> bool:
    """Whether there is a word whose tokens are found slowly: WordPiece takes the square of its length."""
    texts = (text for row in rows for text in ((row,) if isinstance(row, str) else row))
    return any(max(map(len, text.split()), default=0) > _INLINE_WORD for text in texts)

"""Tokenises the rows of requests: few characters at once, many beside the event loop, in pieces that take turns.

A request of two megabytes takes a second of a core. All of them together have a few threads of their own, so that the
forward passes keep their cores, and none holds a thread for longer than a piece: another request waits for a piece of
each that is before it, not for all of them. (The service switches off the tokenizers library's own threads.)
"""

import asyncio
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from kdc.serving.engine.engine import Engine, Text
from kdc.serving.engine.long_texts import Encoded

_INLINE_CHARS = 2000  # fewer characters are tokenised faster than they are handed to a thread
_PIECE_CHARS = 50_000  # a text of so many without a space takes 30 ms
_MOST_THREADS = 4
_CHARS_A_TOKEN = 16  # of a text; in English a token has five


class Tokenising:
    """The tokeniser of one artifact.

    Args:
        engine: tokenises.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(max(1, min(_MOST_THREADS, engine.threads // 2)), "kdc-tokeniser")

    def least_tokens(self, rows: Sequence[Text]) -> int:
        """About the fewest tokens that rows of sentences have once they are cut, found without tokenising them. A
        word without an end, or a text that is nearly all spaces, has fewer."""
        most = self._engine.tokenizer_info.longest
        return sum(min(most, 1 + _characters(row) // _CHARS_A_TOKEN) for row in rows)

    async def encode(self, rows: Sequence[Text], side: str | None) -> list[Encoded]:
        """See `Engine.encode`.

        Raises:
            InputError: a row is not what the task takes, or has no token.
        """
        # The first row that is cut on the other side waits for another tokenizer, which takes 50 ms and more.
        if sum(map(_characters, rows)) < _INLINE_CHARS and self._engine.has_cut(side):
            return self._engine.encode(rows, side=side)
        loop, encodings = asyncio.get_running_loop(), list[Encoded]()
        for piece in _pieces(rows):
            encode = functools.partial(self._engine.encode, piece, side=side, first=len(encodings), beside=True)
            encodings += await loop.run_in_executor(self._threads, encode)
        return encodings

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)


def _characters(row: Text) -> int:
    return len(row) if isinstance(row, str) else len(row[0]) + len(row[1])


def _pieces(rows: Sequence[Text]) -> Iterator[list[Text]]:
    """Rows that follow each other and have few characters together, or one that has many."""
    piece: list[Text] = []
    characters = 0
    for row in rows:
        characters += _characters(row)
        if piece and characters > _PIECE_CHARS:
            yield piece
            piece, characters = [], _characters(row)
        piece.append(row)
    yield piece

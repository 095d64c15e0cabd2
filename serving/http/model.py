"""One loaded artifact behind its batcher: tokenises a request's rows and runs them together with those of others."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdc.artifact.manifest import CPU_PROVIDER, TokenizerInfo
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine, Text
from kdc.serving.engine.tokenizing import RowTokenizer
from kdc.serving.http.batcher import Batcher
from kdc.serving.http.rows import BatchReport
from kdc.serving.http.settings import ServeSettings

if TYPE_CHECKING:
    from kdc.serving.http.spans import Trace
    from kdc.serving.http.tracing import Tracing

# Padded tokens of a pass. On a CPU's lanes a token costs the same in passes of 64 to 512 tokens (benchmarks/split.py);
# larger passes make other rows wait, smaller ones take more calls.
_CPU_BATCH, _GPU_BATCH = 256, 4096
_INLINE_CHARS = 2000  # fewer characters are tokenised faster than they are handed to a thread
Observe = Callable[[str, BatchReport], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer to a request.

    Attributes:
        logits: float32 (rows, outputs).
        tokens: (rows,) number of tokens of each row, after the cut.
        truncated: (rows,) whether each row was cut.
    """

    logits: np.ndarray
    tokens: list[int]
    truncated: list[bool]


class TooLong(InputError):
    """A row has more tokens than the model takes, and the request forbids cutting it."""


class Model:
    """One loaded artifact behind its batcher. Created in the event loop.

    Attributes:
        name: its name in routes and metrics.
        engine: runs the forward passes.
        max_batch_tokens: most padded tokens of a forward pass.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        settings: ServeSettings,
        observe: Observe | None = None,
        traces: Tracing | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.max_batch_tokens = batch_tokens(engine, settings)
        self._batcher = Batcher(
            engine.run,
            beside=engine.run_beside,
            lanes=engine.lanes,
            max_batch_tokens=self.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_seconds=settings.max_queue_s,
            on_batch=None if observe is None else lambda report: observe(name, report),
            on_rows=None if traces is None else functools.partial(traces.passed, name),
        )
        self._other_side: RowTokenizer | None = None
        self._active = 0

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a forward pass."""
        return self._batcher.queued_tokens

    async def answer(
        self, rows: Sequence[Text], *, truncate: bool = True, side: str | None = None, trace: Trace | None = None
    ) -> Answer:
        """Answer rows, sharing forward passes with other requests.

        Args:
            rows: at least one.
            truncate: whether rows that are too long are cut.
            side: the side to cut, "left" or "right"; None cuts the side that the artifact names.
            trace: the request's spans; None where it is not traced.

        Raises:
            TooLong: a row is too long and must not be cut.
            InputError: a row is not what the task takes.
            Overloaded: the queue is full.
            TooLarge: the rows have more tokens than even an empty queue takes.
        """
        if trace is not None:
            trace.asked(self.name, len(rows))
        self._batcher.check_room(len(rows))
        self._active += 1
        try:
            return await self._answer(rows, truncate, side, trace)
        finally:
            self._active -= 1

    async def _answer(self, rows: Sequence[Text], truncate: bool, side: str | None, trace: Trace | None) -> Answer:
        began = 0.0 if trace is None else time.perf_counter()
        few = sum(len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in rows) < _INLINE_CHARS
        encode = await self._encoder(side)
        encodings = encode(rows) if few else await asyncio.to_thread(encode, rows)
        truncated = [bool(encoding.overflowing) for encoding in encodings]
        if trace is not None:
            trace.tokenised(began, sum(map(len, encodings)), sum(truncated))
        if not truncate and any(truncated):
            most = self.engine.tokenizer_info.max_length
            raise TooLong(
                f"a text has more than {most} tokens",
                given=f"row {truncated.index(True)}",
                remedy="shorten it, or send truncate: true",
            )
        logits = await self._batcher.submit(encodings, trace)
        return Answer(logits, [len(encoding) for encoding in encodings], truncated)

    async def close(self) -> None:
        """Answer the requests in work, and end the batcher's threads."""
        while self._active:  # a request may be tokenising, and submit its rows later
            await asyncio.sleep(0.01)
        await self._batcher.close()

    async def _encoder(self, side: str | None) -> Callable[[Sequence[Text]], list]:
        info: TokenizerInfo = self.engine.tokenizer_info
        if side is None or side == info.truncation_side:
            return self.engine.encode
        if self._other_side is None:  # takes 50 ms, or 500 ms with a large vocabulary
            self._other_side = await asyncio.to_thread(self.engine.tokenizer_cutting, side)
        tokenizer = self._other_side
        return lambda rows: tokenizer.encode(self.engine.checked(rows))


def batch_tokens(engine: Engine, settings: ServeSettings) -> int:
    """Most padded tokens of a forward pass: the setting, or the default for the engine's device."""
    return settings.max_batch_tokens or (_CPU_BATCH if engine.provider == CPU_PROVIDER else _GPU_BATCH)

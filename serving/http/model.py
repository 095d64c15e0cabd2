"""One loaded artifact behind its batcher: rows to answers, tokenised here and run together with those of others."""

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

# In lanes on a CPU a token costs the same in passes of 64 to 512 (benchmarks/split.py); more make others wait, fewer
# cost more calls.
_CPU_BATCH, _GPU_BATCH = 256, 4096
_INLINE_CHARS = 2000  # so few are tokenised faster than handed to a thread
Observe = Callable[[str, BatchReport], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of a request's rows.

    Attributes:
        logits: float32 (rows, outputs).
        tokens: (rows,) tokens of each row, after the cut.
        truncated: (rows,) whether it was cut.
    """

    logits: np.ndarray
    tokens: list[int]
    truncated: list[bool]


class TooLong(InputError):
    """A row has more tokens than the model takes, and was not to be cut."""


class Model:
    """One loaded artifact behind its batcher. Made in the event loop.

    Attributes:
        name: in routes and metrics.
        engine: what answers.
        max_batch_tokens: padded tokens of a forward pass.
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
            truncate: cut rows that are too long.
            side: "left" or "right": where to cut; None as the artifact says.
            trace: of the request.

        Raises:
            TooLong: a row is too long and was not to be cut.
            InputError: a row is not what the task takes.
            Overloaded: the queue is full.
            TooLarge: they have more tokens than the queue ever takes.
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
        """Answer what is in work, and end."""
        while self._active:  # a request may be tokenising, and submit its rows later
            await asyncio.sleep(0.01)
        await self._batcher.close()

    async def _encoder(self, side: str | None) -> Callable[[Sequence[Text]], list]:
        info: TokenizerInfo = self.engine.tokenizer_info
        if side is None or side == info.truncation_side:
            return self.engine.encode
        if self._other_side is None:  # it takes 50 ms, or ten times that with a large vocabulary
            self._other_side = await asyncio.to_thread(self.engine.tokenizer_cutting, side)
        tokenizer = self._other_side
        return lambda rows: tokenizer.encode(self.engine.checked(rows))


def batch_tokens(engine: Engine, settings: ServeSettings) -> int:
    """Padded tokens of a forward pass: as set, or what suits the device."""
    return settings.max_batch_tokens or (_CPU_BATCH if engine.provider == CPU_PROVIDER else _GPU_BATCH)

"""A loaded artifact behind its batcher."""

from __future__ import annotations

import asyncio
import functools
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdc.artifact.manifest import CPU_PROVIDER, TokenizerInfo
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine, Text
from kdc.serving.engine.long_texts import spread
from kdc.serving.http.batcher import Batcher
from kdc.serving.http.queue import BatchReport, Result, Row
from kdc.serving.http.settings import ServeSettings
from kdc.serving.http.tokenizer_pool import TokenizerPool

if TYPE_CHECKING:
    from kdc.serving.http.tracing import Trace

# Most padded tokens of a pass. On a CPU a token costs the same in passes of 64 to 512 (benchmarks/split.py).
_CPU_BATCH, _GPU_BATCH = 256, 4096
# `Batcher.ahead_tokens` on a CPU. Passes on a GPU are short.
_CPU_AHEAD = 64
SECOND = "/second"  # cascade's second model
_SCORE_BYTES = 45  # score without label
_INLINE_NUMBERS = 100_000  # logits that the event loop may convert
_PASS_NUMBERS = 1 << 20  # most logits of a pass of several rows


@dataclass(frozen=True)
class Listeners:
    """Functions called in the event loop, with a model's name first."""

    batch: Callable[[str, Sequence[Row], Sequence[Result], BatchReport], None] = lambda *_: None  # `Batcher.on_batch`
    left: Callable[[str, int], None] = lambda *_: None  # `Batcher.on_left`
    # Told whether the new artifact is refused, gone or unreadable.
    reloaded: Callable[[str, bool], None] = lambda *_: None


SILENT = Listeners()


@dataclass(frozen=True, slots=True)
class Answer:
    logits: np.ndarray  # float32 (rows, outputs)
    probabilities: np.ndarray  # float32 (rows, outputs), by `Engine.activated`
    tokens: list[int]  # (rows,) after the cut
    truncated: list[bool]  # (rows,)


class Model:
    """A loaded artifact. Create it in the event loop."""

    def __init__(self, name: str, engine: Engine, settings: ServeSettings, listeners: Listeners = SILENT) -> None:
        self.name, self.engine = name, engine
        self.artifact = "" if engine.manifest is None else engine.manifest.sha256[:16]
        self.questions = (
            {} if engine.manifest is None else {each.fingerprint: each for each in engine.manifest.questions}
        )
        self.max_batch_tokens = batch_tokens(engine, settings)
        labels = engine.labels or ("score",)
        self.score_bytes = _SCORE_BYTES + sum(len(label.encode()) for label in labels) // len(labels)

        def batcher(name: str, engine: Engine, has_neighbour: Callable[[], bool]) -> Batcher:
            return Batcher(
                engine.run,
                beside=engine.run_beside,
                lanes=engine.lanes,
                max_batch_tokens=self.max_batch_tokens,
                max_batch_rows=max(1, _PASS_NUMBERS // engine.task.outputs),
                ahead_tokens=_CPU_AHEAD if engine.provider == CPU_PROVIDER else math.inf,
                max_queue_tokens=settings.max_queue_tokens,
                max_queue_seconds=settings.max_queue_s,
                max_seconds=settings.timeout_s,
                has_neighbour=has_neighbour,
                on_batch=functools.partial(listeners.batch, name),
                on_left=functools.partial(listeners.left, name),
            )

        # Two queues, so rows of the first model do not wait for the second's. A strong reference would keep the engine.
        me = weakref.proxy(self)
        self._second: Batcher | None = None
        self._batcher = batcher(name, engine, lambda: me._second is not None and me._second.is_busy)
        if engine.second is not None:
            self._second = batcher(name + SECOND, engine.second, lambda: me._batcher.is_busy)
        self._tokenizer_pool = TokenizerPool(engine, settings.max_queue_s)
        self._active = 0

    async def answer(
        self, rows: Sequence[Text], *, truncate: bool = True, side: str | None = None, trace: Trace | None = None
    ) -> Answer:
        """Answer at least one row, in passes shared with other requests.

        Raises:
            InputError: a row is wrong or too long, or the rows exceed an empty queue.
            Overloaded: the queue is full.
            Closed: the model is closed.
            KdcError: the pass failed.
        """
        if trace is not None:
            trace.asked(self.name, self.artifact, len(rows))
        self._batcher.check_room(self._tokenizer_pool.least_tokens(rows))
        self._active += 1
        try:
            began = 0.0 if trace is None else time.perf_counter()
            encodings = await self._tokenizer_pool.encode(rows, side)
            truncated = [bool(encoding.overflowing) for encoding in encodings]
            if trace is not None:
                trace.tokenised(began, sum(map(len, encodings)), sum(truncated))
            if not truncate and any(truncated):
                info = self.engine.tokenizer_info
                # A pair with windows has no fixed limit.
                most = f"{info.longest} tokens" + (f", or its {info.long.windows} windows hold" if info.long else "")
                remedy = "shorten it, or send truncate: true"
                raise InputError(f"a text has more than {most}", given=f"row {truncated.index(True)}", remedy=remedy)
            if self._second is not None:  # refuse before the first model answers
                self._second.check_room(round(sum(map(len, encodings)) * self.engine.share_that_goes_on))
            parts, counts = spread(encodings)
            logits = self.engine.joined(await self._batcher.submit(parts, trace), counts)
            unsure = await _beside(self.engine.unsure, logits)
            if self._second is not None and len(unsure):
                parts, counts = spread([encodings[row] for row in unsure])
                answers = self.engine.joined(await self._second.submit(parts, trace), counts)
                logits[unsure] = self.engine.of_second(answers)
            probabilities = await _beside(self.engine.activated, logits)
            return Answer(logits, probabilities, [len(encoding) for encoding in encodings], truncated)
        finally:
            self._active -= 1

    async def close(self) -> None:
        while self._active:  # a request may still be tokenising
            await asyncio.sleep(0.01)
        self._tokenizer_pool.close()
        await self._batcher.close()
        if self._second is not None:
            await self._second.close()
        await asyncio.to_thread(self.engine.close)  # 40 ms of a core


async def _beside(function: Callable[[np.ndarray], np.ndarray], logits: np.ndarray) -> np.ndarray:
    if logits.size < _INLINE_NUMBERS:
        return function(logits)
    return await asyncio.to_thread(function, logits)


def check_queue(info: TokenizerInfo, most: int) -> None:
    if info.long is not None and (windows := info.long.windows) * info.max_length > most:
        what = "one text may have more tokens in its windows than the queue takes"
        given = f"{windows} windows of {info.max_length} tokens, KDC_MAX_QUEUE_TOKENS={most}"
        raise InputError(what, given=given, remedy=f"KDC_MAX_QUEUE_TOKENS={windows * info.max_length} or more")


def batch_tokens(engine: Engine, settings: ServeSettings) -> int:
    return settings.max_batch_tokens or (_CPU_BATCH if engine.provider == CPU_PROVIDER else _GPU_BATCH)

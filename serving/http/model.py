"""One loaded artifact behind its batcher: tokenises a request's rows and runs them together with those of others."""

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

# Padded tokens of a pass. On a CPU's lanes a token costs the same in passes of 64 to 512 tokens (benchmarks/split.py);
# larger passes make other rows wait, smaller ones take more calls.
_CPU_BATCH, _GPU_BATCH = 256, 4096
# Tokens of a pass with rows of a large request, while others wait for its end: at most so many, or more of a fast model
# (see the batcher). A GPU's passes are short anyway.
_CPU_AHEAD = 64
SECOND = "/second"  # after a model's name: a cascade's second model, in metrics and traces
_SCORE_BYTES = 45  # of a score in a reply, without its label's name
_INLINE_NUMBERS = 100_000  # logits of a request that the event loop turns into probabilities itself: a few ms
_PASS_NUMBERS = 1 << 20  # most logits of a forward pass, if its rows are several


@dataclass(frozen=True)
class Listeners:
    """What hears of a worker's models. Each is called in the event loop with a model's name first."""

    batch: Callable[[str, Sequence[Row], Sequence[Result], BatchReport], None] = lambda *_: None  # as `on_batch`
    left: Callable[[str, int], None] = lambda *_: None  # as a batcher's `on_left`
    # Called after each look at an artifact with whether the new one is refused, gone, or cannot be read.
    reloaded: Callable[[str, bool], None] = lambda *_: None


SILENT = Listeners()


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer to a request."""

    logits: np.ndarray  # float32 (rows, outputs)
    probabilities: np.ndarray  # float32 (rows, outputs) as `Engine.activated` gives them; a regression's numbers
    tokens: list[int]  # (rows,) number of tokens of each row, after the cut
    truncated: list[bool]  # (rows,) whether each row was cut


class Model:
    """One loaded artifact behind its batcher, by its name in routes and metrics. Created in the event loop."""

    def __init__(self, name: str, engine: Engine, settings: ServeSettings, listeners: Listeners = SILENT) -> None:
        self.name, self.engine = name, engine
        self.artifact = "" if engine.manifest is None else engine.manifest.sha256[:16]  # enough to tell artifacts apart
        self.max_batch_tokens = batch_tokens(engine, settings)
        labels = engine.labels or ("score",)
        # Of a label and its score in a reply in JSON, on average.
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

        # A cascade's second model has a queue and lanes of its own: rows that the first one answers do not wait for it.
        # They ask for each other by a weak reference: a cycle would keep the engine until a garbage collection.
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
        """Answer rows, sharing forward passes with other requests.

        Args:
            rows: at least one.
            truncate: whether rows that are too long are cut.
            side: the side to cut, "left" or "right"; None cuts the side that the artifact names.
            trace: the request's spans; None if it is not traced.

        Raises:
            InputError: a row is not what the task takes, or is too long and must not be cut; or the rows together have
                more tokens than an empty queue takes.
            Overloaded: the queue is full.
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
                # Of a pair with windows there is no one length: its shorter text is in each window.
                most = f"{info.longest} tokens" + (f", or its {info.long.windows} windows hold" if info.long else "")
                remedy = "shorten it, or send truncate: true"
                raise InputError(f"a text has more than {most}", given=f"row {truncated.index(True)}", remedy=remedy)
            if self._second is not None:  # some of these rows will go on: better refused before they are answered once
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
        """Answer the requests in work, end the batcher's threads, and free the engine's memory."""
        while self._active:  # a request may be tokenising, and submit its rows later
            await asyncio.sleep(0.01)
        self._tokenizer_pool.close()
        await self._batcher.close()
        if self._second is not None:
            await self._second.close()
        await asyncio.to_thread(self.engine.close)  # it takes 40 ms of a core


async def _beside(function: Callable[[np.ndarray], np.ndarray], logits: np.ndarray) -> np.ndarray:
    """Call a function of logits: in a thread if there are so many that the event loop would halt."""
    if logits.size < _INLINE_NUMBERS:
        return function(logits)
    return await asyncio.to_thread(function, logits)


def check_queue(info: TokenizerInfo, most: int) -> None:
    """Raise an `InputError` unless a queue of at most so many tokens takes all windows of the longest text."""
    if info.long is not None and (windows := info.long.windows) * info.max_length > most:
        what = "one text may have more tokens in its windows than the queue takes"
        given = f"{windows} windows of {info.max_length} tokens, KDC_MAX_QUEUE_TOKENS={most}"
        raise InputError(what, given=given, remedy=f"KDC_MAX_QUEUE_TOKENS={windows * info.max_length} or more")


def batch_tokens(engine: Engine, settings: ServeSettings) -> int:
    """Most padded tokens of a forward pass: the setting, or the default for the engine's device."""
    return settings.max_batch_tokens or (_CPU_BATCH if engine.provider == CPU_PROVIDER else _GPU_BATCH)

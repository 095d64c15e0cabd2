"""What the batcher, its queue, the metrics and the traces hand to each other: requests, rows, reports of batches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kdc.serving.engine.tokenizing import Encoded

if TYPE_CHECKING:
    from kdc.serving.http.spans import Trace


@dataclass(slots=True, eq=False)
class Request:
    """Rows that one caller waits for.

    Attributes:
        future: gets float32 (rows, outputs) once every row has its answer.
        missing: how many rows have no answer yet.
        answers: each row's outputs, None while they are missing.
        trace: the request's spans; None where it is not traced.
    """

    future: asyncio.Future[np.ndarray]
    missing: int
    answers: list[np.ndarray | None]
    trace: Trace | None = None


@dataclass(slots=True, eq=False)
class Row:
    """One row of a request.

    Attributes:
        length: its number of tokens.
        number: counts all rows in the order of their arrival.
        encoding: its tokens.
        request: the request that it belongs to.
        place: its index within that request.
        arrived: when it came, in seconds of `time.perf_counter`.
        taken: whether it has left the queue.
        key: what the queue sorts by: length, then arrival.
    """

    length: int
    number: int
    encoding: Encoded
    request: Request
    place: int
    arrived: float
    taken: bool = False
    key: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.length, self.number)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One forward pass, for metrics and traces.

    Attributes:
        rows: rows in the batch.
        tokens: tokens computed, padding included.
        queued_tokens: tokens that still waited when the pass began.
        queued_seconds: how long the batch's longest-waiting row had waited.
        seconds: duration of the forward pass.
        began: when it began, in seconds of `time.perf_counter`.
    """

    rows: int
    tokens: int
    queued_tokens: int
    queued_seconds: float
    seconds: float
    began: float

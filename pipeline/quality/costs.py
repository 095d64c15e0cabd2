"""Latency, throughput and size of one model, through the engine that serves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdc.artifact.contract.terms import Conditions, Costs
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.synthetic import row_of
from kdc.serving.engine.tokenizing import Text

_CALLS = 100  # a round, at least
_ABOVE = 5  # calls of a round that are slower than its percentile, at least
_TIMED_ROWS = 100
_BATCH = 32
_BATCHES = 8  # a round
_ROUNDS = 5


def measure(
    engine: Engine, rows: Sequence[Text], conditions: Conditions, *, size_bytes: int, rounds: int = _ROUNDS
) -> Costs:
    """Time an engine. Tokenising counts: a caller waits for it too.

    Args:
        engine: loaded with the conditions' threads.
        rows: see `rows_to_time`.
        conditions: of the contract.
        size_bytes: of the ONNX file and `tokenizer.json`.
        rounds: each takes the percentile and the rows a second anew; the medians are kept, so that one slow moment of
            the machine does not decide.
    """
    count = max(_CALLS, math.ceil(_ABOVE / (1 - conditions.percentile / 100) - 1e-6))
    calls = [_slice(rows, place * conditions.batch, conditions.batch) for place in range(count)]
    batches = [_slice(rows, place * _BATCH, _BATCH) for place in range(_BATCHES)]
    for warm in (*calls[:5], batches[0]):
        engine.predict(warm, batch_size=len(warm))
    latencies, speeds = [], []
    for _ in range(rounds):
        latencies.append(float(np.percentile([_seconds(engine, call) for call in calls], conditions.percentile)))
        speeds.append(_BATCH * _BATCHES / sum(_seconds(engine, batch) for batch in batches))
    return Costs(
        latency_ms=round(1000 * float(np.median(latencies)), 3),
        rows_per_s=round(float(np.median(speeds)), 1),
        size_mb=size_bytes / 1e6,
    )


def rows_to_time(engine: Engine, texts: Sequence[Text], conditions: Conditions) -> list[Text]:
    """The rows that are timed: of the length that the conditions name, else a hundred of those given, spread evenly.

    Raises:
        InputError: the length is more than the model takes.
    """
    if conditions.length is None:
        return [texts[place * len(texts) // _TIMED_ROWS] for place in range(_TIMED_ROWS)]
    check_length(conditions, engine.tokenizer_info.max_length)
    return rows_of([conditions.length], engine)


def check_length(conditions: Conditions, longest: int) -> None:
    """See that the model takes rows of the length that the conditions name.

    Args:
        conditions: of the contract.
        longest: tokens that the model takes.

    Raises:
        InputError: it does not.
    """
    if conditions.length is not None and conditions.length > longest:
        raise InputError(
            "the contract's length is more than the model takes",
            given=f"{conditions.length} tokens, at most {longest}",
            remedy=f"--at length={longest}, or --set data.max_length={conditions.length}",
        )


def rows_of(lengths: Sequence[int], engine: Engine) -> list[Text]:
    """Rows made up to these lengths in tokens, as far as the model takes them."""
    is_pair, longest = engine.task.is_pair, engine.tokenizer_info.max_length
    return [
        row_of(min(length, longest), lambda row: len(engine.encode([row])[0]), is_pair=is_pair) for length in lengths
    ]


def _slice(rows: Sequence[Text], start: int, count: int) -> list[Text]:
    return [rows[(start + place) % len(rows)] for place in range(count)]


def _seconds(engine: Engine, rows: list[Any]) -> float:
    began = time.perf_counter()
    engine.predict(rows, batch_size=len(rows))
    return time.perf_counter() - began

"""Measure latency (milliseconds a call) and throughput (rows a second)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kdc.artifact.contract.terms import Conditions, Contract, Costs
from kdc.common.cores import Neighbours
from kdc.common.errors import InputError
from kdc.common.frozen import Frozen
from kdc.common.pace import seconds_of
from kdc.pipeline.config.metrics import Floats
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.long_texts import row_tokens
from kdc.serving.engine.tokenizing import Text, row_of

BATCH = 32  # rows of a throughput batch
_WARM_UP_CALLS = 5
_CALLS = 100  # least calls in a round
_CALLS_ABOVE = 5  # least calls in a round above the percentile
_BATCHES = 8  # throughput batches in a round
_ROUNDS = 9  # the 95 % interval leaves out the fastest and the slowest
_TIMED_ROWS = 100

Models = Mapping[str, Callable[[list[Any]], object]]


class Speed(Frozen):
    latency_p50_ms: float  # of calls with one row
    latency_p95_ms: float
    rows_per_second: float  # in batches of 32 rows
    latency_mean_ms: float  # suits a cascade, whose rows' times differ


def time_in_turns(
    models: Models,
    calls: Sequence[list[Any]],
    batches: Sequence[list[Any]],
    *,
    percentiles: Sequence[float],
    rounds: int,
    warm_up_calls: int = 0,
) -> dict[str, Floats]:
    """Time models in turns, so that the machine's noise affects all alike.

    Args:
        models: functions that tokenise and answer rows.
        percentiles: of the latencies, 0 to 100.
        warm_up_calls: untimed calls, besides one batch.

    Returns:
        By model, (rounds, percentiles + 2): the percentiles and the mean in milliseconds, then rows a second.
    """
    rows = sum(len(batch) for batch in batches)
    measured: dict[str, list[list[float]]] = {name: [] for name in models}
    for answer in models.values():
        for warm_up in (*calls[:warm_up_calls], batches[0]):
            answer(warm_up)
    for _ in range(rounds):
        for name, answer in models.items():
            durations = [1e3 * seconds_of(partial(answer, call)) for call in calls]
            seconds = sum(seconds_of(partial(answer, batch)) for batch in batches)
            measured[name].append([*np.percentile(durations, percentiles), float(np.mean(durations)), rows / seconds])
    return {name: np.array(of_rounds) for name, of_rounds in measured.items()}


def interval_of_median(values: Floats, confidence: float) -> tuple[float, float] | None:
    """A distribution-free interval (Conover 1999, Practical Nonparametric Statistics, section 3.2); None if too few."""
    count = len(values)
    outside = [sum(math.comb(count, below) for below in range(cut)) / 2**count for cut in range(count // 2 + 1)]
    cut = max(cut for cut, share in enumerate(outside) if 2 * share <= 1 - confidence)
    if cut == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[cut - 1]), float(ordered[-cut])


def compare_speeds(
    models: Models, texts: Sequence[Text], *, latency_rows: int, throughput_rows: int, rounds: int
) -> dict[str, Speed]:
    calls, batches = in_pieces(texts, latency_rows, 1), in_pieces(texts, throughput_rows, BATCH)
    speeds = {}
    for name, timing in time_in_turns(models, calls, batches, percentiles=(50, 95), rounds=rounds).items():
        p50, p95, mean, speed = (round(value, 3) for value in np.median(timing, axis=0).tolist())
        speeds[name] = Speed(latency_p50_ms=p50, latency_p95_ms=p95, rows_per_second=speed, latency_mean_ms=mean)
    return speeds


def in_pieces(rows: Sequence[Text], count: int, size: int) -> list[list[Text]]:
    repeated = [rows[number % len(rows)] for number in range(count)]
    return [repeated[start : start + size] for start in range(0, count, size)]


def measure_costs(
    engine: Engine, rows: Sequence[Text], contract: Contract, *, size_bytes: int, rounds: int = _ROUNDS
) -> Costs:
    """`rows` come from `rows_to_time`."""
    batch, percentile = contract.at.batch, contract.at.percentile
    calls = max(_CALLS, math.ceil(_CALLS_ABOVE / (1 - percentile / 100) - 1e-6))
    with Neighbours() as neighbours:
        timing = time_in_turns(
            {"engine": lambda texts: engine.predict(texts, batch_size=len(texts))},
            in_pieces(rows, calls * batch, batch),
            in_pieces(rows, _BATCHES * BATCH, BATCH),
            percentiles=(percentile,),
            rounds=rounds,
            warm_up_calls=_WARM_UP_CALLS,
        )["engine"]
    latency, _, speed = np.median(timing, axis=0).tolist()
    latency_interval, speed_interval = (interval_of_median(timing[:, at], contract.confidence) for at in (0, -1))
    return Costs(
        latency_ms=round(latency, 3),
        rows_per_s=round(speed, 1),
        size_mb=size_bytes / 1e6,
        latency_interval=latency_interval and (round(latency_interval[0], 3), round(latency_interval[1], 3)),
        rows_interval=speed_interval and (round(speed_interval[0], 1), round(speed_interval[1], 1)),
        starved=round(min(1.0, neighbours.short_of(engine.threads) / engine.threads), 3),
    )


def rows_to_time(engine: Engine, texts: Sequence[Text], conditions: Conditions) -> list[Text]:
    """A hundred texts, spread evenly, or one made-up row if the conditions name a length."""
    if conditions.length is None:
        return [texts[number * len(texts) // _TIMED_ROWS] for number in range(_TIMED_ROWS)]
    check_length(conditions, engine.tokenizer_info.longest)
    return rows_of([conditions.length], engine)


def check_length(conditions: Conditions, longest: int) -> None:
    if conditions.length is not None and conditions.length > longest:
        given = f"{conditions.length} tokens, at most {longest}"
        remedy = f"--set contract.at.length={longest}, or --set data.max_length={conditions.length}"
        raise InputError("the contract's length is more than the model takes", given=given, remedy=remedy)


def rows_of(lengths: Sequence[int], engine: Engine) -> list[Text]:
    """A made-up row of each length in tokens, at most the model's longest. The engine then expects such rows."""
    engine.expect_made_up_rows()
    is_pair, longest = engine.task.is_pair, engine.tokenizer_info.longest

    def tokens(row: Text) -> int:
        return row_tokens(engine.encode([row])[0])

    return [row_of(min(length, longest), tokens, is_pair=is_pair) for length in lengths]

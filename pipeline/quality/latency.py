"""How long a model takes to answer, in milliseconds a call and rows a second.

`time_in_turns` times every model. `compare_speeds` times torch models and ONNX variants side by side, for stage
`evaluate`; `measure_costs` times the one engine that a contract limits.
"""

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

BATCH = 32  # rows of a batch whose rows a second count
_WARM_UP_CALLS = 5  # before a contract's costs are measured
_CALLS = 100  # calls a round that a contract's latency is a percentile of, at least
_CALLS_ABOVE = 5  # calls of a round that are slower than that percentile, at least
_BATCHES = 8  # batches a round that a contract's rows a second are taken from
_ROUNDS = 9  # of which an interval of the median leaves the two extreme ones out
_TIMED_ROWS = 100

Models = Mapping[str, Callable[[list[Any]], object]]  # functions that answer a list of rows, by name


class Speed(Frozen):
    """How fast one model answers."""

    latency_p50_ms: float  # percentiles of calls with one row, in milliseconds
    latency_p95_ms: float
    rows_per_second: float  # in batches of 32 rows
    latency_mean_ms: float  # mean of the calls with one row: of a cascade, whose rows take short or long, it tells most


def time_in_turns(
    models: Models,
    calls: Sequence[list[Any]],
    batches: Sequence[list[Any]],
    *,
    percentiles: Sequence[float],
    rounds: int,
    warm_up_calls: int = 0,
) -> dict[str, Floats]:
    """Time models on the same rows, one after the other in each round, so that noise of the machine hits all alike.

    Args:
        models: tokenising counts: a caller waits for it too.
        calls: rows of each call whose latency counts.
        batches: rows of each batch whose rows a second count.
        percentiles: of the calls' latencies, within [0, 100].
        rounds: how often everything is repeated. Their medians count, so that one slow moment of the machine does not
            decide.
        warm_up_calls: how many calls each model answers before the rounds, beside one batch: the first ones allocate
            memory.

    Returns:
        By model (rounds, percentiles + 2): percentiles and mean of the calls' milliseconds, and rows a second.
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
    """The interval of a median by the order of the values, whatever their distribution is (Conover 1999, Practical
    Nonparametric Statistics, section 3.2); None where there are too few for so much confidence."""
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
    """Time several models beside each other.

    Args:
        texts: at least one; repeated where there are too few.
        latency_rows: texts that are answered one by one in each round.
        throughput_rows: texts that are answered in batches of 32 in each round.
    """
    calls, batches = in_pieces(texts, latency_rows, 1), in_pieces(texts, throughput_rows, BATCH)
    speeds = {}
    for name, timing in time_in_turns(models, calls, batches, percentiles=(50, 95), rounds=rounds).items():
        p50, p95, mean, speed = (round(value, 3) for value in np.median(timing, axis=0).tolist())
        speeds[name] = Speed(latency_p50_ms=p50, latency_p95_ms=p95, rows_per_second=speed, latency_mean_ms=mean)
    return speeds


def in_pieces(rows: Sequence[Text], count: int, size: int) -> list[list[Text]]:
    """The first `count` rows, beginning again at the first one where they end, `size` at a time."""
    repeated = [rows[number % len(rows)] for number in range(count)]
    return [repeated[start : start + size] for start in range(0, count, size)]


def measure_costs(
    engine: Engine, rows: Sequence[Text], contract: Contract, *, size_bytes: int, rounds: int = _ROUNDS
) -> Costs:
    """Time an engine, which was loaded with the contract's threads, under the contract's conditions on the rows that
    `rows_to_time` chose. The size is of the ONNX file and `tokenizer.json`; the rounds are as in `time_in_turns`."""
    batch, percentile = contract.at.batch, contract.at.percentile
    # So many calls that some of each round lie above the percentile: else it would be the slowest call alone.
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
    """Choose the rows to measure a contract's costs on: made-up rows if its conditions name a length, otherwise a
    hundred of `texts`, spread evenly.

    Raises:
        InputError: the length is more than the model takes.
    """
    if conditions.length is None:
        return [texts[number * len(texts) // _TIMED_ROWS] for number in range(_TIMED_ROWS)]
    check_length(conditions, engine.tokenizer_info.longest)
    return rows_of([conditions.length], engine)


def check_length(conditions: Conditions, longest: int) -> None:
    """Refuse a contract's conditions whose rows are longer than the `longest` number of tokens that the model takes.

    Raises:
        InputError: the rows are longer.
    """
    if conditions.length is not None and conditions.length > longest:
        raise InputError(
            "the contract's length is more than the model takes",
            given=f"{conditions.length} tokens, at most {longest}",
            remedy=f"--set contract.at.length={longest}, or --set data.max_length={conditions.length}",
        )


def rows_of(lengths: Sequence[int], engine: Engine) -> list[Text]:
    """Make up one row of each length in tokens, and tell the engine that such rows come; a length that the model does
    not take is cut to the longest it does."""
    engine.expect_made_up_rows()
    is_pair, longest = engine.task.is_pair, engine.tokenizer_info.longest

    def tokens(row: Text) -> int:
        return row_tokens(engine.encode([row])[0])

    return [row_of(min(length, longest), tokens, is_pair=is_pair) for length in lengths]

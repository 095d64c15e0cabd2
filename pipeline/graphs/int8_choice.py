"""Chooses an int8 candidate (docs/explanation/int8.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdc.pipeline.results.artifact import Int8Choice, Int8Measurement

FP32 = "fp32"
_NOISE = 0.15  # relative noise of speeds on shared machines


@dataclass(frozen=True)
class Standard:
    metric: str
    fp32_score: float  # on the tuning set, in points
    rows: int  # in the tuning set
    max_drop: float  # points below fp32, at most
    free_drop: float  # points that count as no loss

    def drop(self, candidate: Int8Measurement) -> float:
        assert candidate.tune is not None
        return self.fp32_score - candidate.tune[self.metric]

    def is_free(self, candidate: Int8Measurement) -> bool:
        """Whether the candidate is eligible, and loses at most `max_drop`, and at most `free_drop` beyond noise.

        The standard error is the square root of the number of changed labels.
        """
        cost, noise = self.drop(candidate), 100 * math.sqrt(candidate.label_changes) / self.rows
        return is_eligible(candidate) and cost <= self.max_drop and cost - noise <= self.free_drop


def is_eligible(candidate: Int8Measurement) -> bool:
    return candidate.failed is None and candidate.static and candidate.batch_invariant is not False


def is_faster(candidate: Int8Measurement, fp32: Int8Measurement) -> bool:
    return candidate.latency_against_fp32 < 1 or candidate.rows_per_second > fp32.rows_per_second


def choose(measured: Mapping[str, Int8Measurement], standard: Standard) -> Int8Choice:
    """Choose the fastest eligible candidate that loses at most `max_drop`.

    Among equal speeds, within noise, the smallest mean difference from fp32's outputs wins. Throughput is less noisy
    than latency. Candidates of one graph share their best speed.
    """
    invariant = {name: each for name, each in measured.items() if is_eligible(each)}
    drops = {name: standard.drop(each) for name, each in invariant.items()}
    good = {name: each for name, each in invariant.items() if drops[name] <= standard.max_drop}
    if good:
        speed: dict[str, float] = {}
        for each in invariant.values():
            speed[each.graph] = max(each.rows_per_second, speed.get(each.graph, 0.0))
        limit = max(speed[each.graph] for each in good.values()) / (1 + _NOISE)
        fast = {name: each for name, each in good.items() if speed[each.graph] >= limit}
        winner = min(fast, key=lambda name: fast[name].mean_difference)
        against = good[winner].latency_against_fp32
        headline = f"{winner}: {drops[winner]:+.2f} points lost, {against:.2f} x the latency of fp32"
        return Int8Choice(chosen=winner, winner=winner, int8=True, note="", headline=headline)
    if invariant:
        winner = min(invariant, key=lambda name: drops[name])
        note = (
            f"no int8 candidate lost at most {standard.max_drop} points (the best lost {drops[winner]:.2f}): "
            "a CPU loads fp32"
        )
        return Int8Choice(chosen=None, winner=winner, int8=True, note=note, headline=note)
    reasons = {each.failed or "not batch-invariant" for name, each in measured.items() if name != FP32}
    note = f"no int8 candidate is eligible ({'; '.join(sorted(reasons))[:300]}): a CPU loads fp32"
    return Int8Choice(chosen=None, winner=None, int8=False, note=note, headline=note)


def choose_again(before: Int8Choice, measured: Mapping[str, Int8Measurement], standard: Standard) -> Int8Choice:
    """Only a more accurate candidate replaces `before`, preferably one that `is_free`."""
    eligible = {name: each for name, each in measured.items() if is_eligible(each)}
    rivals: Mapping[str, Int8Measurement] = measured
    if before.chosen is not None:
        to_beat = standard.drop(measured[before.chosen])
        eligible = {name: each for name, each in eligible.items() if standard.drop(each) < to_beat}
        rivals = eligible
    free = {name: each for name, each in eligible.items() if standard.is_free(each)}
    choice = choose(free or rivals, standard)
    return before if before.chosen is not None and choice.chosen is None else choice

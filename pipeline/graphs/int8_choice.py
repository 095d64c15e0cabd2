"""The choice of an int8 candidate by its measurements on the tuning slice."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kdc.pipeline.results.artifact import Int8Choice, Int8Measurement

FP32 = "fp32"  # among the measurements: the timings of fp32, to which the candidates are compared
_NOISE = 0.15  # speeds that differ by less than this are taken as equal: shared machines are no quieter


@dataclass(frozen=True)
class Standard:
    """The limits for candidates."""

    metric: str  # the task's deciding one
    fp32_score: float  # of fp32 ONNX on the tuning slice, in points
    rows: int  # of the tuning slice
    max_drop: float  # points that a candidate may cost against fp32
    free_drop: float  # points that count as nothing

    def drop(self, candidate: Int8Measurement) -> float:
        """Points that a candidate costs against fp32."""
        assert candidate.tune is not None
        return self.fp32_score - candidate.tune[self.metric]

    def is_free(self, candidate: Int8Measurement) -> bool:
        """Whether a candidate may serve and costs no more than `free_drop`, as far as the tuning slice can tell.

        A changed label may as well have changed for the better: the standard error of the cost is the root of the
        number of changed rows.
        """
        cost, noise = self.drop(candidate), 100 * math.sqrt(candidate.label_changes) / self.rows
        return is_eligible(candidate) and cost <= self.max_drop and cost - noise <= self.free_drop


def is_eligible(candidate: Int8Measurement) -> bool:
    """Whether a candidate was made, and a text's answer from it is not known to depend on its neighbours in a batch."""
    return candidate.failed is None and candidate.static and candidate.batch_invariant is not False


def is_faster(candidate: Int8Measurement, fp32: Int8Measurement) -> bool:
    """Whether a candidate is faster than fp32, with single rows or in batches."""
    return candidate.latency_against_fp32 < 1 or candidate.rows_per_second > fp32.rows_per_second


def choose(measured: Mapping[str, Int8Measurement], standard: Standard) -> Int8Choice:
    """Choose the fastest candidate that is eligible and costs at most `max_drop` points against fp32.

    Candidates whose speed differs by no more than noise are as fast. Then the answers that differ least from fp32's
    win: over all rows, their difference says more than the few labels by which metrics differ.

    Speed is rows a second in batches of 32. On a busy machine the latency of single rows can turn a difference of two
    percent into twenty. Candidates of one graph do the same work with other numbers, and the highest of their speeds
    counts for all: noise alone must not decide, or another seed would give another file.

    `measured` holds candidates by name, and "fp32", which has only timings.
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
    """Choose once more among all candidates, after further ones were measured.

    The choice `before` stays unless another candidate is more accurate. A more accurate candidate whose cost counts as
    nothing comes first.
    """
    eligible = {name: each for name, each in measured.items() if is_eligible(each)}
    rivals: Mapping[str, Int8Measurement] = measured
    if before.chosen is not None:
        to_beat = standard.drop(measured[before.chosen])
        eligible = {name: each for name, each in eligible.items() if standard.drop(each) < to_beat}
        rivals = eligible
    free = {name: each for name, each in eligible.items() if standard.is_free(each)}
    choice = choose(free or rivals, standard)
    return before if before.chosen is not None and choice.chosen is None else choice

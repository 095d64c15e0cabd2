"""How often the audit of `kdc serve --upstream` stops a service wrongly, and how soon rightly.

Command: `python benchmarks/audit.py [--runs 2000] [--requests 10000000] [--audited 0.02] [--budgets 0.01,0.02,0.05]`.
Simulated services differ from their upstream in a fixed share of questions, or in half of the budget for `--before`
audits and then in twice the budget. Ends with 1 if wrong stops, of services exactly at their budget, are shown to
exceed 5 %. `--priors` compares priors of the interval. Columns: docs/benchmarks/audit.md.
"""

import argparse
import bisect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.common.tables import aligned
from kdc.pipeline.quality.shares import rate
from kdc.serving.upstream import sequence

_ALLOWED = 0.05
_EXCESSES = (1.5, 2.0, 3.0)  # times the budget
_PRIORS = [(strength, mean) for mean in (1.0, 2.0, 3.0) for strength in (1.0, 4.0, 8.0, 30.0)]
_AT_ONCE = 100  # bounds memory

Integers = NDArray[np.int64]


def stopping(budget: float, most: int, confidence: float = sequence.CONFIDENCE) -> Integers:
    """The most audits at which n differing ones stop a service, for n = 0, 1, ... until `most` audits would."""

    def stops(differing: int, audits: int) -> bool:
        return sequence.interval(differing, audits, expected=budget, confidence=confidence)[0] > budget

    last = [0]
    while last[-1] < most:
        differing = len(last)
        audits = range(differing, most + 1)
        stop = bisect.bisect_left(audits, True, key=lambda count: not stops(differing, count))
        last.append(differing + stop - 1)
    return np.array(last)


@dataclass(frozen=True)
class Rule:
    whole: Integers  # `stopping` over all audits
    epochs: Integers  # `stopping` within each epoch: (epochs, differing audits)

    @classmethod
    def of(cls, budget: float, most: int) -> "Rule":
        whole, each = stopping(budget, most), []
        for epoch in range(1, most // sequence.EPOCH + 2):
            confidence = 1 - (1 - sequence.CONFIDENCE) / (epoch * (epoch + 1))
            each.append(stopping(budget, sequence.EPOCH, confidence))
        longest = max(map(len, each))
        return cls(
            whole, np.array([np.pad(one, (0, longest - len(one)), constant_values=sequence.EPOCH) for one in each])
        )


def audits_until_stop(rule: Rule, share: float, *, earlier: Integers, before: int, seed: int) -> NDArray[np.float64]:
    """Audits until each run stops, infinite if it does not. A service can stop only when an audit differs.

    Args:
        earlier: (runs,) differing audits among the first `before`, which fill whole epochs and which the result leaves
            out.
    """
    generator, found = np.random.default_rng(seed), []
    for some in np.split(earlier, range(_AT_ONCE, len(earlier), _AT_ONCE)):
        audits = generator.geometric(share, (len(some), len(rule.whole))).cumsum(axis=1)
        differing = np.minimum(some[:, None] + np.arange(1, audits.shape[1] + 1), len(rule.whole) - 1)
        stops = (before + audits <= rule.whole[differing]) | _stops_by_epoch(rule, before, audits)
        first = stops.argmax(axis=1)[:, None]
        stopped = np.take_along_axis(stops, first, axis=1)
        found.append(np.where(stopped, np.take_along_axis(audits, first, axis=1), np.inf))
    return np.concatenate(found).ravel()


def _stops_by_epoch(rule: Rule, before: int, audits: Integers) -> NDArray[np.bool_]:
    epoch, within = np.divmod(audits - 1, sequence.EPOCH)
    number = np.broadcast_to(np.arange(audits.shape[1]), audits.shape)
    begins = np.diff(epoch, axis=1, prepend=-1) != 0
    differing = number - np.maximum.accumulate(np.where(begins, number, 0), axis=1) + 1
    epoch = np.minimum(epoch + before // sequence.EPOCH, len(rule.epochs) - 1)
    many = rule.epochs.shape[1] - 1
    return (differing >= many) | (within < rule.epochs[epoch, np.minimum(differing, many)])


def fixed(rule: Rule, share: float, runs: int) -> NDArray[np.float64]:
    return audits_until_stop(rule, share, earlier=np.zeros(runs, np.int64), before=0, seed=1)


def risen(rule: Rule, budget: float, before: int, runs: int) -> NDArray[np.float64]:
    earlier = np.random.default_rng(2).binomial(before, budget / 2, runs)
    return audits_until_stop(rule, 2 * budget, earlier=earlier, before=before, seed=3)


def times(audits: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(audits, (0.5, 0.95), method="higher")
    return float(low), float(high)


def rows(options: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Rows of the table, and whether each has too many wrong stops."""
    most = round(options.requests * options.audited)
    for budget in map(float, options.budgets.split(",")):
        rule = Rule.of(budget, most)
        for excess in (1.0, *_EXCESSES):
            yield row(options, f"{100 * budget:g}", f"{excess:g} x budget", fixed(rule, excess * budget, options.runs))
        after = risen(rule, budget, options.before, options.runs)
        yield row(options, f"{100 * budget:g}", f"0.5, then 2 x after {options.before:,} audits", after)


def row(
    options: argparse.Namespace, budget: str, share: str, audits: NDArray[np.float64]
) -> tuple[tuple[str, ...], bool]:
    stopped = rate(np.isfinite(audits).sum(), len(audits))
    is_wrong = share.startswith("1 x")
    taken = () if is_wrong else times(audits)
    counts = [f"{count:,.0f}" for count in (*taken, *(audits / options.audited for audits in taken))]
    return (budget, share, stopped.text, *(counts or ["-"] * 4)), is_wrong and stopped.low > _ALLOWED


def priors(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    every = [float(budget) for budget in options.budgets.split(",")]
    budget = every[len(every) // 2]
    most = round(options.requests * options.audited)
    for strength, mean in _PRIORS:
        parameters = strength, strength / (mean * budget) - strength
        with mock.patch.object(sequence, "prior", return_value=parameters):
            rule = Rule.of(budget, most)
            high = sequence.interval(round(500 * budget), 2000, expected=budget)[1]
        wrong = rate(np.isfinite(fixed(rule, budget, options.runs)).sum(), options.runs)
        found = [times(fixed(rule, excess * budget, options.runs)) for excess in _EXCESSES]
        counts = [f"{median:,.0f}, {late:,.0f}" for median, late in found]
        yield f"{strength:g}", f"{mean:g} x budget", wrong.text, *counts, f"{100 * high:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--audited", type=float, default=0.02)
    parser.add_argument("--budgets", default="0.01,0.02,0.05")
    parser.add_argument("--before", type=int, default=20_000)
    parser.add_argument("--priors", action="store_true")
    options = parser.parse_args()
    if options.priors:
        excesses = (f"at {excess:g} x" for excess in _EXCESSES)
        print(aligned([("strength", "mean", "stopped %", *excesses, "high %"), *priors(options)]))
        return 0
    found = list(rows(options))
    times_of = (f"{what}, {which}" for what in ("audits", "requests") for which in ("median", "95 %"))
    print(aligned([("budget %", "differing", "stopped %", *times_of), *(each for each, _ in found)]))
    return int(any(is_broken for _, is_broken in found))


if __name__ == "__main__":
    sys.exit(main())

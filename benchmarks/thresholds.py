"""How often a threshold shown to keep a bound breaks it on new rows, if rows come in groups.

Command: `python benchmarks/thresholds.py [--simulations 2000] [--rows 500,2000] [--aims 'recall>=0.9'] [--jobs 2]`.
Prints the percentage of simulated tuning sets whose threshold breaks the bound, if it is chosen with and without
groups. Ends with 1 if, with groups, more than 5.5 % break it beyond noise.
"""

import argparse
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.common.tables import aligned
from kdc.pipeline.config.aims import parse_abstain, parse_aim, parse_defer
from kdc.pipeline.quality.operating import choose, choose_answered, choose_at_least

_AIMS = (
    "precision>=0.8",
    "recall>=0.9",
    "fpr<=0.1",
    "accuracy>=0.9",
    "sets 0.95",
    "disagreement<=0.02",
    "disagreement<=0.02 even",
)
_ALLOWED = 5.5  # percent
_HARDEST = 0.7  # share of right answers among the least sure rows

Drawn = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class Slices:
    aim: str
    rows: int
    most: int  # most rows of a group
    correlation: float  # of two rows of a group

    def draw(self, generator: np.random.Generator) -> Drawn:
        """(rows,) probabilities, numbers that decide labels, and groups. A row copies its group or is drawn alone, so
        any function of rows has this correlation.
        """
        sizes = generator.integers(1, self.most + 1, self.rows)
        groups = np.repeat(np.arange(self.rows), sizes)[: self.rows]
        of_group = generator.random(self.rows) < math.sqrt(self.correlation)
        own, shared = generator.random((2, self.rows, 2))
        probabilities, fates = np.where(of_group[:, None], shared[groups], own).T
        return probabilities, fates, groups


def outcome(slices: Slices, drawn: Drawn, *, grouped: bool) -> tuple[float, float]:
    """Whether the bound breaks, and the share of labelled or answered rows; for label sets, both are the share of rows
    whose set lacks the true label.
    """
    probabilities, fates, groups = drawn
    known = groups if grouped else None
    if slices.aim.startswith("sets"):
        at_least = choose_at_least(probabilities, float(slices.aim.split()[1]), groups=known)
        return (at_least or 0.0,) * 2
    if slices.aim.startswith("disagreement"):
        return deferred(slices.aim, drawn, known)
    measure, bound = slices.aim.replace("<", ">").split(">=")
    if measure == "accuracy":
        right = fates < _HARDEST + (1 - _HARDEST) * probabilities
        chosen = choose_answered(probabilities, right, parse_abstain(slices.aim), groups=known)
    else:
        chosen = choose(probabilities, fates < probabilities, parse_aim(slices.aim), groups=known)
    at = chosen.threshold
    truth = {
        "precision": (1 + at) / 2,
        "recall": 1 - at**2,
        "fpr": (1 - at) ** 2,
        "accuracy": _HARDEST + (1 - _HARDEST) * (1 + at) / 2,
    }[measure]
    breaks = truth > float(bound) if measure == "fpr" else truth < float(bound)
    return float(chosen.reached and breaks), 1 - at if chosen.reached else 0.0


def deferred(aim: str, drawn: Drawn, groups: NDArray[np.int64] | None) -> tuple[float, float]:
    """`outcome` of a deferral. Teacher and model differ in twice the budget, more on less sure rows. If the aim is
    "even", they differ in a hair more than the budget, on sure rows too.
    """
    probabilities, fates, _ = drawn
    aim, _, even = aim.partition(" ")
    budget = float(aim.partition("<=")[2])
    differs = fates < (budget if even else 4 * budget * (1 - probabilities))
    chosen = choose_answered(probabilities, ~differs, parse_defer(aim), groups=groups)
    breaks = chosen.threshold == 0 if even else 2 * (1 - chosen.threshold) ** 2 > 1
    return float(chosen.reached and breaks), 1 - chosen.threshold if chosen.reached else 0.0


def rates(slices: Slices, simulations: int) -> NDArray[np.float64]:
    """Mean `outcome` in percent: (with and without groups, 2)."""
    generator = np.random.default_rng([slices.rows, slices.most, round(10 * slices.correlation)])
    found = []
    for _ in range(simulations):
        drawn = slices.draw(generator)
        found.append([outcome(slices, drawn, grouped=grouped) for grouped in (True, False)])
    return 100 * np.mean(found, axis=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--rows", default="500,2000")
    parser.add_argument("--aims", default=",".join(_AIMS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    groups = [(1, 0.0), *product((6, 14), (0.0, 0.3, 0.6))]
    rows = map(int, options.rows.split(","))
    every = [Slices(aim, count, *group) for aim, count, group in product(options.aims.split(","), rows, groups)]
    limit = _ALLOWED + 3 * 100 * math.sqrt(0.055 * 0.945 / options.simulations)
    table: list[tuple[str, ...]] = [
        ("aim", "rows", "groups of", "correlation", "broken %", "without", "given %", "without")
    ]
    bad = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for slices, found in zip(every, pool.map(partial(rates, simulations=options.simulations), every), strict=True):
            bad += found[0, 0] > limit
            kind = (slices.aim, str(slices.rows), f"{(1 + slices.most) / 2:g}", f"{slices.correlation:g}")
            table.append((*kind, *(f"{each:.1f}" for each in found.T.ravel())))
            print(" ".join(table[-1]), file=sys.stderr)
    print(aligned(table, left=(0,)))
    print(f"{options.simulations} simulations each; above {_ALLOWED:g} % beyond noise: {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Error rates of verdicts with labels of differing rows only, and how many labels verdicts need.

Command: `python benchmarks/labels.py [--simulations 2000]`. `kdc verify` judges simulated sets, with the true drop at
the limit and without a drop. A second table checks the power of what `kdc verify --to-label` asks for. An error rate
should be at most 2.5 %. Ends with 1 if one exceeds 3 % beyond noise.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.artifact.contract.judgement import judge_drop, quantile_of
from kdc.artifact.contract.terms import Contract, replace
from kdc.common.tables import aligned
from kdc.pipeline.quality.intervals import tango
from kdc.tools.filled import Answered, quality_by
from kdc.tools.unlabelled import rows_for

_ALLOWED = 3.0  # percent
_CHECKED = 100  # sets


@dataclass(frozen=True)
class World:
    """Shares are in percent."""

    rows: int
    differing: float  # answered differently
    limit: float  # points
    neither: float = 0.0  # and both wrong
    losses_only: bool = False
    group: int = 1  # most rows with one fate
    most: int | None = None  # texts to label

    def shares(self, drop: float) -> list[float]:
        """Shares of rows alike, lost, won, and both wrong."""
        decided = drop if self.losses_only else self.differing - self.neither
        lost, won = (decided + drop) / 2, (decided - drop) / 2
        return [(100 - decided - self.neither) / 100, lost / 100, won / 100, self.neither / 100]

    def draw(self, drop: float, random: np.random.Generator) -> tuple[Answered, np.ndarray]:
        sizes = random.integers(1, self.group + 1, self.rows)
        group = np.repeat(np.arange(self.rows), sizes)[: self.rows]
        fate = random.choice(4, self.rows, p=self.shares(drop))[group]
        texts = random.permutation(self.rows).astype(np.int64)
        sides = np.column_stack([group, -1 - texts]) if self.group > 1 else np.zeros((self.rows, 0), dtype=np.int64)
        teacher, labels = (fate != 0).astype(np.int64), np.array([0, 1, 0, 2])[fate]
        return Answered(texts, sides, np.zeros(self.rows, dtype=np.int64), teacher, "", ""), labels


def verdicts(world: World, drop: float, simulations: int, random: np.random.Generator) -> list[str]:
    """Without groups, a formula gives the verdicts; kdc checks the first hundred."""
    contract = replace(Contract(), {"max_drop": world.limit})
    quantile = quantile_of(contract.confidence)
    found: list[str] = []
    for number in range(simulations):
        answered, labels = world.draw(drop, random)
        label_of = np.empty_like(labels)
        label_of[answered.texts] = labels
        sample = answered.sample(world.most)
        labels = label_of[sample.texts]
        judged: str | None = None
        if world.group > 1 or number < _CHECKED:
            judged = judge_drop(contract, quality_by(sample, labels, contract, empty_is_won=False))
        if world.group == 1:
            lost, won = ((labels == each) & sample.differs for each in (sample.teacher, sample.student))
            low, high = tango(int(lost.sum()), int(won.sum()), len(labels), quantile=quantile)
            verdict = "fail" if 100 * high < -world.limit else "pass" if 100 * low >= -world.limit else "not shown"
            if judged not in (None, verdict):
                raise RuntimeError(f"{world}: the verdict is {judged}, and was taken for {verdict}")
            judged = verdict
        found.append(str(judged))
    return found


def worlds() -> list[World]:
    found = [World(4000, differing, 1.0, most=most) for differing, most in product((2.0, 5.0, 10.0), (None, 100, 50))]
    found += [World(4000, 5.0, 1.0, neither=2.0, most=most) for most in (None, 100)]
    found += [World(4000, 5.0, limit, losses_only=True, most=most) for limit, most in product((1.0, 2.0), (None, 20))]
    found += [World(4000, 5.0, 1.0, group=4, most=most) for most in (None, 100)]
    return [*found, World(20_000, 5.0, 0.5, most=200), World(20_000, 5.0, 2.0, most=100)]


def rates(world: World, simulations: int) -> tuple[float, float, float]:
    """Percent of passes at the limit, and of an equal student's passes and fails."""
    random = np.random.default_rng([world.rows, round(10 * world.differing), world.most or 0, world.group])
    at_limit, equal = (verdicts(world, drop, simulations, random) for drop in (world.limit, 0.0))
    counts = (at_limit.count("pass"), equal.count("pass"), equal.count("fail"))
    return tuple(100 * count / simulations for count in counts)  # type: ignore[return-value]


def needed(differing: float, limit: float, simulations: int) -> list[str]:
    share = differing / 100
    rows = rows_for(share, max_drop=limit, confidence=Contract().confidence)
    assert rows is not None
    random, quantile = np.random.default_rng(0), quantile_of(Contract().confidence)
    counts = random.multinomial(rows, [share / 2, share / 2, 1 - share], simulations)
    passed = sum(100 * tango(int(lost), int(won), rows, quantile=quantile)[0] >= -limit for lost, won, _ in counts)
    power = f"{100 * passed / simulations:.0f}"
    return [f"{differing:g}", f"{limit:g}", f"{rows:,}", f"{math.ceil(rows * share):,}", power]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    noise = 3 * 100 * math.sqrt(0.03 * 0.97 / simulations)
    table = [["rows", "differing %", "both wrong %", "groups of", "labels", "limit", "passes at limit %"]]
    table[0] += ["equal fails %", "equal passes %"]
    bad = 0
    for world in worlds():
        passes, equal, fails = rates(world, simulations)
        bad += max(passes, fails) > _ALLOWED + noise
        differing = "losses only" if world.losses_only else f"{world.differing:g}"
        most = "all" if world.most is None else str(world.most)
        groups = "1" if world.group == 1 else f"1-{world.group}"
        line = [f"{world.rows:,}", differing, f"{world.neither:g}", groups, most, f"{world.limit:g}"]
        table.append([*line, f"{passes:.1f}", f"{fails:.1f}", f"{equal:.1f}"])
        print(" ".join(table[-1]), file=sys.stderr)
    print(aligned(table))
    print(f"{simulations} sets a world; above {_ALLOWED:g} % beyond noise: {bad}\n")
    plan = [["differing %", "limit", "rows", "labels", "power %"]]
    plan += [needed(differing, limit, simulations) for differing, limit in product((2.0, 5.0, 10.0), (0.5, 1.0, 2.0))]
    print(aligned(plan))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

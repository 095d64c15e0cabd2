"""The error rates of verdicts: how often a student at the limit passes, and one that is equal to its teacher fails.

Command: `python benchmarks/verdicts.py [--simulations 3000] [--metrics accuracy,f1] [--rows 200,800] [--jobs 2]`.
Each line is one world: rows, a limit, how many rows the two models answer differently, and groups of rows that share
their fate. `kdc.judge` judges that many evaluation sets drawn from it, once where the student's true drop is exactly
the limit, and once where it truly equals its teacher. At 95 % no more than 2.5 % of the former should pass, and no more
of the latter fail; the power beside it is the share of equal students that pass. Leaves with 1 where one of these two
rates is above 3.0 % by more than the simulations' own noise.

Of numbers, and at least 2,000 rows, a set is first judged by the normal distribution, with the standard error of a
jackknife over 100 blocks of its groups. Where the limit is clearly within that interval or clearly beyond it, that is
the verdict, in a fraction of the time; a world's first hundred such sets are judged by `kdc.judge` too, which has to
agree.

A world of classes is a table of probabilities: of each label, and of what the two models answer to it. The student's
true drop is computed from that table by `kdc`'s metric with the probabilities as weights, and the share of lost rows is
found by bisection. A world of numbers is a normal distribution of three variables, whose correlations are the scores.
"""

import argparse
import math
import sys
import zlib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.common.tables import aligned
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.comparison import judge

_ALLOWED = 3.0  # percent
_TEACHER = 0.85  # share of rows that a teacher of classes has right
_MANY_ROWS, _BLOCKS, _CHECKED = 2000, 100, 100
# Standard errors from the limit. A verdict at 95 % turns at 1.96, and the error of 100 blocks is known to a tenth.
_WITHIN, _BEYOND = 1.4, 2.8


@dataclass(frozen=True)
class World:
    """What evaluation sets are drawn from.

    `classes` are the shares of the labels; none for numbers. `losses_only` students differ from their teacher only
    where they lose; others also win rows, and `disagreement` percent of all rows differ. Groups have 1 to `group` rows.
    """

    metric: str
    rows: int
    limit: float  # points
    disagreement: float = 0.0  # percent of the rows; of a regression's, how far the errors of the two differ
    classes: tuple[float, ...] = (0.5, 0.5)
    losses_only: bool = False
    group: int = 1

    @property
    def kind(self) -> str:
        """Of the task."""
        return "regression" if self.metric in ("pearson", "spearman") else "classification"


@dataclass(frozen=True)
class Rates:
    """Percent of the simulated verdicts."""

    passes_at_limit: float
    fails_at_limit: float
    passes_equal: float
    fails_equal: float


class Classes:
    """A world of classes: cells of (label, teacher's answer, student's answer) with their probabilities."""

    def __init__(self, world: World, drop: float) -> None:
        self._world = world
        count = len(world.classes)
        cells = np.array(list(product(range(count), repeat=3)))
        self.truth, self.teacher, self.student = cells.T
        low, high = 0.0, 1.0
        for _ in range(60):  # the more rows are lost, the larger the drop
            middle = (low + high) / 2
            if self._drop(self._probabilities(middle)) < drop:
                low = middle
            else:
                high = middle
        self.probabilities = self._probabilities(low)
        if abs(self._drop(self.probabilities) - drop) > 0.02:
            raise ValueError("so large a drop is not possible with so few differing rows")

    def _probabilities(self, lost: float) -> NDArray[np.float64]:
        """Of the cells: `lost` of the differing rows are lost, the rest won, or all of those that there are."""
        world, count = self._world, len(self._world.classes)
        differing = lost if world.losses_only else world.disagreement / 100
        to_lose = differing * (1.0 if world.losses_only else lost)
        to_win = differing - to_lose
        labels = np.array(world.classes)[self.truth]
        teacher_right, student_right = self.teacher == self.truth, self.student == self.truth
        others = 1 / (count - 1)
        teacher = np.where(teacher_right, _TEACHER, (1 - _TEACHER) * others)
        loses, wins = min(1.0, to_lose / _TEACHER), min(1.0, to_win / (1 - _TEACHER))
        right = np.where(student_right, 1 - loses, loses * others)
        wrong = np.where(student_right, wins, np.where(self.student == self.teacher, 1 - wins, 0.0))
        return labels * teacher * np.where(teacher_right, right, wrong)

    def _drop(self, probabilities: NDArray[np.float64]) -> float:
        scores = [
            metrics.METRICS[self._world.metric](self.truth, each)(probabilities[None])[0]
            for each in (self.teacher, self.student)
        ]
        return 100 * float(scores[0] - scores[1])

    def draw(self, rows: int, random: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
        """Labels, and the logits of teacher and student."""
        cells = random.choice(len(self.truth), rows, p=self.probabilities / self.probabilities.sum())
        one_hot = np.eye(len(self._world.classes))
        return self.truth[cells], one_hot[self.teacher[cells]], one_hot[self.student[cells]]


class Numbers:
    """A world of numbers: labels, and two models whose answers correlate with them and with each other."""

    def __init__(self, world: World, drop: float) -> None:
        scores = np.array([_TEACHER, _TEACHER - drop / 100])
        if world.metric == "spearman":  # of a normal distribution (Pearson 1907)
            scores = 2 * np.sin(np.pi * scores / 6)
        teacher, student = scores
        shared = 1 - world.disagreement / 100  # correlation of the two models' errors
        between = teacher * student + shared * math.sqrt((1 - teacher**2) * (1 - student**2))
        matrix = np.array([[1, teacher, student], [teacher, 1, between], [student, between, 1]])
        self._root = np.linalg.cholesky(matrix)

    def draw(self, rows: int, random: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
        """Labels, and the answers of teacher and student."""
        labels, teacher, student = self._root @ random.standard_normal((3, rows))
        return labels, teacher[:, None], student[:, None]


def verdicts(world: World, drop: float, simulations: int, seed: int) -> tuple[float, float]:
    """Percent of the evaluation sets by which the student passes, and by which it fails."""
    source = (Numbers if world.kind == "regression" else Classes)(world, drop)
    # Of its own for each world: with the same draws everywhere, a lucky one would look like a fault of many worlds.
    random, passed, failed = np.random.default_rng([seed, zlib.crc32(repr(world).encode())]), 0, 0
    looks_first, to_check = world.kind == "regression" and world.rows >= _MANY_ROWS, _CHECKED
    for _ in range(simulations):
        groups = None
        if world.group > 1:
            sizes = random.integers(1, world.group + 1, world.rows)
            groups = np.repeat(np.arange(world.rows), sizes)[: world.rows]
        labels, teacher, student = source.draw(world.rows, random)
        if groups is not None:  # rows of a group share their fate: all are as the first one of as many
            labels, teacher, student = labels[groups], teacher[groups], student[groups]
        verdict = clear_verdict(world, labels, teacher, student, groups) if looks_first else None
        if verdict is None or to_check:
            judged = judge(
                student,
                teacher,
                labels,
                kind=world.kind,  # type: ignore[arg-type]
                metric=world.metric,
                max_drop=world.limit,
                groups=groups,
            ).verdict
            if verdict is not None:
                to_check -= 1
                if judged != verdict:
                    raise RuntimeError(f"{world}: the verdict is {judged}, and was taken for {verdict}")
            verdict = judged
        passed += verdict == "pass"
        failed += verdict == "fail"
    return 100 * passed / simulations, 100 * failed / simulations


def clear_verdict(
    world: World, labels: NDArray, teacher: NDArray, student: NDArray, groups: NDArray | None
) -> str | None:
    """The verdict on an evaluation set where it is clear without a bootstrap, else None."""
    answers = [metrics.predictions(each, world.kind) for each in (student, teacher)]  # type: ignore[arg-type]
    scorers = [metrics.METRICS[world.metric](labels, each) for each in answers]
    blocks = (np.arange(len(labels)) if groups is None else groups) % _BLOCKS
    weights = np.concatenate([np.ones((1, len(labels))), blocks != np.arange(_BLOCKS)[:, None]])
    found, *without = 100 * (scorers[0](weights) - scorers[1](weights))
    error = math.sqrt((_BLOCKS - 1) * np.var(without))  # of the delete-a-group jackknife
    distance = (found + world.limit) / error if error else 0.0
    if _WITHIN < abs(distance) < _BEYOND or not error:
        return None
    return "not shown" if abs(distance) <= _WITHIN else "pass" if distance > 0 else "fail"


def rates(world: World, simulations: int) -> Rates | None:
    """Both questions of one world; None where the world cannot be."""
    try:
        at_limit = verdicts(world, world.limit, simulations, seed=1)
    except ValueError:
        return None
    equal = verdicts(world, 0.0, simulations, seed=2)
    return Rates(*at_limit, *equal)


RARE = (0.95, 0.05)
FEW_OF_SOME = (0.4, 0.3, 0.2, 0.07, 0.03)


def worlds(names: Iterable[str], rows: Iterable[int]) -> list[World]:
    """All that are looked at."""
    found = []
    for name, count in product(names, rows):
        if name == "accuracy":
            for limit in (0.5, 1.0, 2.0, 5.0):
                found.append(World(name, count, limit, losses_only=True))
                found += [World(name, count, limit, disagreement) for disagreement in (1, 2, 4, 10, 20)]
            found += [World(name, count, 2.0, share, group=size) for size in (2, 4) for share in (4, 10)]
            found += [World(name, count, 2.0, losses_only=True, group=size) for size in (2, 4)]
        elif name in ("pearson", "spearman"):
            found += [World(name, count, limit, share) for limit in (1.0, 3.0) for share in (5, 20)]
            found.append(World(name, count, 2.0, 20, group=3))
        else:
            shares = ((0.5, 0.5), RARE) if name == "f1" else ((0.5, 0.5), RARE, FEW_OF_SOME)
            for classes, limit in product(shares, (1.0, 3.0, 5.0)):
                found.append(World(name, count, limit, classes=classes, losses_only=True))
                found += [World(name, count, limit, share, classes) for share in (4, 10)]
            found.append(World(name, count, 3.0, 10, shares[1], group=3))
    return found


def main() -> int:
    """Print a line for each world."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=3000)
    parser.add_argument("--metrics", default="accuracy,f1,macro_f1,matthews,pearson,spearman")
    parser.add_argument("--rows", default="50,200,800,5000")
    parser.add_argument("--first", type=int, default=1, help="number of the world to begin with: a run takes hours")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    every = worlds(options.metrics.split(","), [int(count) for count in options.rows.split(",")])[options.first - 1 :]
    noise = 3 * 100 * math.sqrt(0.03 * 0.97 / options.simulations)
    table: list[tuple[str, ...]] = [_HEADER]
    bad = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        found = pool.map(partial(rates, simulations=options.simulations), every)
        for place, (world, seen) in enumerate(zip(every, found, strict=True)):
            if seen is None:
                continue
            is_bad = max(seen.passes_at_limit, seen.fails_equal) > _ALLOWED + noise
            bad += is_bad
            table.append(_line(world, seen, is_bad=is_bad))
            print(f"{options.first + place}: {' '.join(table[-1])}, {len(every) - place - 1} left", file=sys.stderr)
    print(aligned(table, left=(0, 3)))
    print(f"{len(table) - 1} worlds, {options.simulations} simulations each; above {_ALLOWED:g} % beyond noise: {bad}")
    return 1 if bad else 0


_HEADER = (
    "metric",
    "rows",
    "groups of",
    "classes",
    "limit",
    "differing %",
    "passes at limit",
    "fails at limit",
    "equal passes",
    "equal fails",
)


def _line(world: World, seen: Rates, *, is_bad: bool) -> tuple[str, ...]:
    return (
        world.metric,
        str(world.rows),
        f"1-{world.group}" if world.group > 1 else "1",
        "/".join(f"{100 * share:g}" for share in world.classes) if world.kind != "regression" else "",
        f"{world.limit:g}",
        "losses only" if world.losses_only else f"{world.disagreement:g}",
        f"{seen.passes_at_limit:.1f}" + " *" * is_bad,
        f"{seen.fails_at_limit:.1f}",
        f"{seen.passes_equal:.1f}",
        f"{seen.fails_equal:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())

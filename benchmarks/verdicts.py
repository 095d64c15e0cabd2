"""Error rates of verdicts: how often a student at the limit passes, and one equal to its teacher fails.

Command: `python benchmarks/verdicts.py [--simulations 3000] [--metrics accuracy,f1] [--rows 200,800] [--jobs 2]`.
`kdc.judge` judges evaluation sets of each world, with the true drop at the limit and with none; at 95 %, either error
should be at most 2.5 %. Ends with 1 if one exceeds 3.0 % beyond simulation noise. Power is the share of equal students
that pass, of the first 300 sets. `--metrics many`: macro F1 of 20 to 48 classes or labels.

`clear_verdict` judges many sets without a slow bootstrap. An interval covers the measured difference plus or minus the
term for unseen rows, so a limit in that range is "not shown". For several labels, groups, or 500 rows and more, a
standard error decides (delta method for macro F1, else a jackknife over 100 blocks). After the first 300 sets of equal
students, `verdicts` skips a set whose drop is within the limit, which cannot fail.
"""

import argparse
import math
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.worlds import World, source_of, worlds
from kdc.artifact.contract.judgement import quantile_of
from kdc.artifact.task_kinds import KINDS
from kdc.common.tables import aligned
from kdc.pipeline.config import metrics
from kdc.pipeline.quality.comparison import judge
from kdc.pipeline.quality.intervals import influences
from kdc.pipeline.quality.unseen import unseen

_ALLOWED = 3.0  # percent
_CONFIDENCE = 0.95
_FOR_POWER = 300  # sets
_MANY_ROWS, _BLOCKS, _CHECKED = 500, 100, 40
# Distances from the limit, in standard errors. A 95 % verdict turns at 1.96; 100 blocks give the error within a tenth.
_WITHIN, _BEYOND = 1.4, 2.8


@dataclass(frozen=True)
class Rates:
    passes_at_limit: float
    fails_at_limit: float
    passes_equal: float
    fails_equal: float


def verdicts(
    world: World, drop: float, simulations: int, seed: int, *, for_passes: int | None = None
) -> tuple[float, float]:
    """Percent that pass (of the first `for_passes`) and fail."""
    source = source_of(world, drop)
    # A lucky draw shared by all worlds would look like many faults.
    random, passed, failed = np.random.default_rng([seed, zlib.crc32(repr(world).encode())]), 0, 0
    to_check, for_passes = _CHECKED, min(simulations, for_passes or simulations)
    for number in range(simulations):
        labels, teacher, student, groups = source.draw(random)
        if number >= for_passes and _cannot_fail(world, labels, teacher, student):
            continue
        verdict = clear_verdict(world, labels, teacher, student, groups)
        if verdict is None or to_check:
            judged = judge(
                student,
                teacher,
                labels,
                kind=world.kind,  # type: ignore[arg-type]
                metric=world.metric,
                max_drop=world.limit,
                confidence=_CONFIDENCE,
                groups=groups,
            ).verdict
            if verdict is not None:
                to_check -= 1
                if judged != verdict:
                    raise RuntimeError(f"{world}: the verdict is {judged}, and was taken for {verdict}")
            verdict = judged
        passed += verdict == "pass" and number < for_passes
        failed += verdict == "fail"
    return 100 * passed / for_passes, 100 * failed / simulations


def _cannot_fail(world: World, labels: NDArray, teacher: NDArray, student: NDArray) -> bool:
    scores = [metrics.compute(each, labels, world.kind, (world.metric,)) for each in (student, teacher)]  # type: ignore[arg-type]
    return scores[0][world.metric] - scores[1][world.metric] >= -world.limit


def _is_slow(world: World) -> bool:
    if world.rows >= _MANY_ROWS:
        return True
    return world.kind != "regression" and (bool(world.labels) or world.group > 1)


def clear_verdict(
    world: World, labels: NDArray, teacher: NDArray, student: NDArray, groups: NDArray | None
) -> str | None:
    """The verdict, or None if it needs a bootstrap."""
    if world.metric == "accuracy":
        return None
    answers = list(map(KINDS[world.kind].predictions, (student, teacher)))
    scorers = [metrics.METRICS[world.metric].scorer(labels, each) for each in answers]
    once = np.ones((1, len(labels)))
    gap = 100 * float((scorers[0](once) - scorers[1](once))[0])
    quantile = quantile_of(_CONFIDENCE)
    if abs(gap + world.limit) < max(
        unseen(labels, each, world.metric, groups=groups, quantile=quantile)(1.0) for each in answers
    ):
        return "not shown"
    if not _is_slow(world):
        return None
    if world.metric == "macro_f1":
        influence = influences(student, teacher, labels, world.kind, groups=groups)[1]  # type: ignore[arg-type]
        error = 100 * float(np.linalg.norm(influence.sum(axis=1))) / influence.shape[1]
    else:
        blocks = (np.arange(len(labels)) if groups is None else groups) % _BLOCKS
        weights = (blocks != np.arange(_BLOCKS)[:, None]).astype(np.float64)
        without = 100 * (scorers[0](weights) - scorers[1](weights))
        error = math.sqrt((_BLOCKS - 1) * np.var(without))
    distance = (gap + world.limit) / error if error else 0.0
    if abs(distance) <= _WITHIN and error:
        return "not shown"
    # For classes, unseen outcomes and Student's distribution matter too.
    if abs(distance) < _BEYOND or not error or world.kind != "regression":
        return None
    return "pass" if distance > 0 else "fail"


def rates(world: World, simulations: int, power: int = _FOR_POWER) -> Rates | None:
    try:
        at_limit = verdicts(world, world.limit, simulations, seed=1)
    except ValueError:
        return None
    equal = verdicts(world, 0.0, simulations, seed=2, for_passes=power)
    return Rates(*at_limit, *equal)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=3000)
    parser.add_argument("--metrics", default="accuracy,f1,macro_f1,matthews,pearson,spearman")
    parser.add_argument("--rows", default="50,200,800,5000")
    parser.add_argument("--first", type=int, default=1, help="number of the world to begin with: a run takes hours")
    parser.add_argument("--power", type=int, default=_FOR_POWER, help="sets of an equal student that are all judged")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    every = worlds(options.metrics.split(","), [int(count) for count in options.rows.split(",")])[options.first - 1 :]
    noise = 3 * 100 * math.sqrt(0.03 * 0.97 / options.simulations)
    table: list[tuple[str, ...]] = [_HEADER]
    bad = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        found = pool.map(partial(rates, simulations=options.simulations, power=options.power), every)
        for place, (world, seen) in enumerate(zip(every, found, strict=True)):
            if seen is None:
                continue
            is_bad = max(seen.passes_at_limit, seen.fails_equal) > _ALLOWED + noise
            bad += is_bad
            table.append(_line(world, seen, is_bad=is_bad))
            print(f"{options.first + place}: {' '.join(table[-1])}, {len(every) - place - 1} left", file=sys.stderr)
    print(aligned(table, left=(0, 3)))
    print(
        f"{len(table) - 1} worlds, {options.simulations} simulations each (equal passes: of the first "
        f"{options.power}); above {_ALLOWED:g} % beyond noise: {bad}"
    )
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


def _shares(world: World) -> str:
    if world.fate is not None:
        which = f"{len(world.labels or world.classes)} {'labels' if world.labels else 'classes'}"
        return f"{which}, shared fate {world.fate:g}{', lost in the rarer half' * world.rare_only}"
    shares = "/".join(f"{100 * share:g}" for share in world.labels or world.classes)
    return f"several: {shares}" if world.labels else shares


def _line(world: World, seen: Rates, *, is_bad: bool) -> tuple[str, ...]:
    return (
        world.metric,
        str(world.rows),
        f"1-{world.group}{' mixed' * world.mixed}" if world.group > 1 else "1",
        "" if world.kind == "regression" else _shares(world),
        f"{world.limit:g}",
        "losses only" if world.losses_only else f"{world.disagreement:g}",
        f"{seen.passes_at_limit:.1f}" + " *" * is_bad,
        f"{seen.fails_at_limit:.1f}",
        f"{seen.passes_equal:.1f}",
        f"{seen.fails_equal:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())

"""The short form of benchmarks/verdicts.py: how often verdicts are wrong, by simulation."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from live import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import worlds
from benchmarks.verdicts import clear_verdict, verdicts
from benchmarks.worlds import Classes, Many, Numbers, World, zipf
from kdc.pipeline.config import metrics
from kdc.pipeline.quality.comparison import judge
from kdc.pipeline.quality.intervals import difference, score_interval


# Worlds in which passing is possible: by resampling and a point estimate, 9.5, 9.5 and 5 % of these students passed at
# the limit, and 18 % of those that equal their teacher failed.
@pytest.mark.parametrize(
    "world",
    [
        World("accuracy", 800, 1.0, losses_only=True),
        World("accuracy", 400, 2.0, losses_only=True),
        World("accuracy", 200, 2.0, 4),
        World("accuracy", 800, 1.0, 10),
        World("accuracy", 800, 2.0, 10, group=4),
        pytest.param(World("f1", 800, 5.0, 10), marks=pytest.mark.slow),
    ],
)
def test_verdicts_err_no_more_often_than_they_state(world: World) -> None:
    """Would catch: an interval that is too narrow, a verdict by a point estimate, groups that are not looked at."""
    simulations = 500
    passes, fails = verdicts(world, world.limit, simulations, seed=1)
    passes_equal, fails_equal = verdicts(world, 0.0, simulations, seed=2)
    allowed = 3.0 + 100 * 3 * np.sqrt(0.03 * 0.97 / simulations)
    assert passes <= allowed
    assert fails <= allowed
    assert fails_equal <= allowed
    assert passes_equal >= 8  # else nothing could pass, and the first line would say nothing


@pytest.mark.parametrize(
    "world",
    [
        World("macro_f1", 400, 2.0, losses_only=True, group=4, mixed=True),
        pytest.param(World("macro_f1", 100, 2.5, losses_only=True, labels=(0.25,) * 20), marks=pytest.mark.slow),
        pytest.param(World("matthews", 800, 5.0, losses_only=True, group=4, mixed=True), marks=pytest.mark.slow),
    ],
)
def test_classes_that_fail_together_pass_no_more_often(world: World) -> None:
    """Would catch rows or groups that hold several classes and count as if these could only fail apart: one in ten to
    one in three such students passed at the limit."""
    assert verdicts(world, world.limit, 150, seed=1)[0] <= 3.0 + 100 * 3 * np.sqrt(0.03 * 0.97 / 150)
    assert verdicts(replace(world, limit=4 * world.limit), 0.0, 20, seed=2)[0] >= 50


@pytest.mark.parametrize(
    ("drop", "limit", "expected"), [(0.0, 3.0, "pass"), (6.0, 1.0, "fail"), (1.0, 1.0, "not shown"), (0.6, 1.0, None)]
)
def test_a_verdict_that_is_clear_without_a_bootstrap_is_the_judges(
    drop: float, limit: float, expected: str | None
) -> None:
    """Would catch: a drop of the wrong sign, a standard error that is too small, and a set near the turn of a verdict
    that is not left to the judge."""
    world = World("pearson", 2000, limit, 20)
    labels, teacher, student, _ = Numbers(world, drop).draw(np.random.default_rng(0))
    assert clear_verdict(world, labels, teacher, student, None) == expected
    if expected is not None:
        judged = judge(student, teacher, labels, kind="regression", metric="pearson", max_drop=limit)
        assert judged.verdict == expected


def test_a_limit_within_what_no_row_shows_is_not_shown() -> None:
    """Would catch a bound that is wider than the judge's, by which simulations would count no student that passes."""
    world, clear = World("macro_f1", 800, 2.5, 1, (0.95, 0.05)), 0
    source, random = Classes(world, 1.0), np.random.default_rng(0)
    for _ in range(60):
        labels, teacher, student, _ = source.draw(random)
        verdict = clear_verdict(world, labels, teacher, student, None)
        judged = judge(student, teacher, labels, metric="macro_f1", max_drop=2.5).verdict
        assert verdict in (judged, None)
        clear += verdict is not None
    assert 20 <= clear <= 55  # of each there are some; the others pass


# Sets like two real ones: 35 classes in groups of one text, and up to five of 48 labels a row. There the interval of a
# difference was 11 and 9 times as wide as a bootstrap's, from -31 to +32 points.
SHARP = [
    World("macro_f1", 3000, 2.0, 10, zipf(35), fate=0.3, group=80),
    World("macro_f1", 399, 2.0, 20, labels=zipf(48), fate=0.0),
]


def percentiles(score: metrics.Scorer, units: np.ndarray) -> float:
    """The width of a plain percentile bootstrap's interval, which draws whole units, from 0 to 1."""
    random, count = np.random.default_rng(1), units.max() + 1
    drawn = (np.bincount(random.integers(0, count, count), minlength=count)[units] for _ in range(400))
    return float(
        np.ptp(np.quantile(np.concatenate([score(each[None].astype(float)) for each in drawn]), [0.025, 0.975]))
    )


@pytest.mark.parametrize("world", SHARP, ids=["classes", "labels"])
def test_an_interval_is_hardly_wider_than_a_bootstraps_and_within_the_range(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a bound for what no row shows that lets all classes of a group, or of a row, fail at once, as
    often as the rarest class may."""
    monkeypatch.setattr(worlds, "_POPULATION", 12_000)
    labels, teacher, student, groups = Many(world, 1.0).draw(np.random.default_rng(0))
    kind: Any = world.kind
    units = np.arange(len(labels)) if groups is None else groups
    scores = [metrics.METRICS["macro_f1"].scorer(*metrics.as_scored(labels, kind, each)) for each in (student, teacher)]
    seen = difference(student, teacher, labels, kind, "macro_f1", groups=groups).interval
    assert np.ptp(seen) <= 1.5 * 100 * percentiles(lambda weights: scores[0](weights) - scores[1](weights), units)
    for logits, score in zip((student, teacher), scores, strict=True):
        low, high = score_interval(logits, labels, kind, "macro_f1", groups=groups)
        assert high - low <= 1.5 * 100 * percentiles(score, units)
        assert 0 <= low < high <= 100


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews"])
def test_no_interval_leaves_the_range_of_its_metric(metric: str) -> None:
    """Of models that always give one answer, and that are always right. Would catch a negative F1."""
    labels = np.arange(30) % 2
    lowest = -100.0 if metric == "matthews" else 0.0
    for answers in (np.zeros(30, dtype=int), np.ones(30, dtype=int), labels):
        for groups in (None, np.arange(30) // 10):
            low, high = score_interval(np.eye(2)[answers], labels, "classification", metric, groups=groups)
            assert lowest <= low < high <= 100
            least, most = difference(np.eye(2)[answers], np.eye(2)[labels], labels, "classification", metric).interval
            assert lowest - 100 <= least < most <= 100 - lowest


def coin_metrics(seed: int, metric: str) -> float:
    """The chance that is told of a model which knows nothing."""
    random = np.random.default_rng(seed)
    labels = (random.random(200) < 0.9).astype(int)
    return metrics.chance(random.normal(size=(200, 2)), labels, "classification", metric)


@pytest.mark.parametrize("metric", ["macro_f1", pytest.param("matthews", marks=pytest.mark.slow)])
def test_a_coin_is_seldom_taken_for_a_model_that_learned(metric: str) -> None:
    """A coin beats the majority by macro F1 always, and by Matthews in half of all cases."""
    assert np.mean([coin_metrics(seed, metric) <= 0.05 for seed in range(60)]) <= 0.15


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_a_coin_for_each_group_is_no_more_often(size: int) -> None:
    """Would catch labels that are shuffled row by row, by which one in five such coins was taken for knowledge."""
    taken = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        groups = np.repeat(np.arange(400), random.integers(1, size + 1, 400))[:400]
        labels, answers = random.integers(0, 2, (2, 400))[:, groups]
        taken += metrics.chance(np.eye(2)[answers], labels, "classification", "macro_f1", groups=groups) <= 0.05
    assert taken / 60 <= 0.15


def test_a_model_that_learned_is_told_from_a_coin() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    logits = np.eye(2)[np.where(random.random(200) < 0.75, labels, 1 - labels)]
    assert metrics.chance(logits, labels, "classification", "accuracy") == 1 / 200
    groups = np.arange(200) // 2
    assert metrics.chance(logits, labels, "classification", "accuracy", groups=groups) == 1 / 200
    assert metrics.chance(labels[:, None] + random.normal(size=(200, 1)), labels * 1.0, "regression", "spearman") < 0.05

"""Intervals against formulas and packages that the code does not use, and by what they must do."""

import itertools

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import f1_score, matthews_corrcoef

from kdc.pipeline.config import metrics
from kdc.pipeline.quality import intervals
from kdc.pipeline.quality.bootstrap import bca
from kdc.pipeline.quality.comparison import Shown, judge
from kdc.pipeline.quality.intervals import design_effect, difference, score_interval, tango, widest, wilson
from kdc.pipeline.quality.unseen import unseen

Z = 1.959964


@pytest.mark.parametrize(("lost", "won", "rows"), [(8, 3, 100), (0, 0, 50), (5, 0, 800), (0, 4, 60), (30, 30, 200)])
def test_the_ends_for_paired_proportions_are_where_the_score_test_rejects(lost: int, won: int, rows: int) -> None:
    """The oracle maximises the likelihood under the end's difference by search. Would catch: ends that are swapped, or
    another variance than the one under that difference."""
    for end, sign in zip(tango(lost, won, rows, quantile=Z), (1, -1), strict=True):

        def unlikely(lost_share: float, gap: float = end) -> float:
            cells = np.array([lost_share, lost_share + gap, 1 - 2 * lost_share - gap])
            counts = np.array([lost, won, rows - lost - won])
            return -float(counts @ np.log(np.maximum(cells, 1e-300)))

        bounds = (max(0.0, -end), (1 - end) / 2)
        share = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        values, shares = np.array([-1.0, 1.0, 0.0]) - end, np.array([share, share + end, 1 - 2 * share - end])
        error = np.sqrt(shares @ values**2 / rows)
        skewness = shares @ values**3 / (shares @ values**2) ** 1.5 / np.sqrt(rows)
        seen = ((won - lost) / rows - end) / error
        half = (lost - won) / max(1, lost + won) / 2  # of the end that is nearer to 0
        corrected = seen + max(0.0, -sign * half) * -sign / rows / error - skewness * (Z**2 - 1) / 6
        # At the farther end, the rule that gave it just rejects; the other one rejects by more.
        assert min(sign * seen, sign * corrected) == pytest.approx(Z, abs=0.02)


@pytest.mark.parametrize("won", [0, 1])
@pytest.mark.parametrize(("rows", "limit"), [(400, 0.02), (800, 0.01), (1600, 0.005), (3000, 0.02), (200, 0.05)])
def test_a_student_that_only_loses_fails_at_the_limit_as_rarely_as_is_said(rows: int, limit: float, won: int) -> None:
    """By the exact binomial tail. Would catch an end without a correction for continuity, by which 3.3 % fail."""
    fewest = next(lost for lost in range(rows) if tango(lost, won, rows, quantile=Z)[1] < -limit)
    chance = stats.binom.sf(fewest - 1, rows, limit + won / rows)
    assert 0.006 < chance <= 0.025


def test_wilsons_interval_is_that_of_scipy() -> None:
    for right, rows in ((0, 20), (7, 20), (320, 400), (50, 50)):
        expected = stats.binomtest(right, rows).proportion_ci(0.95, method="wilson")
        assert wilson(right, rows, quantile=Z) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_corrected_bootstrap_is_that_of_scipy() -> None:
    """Of a skewed number, where the plain percentiles lie elsewhere. Would catch: a sign of bias or acceleration."""
    values = np.random.default_rng(0).lognormal(size=40)
    expected = stats.bootstrap((values,), np.var, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    plain = stats.bootstrap((values,), np.var, n_resamples=20_000, method="percentile", rng=1).confidence_interval

    def variance(weights: np.ndarray) -> np.ndarray:
        rows = weights.sum(axis=1)
        return weights @ values**2 / rows - (weights @ values / rows) ** 2

    (low, high), error = bca(variance, np.ones(40), quantile=lambda _: Z)
    assert low == pytest.approx(expected.low, rel=0.1)
    assert high == pytest.approx(expected.high, rel=0.1)
    assert abs(high - plain.high) > abs(high - expected.high)
    assert error == pytest.approx(
        float(np.std([np.var(np.random.default_rng(s).choice(values, 40)) for s in range(2000)])), rel=0.2
    )


def test_rows_that_are_alike_are_drawn_as_if_they_were_written_out() -> None:
    kinds, counts = np.array([0.0, 1.0]), np.array([30.0, 10.0])
    counted, counted_error = bca(lambda w: w @ kinds / w.sum(axis=1), counts, quantile=lambda _: Z)
    written = np.repeat(kinds, counts.astype(int))
    single, single_error = bca(lambda w: w @ written / w.sum(axis=1), np.ones(40), quantile=lambda _: Z)
    assert counted == pytest.approx(single, abs=0.026)  # a row is 0.025
    assert counted_error == pytest.approx(single_error, rel=0.1)


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_a_row_of_weight_three_counts_as_three_rows(name: str) -> None:
    """Of every metric, which the bootstrap rests on. Would catch: ranks of weighted rows, a class that weights leave
    out."""
    random = np.random.default_rng(0)
    weights = random.integers(0, 4, 30)
    truth, answers = random.integers(0, 3, (2, 30)).astype(int if name not in ("pearson", "spearman") else float)
    written = np.repeat(np.arange(30), weights)
    expected = metrics.METRICS[name].scorer(truth[written], answers[written])(np.ones((1, len(written))))
    found = metrics.METRICS[name].scorer(truth, answers)(np.stack([weights, np.ones(30)]).astype(float))
    assert found[0] == pytest.approx(expected[0], abs=1e-12)


def test_ranks_with_ties_are_those_of_scipy() -> None:
    random = np.random.default_rng(1)
    truth, answers = random.integers(0, 5, 80).astype(float), random.normal(size=80).round(0)
    expected = stats.spearmanr(truth, answers).statistic
    assert metrics.METRICS["spearman"].scorer(truth, answers)(np.ones((1, 80)))[0] == pytest.approx(expected, abs=1e-12)


def answers_of(right: np.ndarray) -> np.ndarray:
    """Logits of a model that is right exactly there, where every label is 0."""
    return np.stack([right, ~right], axis=1).astype(float)


def test_rows_of_a_group_that_share_their_fate_count_as_one() -> None:
    """Would catch: groups that are not looked at; an effect that makes intervals narrower."""
    random = np.random.default_rng(0)
    mine, theirs = random.random((2, 300)) < 0.9
    alone = difference(answers_of(mine), answers_of(theirs), np.zeros(300, int), "classification", "accuracy")
    groups = np.repeat(np.arange(300), 4)
    mine, theirs, labels = mine[groups], theirs[groups], np.zeros(1200, int)
    grouped = difference(answers_of(mine), answers_of(theirs), labels, "classification", "accuracy", groups=groups)
    assert (alone.groups, grouped.groups) == (300, 300)
    assert grouped.interval == pytest.approx(alone.interval, abs=0.1)
    blind = difference(answers_of(mine), answers_of(theirs), labels, "classification", "accuracy")
    assert np.ptp(blind.interval) == pytest.approx(np.ptp(alone.interval) / 2, rel=0.05)


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews"])
def test_resampling_draws_whole_groups(metric: str) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 200)
    mine, theirs = (np.eye(2)[np.where(random.random(200) < 0.8, labels, 1 - labels)] for _ in range(2))
    groups = np.repeat(np.arange(200), 4)
    alone = difference(mine, theirs, labels, "classification", metric)
    mine, theirs = mine[groups], theirs[groups]
    grouped = difference(mine, theirs, labels[groups], "classification", metric, groups=groups)
    assert grouped.standard_error == pytest.approx(alone.standard_error, rel=0.1)
    blind = difference(mine, theirs, labels[groups], "classification", metric)
    assert blind.standard_error == pytest.approx(alone.standard_error / 2, rel=0.1)


def test_the_design_effect_by_hand() -> None:
    # The sums of the groups are 2 and -2: 8, times 2 / 1 for two groups; two rows in groups of two are added to both.
    assert design_effect(np.array([1.0, 1.0, -1.0, -1.0]), np.array([0, 0, 1, 1])) == pytest.approx((16 + 4) / (4 + 2))
    assert design_effect(np.array([1.0, -1.0] * 20), np.repeat(np.arange(20), 2)) == 1.0  # no less than 1
    assert design_effect(np.zeros(6), np.array([0, 0, 0, 1, 1, 1])) == 3.0  # nothing to see: three rows count as one
    assert design_effect(np.array([1.0, 0.0]), None) == 1.0


def test_accuracys_interval_is_the_binomial_one() -> None:
    labels = np.array([0] * 320 + [1] * 80)
    logits = np.tile([1.0, 0.0], (400, 1))  # always 0: 80 % are right, standard error 2 points
    low, high = score_interval(logits, labels, "classification", "accuracy")
    assert low == pytest.approx(80 - 1.96 * 2, abs=0.6)
    assert high == pytest.approx(80 + 1.96 * 2, abs=0.6)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_model_is_not_shown_to_equal_itself_beyond_what_the_rows_can_say(metric: str) -> None:
    """On 50 rows without a difference, 3.84 / (50 + 3.84) of all rows may still differ: by as much both fall, with two
    classes of one size."""
    labels = np.arange(50) % 2
    logits = np.eye(2)[labels]
    low, high = difference(logits, logits, labels, "classification", metric).interval
    points = 100 * Z**2 / (50 + Z**2)
    assert (low, high) == pytest.approx((-points, points), rel=1e-3)


def test_the_same_rows_have_the_same_interval_whoever_asks() -> None:
    random = np.random.default_rng(0)
    labels, logits, others = np.arange(60) % 2, random.normal(size=(60, 2)), random.normal(size=(60, 2))
    asked = [difference(logits, others, labels, "classification", "f1").interval for _ in range(2)]
    assert asked[0] == asked[1]


def spread_over(rows: int, wrong: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, a model that is right everywhere, and one that is wrong there."""
    labels = np.arange(rows) % 2
    answers = labels.copy()
    answers[wrong] = 1 - answers[wrong]
    return labels, np.eye(2)[labels], np.eye(2)[answers]


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews"])
@pytest.mark.parametrize("wrong", [[0], [0, 1], [0, 1, 2, 3, 4], list(range(40))])
def test_a_higher_confidence_has_a_wider_interval(metric: str, wrong: list[int]) -> None:
    """Would catch: BCa's formula beyond its pole, where few rows differ, which flips an end to the other tail."""
    labels, right, other = spread_over(400, wrong)
    found = [
        difference(other, right, labels, "classification", metric, confidence=share).interval
        for share in (0.8, 0.9, 0.95, 0.99, 0.999)
    ]
    assert all(
        wide[0] <= narrow[0] + 1e-9 and wide[1] >= narrow[1] - 1e-9 for narrow, wide in itertools.pairwise(found)
    )


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_few_groups_show_nothing(metric: str, count: int) -> None:
    """Would catch: an interval that is a point where there is one group to draw."""
    labels, right, other = spread_over(900, list(range(0, 900, 10)))
    groups = np.arange(900) % count
    low, high = difference(other, right, labels, "classification", metric, groups=groups).interval
    assert low < -20
    assert high > 3


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews"])
def test_six_groups_are_too_few_to_draw(metric: str) -> None:
    labels, right, other = spread_over(900, list(range(0, 900, 10)))
    found = difference(other, right, labels, "classification", metric, groups=np.arange(900) % 6).interval
    whole = 200.0 if metric == "matthews" else 100.0
    assert found[0] == -whole
    assert found[1] - found[0] > 1.8 * whole


def test_groups_of_one_row_each_are_no_groups() -> None:
    labels, right, other = spread_over(300, list(range(20)))
    alone = difference(other, right, labels, "classification", "macro_f1", groups=np.arange(300))
    assert alone == difference(other, right, labels, "classification", "macro_f1")


def test_a_large_group_leaves_few_to_judge_by() -> None:
    """Would catch: groups that count alike though one of them holds most rows."""
    labels, right, other = spread_over(1000, list(range(0, 1000, 20)))
    groups = np.maximum(np.arange(1000) - 900, 0)  # one of 901 rows
    even = difference(other, right, labels, "classification", "accuracy", groups=np.arange(1000) % 100).interval
    uneven = difference(other, right, labels, "classification", "accuracy", groups=groups).interval
    assert np.ptp(uneven) > 3 * np.ptp(even)


def test_a_jackknife_by_blocks_is_that_of_single_rows() -> None:
    values = np.random.default_rng(0).lognormal(size=6000)

    def mean(weights: np.ndarray) -> np.ndarray:
        return weights @ values / weights.sum(axis=1)

    expected = stats.bootstrap((values,), np.mean, n_resamples=2000, method="BCa", rng=1).confidence_interval
    (low, high), _ = bca(mean, np.ones(6000), quantile=lambda _: Z)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=0.01)


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews"])
def test_a_perfect_score_on_few_rows_is_not_sure(metric: str) -> None:
    """Resampling rows that are all right gives the same score each time. Would catch an interval of no width. With 60
    rows without an event, 3.84 / (60 + 3.84) of all others may be wrong. F1 and macro F1 of two classes of one size
    fall by that share, and Matthews' correlation, which goes down to -1, by twice as much."""
    labels = np.repeat([0, 1], 30)
    low, high = score_interval(np.eye(2)[labels], labels, "classification", metric)
    share = 2.0 if metric == "matthews" else 1.0
    assert low == pytest.approx(100 - 100 * share * Z**2 / (60 + Z**2), abs=0.01)
    assert high == 100.0


def test_units_that_move_a_statistic_most_count_alone() -> None:
    """Of 60 units three move a sum by 2 and four by 1: they count as (3 * 4 + 4 * 1)^2 / (3 * 16 + 4 * 1) of one
    influence by hand, but for the mean, which the jackknife takes off. Would catch units that count alike, by which 4 %
    passed at the limit in place of 2.9 %."""
    values, asked = np.zeros(60), []
    values[:7] = [2, -2, 2, 1, -1, 1, -1]

    def noted(independent: float) -> float:
        asked.append(independent)
        return Z

    bca(lambda weights: weights @ values / weights.sum(axis=1), np.ones(60), quantile=noted)
    assert asked == [pytest.approx(16**2 / 52, rel=0.02)]


SCORES = {
    "f1": f1_score,
    "macro_f1": lambda *given, **named: f1_score(*given, average="macro", **named),
    "matthews": matthews_corrcoef,
}


def test_no_more_than_the_scale_is_hidden_and_few_groups_need_many_rows() -> None:
    """Would catch a bound that grows with the rows of a group, and one row more that is told where nothing is shown."""
    labels = (np.arange(20_000) % 1000 == 0).astype(int)
    low, high = difference(
        np.eye(2)[labels], np.eye(2)[labels], labels, "classification", "f1", groups=np.arange(20_000) // 1000
    ).interval
    assert -200 <= low < high <= 200
    few = np.arange(400) % 2
    needed = judge(np.eye(2)[few], np.eye(2)[few], few, metric="macro_f1", groups=np.arange(400) % 4).rows_needed
    assert needed is not None
    assert needed > 10_000


@pytest.mark.parametrize(("metric", "rows"), [("accuracy", 800), ("macro_f1", 800), ("macro_f1", 401)])
def test_so_many_rows_as_are_told_show_two_equal_models_in_groups(metric: str, rows: int) -> None:
    """Would catch rows that are counted where groups are drawn, so that one row more is told again and again."""

    def judged(count: int) -> Shown:
        labels = np.arange(count) % 2
        return judge(np.eye(2)[labels], np.eye(2)[labels], labels, metric=metric, groups=np.arange(count) // 4)

    needed = judged(rows).rows_needed
    assert needed is not None
    assert judged(needed + 16).verdict == "pass"
    assert judged(needed - 40).verdict == "not shown"


def test_the_interval_of_one_score_ends_as_far_above_it_as_below() -> None:
    """Would catch an upper end in other units than the lower one. Of macro F1 with classes of one size, where errors go
    both ways, it is that of a proportion, here 80 % of 1,000 rows."""
    labels = np.arange(1000) % 2
    answers = np.where(np.arange(1000) % 10 < 2, 1 - labels, labels)
    found = score_interval(np.eye(2)[answers], labels, "classification", "macro_f1")
    assert found == pytest.approx((80 - 2.48, 80 + 2.48), abs=0.4)


def test_groups_of_one_row_are_rows() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0, 1], 50)
    assert design_effect(values, np.arange(50)) == 1.0


def worse(
    labels: np.ndarray, answers: np.ndarray, failing: np.ndarray, part: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, answers and weights of rows with `part` of the right answers to `failing` ones turned wrong, evenly."""
    classes, is_lost = np.unique(labels), failing & (answers == labels)
    truth, given, weights = [labels], [answers], [np.where(is_lost, 1 - part, 1.0)]
    for each in classes:
        chosen = is_lost & (labels != each)
        truth.append(labels[chosen])
        given.append(np.full(chosen.sum(), each))
        weights.append(np.full(chosen.sum(), part / (len(classes) - 1)))
    return np.concatenate(truth), np.concatenate(given), np.concatenate(weights)


@pytest.mark.parametrize("metric", list(SCORES))
@pytest.mark.parametrize("seed", range(6))
def test_unseen_losses_cost_what_the_metric_itself_says(metric: str, seed: int) -> None:
    """Of the rarest class, the two rarest, and so on, z^2 / (n + z^2) of the right answers turn wrong. Groups of 1 to 5
    rows with such an answer are n. The oracle is scikit-learn with weights for the rows. Would catch classes that may
    only fail apart, another number of groups, and false answers that cost nothing."""
    random = np.random.default_rng(seed)
    classes = 2 if metric == "f1" else 2 + seed % 3
    labels = random.integers(0, classes, 120) * (random.random(120) < 0.5)
    answers = labels if seed < 4 else np.where(random.random(120) < 0.9, labels, (labels + 1) % classes)
    units = np.arange(120) if seed % 2 else np.repeat(np.arange(120), random.integers(1, 6, 120))[:120]
    order = np.argsort(np.bincount(labels), kind="stable")
    before, falls = SCORES[metric](labels, answers), []
    for count in range(1, classes + 1):
        failing = np.isin(labels, order[:count])
        part = Z**2 / (len(np.unique(units[failing & (answers == labels)])) + Z**2)
        truth, given, weights = worse(labels, answers, failing, part)
        falls.append(before - SCORES[metric](truth, given, sample_weight=weights))
    counted = unseen(labels, answers, metric, groups=units, quantile=Z)(1.0) / 100
    assert counted == pytest.approx(max(falls), rel=1e-3) if seed < 4 else counted > max(falls) - 1e-6  # or wins


def test_a_row_of_several_labels_may_lose_them_all() -> None:
    """By hand: 40 rows have the first label, 20 of them the third too, and no row the second. If p = z^2 / (40 + z^2)
    of the rows are wrong, F1 of the first label is 2 (1 - p) / (2 - p). Wrong rows without the third label get it, so
    that it has 1 - p. If the third label fails alone, p is z^2 / (20 + z^2), and only that label is lost."""
    labels = np.array([[1, 0, 0]] * 20 + [[1, 0, 1]] * 20)
    every, third = Z**2 / (40 + Z**2), Z**2 / (20 + Z**2)
    falls = [1 - ((1 - every) / (1 - every / 2) + (1 - every)) / 2, 1 - (1 + (1 - third) / (1 - third / 2)) / 2]
    assert unseen(labels, labels, "macro_f1", groups=None, quantile=Z)(1.0) == pytest.approx(100 * max(falls))


def test_unseen_wins_take_false_answers_away() -> None:
    """By hand: of 10 rows with the label 2 get it, and 6 others. If z^2 / (8 + z^2) of the 8 lost ones are won, so many
    in 14 of the 6 false answers go, since 14 answers are wrong."""
    labels, answers = np.repeat([0, 0, 1, 1], [24, 6, 2, 8]), np.repeat([0, 1, 1, 0], [24, 6, 2, 8])
    won = 8 * Z**2 / (8 + Z**2)
    rise = 2 * (2 + won) / (2 + won + 6 * (1 - won / 14) + 10) - 4 / 18
    assert unseen(labels, answers, "f1", groups=None, quantile=Z)(1.0) == pytest.approx(100 * rise)


@pytest.mark.parametrize("metric", ["macro_f1", "matthews"])
def test_a_class_that_no_row_has_changes_no_unseen_loss(metric: str) -> None:
    labels, answers = np.repeat([0, 0, 1, 1], [28, 2, 9, 1]), np.repeat([0, 1, 1, 0], [28, 2, 9, 1])
    with_gap, without = (
        unseen(times * labels, times * answers, metric, groups=None, quantile=Z)(1.0) for times in (2, 1)
    )
    assert with_gap == pytest.approx(without)


def test_one_unseen_event_joins_the_spread_of_those_that_were_seen() -> None:
    """By hand: half of what no row shows, in quadrature; all of it if nothing was seen; never beyond the range."""
    assert intervals._widened((-3.0, 4.0), 0.0, 2.0, 1.0, -100.0, 100.0) == pytest.approx((-(10**0.5), 17**0.5))
    assert intervals._widened((-3.0, 3.0), 0.0, 2.0, 16.0, -100.0, 100.0) == pytest.approx((-5.0, 5.0))
    assert intervals._widened((1.0, 1.0), 1.0, 2.0, 1.0, -100.0, 100.0) == (-1.0, 3.0)
    assert intervals._widened((1.0, 99.0), 98.0, 4.0, 1.0, 0.0, 100.0)[1] == 100.0


@pytest.mark.parametrize("several", [False, True])
def test_the_classes_that_make_an_interval_wide_are_those_of_which_resampling_moves_most(several: bool) -> None:
    """The oracle resamples groups, and takes each class's F1 from scikit-learn. Would catch classes by their rows
    alone, by one model alone, and rows where groups are drawn."""
    random = np.random.default_rng(4)
    labels = random.choice(6, 300, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02])
    labels[:6] = np.arange(6)
    wrong = [np.array(each)[labels] for each in ([0.1, 0.1, 0.5, 0.6, 0.5, 0.5], [0.2, 0.2, 0.0, 0.4, 0.0, 0.1])]
    teacher = np.where(random.random(300) < wrong[0], (labels + 1) % 6, labels)
    student = np.where(random.random(300) < wrong[1], (labels + 2) % 6, teacher)
    truth, answers, others = (np.eye(6)[each] if several else each for each in (labels, student, teacher))
    units, moved = np.arange(300) // 3, []
    for _ in range(400):
        rows = (3 * random.integers(0, 100, 100)[:, None] + np.arange(3)).ravel()
        scores = [f1_score(truth[rows], each[rows], average=None, labels=range(6)) for each in (answers, others)]
        moved.append(scores[0] - scores[1])
    part = np.cov(np.array(moved).T).sum(axis=1)
    logits, others = (np.eye(6)[each] - 0.5 for each in (student, teacher))
    found = widest(logits, others, truth, "multilabel" if several else "classification", groups=units)
    assert found[:3] == list(np.argsort(-part)[:3])

"""The shares that a contract asks of decisions: how they are counted, and what is shown by them."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from kdc.artifact.contract.judgement import Judgement, decide, judge_share, spent
from kdc.artifact.contract.rates import Rate, parse_bound
from kdc.artifact.contract.terms import Contract, Costs, Limits, RequiredShare
from kdc.artifact.contract.text import table
from kdc.artifact.decision import Abstention, OperatingPoint
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import parse_abstain, parse_aim, required_label
from kdc.pipeline.quality.decision_rates import found_rates

TAGS = TaskInfo(
    name="tags",
    kind="multilabel",
    labels=("toxic", "a:b"),
    points=(OperatingPoint(label="toxic", threshold=0.8, aim="fixed"),),
)
MOOD = TaskInfo(name="mood", kind="classification", labels=("bad", "good"))
NEWS = TaskInfo(
    name="news",
    kind="classification",
    labels=("a", "b", "c"),
    abstain=Abstention(threshold=0.6, aim="fixed"),
)


COSTS = Costs(latency_ms=1, rows_per_s=1, size_mb=1)


def contract(*require: str) -> Contract:
    return Contract(limits=Limits(require=require))


def counted(
    terms: Contract, task: TaskInfo, probabilities: np.ndarray, labels: np.ndarray
) -> dict[str, tuple[int, int]]:
    found = found_rates(terms, task, probabilities, labels, groups=np.arange(len(labels)))
    return {each.requirement: (each.rate.hits, each.rate.of) for each in found}


def test_shares_are_of_what_the_artifact_decides() -> None:
    """Would catch one half in place of the thresholds, and rows that are not answered among those that are wrong."""
    probabilities = np.array([[0.9, 0.6], [0.7, 0.4], [0.85, 0.5], [0.1, 0.9]])
    labels = np.array([[1, 1], [1, 0], [0, 0], [0, 1]])
    asked = ("toxic:precision>=0.5", "toxic:recall>=0.5", "toxic:fpr<=0.5", "a:b:precision>=0.5")
    assert counted(contract(*asked), TAGS, probabilities, labels) == dict(
        zip(asked, [(1, 2), (1, 2), (1, 2), (2, 3)], strict=True)
    )
    rows = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    asked = ("accuracy>=0.5", "coverage>=0.5", "b:precision>=0.5", "b:recall>=0.1")
    assert counted(contract(*asked), NEWS, rows, np.array([0, 1, 1, 0])) == dict(
        zip(asked, [(2, 3), (3, 4), (1, 1), (1, 2)], strict=True)
    )
    assert counted(contract("recall>=0.5"), MOOD, rows[:, :2], np.array([0, 1, 1, 0])) == {"recall>=0.5": (1, 2)}


def test_each_end_of_an_interval_has_the_error_that_is_stated() -> None:
    """What shows that a share is kept has the contract's confidence; what shows a miss divides it among all shares."""
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet([1, 1], 300), generator.integers(0, 2, 300)
    asked = contract("recall>=0.9", "fpr<=0.1")
    for look in (1, 3):
        found = found_rates(asked, MOOD, probabilities, labels, groups=np.arange(300), look=look)
        kept = spent(0.95, look)
        for each, narrow in zip(found, ("low", "high"), strict=True):
            assert each.look == look
            for end in ("low", "high"):
                confidence = kept if end == narrow else 1 - (1 - kept) / 2
                interval = binomtest(each.rate.hits, each.rate.of).proportion_ci(confidence, method="exact")
                assert getattr(each.rate, end) == pytest.approx(getattr(interval, end), abs=1e-6)


def test_rows_of_one_group_count_as_one() -> None:
    generator = np.random.default_rng(1)
    probabilities, labels = generator.dirichlet([1, 1], 50), np.arange(50) % 2
    (once,) = found_rates(contract("accuracy>=0.9"), MOOD, probabilities, labels, groups=np.arange(50))
    probabilities, labels = np.repeat(probabilities, 4, axis=0), np.repeat(labels, 4)
    (again,) = found_rates(contract("accuracy>=0.9"), MOOD, probabilities, labels, groups=np.repeat(np.arange(50), 4))
    assert (again.rate.hits, again.rate.of) == (4 * once.rate.hits, 200)
    assert (again.rate.low, again.rate.high) == pytest.approx((once.rate.low, once.rate.high))


@pytest.mark.parametrize("sizes", [[1] * 150, [10] * 10 + [1] * 100, [20] * 5 + [1] * 60])
def test_rows_that_are_answered_alike_pass_no_more_often_than_is_said(sizes: list[int]) -> None:
    """Would catch intervals of as many rows as there are groups, where these are of different sizes. The truth is at
    the bound, so that 2.5 % may pass: of 600 draws more than 28 are as rare as one in a thousand."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    passed = 0
    for seed in range(600):
        is_right = np.repeat(np.random.default_rng(seed).random(len(sizes)) < 0.8, sizes)
        rows = np.where(is_right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        (found,) = found_rates(contract("accuracy>=0.8"), MOOD, rows, np.zeros(len(groups), int), groups=groups)
        passed += judge_share(found, "interval") == "pass"
    assert passed <= 28


def test_a_model_that_answers_everything_has_its_coverage_by_construction() -> None:
    rows, labels = np.array([[0.9, 0.1]] * 5), np.zeros(5, dtype=np.int64)
    every = MOOD.model_copy(update={"abstain": Abstention(threshold=0, aim="fixed")})
    for task in (MOOD, every):
        (found,) = found_rates(contract("coverage>=0.99"), task, rows, labels, groups=np.arange(5))
        assert judge_share(found, "interval") == "pass"
    sure = MOOD.model_copy(update={"abstain": Abstention(threshold=0.5, aim="fixed")})
    (found,) = found_rates(contract("coverage>=0.99"), sure, rows, labels, groups=np.arange(5))
    assert judge_share(found, "interval") == "not shown"


def test_of_no_rows_nothing_is_shown() -> None:
    rows, labels = np.array([[0.9, 0.1]] * 5), np.zeros(5, dtype=np.int64)
    (found,) = found_rates(contract("precision>=0.5"), MOOD, rows, labels, groups=np.arange(5))
    assert (found.rate.of, judge_share(found, "interval"), judge_share(found, "point")) == (
        0,
        "not shown",
        "not shown",
    )
    (none,) = found_rates(contract("recall>=0.5"), MOOD, rows, 1 - labels, groups=np.arange(5))
    assert (none.rate.hits, none.rate.low) == (0, 0.0)
    (all_,) = found_rates(contract("bad:recall>=0.5"), MOOD, rows, labels, groups=np.arange(5))
    assert (all_.rate.hits, all_.rate.high) == (5, 1.0)


@pytest.mark.parametrize(
    ("requirement", "interval", "verdict", "by_point"),
    [
        ("precision>=0.9", (0.9, 0.95), "pass", "pass"),
        ("precision>=0.9", (0.88, 0.95), "not shown", "pass"),
        ("precision>=0.93", (0.88, 0.95), "not shown", "fail"),
        ("precision>=0.96", (0.88, 0.95), "fail", "fail"),
        ("fpr<=0.95", (0.88, 0.95), "pass", "pass"),
        ("fpr<=0.9", (0.88, 0.95), "not shown", "fail"),
        ("fpr<=0.93", (0.88, 0.95), "not shown", "pass"),
        ("fpr<=0.87", (0.88, 0.95), "fail", "fail"),
    ],
)
def test_a_share_is_kept_where_its_whole_interval_is(
    requirement: str, interval: tuple[float, float], verdict: str, by_point: str
) -> None:
    found = RequiredShare(requirement=requirement, rate=Rate(hits=92, of=100, low=interval[0], high=interval[1]))
    assert judge_share(found, "interval") == verdict
    assert judge_share(found, "point") == by_point


@pytest.mark.parametrize(
    ("task", "requirement", "words"),
    [
        (TaskInfo(name="stars", kind="regression"), "accuracy>=0.9", "decides nothing"),
        (TAGS, "accuracy>=0.9", "takes no label"),
        (MOOD, "good:accuracy>=0.9", "takes no label"),
        (TAGS, "recall>=0.9", "needs a label"),
        (NEWS, "recall>=0.9", "needs a label"),
        (NEWS, "d:recall>=0.9", "no such label"),
    ],
)
def test_what_a_task_cannot_be_asked_for(task: TaskInfo, requirement: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        required_label(requirement, task)


@pytest.mark.parametrize(
    "wrong",
    [
        "f1",
        "0.9",
        "accuracy>0.9",
        "recall<=0.9",
        "fpr>=0.1",
        "recall>=1.1",
        "x:",
        "recall>=nan",
        "accuracy>=1",
        "fpr<=0",
    ],
)
def test_a_requirement_that_is_no_bound_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no bound"):
        contract("accuracy>=0.5", wrong)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("accuracy[language=de]>=0.9", (None, "accuracy", 0.9, ("language", "de"))),
        ("spam:Recall[the land=a:b=c]] >= .9", ("spam", "recall", 0.9, ("the land", "a:b=c]"))),
        ("fpr[length=1-8]<=0.1", (None, "fpr", 0.1, ("length", "1-8"))),
        ("fpr[length=1-8]>=0.1", None),
        ("accuracy[]>=0.5", None),
        ("accuracy[a=]>=0.5", None),
        (f"accuracy[a={'x' * 101}]>=0.5", None),
    ],
)
def test_a_bound_may_be_on_some_rows(text: str, rows: Any) -> None:
    assert parse_bound(text) == rows


@pytest.mark.parametrize("parse", [parse_aim, parse_abstain])
def test_a_threshold_is_not_chosen_for_some_rows(parse: Any) -> None:
    with pytest.raises(ValueError, match=r"aim|abstain"):
        parse("accuracy[language=de]>=0.9" if parse is parse_abstain else "recall[language=de]>=0.9")


def test_a_share_of_a_slice_counts_its_rows_alone() -> None:
    """The German rows are right as often as asked, all rows are not."""
    labels = np.zeros(100, dtype=int)
    probabilities = np.array([(0.9, 0.1)] * 40 + [(0.1, 0.9)] * 60)
    slices = {"land": np.array(["de"] * 40 + ["en"] * 60, dtype=object)}
    asked = contract("accuracy[land=de]>=0.9", "accuracy>=0.9", "bad:recall[land=en]>=0.9", "accuracy[land=fr]>=0.9")
    found = found_rates(asked, MOOD, probabilities, labels, groups=np.arange(100), slices=slices)
    assert [(share.rate.hits, share.rate.of) for share in found] == [(40, 40), (40, 100), (0, 60), (0, 0)]
    assert [judge_share(share, "interval") for share in found] == ["pass", "fail", "fail", "not shown"]


def test_bounds_are_read_whatever_labels_are_called() -> None:
    assert parse_bound("age>=18:fpr<=1e-2") == ("age>=18", "fpr", 0.01, None)
    assert parse_bound("a\nb:Recall >= .5 ") == ("a\nb", "recall", 0.5, None)
    assert parse_bound("preci\u017fion>=0.9") is None  # a long s, which ignoring case would take for an s


def test_a_hostile_requirement_takes_no_time() -> None:
    """Would catch a pattern that goes through its text once for each of its characters: a manifest can hold one."""
    for text in ("accuracy>=" + "1" * 100_000 + "x", ":" * 100_000, " " * 100_000 + "recall>=", "x:" * 50_000):
        began = time.process_time()
        with pytest.raises(ValueError, match="is no bound"):
            contract(text)
        assert time.process_time() - began < 1


def test_a_label_that_looks_like_a_bound_is_told_as_it_is() -> None:
    found = RequiredShare(requirement="age>=18:fpr<=0.01", rate=Rate(hits=1, of=200, low=0.0001, high=0.03))
    nothing = RequiredShare(requirement="age>=18:recall>=0.5", rate=Rate(hits=0, of=0, low=0, high=1))
    terms = contract(found.requirement, nothing.requirement)
    verdict, missed = decide(terms, COSTS, None, (found, nothing))
    judgement = Judgement(
        contract=terms,
        variant="int8",
        provider="CPUExecutionProvider",
        cpu="a CPU",
        threads=2,
        compared=True,
        lengths=(8,),
        costs=COSTS,
        required=(found, nothing),
        missed=missed,
        verdict=verdict,
    )
    assert table(judgement)[1:] == [
        ["age>=18:fpr", "<= 1 %", "0.5 (0.0 to 3.0) %", "not shown"],
        ["age>=18:recall", ">= 50 %", "no row", "not shown"],
    ]
    assert "no evaluation row" in missed[1]


@pytest.mark.parametrize(("true", "rows"), [(0.92, 1720), (0.93, 740), (0.95, 260), (0.97, 115)])
def test_the_rows_that_the_docs_name_show_the_bound_in_four_of_five_runs(true: float, rows: int) -> None:
    """Of docs/how-to/set-limits.md, by the verdict's own rule and the binomial distribution."""
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "set-limits.md").read_text(encoding="utf-8")
    assert f"{rows:,}" in page

    def power(count: int) -> float:
        fewest = next(hits for hits in range(int(0.9 * count), count) if passes(hits, count))
        return float(binom.sf(fewest - 1, count, true))

    def passes(hits: int, count: int) -> bool:
        right = np.arange(count) < hits
        probabilities = np.stack([right, ~right], axis=1).astype(np.float32)
        labels, terms = np.zeros(count, int), contract("accuracy>=0.9")
        (share,) = found_rates(terms, MOOD, probabilities, labels, groups=np.arange(count))
        return judge_share(share, "interval") == "pass"

    assert 0.79 <= power(rows) <= 0.88  # with few rows it moves in steps

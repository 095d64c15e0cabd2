"""A new metric is one object in `METRICS`; everything else is told by it."""

import numpy as np
import pytest
from scipy import stats

from kdc.artifact.manifest import CPU_PROVIDER, Manifest, TaskInfo, Variant
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.metrics import METRICS, Metric, Scorer, compute, counts, f1_by_class
from kdc.pipeline.config.tasks import task_of
from kdc.pipeline.packaging.hugging_face import card_metadata
from kdc.pipeline.quality.comparison import judge
from kdc.pipeline.quality.intervals import score_interval

Z = stats.norm.ppf(0.975)


def near(truth: np.ndarray, answers: np.ndarray) -> Scorer:
    """The share of numbers that are at most 1 away from their label."""
    is_near = (np.abs(truth - answers) <= 1).astype(float)
    return lambda weights: weights @ is_near / weights.sum(axis=1)


def of_counts(both: np.ndarray, answered: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """F1 of the class that has the least."""
    return f1_by_class(both, answered, actual).min(axis=1)


def worst_f1(truth: np.ndarray, answers: np.ndarray) -> Scorer:
    counted = counts(truth, answers)
    return lambda weights: of_counts(*counted(weights))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "near", Metric(("regression",), "nearness", 0.0, near, unseen_cost=1.0))
    monkeypatch.setitem(METRICS, "worst_f1", Metric(("classification",), "worst", 0.0, worst_f1, unseen_cost=of_counts))


def numbers(near_ones: int, rows: int) -> np.ndarray:
    """Answers (rows, 1) to labels that are all 0."""
    return np.where(np.arange(rows) < near_ones, 0.5, 2.0)[:, None]


def test_a_task_can_be_decided_by_it() -> None:
    assert task_of(DataSettings(task="stsb", metric="near")).metrics == ("near", "pearson", "spearman")
    assert task_of(DataSettings(task="mnli", metric="worst_f1")).info().metric == "worst_f1"


def test_models_are_evaluated_by_it() -> None:
    assert compute(numbers(3, 4), np.zeros(4), "regression", ("near",)) == {"near": 75.0}
    # Class 0 is answered thrice and right twice, class 1 is answered once, of twice, and right: 4 / 5 and 2 / 3.
    answers, labels = np.eye(2)[[0, 0, 0, 1]], np.array([0, 0, 1, 1])
    assert compute(answers, labels, "classification", ("worst_f1",))["worst_f1"] == pytest.approx(200 / 3, abs=1e-3)


def test_its_interval_is_that_of_a_proportion() -> None:
    """A share of rows is known as well as scipy says."""
    expected = stats.binomtest(800, 1000).proportion_ci(0.95, method="wilson")
    interval = score_interval(numbers(800, 1000), np.zeros(1000), "regression", "near")
    assert interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.4)


@pytest.mark.parametrize("cost", [1.0, 2.0])
def test_a_perfect_score_is_as_sure_as_what_one_error_may_cost(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    """60 rows without an error: 3.84 / (60 + 3.84) of all others may be wrong. Would catch a cost that is not asked."""
    monkeypatch.setitem(METRICS, "near", Metric(("regression",), "near", -1.0, near, unseen_cost=cost))
    low, _ = score_interval(numbers(60, 60), np.zeros(60), "regression", "near")
    assert low == pytest.approx(100 - 100 * cost * Z**2 / (60 + Z**2), abs=0.01)


def test_a_perfect_score_of_counts_is_as_sure_as_the_counts_say() -> None:
    """Would catch a cost of all rows for a score that only the rarest class decides. That class has 10 rows. A share
    of 3.84 / (10 + 3.84) may be wrong. If a share p is right, the class has an F1 of 2 p / (p + 1)."""
    labels = np.repeat([0, 1], [990, 10])
    low, _ = score_interval(np.eye(2)[labels], labels, "classification", "worst_f1")
    right = 10 / (10 + Z**2)
    assert low == pytest.approx(100 * 2 * right / (right + 1), abs=0.01)


def test_there_is_no_metric_without_the_cost_of_what_no_row_shows() -> None:
    with pytest.raises(TypeError, match="unseen_cost"):
        Metric(("regression",), "near", 0.0, near)  # type: ignore[call-arg]


@pytest.mark.parametrize(("student", "verdict"), [(1900, "pass"), (1400, "fail"), (1850, "not shown")])
def test_students_are_judged_by_it(student: int, verdict: str) -> None:
    """2,000 rows, and a limit of 3 points: 0, 25 and 2.5 points below the teacher, with an interval of about 0.7."""
    judged = judge(
        numbers(student, 2000), numbers(1900, 2000), np.zeros(2000), kind="regression", metric="near", max_drop=3.0
    )
    assert (judged.difference, judged.verdict) == ((student - 1900) / 20, verdict)


def test_the_card_calls_it_by_the_name_of_the_hub() -> None:
    manifest = Manifest.model_construct(  # type: ignore[call-arg]
        task=TaskInfo(name="stsb", kind="regression", metric="near"),
        variants={"fp32": Variant(file="model.onnx", size_bytes=1, opset=17, ir=8, metrics={"near": 75.0})},
        providers={CPU_PROVIDER: "fp32"},
        files={},
    )
    assert "type: nearness" in card_metadata(manifest, models=[], dataset=None)

"""Verdicts and the rows that would be needed, on cases that can be worked out by hand."""

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from kdc.artifact.contract.judgement import Judgement, decide, judge_drop, missed_costs, spent
from kdc.artifact.contract.rates import Rate
from kdc.artifact.contract.terms import Contract, Costs, Limits, Quality, RequiredShare, parse_conditions, replace
from kdc.artifact.contract.text import advice, render
from kdc.common.errors import InputError
from kdc.pipeline.quality.comparison import Other, compare

COSTS = Costs(latency_ms=4.0, rows_per_s=500, size_mb=20)


def contract(**limits: float) -> Contract:
    return Contract(limits=Limits(**limits))


def quality_of(difference: float, low: float, high: float = 5.0) -> Quality:
    return Quality(
        metric="accuracy",
        against="teacher",
        teacher=90,
        student=90 + difference,
        difference=difference,
        interval=(low, high),
        rows=800,
        groups=800,
    )


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({}, []),
        ({"max_latency_ms": 4.0, "max_size_mb": 20, "min_rows_per_s": 500}, []),  # at the limit is within it
        ({"max_latency_ms": 3.2}, ["p95 latency is 4 ms, the limit 3.2: 25 % above"]),
        ({"max_latency_ms": 3.99}, ["p95 latency is 4 ms, the limit 3.99: 0.3 % above"]),
        ({"max_size_mb": 16}, ["size is 20 MB, the limit 16: 25 % above"]),
        ({"min_rows_per_s": 1000}, ["throughput is 500 rows/s, the limit 1000: 50 % below"]),
    ],
)
def test_each_cost_is_compared_with_its_limit(limits: dict[str, float], missed: list[str]) -> None:
    assert missed_costs(contract(**limits), COSTS) == missed


@pytest.mark.parametrize(
    ("difference", "interval", "verdict"),
    [
        (-0.5, (-0.9, 0.5), "pass"),
        (0.2, (-1.0, 1.4), "pass"),
        (-0.5, (-1.4, 0.4), "not shown"),
        (-1.2, (-2.0, -0.4), "not shown"),
        (-1.2, (-1.4, -1.01), "fail"),
        (-1.2, (-1.4, -1.0), "not shown"),
    ],
)
def test_quality_passes_or_fails_by_the_whole_interval(
    difference: float, interval: tuple[float, float], verdict: str
) -> None:
    assert decide(contract(max_drop=1), COSTS, quality_of(difference, *interval))[0] == verdict


def test_a_drop_that_nobody_asked_for_or_counted_is_kept() -> None:
    assert judge_drop(contract(), quality_of(-9, -10, -8)) == "pass"
    assert judge_drop(contract(max_drop=1), None) == "pass"


@pytest.mark.parametrize(
    ("interval", "starved", "verdict"),
    [
        ((3.0, 4.0), 0.0, "pass"),
        ((3.0, 4.1), 0.0, "not shown"),
        ((4.1, 4.3), 0.0, "fail"),
        ((4.1, 4.3), 0.5, "not shown"),  # the neighbours may be why
        ((4.0, 4.3), 0.0, "not shown"),
        ((5.0, 5.2), 0.2, "not shown"),  # with the fifth that they took it is at the limit
        ((5.0, 5.2), 0.19, "fail"),
        ((4.1, 4.3), 0.05, "fail"),
        ((40.0, 43.0), 0.5, "fail"),  # they cannot be
        ((3.0, 4.0), 0.5, "pass"),
        (None, 0.0, "pass"),
    ],
)
def test_a_time_passes_or_fails_by_its_whole_interval_on_a_machine_that_is_not_busy(
    interval: tuple[float, float] | None, starved: float, verdict: str
) -> None:
    latency = COSTS.model_copy(update={"latency_interval": interval, "starved": starved})
    assert decide(contract(max_latency_ms=4), latency, None)[0] == verdict
    scaled = interval and (2000 / interval[1], 2000 / interval[0])
    speed = COSTS.model_copy(update={"rows_interval": scaled, "starved": starved})
    assert decide(contract(min_rows_per_s=500), speed, None)[0] == verdict


def test_what_is_missed_or_not_shown_is_told_in_numbers() -> None:
    busy = COSTS.model_copy(update={"latency_interval": (4.1, 4.3), "starved": 0.42})
    taken = "p95 latency is 4 ms (4.1 to 4.3), the limit 3, but other processes took 42 % of its threads' cores"
    assert decide(contract(max_latency_ms=3), busy, None)[1][0].startswith(taken)
    (lost,) = decide(contract(max_drop=2), COSTS, quality_of(-4.5, -6.0, -3.0))[1]
    assert lost == "accuracy is 4.50 points below the teacher's, the limit 2: 2.50 points too many"
    few = quality_of(-1.2, -2.0, 0.1).model_copy(update={"look": 2, "rows_needed": 9000})
    (sentence,) = decide(contract(max_drop=1), COSTS, few)[1]
    assert "too few to say with 97.5 % confidence" in sentence
    assert "about 9000 rows" in sentence
    (sentence,) = decide(contract(max_drop=1), COSTS, few.model_copy(update={"rows_needed": None}))[1]
    assert "more rows would not show that it holds" in sentence
    assert " groups" not in sentence
    (sentence,) = decide(contract(max_drop=1), COSTS, few.model_copy(update={"groups": 37}))[1]
    assert f"{few.rows} evaluation rows in 37 groups" in sentence
    assert decide(contract(max_latency_ms=4), COSTS, few)[0] == "pass"  # nobody asked for a drop


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [("threads", (1, 1024), (0, 1025)), ("lengths", ((1,), (8,) * 100), ((), (0,), (8,) * 101))],
)
def test_a_manifest_with_impossible_threads_or_lengths_is_refused(
    field: str, good: tuple[object, ...], bad: tuple[object, ...]
) -> None:
    made = {"contract": contract(max_size_mb=20), "variant": "int8", "provider": "CPU", "cpu": "x", "costs": COSTS}
    made |= {"threads": 2, "lengths": (8,), "compared": True, "verdict": "pass"}
    for value in good:
        Judgement.model_validate(made | {field: value})
    for value in bad:
        with pytest.raises(ValidationError):
            Judgement.model_validate(made | {field: value})
    for verdict in ("fail", "not shown"):
        with pytest.raises(ValidationError, match="does not follow"):
            Judgement.model_validate(made | {"verdict": verdict})


def test_a_size_is_exact_however_busy_the_machine_is() -> None:
    assert decide(contract(max_size_mb=19), COSTS.model_copy(update={"starved": 1.0}), None)[0] == "fail"


def test_however_many_looks_there_are_their_errors_add_up_to_twice_that_of_the_first() -> None:
    errors = [1 - spent(0.95, look) for look in range(1, 10_000)]
    assert errors[0] == pytest.approx(0.05)
    assert errors[1] == pytest.approx(0.025)
    assert sum(errors) == pytest.approx(0.1, abs=1e-4)
    assert all(later < sooner for sooner, later in itertools.pairwise(errors))


def test_point_evidence_passes_by_the_difference_alone() -> None:
    asked = contract(max_drop=1).model_copy(update={"evidence": "point"})
    assert decide(asked, COSTS, quality_of(-0.9, -3.0))[0] == "pass"
    assert decide(asked, COSTS, quality_of(-1.1, -3.0, 3.0))[0] == "fail"


def test_a_cost_that_is_missed_fails_whatever_the_quality_is() -> None:
    verdict, missed = decide(contract(max_drop=1, max_size_mb=10), COSTS, quality_of(2, 1))
    assert verdict == "fail"
    assert missed == ("size is 20 MB, the limit 10: 100 % above",)


def test_a_judgement_of_requirements_alone_is_a_look_too() -> None:
    asked = Contract(limits=Limits(require=("recall>=0.9",)))
    found = RequiredShare(requirement="recall>=0.9", rate=Rate(hits=99, of=100, low=0.95, high=1.0), look=3)
    verdict, missed = decide(asked, COSTS, None, (found,))
    common = {"variant": "int8", "provider": "CPU", "cpu": "x", "threads": 2, "lengths": (8,), "costs": COSTS}
    common["compared"] = True
    judged = Judgement(contract=asked, required=(found,), missed=missed, verdict=verdict, **common)
    assert (judged.look, judgement(contract(max_size_mb=20), None).look) == (3, None)
    assert judgement(contract(max_drop=1), quality_of(0, -0.5).model_copy(update={"look": 2})).look == 2


def answers(right: np.ndarray, labels: np.ndarray, classes: int = 2) -> np.ndarray:
    """Logits of a model that is right exactly on these rows."""
    chosen = np.where(right, labels, (labels + 1) % classes)
    return np.eye(classes, dtype=np.float32)[chosen]


def test_the_interval_of_accuracy_is_that_of_paired_proportions() -> None:
    labels = np.arange(1000) % 2
    teacher, student = np.ones(1000, bool), np.ones(1000, bool)
    teacher[:40] = False
    student[20:90] = False  # 50 rows only the teacher has right, 20 only the student: -3 points
    quality = compare(
        answers(student, labels),
        Other("teacher", answers(teacher, labels)),
        labels,
        "classification",
        "accuracy",
        contract=contract(max_drop=3),
    )
    assert quality is not None
    error = 100 * np.sqrt((0.07 - 0.03**2) / 1000)
    assert quality.difference == pytest.approx(-3)
    assert quality.interval[0] == pytest.approx(-3 - 1.96 * error, abs=0.15)
    assert quality.interval[1] == pytest.approx(-3 + 1.96 * error, abs=0.15)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews"])
@pytest.mark.parametrize(
    ("wrong", "max_drop", "verdict"), [(0, 2.0, "pass"), (4, 1.5, "not shown"), (100, 1.0, "fail")]
)
def test_every_metric_of_classes_can_be_judged(metric: str, wrong: int, max_drop: float, verdict: str) -> None:
    labels = np.arange(400) % 2
    right = np.ones(400, bool)
    right[:wrong] = False
    asked = contract(max_drop=max_drop if metric != "matthews" else 2 * max_drop)  # its scale is twice as long
    student, teacher = answers(right, labels), answers(np.ones(400, bool), labels)
    quality = compare(student, Other("teacher", teacher), labels, "classification", metric, contract=asked)
    assert decide(asked, COSTS, quality)[0] == verdict


# With z = 1.96, up to z^2 / (n + z^2) of other rows may be lost if n rows lose nothing. Of two classes of one size that
# is what F1 and macro F1 lose, and half of what Matthews' correlation does, from 1 to -1 where all rows are wrong.
@pytest.mark.parametrize(
    ("metric", "rows", "points"),
    [
        ("accuracy", 1, 79.345),
        ("accuracy", 20, 16.1125),
        ("accuracy", 800, 0.4779),
        ("f1", 40, 8.7619),
        ("macro_f1", 40, 8.7619),
        ("matthews", 40, 17.5238),
    ],
)
def test_few_rows_without_a_loss_show_little(metric: str, rows: int, points: float) -> None:
    labels = np.arange(rows) % 2
    alike = answers(np.ones(rows, bool), labels)
    asked = contract(max_drop=0.4)
    quality = compare(alike, Other("teacher", alike), labels, "classification", metric, contract=asked)
    assert quality is not None
    assert quality.difference == 0
    assert quality.interval == pytest.approx((-points, points), rel=1e-4)
    assert decide(asked, COSTS, quality)[0] == "not shown"
    assert quality.rows_needed is not None
    more = np.arange(quality.rows_needed + 2) % 2
    alike = answers(np.ones(len(more), bool), more)
    quality = compare(alike, Other("teacher", alike), more, "classification", metric, contract=asked)
    assert decide(asked, COSTS, quality)[0] == "pass"


def test_macro_f1_is_of_the_same_classes_for_both_models() -> None:
    # The rows lack the third class. A teacher that is 95 % right and names it now and then is better than a student
    # that is 80 % right and never does.
    labels = np.arange(1000) % 2
    teacher, student = labels.copy(), labels.copy()
    teacher[:50], student[:200] = 1 - labels[:50], 1 - labels[:200]
    teacher[:6] = 2
    quality = compare(
        np.eye(3)[student],
        Other("teacher", np.eye(3)[teacher]),
        labels,
        "classification",
        "macro_f1",
        contract=contract(max_drop=1),
    )
    assert quality is not None
    assert quality.student == pytest.approx(80)
    assert quality.teacher == pytest.approx(95, abs=0.3)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize(("noise", "verdict"), [(0.0, "pass"), (3.0, "fail")])
def test_correlations_can_be_judged(metric: str, noise: float, verdict: str) -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=500)
    teacher = (labels + 0.3 * generator.normal(size=500))[:, None]
    student = teacher + noise * generator.normal(size=(500, 1))
    asked = contract(max_drop=1)
    quality = compare(student, Other("teacher", teacher), labels, "regression", metric, contract=asked)
    assert decide(asked, COSTS, quality)[0] == verdict


def judgement(asked: Contract, quality: Quality | None, *, compared: bool = True) -> Judgement:
    verdict, missed = decide(asked, COSTS, quality)
    return Judgement(
        contract=asked,
        variant="int8",
        provider="CPUExecutionProvider",
        cpu="a CPU",
        threads=2,
        lengths=(8,),
        costs=COSTS,
        quality=quality,
        compared=compared,
        missed=missed,
        verdict=verdict,
    )


def test_the_text_of_a_failure_says_which_limit_by_how_much_and_what_to_try() -> None:
    text = render(judgement(contract(max_drop=1, max_latency_ms=2, max_size_mb=30), quality_of(-1.5, -3, -1.2)))
    assert "p95 latency is 4 ms, the limit 2: 100 % above" in text
    assert "accuracy is 1.50 points below the teacher's, the limit 1: 0.50 points too many" in text
    assert "try: fewer layers" in text
    assert "try: more layers" in text
    assert [line.split()[-1] for line in text.splitlines()[1:4]] == ["no", "yes", "no"]


def test_the_text_of_not_shown_says_how_many_rows_would_show_it() -> None:
    quality = quality_of(-0.5, -1.4).model_copy(update={"rows_needed": 12345})
    text = render(judgement(contract(max_drop=1), quality))
    assert "not shown" in text
    assert "about 12345 rows would show it" in text


def test_a_kept_contract_gives_no_advice() -> None:
    assert advice(judgement(contract(max_drop=1), quality_of(0, -0.5))) == []


def test_the_text_says_that_quality_was_not_checked_again() -> None:
    unchecked = judgement(contract(max_drop=1), quality_of(0, -0.5), compared=False)
    assert "quality was not checked again" in render(unchecked)
    assert "quality was not checked again" not in render(unchecked.model_copy(update={"compared": True}))


def test_changed_terms_replace_those_of_the_contract() -> None:
    old = contract(max_drop=1, max_latency_ms=5)
    new = replace(old, {"max_latency_ms": 7.0, "max_size_mb": None, "at": "batch=8, length=64", "evidence": "point"})
    assert new.limits == Limits(max_drop=1, max_latency_ms=7)
    assert (new.at.batch, new.at.length, new.at.percentile, new.evidence) == (8, 64, 95, "point")


@pytest.mark.parametrize("text", ["length", "length=", "=3", ""])
def test_conditions_that_are_not_name_and_number_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="name=number"):
        parse_conditions(text)


@pytest.mark.parametrize("changes", [{"at": "lenght=3"}, {"at": "batch=0"}, {"max_drop": -1}, {"evidence": "hope"}])
def test_terms_that_are_not_possible_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="wrong contract"):
        replace(contract(max_drop=1), changes)

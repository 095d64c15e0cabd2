"""Which rows are deferred: the choice against an oracle, the error rate that it states, and a run that defers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from conftest import Finished
from numpy.typing import NDArray
from scipy.stats import binomtest

from kdc.artifact.decision import Abstention, decision_table
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import BoundNotShown, InputError
from kdc.pipeline.config.aims import abstain_of, parse_abstain, parse_defer
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.evaluation.thresholds import _abstention
from kdc.pipeline.quality.decision_rates import answered_rates
from kdc.pipeline.quality.operating import choose_answered
from kdc.serving.engine.engine import Engine

MOOD = TaskInfo(name="mood", kind="classification", labels=("bad", "so so", "good"))
BUDGET = parse_defer("disagreement<=0.05")


def draw(count: int, seed: int, most: float = 0.4) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences, and whether model and teacher agree: they differ in `most` of the rows where the model is least
    sure, and in none where it is surest."""
    generator = np.random.default_rng(seed)
    confidence = generator.random(count)
    return confidence, generator.random(count) >= most * (1 - confidence)


@pytest.mark.parametrize("seed", range(20))
def test_most_rows_are_answered_whose_disagreement_is_shown_to_keep_the_bound(seed: int) -> None:
    """The oracle goes on row by row, and stops at the first of scipy's binomial tests that fails."""
    confidence, agrees = draw(600, seed)
    expected = differing = 0
    for row in np.argsort(-confidence):
        differing += not agrees[row]
        if binomtest(differing, 600, 0.05, alternative="less").pvalue > 0.05:
            break
        expected += 1
    found = choose_answered(confidence, agrees, BUDGET)
    assert found.reached
    assert (confidence >= found.threshold).sum() == expected
    assert 0 < expected < 600


def test_a_budget_that_is_broken_by_a_hair_is_taken_for_kept_as_rarely_as_is_said() -> None:
    """Would catch a threshold by the share that is counted, and tests of the answered rows alone. Of 1,000 draws at an
    error of 5 % more than 72 are as rare as one in a thousand."""
    wrong = by_share = 0
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        confidence, agrees = generator.random(400), generator.random(400) >= 0.05
        wrong += choose_answered(confidence, agrees, BUDGET).threshold == 0
        by_share += (~agrees).mean() <= 0.05
    assert 10 < wrong <= 72 < by_share


def test_all_rows_are_answered_where_that_keeps_the_budget() -> None:
    found = choose_answered(*draw(500, seed=3, most=0.01), BUDGET)
    assert (found.threshold, found.reached) == (0.0, True)


def test_rows_that_are_four_times_there_show_no_more_than_once() -> None:
    """Would catch rows of a group that count as independent."""
    confidence, agrees = draw(600, seed=0)
    once = choose_answered(confidence, agrees, BUDGET).threshold
    copies = (np.repeat(confidence, 4), np.repeat(agrees, 4), BUDGET)
    grouped = choose_answered(*copies, groups=np.repeat(np.arange(600), 4)).threshold
    assert choose_answered(*copies).threshold < once <= grouped < once + 0.1


def test_what_is_not_shown_is_told_with_what_is() -> None:
    """40 rows that all agree show 7.22 % at best: 1 - 0.05 ** (1 / 40)."""
    confidence = np.linspace(0, 1, 40)
    found = choose_answered(confidence, np.ones(40, dtype=bool), BUDGET)
    assert (found.reached, found.proven, found.note) == (False, "0.0722", "at best 0.0722 is shown, by 40 rows")
    asked = choose_answered(confidence, np.ones(40, dtype=bool), parse_defer(f"disagreement<={found.proven}"))
    assert (asked.reached, asked.threshold) == (True, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_who_asks_for_what_is_told_to_be_shown_gets_it(seed: int) -> None:
    confidence, agrees = draw(300, seed)
    groups = np.random.default_rng(seed).integers(0, 60, 300)
    missed = choose_answered(confidence, agrees, parse_defer("disagreement<=0.001"), groups=groups)
    assert not missed.reached
    assert choose_answered(confidence, agrees, parse_defer(f"disagreement<={missed.proven}"), groups=groups).reached


def logits_of(answers: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    return np.eye(2)[answers]


def test_of_two_bounds_the_stricter_threshold_is_taken() -> None:
    """The teacher is like the student, the labels are not where it is unsure, or the contrary."""
    confidence, agrees = draw(600, seed=1)
    probabilities = np.stack([(1 - confidence) / 2, (1 + confidence) / 2], axis=1)  # always class 1
    both, groups = (BUDGET, parse_defer("error<=0.05")), np.arange(600)
    like, unlike = np.ones(600, dtype=int), agrees.astype(int)
    alone = choose_answered((1 + confidence) / 2, agrees, BUDGET).threshold
    for labels, teacher in ((unlike, like), (like, unlike)):
        made = _abstention(both, probabilities, labels, logits_of(teacher), groups=groups, variant="int8")
        assert (made.threshold, made.reached, made.variant) == (alone, True, "int8")
        assert made.aim == "disagreement<=0.05 and error<=0.05"
    free = _abstention(both, probabilities, like, logits_of(like), groups=groups, variant="int8")
    assert free.threshold == 0


@pytest.mark.parametrize("unlike", ["teacher", "labels"])
def test_each_of_two_bounds_must_be_shown(unlike: str) -> None:
    """Would catch a bound that is taken for shown since the other one is, and advice that names another option."""
    probabilities, ones = np.full((400, 2), [0.1, 0.9]), np.ones(400, dtype=int)
    teacher, labels = (0 * ones, ones) if unlike == "teacher" else (ones, 0 * ones)
    aims = (BUDGET, parse_defer("error<=0.05"))
    with pytest.raises(BoundNotShown) as refused:
        _abstention(aims, probabilities, labels, logits_of(teacher), groups=np.arange(400), variant="int8")
    measure = "disagreement" if unlike == "teacher" else "error"
    assert refused.value.given == f"answers: {measure}<=0.05: at best 1.0000 is shown, by 400 rows"
    assert "the nearest is --abstain 0.0 " in refused.value.remedy
    few = slice(0, 40)
    with pytest.raises(BoundNotShown) as refused:
        _abstention(aims[:1], probabilities[few], ones[few], logits_of(ones[few]), groups=np.arange(40), variant="int8")
    assert "ask for less: --defer 'disagreement<=0.0722'" in refused.value.remedy


def test_shares_are_of_all_rows() -> None:
    """Of six rows four are answered: one unlike the teacher, two unlike the label."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9], [0.55, 0.45], [0.5, 0.5]])
    labels, teacher = np.array([0, 1, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1])
    deferral = Abstention(threshold=0.6, aim="disagreement<=0.2 and error<=0.4")
    rates = answered_rates(probabilities, labels, deferral, logits_of(teacher))
    assert rates.disagreement is not None
    assert rates.error is not None
    counted = [(rate.hits, rate.of) for rate in (rates.coverage, rates.accuracy, rates.disagreement, rates.error)]
    assert counted == [(4, 6), (2, 4), (1, 6), (2, 6)]
    titles, cells = decision_table((), deferral.model_copy(update={"evaluation": rates}))
    table = dict(zip(titles, cells, strict=True))
    assert table["unlike the teacher, of all %"].startswith("16.7 (")
    assert table["wrong, of all %"].startswith("33.3 (")
    assert table["on the tuning set"] == "shown"
    plain = answered_rates(probabilities, labels, Abstention(threshold=0.6, aim="accuracy>=0.5"), logits_of(teacher))
    assert (plain.disagreement, plain.error, plain.accuracy) == (None, None, rates.accuracy)


def test_what_is_asked_is_read() -> None:
    assert parse_defer(" Disagreement <= 0.02").text == "disagreement<=0.02"
    assert parse_defer("error<=5e-2").text == "error<=0.05"
    for wrong in (
        "",
        "0.9",
        "disagreement",
        "disagreement>=0.02",
        "error<=0",
        "error<=1",
        "error<=nan",
        "no:error<=.1",
    ):
        with pytest.raises(ValueError, match="when to defer"):
            parse_defer(wrong)


@pytest.mark.parametrize(
    ("task", "abstain", "aims", "defer", "words"),
    [
        (TaskInfo(name="stars", kind="regression"), None, (), ("error<=0.1",), "can abstain"),
        (TaskInfo(name="tags", kind="multilabel", labels=("a",)), None, (), ("error<=0.1",), "drop --defer"),
        (MOOD, "0.9", (), ("error<=0.1",), "the same threshold"),
        (MOOD, None, ("good:0.5",), ("error<=0.1",), "--defer exclude each other"),
        (MOOD, None, (), ("error<=0.1", "error<=0.2"), "two bounds"),
    ],
)
def test_what_cannot_be_deferred(
    task: TaskInfo, abstain: str | None, aims: tuple[str, ...], defer: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        abstain_of(abstain, aims, task, defer=defer)


def test_what_answered_rows_keep_is_listed() -> None:
    assert abstain_of(None, (), MOOD, defer=("error<=0.1", "disagreement<=0.05")) == (parse_defer("error<=0.1"), BUDGET)
    assert abstain_of("0.9", (), MOOD) == (parse_abstain("0.9"),)


@pytest.mark.slow
def test_a_finished_run_defers_by_its_last_stage_alone(finished: Finished, tmp_path: Path) -> None:
    """Would catch answers compared with another model's, and rates told of other rows or probabilities than serve."""
    shutil.copytree(finished.folder / "run", tmp_path / "run", symlinks=True)
    settings: dict[str, Any] = {"run": finished.config.run.model_copy(update={"out": tmp_path / "run"})}
    bounds = ("disagreement<=0.4", "error<=0.5")
    settings["operating"] = finished.config.operating.model_copy(update={"defer": bounds})
    made = tiny_runs.compress(finished.config.model_copy(update=settings))
    assert [name for name, record in made.stages.items() if not record.skipped] == ["package"]
    assert made.result is not None
    folder = tmp_path / "run" / made.result.artifact
    engine, data = Engine.load(folder, device="cpu", threads=1), open_data(tmp_path / "run" / "data")
    abstain, targets = engine.task.abstain, np.load(tmp_path / "run" / "targets" / "logits.npy")
    assert abstain is not None
    with np.load(tmp_path / "run" / "evaluate" / "logits.npz") as logits:
        teachers = {"tune": targets[np.asarray(data.rows("tune")["row"][:])], "eval": logits["eval/teacher"]}
    for split, told in (("tune", abstain.tuning), ("eval", abstain.evaluation)):
        rows, probabilities = data.rows(split), engine.predict(texts_of(data.rows(split)))
        best, is_answered = probabilities.argmax(axis=1), probabilities.max(axis=1) >= abstain.threshold
        unlike = [
            int((is_answered & (best != other)).sum()) for other in (teachers[split].argmax(axis=1), rows["label"][:])
        ]
        assert told is not None
        assert told.disagreement is not None
        assert told.error is not None
        assert told.coverage.hits == is_answered.sum()
        assert [(rate.hits, rate.of) for rate in (told.disagreement, told.error)] == [(n, len(rows)) for n in unlike]
    assert "unlike the teacher, of all %" in (folder / "README.md").read_text(encoding="utf-8")

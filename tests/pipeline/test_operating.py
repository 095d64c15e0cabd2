"""Aims and thresholds: what is asked, what keeps it, what none can keep. The oracle tries every threshold."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from conftest import Finished
from numpy.typing import NDArray
from scipy.stats import binomtest
from tiers import others_slow

from kdc.artifact.decision import OperatingPoint
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import BoundNotShown, InputError
from kdc.pipeline.config.aims import Aim, aims_of, parse_aim
from kdc.pipeline.config.resolve import layer_of, resolve
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.evaluation.thresholds import _Choice, _refuse_unshown, _unreached
from kdc.pipeline.quality.decision_rates import rates
from kdc.pipeline.quality.operating import Chosen, choose
from kdc.pipeline.rundir.record import CompressResult
from kdc.serving.engine.deciding import decided, in_words
from kdc.serving.engine.engine import Engine

TOXIC = TaskInfo(name="words", kind="multilabel", labels=("toxic", "rude", "a:b"))
MOOD = TaskInfo(name="mood", kind="classification", labels=("bad", "good"))


def rows(seed: int, count: int = 400) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Probabilities with ties, and labels that go with them, loosely."""
    draw = np.random.default_rng(seed)
    probabilities = draw.integers(0, 60, count) / 59
    return probabilities.astype(np.float32), draw.random(count) < 0.1 + 0.6 * probabilities**2


def tried(probabilities: NDArray[Any], has: NDArray[np.bool_]) -> list[tuple[float, float, float, float]]:
    """(precision, recall, false positive rate, F1) of every threshold that gives the label to a right row."""
    found = []
    for threshold in sorted({*probabilities.tolist()}):
        gets = probabilities >= threshold
        right, wrong = int((gets & has).sum()), int((gets & ~has).sum())
        if right:
            recall = right / has.sum()
            found.append((right / (right + wrong), recall, wrong / (~has).sum(), 2 * right / (has.sum() + gets.sum())))
    return found


def outcome(threshold: float, probabilities: NDArray[Any], has: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    gets = probabilities >= threshold
    right, wrong = int((gets & has).sum()), int((gets & ~has).sum())
    return right / (right + wrong), right / has.sum(), wrong / (~has).sum(), 2 * right / (has.sum() + gets.sum())


@pytest.mark.parametrize("seed", range(5))
def test_a_threshold_is_the_best_of_all_that_keep_the_aim(seed: int) -> None:
    probabilities, has = rows(seed)
    every = tried(probabilities, has)

    def chosen(text: str) -> tuple[float, float, float, float]:
        found = choose(probabilities, has, parse_aim(text), "point")
        assert found.reached
        return outcome(found.threshold, probabilities, has)

    assert chosen("f1")[3] == pytest.approx(max(each[3] for each in every))
    correlations = [np.corrcoef(probabilities >= at, has)[0, 1] for at in sorted({*probabilities.tolist()})[1:]]
    found = choose(probabilities, has, parse_aim("matthews"))
    assert np.corrcoef(probabilities >= found.threshold, has)[0, 1] == pytest.approx(max(correlations))
    bound = 0.9 * max(each[0] for each in every)
    precision = chosen(f"precision>={bound}")
    assert precision[0] >= bound - 1e-6  # the aim is written with six digits
    assert precision[1] == pytest.approx(max(each[1] for each in every if each[0] >= bound - 1e-6))
    recall = chosen("recall>=0.8")
    assert recall[1] >= 0.8
    assert recall[2] == pytest.approx(min(each[2] for each in every if each[1] >= 0.8))
    alarms = chosen("fpr<=0.2")
    assert alarms[2] <= 0.2
    assert alarms[1] == pytest.approx(max(each[1] for each in every if each[2] <= 0.2))


def test_a_threshold_lies_between_two_probabilities_so_that_rounding_does_not_move_a_row() -> None:
    probabilities = np.array([0.1] * 20 + [0.9] * 20, dtype=np.float32)
    found = choose(probabilities, probabilities > 0.5, parse_aim("f1"))
    assert found.threshold == pytest.approx(0.5)


def test_of_thresholds_with_equal_gain_the_one_that_keeps_the_bound_best_is_taken() -> None:
    def chosen(groups: list[tuple[float, int, bool]], aim: str) -> float:
        probabilities = np.repeat([each[0] for each in groups], [each[1] for each in groups])
        has = np.repeat([each[2] for each in groups], [each[1] for each in groups])
        return choose(probabilities, has, parse_aim(aim), "point").threshold

    assert chosen([(0.45, 8, True), (0.35, 2, True), (0.25, 20, False)], "recall>=0.8") == pytest.approx(0.3)
    groups = [(0.95, 10, True), (0.75, 1, False), (0.65, 1, False), (0.2, 18, False)]
    assert chosen(groups, "precision>=0.8") == chosen(groups, "fpr<=0.5") == pytest.approx(0.85)


def test_what_no_threshold_keeps_is_told_with_the_nearest() -> None:
    probabilities, has = rows(0)
    best = max(each[0] for each in tried(probabilities, has))
    found = choose(probabilities, has, parse_aim("precision>=0.999"), "point")
    assert not found.reached
    assert found.note == f"at best {best:.4f}"
    assert outcome(found.threshold, probabilities, has)[0] == pytest.approx(best)


def share_of(threshold: float, kind: str) -> float:
    """What a threshold does on all rows that `drawn` could draw: uniform probabilities p of which p have the label."""
    return {"precision": (1 + threshold) / 2, "recall": 1 - threshold**2, "fpr": (1 - threshold) ** 2}[kind]


@pytest.mark.parametrize("aim", others_slow(["precision>=0.8", "recall>=0.9", "fpr<=0.1"]))
def test_a_bound_that_is_not_kept_on_other_rows_is_taken_for_kept_as_rarely_as_is_said(aim: str) -> None:
    """Would catch a threshold by the share that is counted, which is too good half the time, and tails of the wrong
    side. Of 500 draws at an error of 5 % more than 39 are as rare as one in a thousand."""
    kind, sign = (aim[:3], -1) if "fpr" in aim else (aim[: aim.index(">")], 1)
    wrong = reached = by_share = 0
    bound = float(aim.partition("=")[2])
    for seed in range(500):
        draw = np.random.default_rng(seed)
        probabilities = draw.random(500)
        has = draw.random(500) < probabilities
        found, counted = (choose(probabilities, has, parse_aim(aim), how) for how in ("interval", "point"))
        reached += found.reached
        wrong += found.reached and sign * share_of(found.threshold, kind) < sign * bound
        by_share += sign * share_of(counted.threshold, kind) < sign * bound
    assert wrong <= 39 < by_share
    assert reached > 250


def test_what_is_kept_but_not_shown_is_told() -> None:
    probabilities, has = rows(0, 60)
    by_share = choose(probabilities, has, parse_aim("recall>=0.97"), "point")
    found = choose(probabilities, has, parse_aim("recall>=0.97"))
    assert by_share.reached
    assert (found.threshold, found.reached) == (by_share.threshold, False)
    assert found.note == f"at best {0.05 ** (1 / has.sum()) - 5e-5:.4f} is shown, by {has.sum()} rows with the label"


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("aim", ["precision>=0.999", "recall>=0.999", "fpr<=0.001"])
def test_who_asks_for_what_is_told_to_be_shown_gets_it(aim: str, rare: bool) -> None:
    """Would catch a share that is counted in place of one that is shown, one that is rounded to more than that, and of
    a rare label what other rows show than those that are tried when it is asked for."""
    for seed in range(60):
        draw = np.random.default_rng(seed)
        probabilities = draw.beta(0.5, 8, 1500) if rare else draw.random(200)
        has = draw.random(len(probabilities)) < (0.6 * probabilities if rare else probabilities)
        missed = choose(probabilities, has, parse_aim(aim))
        assert not missed.reached
        if not missed.proven:  # too few rows with the label
            assert rare
            continue
        assert missed.proven in missed.note
        kind, sign = re.findall("[a-z]+|[<>]=", aim)
        assert choose(probabilities, has, parse_aim(f"{kind}{sign}{missed.proven}")).reached
        if not (rare and kind == "precision"):
            more = float(missed.proven) + (2e-4 if sign == ">=" else -2e-4)
            assert not choose(probabilities, has, parse_aim(f"{kind}{sign}{more:.5f}")).reached


@pytest.mark.parametrize(("bound", "most"), [(0.25, 1.0), (0.2, 0.49)])
def test_a_precision_below_one_half_looks_at_the_rows_below_one_half(bound: float, most: float) -> None:
    """Would catch steps that end at the rows of one half and more, by which such an aim is reached in a third of these
    draws, or with a recall of 3 %. That a row of probability p has the label as often makes what is shown true."""
    reached, recalls, wrong = 0, [], 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        probabilities = np.minimum(draw.beta(0.5, 8, 4000), most)
        has = draw.random(4000) < probabilities
        found = choose(probabilities, has, parse_aim(f"precision>={bound}"))
        reached += found.reached
        if found.reached:
            recalls.append(outcome(found.threshold, probabilities, has)[1])
            wrong += probabilities[probabilities >= found.threshold].mean() < bound
    assert reached >= 16
    assert np.mean(recalls) > 0.15
    assert wrong <= 4


def test_a_precision_that_is_not_shown_is_told_with_the_nearest_that_is() -> None:
    probabilities = np.linspace(0, 1, 60)
    has = probabilities > 0.5
    found = choose(probabilities, has, parse_aim("precision>=0.99"))
    assert not found.reached
    shown, surest = (float(word) for word in re.findall(r"[\d.]+", found.note)[:2])
    assert 0.5 < shown < 0.999
    # Clopper's and Pearson's lower end, of which each of the four starts has a quarter of the error.
    right = has[np.argsort(-probabilities)][: int(surest)].sum()
    assert shown == pytest.approx(binomtest(right, int(surest)).proportion_ci(1 - 2 * 0.0125).low, abs=1e-4)


def test_of_a_rare_label_the_surest_rows_are_tried_one_by_one() -> None:
    """Would catch steps of the share of all rows, of which the first would have four times the rows of the label."""
    probabilities, has = np.linspace(0, 0.4, 3000), np.zeros(3000, dtype=bool)
    probabilities[-60:], has[-60:] = np.linspace(0.8, 1, 60), True
    found = choose(probabilities, has, parse_aim("precision>=0.9"))
    assert found.reached
    assert (probabilities >= found.threshold).sum() in range(60, 66)


@pytest.mark.parametrize("aim", ["recall>=0.0", "fpr<=1.0", "precision>=0.0"])
@pytest.mark.parametrize("evidence", ["interval", "point"])
def test_a_bound_that_everything_keeps_gives_the_label_to_a_right_row(aim: str, evidence: Any) -> None:
    """Would catch a threshold above all rows that have the label: it has the fewest false alarms, and is no use."""
    probabilities = np.repeat(np.arange(10) / 9, 10)
    has = (np.tile(np.arange(10), 10) < 9 * probabilities) & (probabilities < 1)
    found = choose(probabilities, has, parse_aim(aim), evidence)
    assert found.reached
    assert (has & (probabilities >= found.threshold)).any()


def test_few_rows_with_a_label_keep_one_half() -> None:
    probabilities, has = np.linspace(0, 1, 200), np.arange(200) >= 191
    found = choose(probabilities, has, parse_aim("recall>=0.9"))
    assert (found.threshold, found.reached) == (0.5, False)
    assert "9 rows have the label" in found.note
    assert choose(probabilities, has, parse_aim("0.7")).threshold == 0.7  # a person's own word needs no rows


def test_a_label_that_the_model_does_not_know_keeps_one_half() -> None:
    # By F1 alone it would be given to every row.
    draw = np.random.default_rng(3)
    probabilities, has = draw.random(300), draw.random(300) < 0.4
    found = choose(probabilities, has, parse_aim("f1"))
    assert (found.threshold, found.reached) == (0.5, False)
    assert "does not tell" in found.note


def test_a_label_that_the_model_hardly_knows_is_not_given_to_nearly_every_row() -> None:
    draw = np.random.default_rng(0)
    has = draw.random(10_000) < 0.3
    probabilities = 1 / (1 + np.exp(-draw.normal(0.15 * has)))  # of a random pair the right one is higher in 54 %
    found = choose(probabilities, has, parse_aim("f1"))
    assert (found.threshold, found.reached) == (0.5, False)
    assert "every row" in found.note


def test_of_very_many_labels_only_those_that_are_named_have_thresholds() -> None:
    task = TaskInfo(name="tags", kind="multilabel", labels=tuple(f"tag {n}" for n in range(501)))
    assert aims_of((), task) == {}
    assert list(aims_of(("tag 7:f1",), task)) == ["tag 7"]
    with pytest.raises(InputError, match="too many labels"):
        aims_of(("f1",), task)


def test_aims_are_read() -> None:
    assert parse_aim("f1") == Aim(None, "f1", None)
    assert parse_aim("rude:Matthews") == Aim("rude", "matthews", None)
    assert parse_aim("toxic:Recall >= 0.9") == Aim("toxic", "recall", 0.9)
    assert parse_aim("a:b:fpr<=0.01") == Aim("a:b", "fpr", 0.01)
    assert parse_aim("toxic:0.25") == Aim("toxic", "fixed", 0.25)
    assert [parse_aim(text).text for text in ("f1", "precision>=0.950", "fpr<=0.01", "0.5")] == [
        "f1",
        "precision>=0.95",
        "fpr<=0.01",
        "fixed",
    ]
    for wrong in (
        "",
        "toxic:",
        "precision<=0.9",
        "fpr>=0.1",
        "recall>=1.5",
        "-0.1",
        "accuracy>=0.9",
        "recall>=0.9.9",
        "nan",
    ):
        with pytest.raises(ValueError, match="write f1"):
            parse_aim(wrong)


def test_which_labels_have_an_aim() -> None:
    aims = aims_of(("recall>=0.9", "rude:f1"), TOXIC)
    assert {label: aim.text for label, aim in aims.items()} == {
        "toxic": "recall>=0.9",
        "rude": "f1",
        "a:b": "recall>=0.9",
    }
    assert {aim.text for aim in aims_of((), TOXIC).values()} == {"f1"}
    assert {label: aim.text for label, aim in aims_of(("precision>=0.9",), MOOD).items()} == {"good": "precision>=0.9"}
    assert list(aims_of(("bad:precision>=0.9",), MOOD)) == ["bad"]
    assert list(aims_of(("f1", "bad:precision>=0.9"), MOOD)) == ["bad"]
    assert aims_of((), MOOD) == {}


@pytest.mark.parametrize(
    ("task", "texts", "words"),
    [
        (TaskInfo(name="stars", kind="regression"), ("f1",), "can have thresholds"),
        (TaskInfo(name="news", kind="classification", labels=("a", "b", "c")), ("f1",), "can have thresholds"),
        (TOXIC, ("kind:f1",), "unknown label"),
        (TOXIC, ("toxic:f1", "toxic:0.5"), "two aims"),
        (TOXIC, ("f1", "0.5"), "two aims"),
        (MOOD, ("bad:f1", "good:f1"), "one of two classes can have a threshold"),
    ],
)
def test_aims_that_a_task_cannot_have(task: TaskInfo, texts: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        aims_of(texts, task)


def test_a_wrong_aim_is_refused_with_the_settings() -> None:
    with pytest.raises(InputError, match="write f1"):
        resolve(flags=layer_of({"operating.aims": ["accuracy>=0.9"]}), sets={}, file={})
    config = resolve(flags=layer_of({"data.task": "pydocs", "operating.aims": 0.5}), sets={}, file={})
    assert config.operating.aims == ("0.5",)


def test_rates_are_counted_with_exact_intervals() -> None:
    gets = np.array([True] * 10 + [False] * 90)
    has = np.array([True] * 8 + [False] * 2 + [True] * 2 + [False] * 88)
    found = rates(gets, has)
    assert (found.precision.hits, found.precision.of, found.recall.of, found.false_alarms.of) == (8, 10, 10, 90)
    # Clopper and Pearson's interval of 8 of 10, from their tables.
    assert (found.precision.low, found.precision.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert rates(gets & False, has).precision.value is None


def test_labels_are_given_from_their_thresholds_on() -> None:
    points = (
        OperatingPoint(label="toxic", threshold=0.9, aim="fixed"),
        OperatingPoint(label="a:b", threshold=0.1, aim="f1"),
    )
    task = TOXIC.model_copy(update={"points": points})
    probabilities = np.array([[0.89, 0.5, 0.1], [0.9, 0.49, 0.09], [0.0, 0.0, 0.0]], dtype=np.float64)
    assert in_words(decided(probabilities, task), task) == [["rude", "a:b"], ["toxic"], []]
    assert in_words(decided(probabilities, TOXIC), TOXIC) == [["toxic", "rude"], ["toxic"], []]


@pytest.mark.parametrize("label", ["bad", "good"])
def test_of_two_classes_the_one_with_a_threshold_is_given_from_there_on(label: str) -> None:
    task = MOOD.model_copy(update={"points": (OperatingPoint(label=label, threshold=0.8, aim="fixed"),)})
    other = {"bad": "good", "good": "bad"}[label]
    mine = np.array([0.81, 0.79, 0.3])
    probabilities = np.stack([mine, 1 - mine] if label == "bad" else [1 - mine, mine], axis=1)
    assert in_words(decided(probabilities, task), task) == [label, other, other]
    assert in_words(decided(probabilities, MOOD), MOOD) == [label, label, other]


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (TOXIC, ("toxic", "toxic")),
        (TOXIC, ("kind",)),
        (MOOD, ("bad", "good")),
        (TaskInfo(name="stars", kind="regression"), ("x",)),
    ],
)
def test_a_manifest_with_points_that_do_not_fit_is_refused(task: TaskInfo, labels: tuple[str, ...]) -> None:
    points = [{"label": label, "threshold": 0.5, "aim": "f1"} for label in labels]
    with pytest.raises(ValueError, match="operating point"):
        TaskInfo.model_validate(task.model_dump() | {"points": points})


def test_a_finished_run_gets_thresholds_by_its_last_stage_alone(finished: Finished, tmp_path: Path) -> None:
    """Would catch thresholds chosen by other probabilities than those that serve, and rates told of other rows."""
    shutil.copytree(finished.folder / "run", tmp_path / "run", symlinks=True)
    settings: dict[str, Any] = {"run": finished.config.run.model_copy(update={"out": tmp_path / "run"})}
    settings["operating"] = finished.config.operating.model_copy(update={"aims": ("yes:precision>=0.9",)})
    made = tiny_runs.compress(finished.config.model_copy(update=settings))
    assert [name for name, record in made.stages.items() if not record.skipped] == ["package"]
    assert made.artifact is not None
    engine = Engine.load(made.artifact, device="cpu", threads=1)
    (point,) = engine.task.points
    assert (point.label, point.aim, point.reached) == ("yes", "precision>=0.9", True)
    other = {"fp32": "int8", "int8": "fp32"}[engine.variant]
    assert not any("thresholds" in note for note in engine.notes)
    notes = Engine.load(made.artifact, device="cpu", variant=other).notes
    assert notes == (f"the thresholds were chosen for {engine.variant} and are used for {other}",)

    def counted(texts: list[Any], has: list[bool]) -> tuple[int, int, int]:
        gets = [row[1] >= point.threshold for row in engine.predict(texts)]
        return sum(gets), sum(has), sum(a and b for a, b in zip(gets, has, strict=True))

    data = open_data(tmp_path / "run" / "data")
    for split, told in (("tune", point.tuning), ("eval", point.evaluation)):
        rows = data.rows(split)
        assert told is not None
        found = counted(texts_of(rows), [label == 1 for label in rows["label"]])
        assert found == (told.precision.of, told.recall.of, told.precision.hits)
    assert point.tuning is not None
    assert (point.tuning.precision.value or 0) >= 0.9
    assert "## Decisions" in (made.artifact / "README.md").read_text(encoding="utf-8")


def test_a_bound_that_is_not_shown_ends_the_run_and_the_remedy_is_one(finished: Finished, tmp_path: Path) -> None:
    """Would catch an artifact that decides otherwise than was asked, made by a command that ends with 0; advice that is
    refused again, or gives other rows than it says; and folders as large as an artifact that nobody removes."""
    root = tmp_path / "run"
    shutil.copytree(finished.folder / "run", root, symlinks=True)
    made_before = (root / "artifact").resolve()

    def again(**operating: Any) -> CompressResult:
        settings: dict[str, Any] = {"run": finished.config.run.model_copy(update={"out": root})}
        settings["operating"] = finished.config.operating.model_copy(update=operating)
        made = tiny_runs.compress(finished.config.model_copy(update=settings))
        assert [name for name, record in made.stages.items() if not record.skipped] == ["package"]
        return made

    for key, option in (("aims", "--aim yes:precision>=0.9999"), ("abstain", "--abstain accuracy>=0.9999")):
        with pytest.raises(BoundNotShown, match=r"0\.\d+ is shown") as refused:
            again(**{key: (option.partition(" ")[2],) if key == "aims" else option.partition(" ")[2]})
        assert (root / "artifact").resolve() == made_before
        shown, nearest = re.findall(rf"{option.partition(' ')[0]} ('[^']+'|[^ ;]+)", refused.value.remedy)
        for advice in (shown, nearest):
            asked = shlex.split(advice)[0]
            made = again(**{key: (asked,) if key == "aims" else asked})
            assert made.artifact is not None
            task = load_manifest(made.artifact).task
            (decision,) = task.points or (task.abstain,)
            assert decision is not None
            assert decision.reached
            if advice == nearest:
                assert decision.threshold == float(asked.rpartition(":")[2])
        made_before = (root / "artifact").resolve()
    assert not list((root / "artifacts").glob("*.tmp"))
    assert again(aims=("yes:precision>=0.9999",), evidence="point").artifact is not None


def choices_of(asked: tuple[str, ...], chosen: dict[str, Chosen]) -> dict[str, _Choice]:
    return {label: _Choice(aim, chosen[label]) for label, aim in aims_of(asked, TOXIC).items()}


def test_of_a_bound_for_all_labels_rare_ones_may_miss_it() -> None:
    """Would catch a run that ends for a rare label, for what is highest, or for a threshold that a person gave, and one
    that goes on where a label was named or none keeps the bound."""
    shown, unshown = Chosen(0.5), Chosen(0.5, reached=False, note="few rows")
    chosen = dict.fromkeys(TOXIC.labels, unshown)
    none: tuple[tuple[str, ...], ...] = (("f1",), ("0.7",), ())
    for aims in none:
        _refuse_unshown("--aim", choices_of(aims, chosen))
    _refuse_unshown("--aim", choices_of(("recall>=0.9",), chosen | {"toxic": shown}))
    named: tuple[tuple[str, ...], ...] = (("recall>=0.9", "rude:recall>=0.8"), ("rude:recall>=0.8",))
    for aims in named:
        with pytest.raises(InputError, match=r"rude: recall>=0\.8: few rows") as refused:
            _refuse_unshown("--aim", choices_of(aims, chosen | {"toxic": shown}))
        assert "toxic" not in str(refused.value.given)
        assert refused.value.remedy.startswith("more labelled rows; or give a threshold yourself")
        assert "evidence=point" not in refused.value.remedy
        _refuse_unshown("--aim", choices_of(aims, chosen), "point")
    sure = Chosen(0.99999043, reached=False, note="0.9 is shown", proven="0.9000")
    with pytest.raises(InputError) as refused:
        _refuse_unshown("--aim", choices_of(("rude:recall>=0.99",), {"rude": sure, "toxic": shown, "a:b": shown}))
    for advice in ("--aim 'rude:recall>=0.9'", "--aim rude:0.99999043", "operating.evidence=point"):
        assert advice in refused.value.remedy
    with pytest.raises(InputError, match=r"toxic: .*; rude: "):
        _refuse_unshown("--aim", choices_of(("recall>=0.9",), chosen))


def test_of_many_labels_the_first_five_are_told_and_how_many_more_there_are() -> None:
    """Would catch labels that are told of twice or not at all, and words on none more."""
    for count, more in ((1, ""), (3, ""), (5, ""), (6, "; and 1 more"), (13, "; and 8 more")):
        names = [f"l{number}" for number in range(count)]
        aim, missed = parse_aim("recall>=0.9"), Chosen(0.5, reached=False, note="few rows")
        with pytest.raises(InputError) as refused:
            _refuse_unshown("--aim", {name: _Choice(aim, missed) for name in names})
        told = "; ".join(f"{name}: recall>=0.9: few rows" for name in names[:5])
        assert refused.value.given == told + more
        points = [OperatingPoint(label=name, threshold=0.5, aim="f1", reached=False, note="few rows") for name in names]
        each = [f"{name}: f1 is not reached on the tuning set: few rows" for name in names]
        among = [f"{count} labels do not reach their aim on the tuning set, among them l0, l1, l2, l3, l4"]
        assert _unreached(points) == (each if count <= 5 else among)


def test_what_shows_nothing_is_not_advised() -> None:
    """Would catch a run that advises a bound which any threshold keeps."""
    for proven, is_advised in (("0.0000", False), ("0.0001", True), ("0.9999", True), ("1.0000", False), ("", False)):
        missed = Chosen(0.5, reached=False, note="few rows", proven=proven)
        with pytest.raises(InputError) as refused:
            _refuse_unshown("--aim", {"toxic": _Choice(parse_aim("recall>=0.9"), missed)})
        assert ("ask for less" in refused.value.remedy) is is_advised
        assert ("more labelled rows" in refused.value.remedy) is not is_advised


@pytest.mark.parametrize("aim", ["f1", "matthews", "precision>=0.9", "recall>=0.9", "fpr<=0.1", "0.4"])
def test_a_threshold_names_the_graph_whose_probabilities_chose_it(aim: str) -> None:
    """A person's own threshold was chosen by none."""
    fields = _Choice(parse_aim(aim), Chosen(0.4, reached=False, note="why")).fields("int8")
    told = (fields["threshold"], fields["reached"], fields["note"], fields["variant"])
    assert told == (0.4, False, "why", "" if aim == "0.4" else "int8")


def test_an_aim_that_the_labels_cannot_have_is_refused_before_any_training(finished: Finished, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"run": finished.config.run.model_copy(update={"out": tmp_path / "run"})}
    settings["operating"] = finished.config.operating.model_copy(update={"aims": ("maybe:f1",)})
    with pytest.raises(InputError, match="unknown label"):
        tiny_runs.compress(finished.config.model_copy(update=settings))
    assert not (tmp_path / "run" / "teacher").exists()

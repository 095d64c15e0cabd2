"""Sets of labels: what they hold of rows that are drawn anew, what has none, and a run that makes them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from conftest import Finished
from numpy.typing import NDArray

from kdc.artifact.decision import LabelSets
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import TaskInfo
from kdc.common.errors import InputError
from kdc.pipeline.config.aims import check_sets
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.quality.decision_rates import covered_rates
from kdc.pipeline.quality.operating import choose_at_least, fewest_rows
from kdc.pipeline.report.gather import gather
from kdc.pipeline.report.page import markdown
from kdc.serving.engine.deciding import in_sets, sets_in_words
from kdc.serving.engine.engine import Engine

MOOD = TaskInfo(name="mood", kind="classification", labels=("bad", "so so", "good"))


def draw(count: int, generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of six classes by a model that is far too sure, and the true ones."""
    logits = generator.normal(size=(count, 6))
    sure, true = np.exp(3 * logits), np.exp(logits)
    drawn = true.cumsum(axis=1) > generator.random((count, 1)) * true.sum(axis=1, keepdims=True)
    return sure / sure.sum(axis=1, keepdims=True), drawn.argmax(axis=1)


@pytest.mark.parametrize(("rows", "coverage"), [(9, 0.9), (19, 0.95), (99, 0.9)])
def test_sets_hold_the_truth_of_other_rows_as_often_as_was_asked(rows: int, coverage: float) -> None:
    """The mean over many slices is what was asked, since (n + 1)(1 - coverage) is whole: would catch the place before
    or after, n in place of n + 1, and 10 * (1 - 0.9) that is less than one."""
    generator, held = np.random.default_rng(rows), []
    for _ in range(1000):
        probabilities, labels = draw(rows + 200, generator)
        at_least = choose_at_least(probabilities[np.arange(rows), labels[:rows]], coverage)
        assert at_least is not None
        holds = in_sets(probabilities[rows:], LabelSets(coverage=coverage, at_least=at_least))
        held.append(holds[np.arange(200), labels[rows:]].mean())
    error = 3.3 * np.std(held) / 1000**0.5
    assert error < 0.5 / (rows + 1)  # a place more or less is 1 / (rows + 1)
    assert abs(np.mean(held) - coverage) < error


@pytest.mark.parametrize(("coverage", "rows"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_fewer_rows_than_are_needed_choose_nothing(coverage: float, rows: int) -> None:
    assert fewest_rows(coverage) == rows
    assert choose_at_least(np.linspace(0.2, 0.9, rows), coverage) == 0.2
    assert choose_at_least(np.linspace(0.2, 0.9, rows - 1), coverage) is None


def test_a_set_has_the_likely_labels_the_best_one_first_and_is_never_empty() -> None:
    sets = LabelSets(coverage=0.9, at_least=0.5)
    probabilities = np.array([[0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.0, 1.0, 0.0]], dtype=np.float32)
    assert sets_in_words(probabilities, MOOD.model_copy(update={"sets": sets})) == [["so so"], ["good"], ["so so"]]
    wider = sets.model_copy(update={"at_least": float(np.float32(0.4))})
    assert sets_in_words(probabilities, MOOD.model_copy(update={"sets": wider}))[0] == ["so so", "good"]
    found = covered_rates(probabilities, np.array([2, 0, 1]), wider)
    assert (found.coverage.hits, found.coverage.of, found.single.hits) == (2, 3, 2)
    assert found.size == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("task", "remedy"),
    [
        (TaskInfo(name="stars", kind="regression"), "drop operating.sets"),
        (TaskInfo(name="tags", kind="multilabel", labels=("a", "b", "c")), "drop operating.sets"),
        (TaskInfo(name="two", kind="classification", labels=("a", "b")), "--abstain"),
    ],
)
def test_tasks_that_have_no_sets(task: TaskInfo, remedy: str) -> None:
    check_sets(None, task)
    with pytest.raises(InputError, match="three classes or more") as caught:
        check_sets(0.95, task)
    assert remedy in str(caught.value.remedy)
    assert "operating.sets=0.95" in str(caught.value.given)
    with pytest.raises(ValueError, match="three classes or more"):
        TaskInfo.model_validate(task.model_dump() | {"sets": {"coverage": 0.95, "at_least": 0.1}})


def test_two_classes_are_refused_before_any_training(finished: Finished, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"run": finished.config.run.model_copy(update={"out": tmp_path / "run"})}
    settings["operating"] = finished.config.operating.model_copy(update={"sets": 0.9})
    with pytest.raises(InputError, match="three classes or more"):
        tiny_runs.compress(finished.config.model_copy(update=settings))
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize("wrong", [0, 1, 1.5, float("nan")])
def test_a_probability_that_is_none_is_refused(tmp_path: Path, wrong: float) -> None:
    with pytest.raises(InputError, match=r"operating\.sets") as caught:
        tiny_runs.config_for(tmp_path, tmp_path, flags={"operating.sets": wrong})
    assert (caught.value.exit_code, str(wrong) in str(caught.value)) == (2, True)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A run of three classes, of which two cannot be told apart, with sets."""
    folder = tmp_path_factory.mktemp("three")
    for name, count, seed in (("train.csv", 700, 1), ("eval.csv", 90, 2)):
        tiny_runs.write_rows(
            folder / name, count, seed=seed, label=lambda yes, generator: "a" if yes else generator.choice("bc")
        )
    config = tiny_runs.config_for(
        folder,
        tiny_runs.base_model("bert", folder / "teacher"),
        flags={"operating.sets": 0.9, "student.model": "static"},
    )
    tiny_runs.compress(config)
    return folder / "run", config


def test_a_run_chooses_by_the_tuning_slice_and_tells_of_the_evaluation_rows(three: tuple[Path, Config]) -> None:
    """Would catch a choice by other rows, or by other probabilities than those that serve."""
    root, _ = three
    engine, data = Engine.load(root / "artifact", device="cpu", threads=1), open_data(root / "data")
    sets = engine.task.sets
    assert sets is not None
    assert (sets.coverage, sets.variant) == (0.9, engine.variant)
    tuning, rows = data.rows("tune"), data.rows("eval")
    scores = [row[label] for row, label in zip(engine.predict(texts_of(tuning)), tuning["label"], strict=True)]
    assert sets.at_least == pytest.approx(sorted(scores)[(len(scores) + 1) // 10 - 1], abs=1e-5)
    by_hand = [
        {place for place in range(3) if row[place] >= sets.at_least} | {int(row.argmax())}
        for row in engine.predict(texts_of(rows))
    ]
    told = sets.evaluation
    assert told is not None
    assert told.coverage.hits == sum(label in each for each, label in zip(by_hand, rows["label"], strict=True))
    assert told.single.hits == sum(len(each) == 1 for each in by_hand)
    assert told.size == pytest.approx(sum(map(len, by_hand)) / len(rows), abs=1e-6)
    assert 1 < told.size < 3  # or nothing of this was tried
    facts = gather(root, examples=0)
    assert facts.sets == sets
    for text in ((root / "artifact" / "README.md").read_text(encoding="utf-8"), markdown(facts)):
        assert f"| {told.coverage.text} | {told.size:.2f} | {told.single.text} |" in text
    assert not any("at the thresholds" in note for note in facts.notes)  # there are none


def again(three: tuple[Path, Config], folder: Path, **operating: Any) -> TaskInfo:
    """What the run decides with other settings; only its last stage may be done again."""
    root, config = three
    shutil.copytree(root, folder / "run", symlinks=True)
    settings: dict[str, Any] = {"run": config.run.model_copy(update={"out": folder / "run"})}
    settings["operating"] = config.operating.model_copy(update=operating)
    made = tiny_runs.compress(config.model_copy(update=settings))
    assert [name for name, record in made.stages.items() if not record.skipped] == ["package"]
    assert made.result is not None
    return load_manifest(folder / "run" / made.result.artifact).task


def test_sets_that_a_slice_is_too_small_for_are_refused_with_those_that_it_has_rows_for(
    three: tuple[Path, Config], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="999 are needed") as refused:
        again(three, tmp_path, sets=0.999)
    sizes = np.bincount(open_data(three[0] / "data").groups("tune"))
    rows = int(sizes.sum() ** 2 / (sizes**2).sum())
    assert f"{rows} independent rows" in str(refused.value.given)
    most = float(refused.value.remedy.rpartition("=")[2])
    assert fewest_rows(most) <= rows < fewest_rows(most + 0.002)


def test_a_run_with_sets_can_abstain_too(three: tuple[Path, Config], tmp_path: Path) -> None:
    task = again(three, tmp_path, abstain="0.5")
    assert task.sets == load_manifest(three[0] / "artifact").task.sets
    assert task.abstain is not None

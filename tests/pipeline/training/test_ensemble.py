"""Several teachers: how they are weighted, and that the student learns from their mean."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
from tiny_runs import base_model, config_for, write_rows

from kdc.artifact.folder import load_manifest
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.prepared import open_data
from kdc.pipeline.models import loading
from kdc.pipeline.results.training import TeacherResult
from kdc.pipeline.stages import teacher
from kdc.pipeline.training import ensemble
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.predict import predict


def test_further_teachers_are_numbered_from_two() -> None:
    assert [ensemble.role(place) for place in range(3)] == ["teacher", "teacher-2", "teacher-3"]
    assert [ensemble.folder(place) for place in range(3)] == ["model", "model-2", "model-3"]


def test_teachers_weigh_as_their_scores() -> None:
    assert ensemble.weights([80, 40, 0], "score").tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert ensemble.weights([80, 40], "equal").tolist() == [0.5, 0.5]


def test_teachers_that_all_learned_nothing_weigh_alike() -> None:
    assert ensemble.weights([0, -5], "score").tolist() == [0.5, 0.5]


def test_the_mean_of_logits_by_hand() -> None:
    logits = [np.array([[1.0, 3.0]]), np.array([[5.0, -1.0]])]
    assert ensemble.average(logits, np.array([0.75, 0.25]), (1.0, 1.0)).tolist() == [[2.0, 2.0]]


def test_the_mean_takes_the_memory_of_one_sum_however_many_teachers() -> None:
    logits = [np.ones((20_000, 4), dtype=np.float32)] * 8
    tracemalloc.start()
    ensemble.average(logits, np.full(8, 1 / 8), (1.0,) * 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * (2 * logits[0].nbytes)  # the sum is of float64; beside it one product and the result


def test_the_mean_adds_the_teachers_one_after_the_other() -> None:
    parts, shares = np.array([0.1, 0.7, 1e8, -1e8], dtype=np.float32), np.array([0.3, 0.3, 0.2, 0.2])
    total = 0.0
    for part, share in zip(parts, shares, strict=True):
        total += float(share) * float(part)
    mean = ensemble.average([np.full((1, 1), part) for part in parts], shares, (1.0,) * len(parts))
    assert mean.tolist() == [[float(np.float32(total))]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """Rows, and settings with a teacher of each of two architectures, whose tokenizers differ in token types."""
    folder = tmp_path_factory.mktemp("two")
    write_rows(folder / "train.csv", 320, seed=1)
    write_rows(folder / "eval.csv", 100, seed=2)
    first, second = base_model("bert", folder / "first"), base_model("distilbert", folder / "second")
    sets = (f"teacher.more={second}", "teacher.epochs=16", "export.fp16=false", "quantize.enabled=false")
    return folder, config_for(folder, first, *sets)


@pytest.mark.slow
def test_a_second_teacher_is_trained_though_the_run_was_cut_off_between_them(
    two: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = two
    trained: list[int] = []
    make = teacher._Maker.make

    def cut_off(maker: Any) -> TeacherResult:
        place = int(not maker.is_first)
        if place == 1 and len(trained) == 1:
            trained.append(-1)
            raise KeyboardInterrupt
        trained.append(place)
        return make(maker)

    monkeypatch.setattr(teacher._Maker, "make", cut_off)
    with pytest.raises(KeyboardInterrupt):
        tiny_runs.compress(config, until="teacher")
    tiny_runs.compress(config, until="teacher")
    assert trained == [0, -1, 1]
    assert not list((folder / "run" / "teacher").glob("checkpoints*"))


@pytest.mark.slow
def test_the_student_learns_from_the_weighted_mean_and_is_compared_with_it(two: tuple[Path, Config]) -> None:
    folder, config = two
    result = tiny_runs.compress(config).result
    assert result is not None
    run = folder / "run"
    data = open_data(run / "data")
    scores = json.loads((run / "teacher" / "stage.json").read_text())["metrics"]
    first, second = scores["tune"]["macro_f1"], scores["others"][0]["tune"]["macro_f1"]
    answers: dict[str, list[np.ndarray]] = {"train": [], "eval": []}
    for name, role in (("model", "teacher"), ("model-2", "teacher-2")):
        place = str(run / "teacher" / name)
        model, pad_id = loading.load_model(place, data.task).model, loading.load_tokenizer(place).pad_token_id
        for split, logits in answers.items():
            logits.append(predict(model, Rows([data.tokens(role, split)]), pad_id=pad_id))
    warm, cool = json.loads((run / "targets" / "stage.json").read_text())["metrics"]["temperatures"]
    assert warm * cool == pytest.approx(1, abs=1e-3)
    mean = {
        split: (first * one / warm + second * two / cool) / (first + second) for split, (one, two) in answers.items()
    }
    learned_from = np.load(run / "targets" / "logits.npy")[np.asarray(data.rows("train")["row"][:])]
    np.testing.assert_allclose(learned_from, mean["train"], atol=1e-5)
    with np.load(run / "artifact" / "evaluation.npz") as kept:
        np.testing.assert_allclose(kept["teacher_logits"], mean["eval"], atol=1e-5)
    assert result.table["teacher"]["parameters"] > result.table["student"]["parameters"]  # type: ignore[operator]
    assert load_manifest(run / "artifact").lineage.teacher == "first + second"


def test_a_teacher_that_is_too_sure_of_itself_does_not_outvote_the_other() -> None:
    """Would catch: logits that are averaged before they are calibrated."""
    sure, calm = np.array([[30.0, 0.0]]), np.array([[0.0, 4.0]])
    shares = np.array([0.5, 0.5])
    assert ensemble.average([sure, calm], shares, (1.0, 1.0))[0].argmax() == 0
    assert ensemble.average([sure, calm], shares, (10.0, 1.0)).tolist() == [[1.5, 2.0]]

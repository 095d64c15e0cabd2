"""Baselines in a run: they stand in the table, a teacher below them is not accepted in silence, a contract judges
against the best."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch

from kdc.common.errors import InputError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import open_data
from kdc.pipeline.models import loading
from kdc.pipeline.results.data import DataResult
from kdc.pipeline.results.training import BaselinesResult, TeacherResult
from kdc.pipeline.rundir.files import BASELINE_LOGITS, PROBE
from kdc.pipeline.rundir.record import read_result
from kdc.pipeline.stages import baselines as stage
from kdc.pipeline.training.baselines import Encoder, Fitted, Sample, fit_probe
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.predict import predict
from kdc.tools.verify import verify_artifact

# A teacher that is hardly trained, on rows that a bag of words tells apart.
WEAK = ("baselines.enabled=true", "teacher.epochs=0.3", "student.allow_majority=true", "student.min_steps=20")
ASKED = {"contract.max_drop": 2.0, "contract.evidence": "point", "contract.max_size_mb": 50.0}


def config_of(folder: Path, *sets: str, **flags: Any) -> Config:
    teacher = folder / "teacher"
    if not teacher.exists():
        tiny_runs.base_model("bert", teacher)
        tiny_runs.write_rows(folder / "train.csv", 500, seed=1)
        tiny_runs.write_rows(folder / "eval.csv", 150, seed=2)
    return tiny_runs.config_for(folder, teacher, *WEAK, *sets, flags=flags)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("weak")
    config = config_of(folder, "contract.search=off", **ASKED)
    return folder, tiny_runs.compress(config)


@pytest.mark.slow
def test_a_teacher_below_a_baseline_is_told_of(weak: tuple[Path, Any]) -> None:
    _, made = weak
    table, notes = made.metrics, " ".join(made.result.notes)
    assert {"majority", "tfidf", "probe"} <= set(table)
    assert table["tfidf"]["macro_f1"] > 90 > table["teacher"]["macro_f1"]
    assert "not shown to be better than the baseline tfidf" in notes
    assert "latency_p50_ms" not in table["tfidf"]


@pytest.mark.slow
def test_the_contract_judges_against_the_best(weak: tuple[Path, Any]) -> None:
    # Against such a teacher alone the student would pass.
    folder, made = weak
    quality = made.result.contract.quality
    assert made.verdict == "fail"
    assert quality.against == "tfidf"
    assert quality.teacher == pytest.approx(made.metrics["tfidf"]["macro_f1"])
    judged, _ = verify_artifact(made.artifact, data=folder / "eval.csv", columns={})
    assert (judged.quality.against, judged.verdict) == ("tfidf", "fail")  # type: ignore[union-attr]
    alone, _ = verify_artifact(made.artifact, data=folder / "eval.csv", columns={}, given={"against": "teacher"})
    assert (alone.quality.against, alone.verdict) == ("teacher", "pass")  # type: ignore[union-attr]


@pytest.mark.slow
def test_rows_that_the_baseline_never_saw_are_not_judged_by_the_teacher_in_silence(weak: tuple[Path, Any]) -> None:
    folder, made = weak
    other = tiny_runs.write_rows(folder / "other.csv", 60, seed=3)
    teacher = str(folder / "run" / "teacher" / "model")
    with pytest.raises(InputError, match="no answers to these rows"):
        verify_artifact(made.artifact, data=other, columns={}, teacher=teacher)
    judged, _ = verify_artifact(made.artifact, data=other, columns={}, teacher=teacher, given={"against": "teacher"})
    assert judged.verdict == "pass"


def test_a_probe_that_is_better_is_the_teacher(tmp_path: Path) -> None:
    # A rate that destroys the encoder: what is kept of the two trainings is worse than the encoder as it was.
    config = config_of(tmp_path, "teacher.learning_rate=3.0", "teacher.head_learning_rate=3.0", "teacher.warmup=0.0")
    tiny_runs.compress(config, until="targets")
    root = tmp_path / "run"
    result, data = read_result(root, TeacherResult), open_data(root / "data")
    scores = {attempt.how: attempt.score for attempt in result.attempts}
    assert list(scores) == ["fine-tuned", "fine-tuned from the probe's head", "the probe"]
    assert scores["the probe"] > max(scores["fine-tuned"], scores["fine-tuned from the probe's head"])
    assert result.tune["macro_f1"] == scores["the probe"]
    assert result.training is None
    assert not list((root / "teacher").glob("checkpoints*"))  # of two trainings, each several times the model's size
    model = loading.load_model(str(root / "teacher" / "model"), data.task).model
    with np.load(root / "baselines" / BASELINE_LOGITS) as kept:
        probe = kept["tune/probe"]
    answers = predict(model, Rows([data.tokens("teacher", "tune")]), pad_id=0)
    if read_result(root, BaselinesResult).probe_form == "together":
        assert answers == pytest.approx(probe, abs=1e-4)
    pretrained = loading.load_model(str(tmp_path / "teacher"), data.task, pooling="mean").model
    kept_weights, first_weights = model.state_dict(), pretrained.state_dict()
    for name, weight in first_weights.items():
        assert name.startswith("classifier") or torch.equal(weight, kept_weights[name]), name


@pytest.mark.parametrize("form", ["together", "apart"])
def test_the_form_with_the_better_score_is_the_probe(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, fitted = config_of(tmp_path), []

    def counted(encoder: Encoder, rows: Sample, tune: Sample, task: Task, *, apart: bool) -> Fitted:
        fitted.append((apart, len(rows.labels)))
        return replace(fit_probe(encoder, rows, tune, task, apart=apart), score=float(apart == (form == "apart")))

    monkeypatch.setattr(stage, "fit_probe", counted)
    tiny_runs.compress(config, until="baselines")
    root = tmp_path / "run"
    result, data = read_result(root, BaselinesResult), open_data(root / "data")
    assert (result.probe_form, fitted) == (form, [(False, result.train_rows), (True, result.train_rows)])
    train, tune = (Sample.of(data.rows(split), data.tokens("teacher", split)) for split in ("train", "tune"))
    length = read_result(root, DataResult).max_length["teacher"]
    encoder = Encoder(str(tmp_path / "teacher"), data.task, environment=Environment(seed=0), max_length=length)
    oracle = fit_probe(encoder, train, tune, data.task, apart=form == "apart")
    with np.load(root / "baselines" / BASELINE_LOGITS) as kept:
        assert kept["tune/probe"] == pytest.approx(oracle.tune, abs=1e-4)
    with np.load(root / "baselines" / PROBE) as head:  # of the form that a classifier can have
        assert head["weight"].shape == (2, encoder.model.config.hidden_size)
        if form == "together":
            assert head["weight"] == pytest.approx(oracle.model.weight, abs=1e-4)


@pytest.mark.slow
def test_a_strong_teacher_is_not_trained_twice(tmp_path: Path) -> None:
    config = config_of(tmp_path, "teacher.epochs=12", "teacher.learning_rate=2e-3", "baselines.max_rows=20")
    tiny_runs.compress(config, until="teacher")
    result = read_result(tmp_path / "run", TeacherResult)
    assert read_result(tmp_path / "run", BaselinesResult).train_rows == 20
    assert result.attempts == ()


def test_the_evaluation_labels_are_not_read(tmp_path: Path) -> None:
    answers = []
    for name, flip in (("plain", False), ("flipped", True)):
        folder = tmp_path / name
        folder.mkdir()
        config = config_of(folder)
        if flip:
            text = (folder / "eval.csv").read_text()
            text = text.replace(",yes\r\n", ",YES\r\n").replace(",no\r\n", ",yes\r\n").replace(",YES\r\n", ",no\r\n")
            (folder / "eval.csv").write_text(text)
        tiny_runs.compress(config, until="baselines")
        with np.load(folder / "run" / "baselines" / BASELINE_LOGITS) as kept:
            answers.append({key: kept[key] for key in kept.files})
    assert answers[0].keys() == answers[1].keys()
    for name, logits in answers[0].items():
        assert np.array_equal(logits, answers[1][name]), name


def test_another_student_fits_nothing_again(tmp_path: Path) -> None:
    tiny_runs.compress(config_of(tmp_path), until="baselines")
    stages = tiny_runs.compress(config_of(tmp_path, "student.learning_rate=3e-3"), until="baselines").stages
    assert stages["baselines"].skipped
    changed = tiny_runs.compress(config_of(tmp_path, "baselines.max_rows=100"), until="baselines").stages
    assert not changed["baselines"].skipped
    assert json.loads((tmp_path / "run" / "baselines" / "stage.json").read_text())["metrics"]["train_rows"] == 100

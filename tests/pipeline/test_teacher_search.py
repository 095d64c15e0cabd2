"""`teacher.search=quick` in a run: the teacher has the rates that short trainings found, and none is done twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.results.training import TeacherResult
from kdc.pipeline.rundir.record import read_result
from kdc.pipeline.training.callbacks import Diverged
from kdc.pipeline.training.rates import Rates
from kdc.pipeline.training.teachers import train_teacher

STEPS = "teacher.min_steps=180"  # of which a third is enough for the encoder's three rates, 20 steps each


ALLOW = ("student.allow_majority=true",)


def config_of(folder: Path, *sets: str) -> Config:
    base = folder / "teacher"
    if not base.exists():
        tiny_runs.base_model("bert", base)
        tiny_runs.write_rows(folder / "train.csv", 300, seed=1)
        tiny_runs.write_rows(folder / "eval.csv", 60, seed=2)
    return tiny_runs.config_for(folder, base, "teacher.search=quick", STEPS, "teacher.epochs=0.1", *ALLOW, *sets)


@pytest.mark.slow
def test_the_teacher_has_the_rates_with_the_least_loss(tmp_path: Path) -> None:
    config = config_of(tmp_path, "teacher.learning_rate=1e-3", "teacher.head_learning_rate=2e-3")
    tiny_runs.compress(config, until="teacher")
    losses = json.loads((tmp_path / "run" / "teacher" / "rates-teacher.json").read_text(encoding="utf-8"))
    assert sorted(losses) == ["0.0005, 0.002, 20 steps", "0.001, 0.002, 20 steps", "0.002, 0.002, 20 steps"]
    training = read_result(tmp_path / "run", TeacherResult).training
    assert training is not None
    assert training.learning_rate == float(min(losses, key=lambda name: losses[name]).split(",")[0])
    assert training.head_learning_rate == 2e-3
    assert training.steps >= 180
    assert not list((tmp_path / "run" / "teacher").glob("checkpoints*"))


@pytest.mark.slow
def test_a_search_that_was_cut_off_repeats_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, trained = config_of(tmp_path), list[Rates]()

    def counted(source: str, settings: Any, *args: Any, **kwargs: Any) -> Any:
        if len(trained) == 2 and not cut_off:
            cut_off.append(True)
            raise KdcError("the power is gone")
        trained.append(Rates(settings.learning_rate, settings.new_modules_rate))
        return train_teacher(source, settings, *args, **kwargs)

    cut_off: list[bool] = []
    monkeypatch.setattr("kdc.pipeline.stages.teacher.train_teacher", counted)
    with pytest.raises(KdcError, match="the power is gone"):
        tiny_runs.compress(config, until="teacher")
    tiny_runs.compress(config, until="teacher")
    assert len(trained) == 4  # three short trainings and the teacher's own
    assert len(set(trained[:3])) == 3


@pytest.mark.slow
def test_a_ruined_training_is_not_taken_and_the_search_keeps_to_its_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A loss that is no number ends a run otherwise, and must not end one that only tried a rate. And three hours of
    # trials before a training of one hour would be no bound.
    config, hours = config_of(tmp_path, "teacher.learning_rate=1e-3", "teacher.hours=36"), list[float]()

    def at_most(source: str, settings: Any, *args: Any, **kwargs: Any) -> Any:
        hours.append(settings.hours)
        if settings.learning_rate > 1e-3:
            raise Diverged("the training loss is not a number")
        return train_teacher(source, settings, *args, **kwargs)

    monkeypatch.setattr("kdc.pipeline.stages.teacher.train_teacher", at_most)
    tiny_runs.compress(config, until="teacher")
    losses = json.loads((tmp_path / "run" / "teacher" / "rates-teacher.json").read_text(encoding="utf-8"))
    assert sorted(losses.values())[2] == float("inf")
    training = read_result(tmp_path / "run", TeacherResult).training
    assert training is not None
    assert (training.learning_rate or 1.0) <= 1e-3
    assert hours == [1, 1, 1, 36]


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A rate that ruins a training would end the processes that help with it, and the leader would wait for them.
    monkeypatch.setattr("kdc.pipeline.training.ranks.size", lambda: 2)
    with pytest.raises(InputError, match="does not run in several processes"):
        tiny_runs.compress(config_of(tmp_path), until="teacher")

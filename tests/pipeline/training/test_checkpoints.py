"""Checkpoints: only one that was written whole counts."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer

from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.config.training_settings import TrainSettings
from kdc.pipeline.training.checkpoints import SEAL, last_checkpoint, seal
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.loop import DistillationTrainer, Objective, Plan, training_arguments


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sealed checkpoints: 6, 12 and 100."""
    for step in (6, 12, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_bytes(bytes(range(100)))
        seal(tmp_path / f"checkpoint-{step}")
    return tmp_path


def test_the_newest_is_by_step_and_not_by_name(folder: Path) -> None:
    assert last_checkpoint(folder) == folder / "checkpoint-100"


def test_a_torn_one_does_not_count_and_is_removed(folder: Path) -> None:
    (folder / "checkpoint-100" / SEAL).unlink()
    assert last_checkpoint(folder) == folder / "checkpoint-12"
    assert not (folder / "checkpoint-100").exists()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None


def test_the_seal_comes_after_everything_that_the_trainers_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    was_sealed = []

    def write(self: Trainer, *args: object, **kwargs: object) -> None:
        checkpoint.mkdir()
        (checkpoint / "weights").write_bytes(b"1")
        was_sealed.append((checkpoint / SEAL).exists())

    def others_write() -> None:
        (checkpoint / "rng_state_1.pth").write_bytes(b"2")
        was_sealed.append((checkpoint / SEAL).exists())

    monkeypatch.setattr(Trainer, "_save_checkpoint", write)
    plan = Plan(TrainSettings(), Environment(seed=0), steps=3, evaluate_every=3)
    trainer = DistillationTrainer(
        objective=Objective(custom_task("toy", "text", None, "label", "regression")),
        plan=plan,
        model=torch.nn.Linear(1, 1),
        args=training_arguments(plan, tmp_path),
        eval_dataset=[{}],
    )
    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", others_write)
    trainer.state.global_step = 3
    trainer._save_checkpoint()
    assert was_sealed == [False, False]
    assert last_checkpoint(tmp_path) == checkpoint

"""A training reports, times its steps, and names the step whose weights are kept."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kdc.common.errors import KdcError
from kdc.common.progress import Progress
from kdc.pipeline.config.training_settings import KeptStep
from kdc.pipeline.training.environment import pace


class Diverged(KdcError):
    """The training loss is not a number."""


class Report(TrainerCallback):
    """Reports progress, stops a training whose loss is not a number, and finds the best checkpoint again after the run
    directory was moved."""

    def __init__(self, progress: Progress | None, rows: int) -> None:
        self.progress, self.rows = progress, rows
        self.loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_model_checkpoint is not None:
            state.best_model_checkpoint = str(Path(args.output_dir) / Path(state.best_model_checkpoint).name)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, rows=self.rows, loss=self.loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        self.loss = loss or self.loss
        if not math.isfinite(loss):
            raise Diverged("the training loss is not a number", given=loss, remedy="lower the learning rate by half")


class KeepStep(TrainerCallback):
    """Names the checkpoint whose weights are loaded in the end, by the setting `kept_step`."""

    def __init__(self, kept_step: KeptStep) -> None:
        self.kept_step: KeptStep = kept_step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_training_stop and self.kept_step != "last":
            step = kept_look(looks_of(state.log_history), self.kept_step)["step"]
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{step}")


class Paced(TrainerCallback):
    """Tells the pace of this process of each step of a trainer."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.before = 0  # tokens before the step

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before = self.trainer.tokens
        pace().step_begins()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        pace().step_ends(self.trainer.tokens - self.before)


def looks_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The looks at the tuning slice, in order, out of all that was logged."""
    return [entry for entry in history if "eval_score" in entry]


def kept_look(looks: list[dict[str, Any]], kept_step: KeptStep) -> dict[str, Any]:
    """The look at the tuning slice at the step whose weights are kept.

    The best score counts, or the last one within a standard error of it (Breiman et al. 1984, Classification and
    Regression Trees, section 3.4.3). The rate falls to the end, so the last step is the better one if the slice cannot
    tell.
    """
    if kept_step == "last":
        return looks[-1]
    if kept_step == "loss":
        return min(looks, key=lambda look: look["eval_loss"])
    best = max(looks, key=lambda look: look["eval_score"])
    return looks[-1] if looks[-1]["eval_score"] >= best["eval_score"] - best["eval_score_error"] else best

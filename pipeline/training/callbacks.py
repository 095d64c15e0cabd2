"""Callbacks of a training: its learning rate, its reports, and the step whose weights are kept."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from kdc.common.errors import KdcError
from kdc.common.progress import Progress
from kdc.pipeline.config.training_settings import KeptStep
from kdc.pipeline.training import ranks
from kdc.pipeline.training.environment import pace

log = logging.getLogger("kdc")

_SECONDS_OF_AN_HOUR = 3600


class Rate:
    """The learning rate as a factor of its highest value: rises linearly over the warm-up, then falls linearly to 0.

    A training that is cut off at the end of its hours would end at a high rate, and its weights would be noisy. So the
    rate falls with the steps and with the time spent, and reaches 0 at whichever end comes first. PyTorch keeps the
    attributes of this object in a checkpoint, so a resumed training knows the time spent; `Deadline` sets the time in
    all again.

    Args:
        steps: updates of the weights in all.
        warmup: updates during which the rate rises.
        hours: hours after which the training ends; None: only the steps count.
    """

    def __init__(self, steps: int, warmup: int, hours: float | None = None) -> None:
        self.steps, self.warmup = steps, warmup
        self.seconds = None if hours is None else hours * _SECONDS_OF_AN_HOUR
        self.spent = 0.0  # seconds

    def __call__(self, step: int) -> float:
        """The factor, 0 to 1, of the update after so many updates."""
        if step < self.warmup:
            return step / self.warmup
        steps_left = (self.steps - step) / max(1, self.steps - self.warmup)
        return max(0.0, min(steps_left, 1.0 if self.seconds is None else 1 - self.spent / self.seconds))


class Deadline(TrainerCallback):
    """Tells a `Rate` of the time that passes, and ends the training with a last look at the tuning slice when the time
    is over. With several processes the leader's clock counts, so all end at the same step."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._clock, self._seconds = rate, clock, rate.seconds
        self._before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; time between two sittings of a training is not counted, and the hours of this one hold."""
        self._before, self.rate.seconds = self._clock(), self._seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the time since the last step, looks at the tuning slice and checkpoints included."""
        if self.rate.seconds is None:
            return
        now = self._clock()
        self.rate.spent += ranks.told_by_leader(now - self._before)
        self._before = now
        if self.rate.spent >= self.rate.seconds and state.global_step < state.max_steps:
            hours = self.rate.seconds / _SECONDS_OF_AN_HOUR
            log.warning("ends after %g hours, at step %s of %s", hours, state.global_step, state.max_steps)
            control.should_training_stop = control.should_evaluate = control.should_save = True


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

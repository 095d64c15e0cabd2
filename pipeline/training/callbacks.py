"""Trainer callbacks, and which step is kept."""

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

SECONDS_OF_AN_HOUR = 3600


class Rate:
    """Learning rate factor: linear warm-up, then linear decay to 0 by updates or time, whichever ends first.

    Checkpoints hold the attributes.
    """

    def __init__(self, steps: int, warmup: int, hours: float | None = None) -> None:
        self.steps, self.warmup = steps, warmup
        self.seconds = None if hours is None else hours * SECONDS_OF_AN_HOUR
        self.spent = 0.0  # seconds

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return step / self.warmup
        steps_left = (self.steps - step) / max(1, self.steps - self.warmup)
        return max(0.0, min(steps_left, 1.0 if self.seconds is None else 1 - self.spent / self.seconds))


class Deadline(TrainerCallback):
    """Stops at a `Rate`'s time limit, after a last evaluation. Rank 0's clock decides for all."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._clock, self._seconds = rate, clock, rate.seconds
        self._before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The time of interruptions does not count. A new limit replaces the checkpoint's."""
        self._before, self.rate.seconds = self._clock(), self._seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.rate.seconds is None:
            return
        now = self._clock()
        self.rate.spent += ranks.told_by_leader(now - self._before)
        self._before = now
        if self.rate.spent >= self.rate.seconds and state.global_step < state.max_steps:
            hours = self.rate.seconds / SECONDS_OF_AN_HOUR
            log.warning("ends after %g hours, at step %s of %s", hours, state.global_step, state.max_steps)
            control.should_training_stop = control.should_evaluate = control.should_save = True


class Diverged(KdcError):
    """The training loss is not a number."""


class Report(TrainerCallback):
    """Reports progress, stops at a loss that is not finite, and finds the best checkpoint of a moved run."""

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


class Paced(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.before = 0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.before = self.trainer.tokens
        pace().step_begins()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        pace().step_ends(self.trainer.tokens - self.before)


def looks_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in history if "eval_score" in entry]


def kept_look(looks: list[dict[str, Any]], kept_step: KeptStep) -> dict[str, Any]:
    """A last step within one standard error of the best score wins: its learning rate has decayed (Breiman et al. 1984,
    Classification and Regression Trees, section 3.4.3)."""
    if kept_step == "last":
        return looks[-1]
    if kept_step == "loss":
        return min(looks, key=lambda look: look["eval_loss"])
    best = max(looks, key=lambda look: look["eval_score"])
    return looks[-1] if looks[-1]["eval_score"] >= best["eval_score"] - best["eval_score_error"] else best

"""How the learning rate rises and falls: over the steps of a training, or over its hours if they end first.

A training that is cut off at the end of its time would end at a high rate, and its weights would be noisy. So the rate
falls with the steps and with the time spent, and reaches 0 at whichever end comes first.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from kdc.pipeline.training import ranks

log = logging.getLogger("kdc")

_SECONDS_OF_AN_HOUR = 3600


class Rate:
    """The learning rate as a factor of its highest value: rises linearly over the warm-up, then falls linearly to 0.

    PyTorch keeps the attributes of this object in a checkpoint, so a resumed training knows the time spent. `Deadline`
    sets the time in all again.

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

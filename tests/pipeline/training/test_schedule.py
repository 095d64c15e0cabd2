"""How the learning rate rises and falls, by steps and by hours."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from kdc.pipeline.training.callbacks import Deadline, Rate


def adam() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1.0)


@pytest.mark.parametrize(("steps", "warmup"), [(40, 0), (40, 7), (5, 5), (1, 0)])
def test_without_hours_it_is_transformers_linear_schedule(steps: int, warmup: int) -> None:
    theirs = get_linear_schedule_with_warmup(adam(), warmup, steps).lr_lambdas[0]
    seen = range(steps + 1)
    assert [Rate(steps, warmup)(step) for step in seen] == pytest.approx([theirs(step) for step in seen])


def steps_until_the_end(rate: Rate, seconds_a_step: float, *, most: int) -> list[float]:
    """The factor of each step of a training that asks a deadline after each, on a clock of its own."""
    now, factors = 0.0, []
    deadline = Deadline(rate, clock=lambda: now)
    state, control = SimpleNamespace(global_step=0, max_steps=most), SimpleNamespace(should_training_stop=False)
    deadline.on_train_begin(None, state, control)
    while not control.should_training_stop and state.global_step < most:
        factors.append(rate(state.global_step))
        now += seconds_a_step
        state.global_step += 1
        deadline.on_step_end(None, state, control)
    return factors


def test_where_the_hours_end_first_the_rate_has_fallen_by_then() -> None:
    """Catches a training that is cut off at a high rate: of 1,000 steps there is time for 36."""
    factors = steps_until_the_end(Rate(1000, 4, hours=1), 100, most=1000)
    assert len(factors) == 36
    assert factors[:4] == [0, 0.25, 0.5, 0.75]
    assert factors[4:] == pytest.approx([1 - step / 36 for step in range(4, 36)])


def test_a_step_that_takes_longer_than_the_hours_has_no_rate_below_zero() -> None:
    rate = Rate(10, 0, hours=1)
    rate.spent = 4000.0
    assert rate(1) == 0


def test_where_the_steps_end_first_the_hours_hardly_count() -> None:
    factors = steps_until_the_end(Rate(10, 2, hours=1), 1, most=10)
    assert factors == pytest.approx([Rate(10, 2)(step) for step in range(10)], rel=1e-3)


def test_a_checkpoint_keeps_the_time_that_was_spent(tmp_path: Path) -> None:
    """Catches a training that has all its hours again each time it goes on, or that goes on with the hours it began
    with though it was given others."""
    rate, other = Rate(1000, 0, hours=2), Rate(1000, 0, hours=1)
    deadline = Deadline(other)
    scheduler = torch.optim.lr_scheduler.LambdaLR(adam(), rate)
    steps_until_the_end(rate, 100, most=9)
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.pt")
    again = torch.optim.lr_scheduler.LambdaLR(adam(), other)
    again.load_state_dict(torch.load(tmp_path / "scheduler.pt", weights_only=True))
    deadline.on_train_begin(None, None, None)
    assert other.spent == 900
    assert len(steps_until_the_end(other, 100, most=1000)) == 27

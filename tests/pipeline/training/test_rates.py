"""The search of learning rates, on losses that are made up."""

import math

import pytest

from kdc.pipeline.training.rates import Rates, search_rates

DEFAULT = Rates(encoder=1e-4, head=2e-3)


class Trainings:
    """Short trainings whose loss grows with the distance of the rates from the best ones."""

    def __init__(self, best: Rates) -> None:
        self.best, self.done = best, list[tuple[Rates, int]]()

    def __call__(self, rates: Rates, steps: int) -> float:
        self.done.append((rates, steps))
        return abs(math.log(rates.encoder / self.best.encoder)) + abs(math.log(rates.head / self.best.head))


@pytest.mark.parametrize("encoder", [0.5e-4, 1e-4, 2e-4])
@pytest.mark.parametrize("head", [0.5e-3, 2e-3, 8e-3])
def test_the_pair_with_the_least_loss_is_found(encoder: float, head: float) -> None:
    assert search_rates(DEFAULT, 3000, Trainings(Rates(encoder, head))) == Rates(encoder, head)


@pytest.mark.parametrize("steps", [1, 59, 180, 500, 1079, 1080, 1500, 20_000])
def test_the_search_takes_at_most_a_third_of_the_steps(steps: int) -> None:
    # A search that costs more than what it is for would be no gain.
    trainings = Trainings(Rates(2e-4, 2e-3))
    search_rates(DEFAULT, steps, trainings)
    assert sum(taken for _, taken in trainings.done) <= steps / 3


def test_a_short_training_tries_the_encoders_rates_alone() -> None:
    # Nine trainings of nine steps each would tell nothing.
    trainings = Trainings(Rates(2e-4, 8e-3))
    assert search_rates(DEFAULT, 500, trainings) == Rates(2e-4, 2e-3)
    assert {rates.head for rates, _ in trainings.done} == {2e-3}


def test_a_training_that_is_too_short_keeps_its_rates() -> None:
    trainings = Trainings(Rates(2e-4, 2e-3))
    assert (search_rates(DEFAULT, 100, trainings), trainings.done) == (DEFAULT, [])


def test_the_best_third_is_trained_for_three_times_as_long() -> None:
    trainings = Trainings(Rates(2e-4, 8e-3))
    search_rates(DEFAULT, 1080, trainings)
    assert [steps for _, steps in trainings.done] == [20] * 9 + [60] * 3
    assert (trainings.done[9][0].encoder, trainings.done[9][0].head) == (2e-4, 8e-3)


def test_of_equal_losses_the_default_wins_and_a_loss_that_is_no_number_loses() -> None:
    assert search_rates(DEFAULT, 3000, lambda rates, steps: 1.0) == DEFAULT
    assert search_rates(DEFAULT, 3000, lambda rates, steps: math.nan if rates.encoder < 1e-4 else 1.0) == DEFAULT
    assert search_rates(DEFAULT, 3000, lambda rates, steps: math.nan if rates == DEFAULT else 1.0) != DEFAULT

"""Dropout whose masks are cheap: the statistics of torch's, and the random numbers of a training that is resumed."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from kdc.pipeline.training.dropout import CheapDropout, cheap_dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_values_are_dropped_at_the_rate_and_each_by_itself(rate: float) -> None:
    torch.manual_seed(0)
    values = CheapDropout(rate)(torch.ones(1000, 999))
    dropped = (values == 0).numpy()
    test = stats.binomtest(int(dropped.sum()), dropped.size, rate)
    assert test.pvalue > 1e-4
    assert float(values.mean()) == pytest.approx(1.0, abs=0.005)
    # Four neighbours share 64 random bits: two that were dropped together too often would be seen here.
    for lag in range(1, 5):
        both = int((dropped[:, lag:] & dropped[:, :-lag]).sum())
        assert stats.binomtest(both, dropped[:, lag:].size, rate**2).pvalue > 1e-4, lag


def test_the_gradient_goes_where_the_value_went() -> None:
    values = torch.ones(50, 7, requires_grad=True)
    out = CheapDropout(0.3)(values)
    out.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, out.detach())


def test_the_masks_follow_torchs_seed_and_differ_from_one_to_the_next() -> None:
    # A resumed training has torch's generator restored, and no other.
    module, values = CheapDropout(0.5), torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = module(values), module(values)
    torch.manual_seed(3)
    np.random.seed(99)
    assert torch.equal(first, module(values))
    assert len({tuple(module(values[0]).tolist()) for _ in range(100)}) == 100
    assert not torch.equal(first, second)


def test_only_training_drops_and_the_model_gets_its_own_modules_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.0))
    values = torch.ones(8, 4)
    with cheap_dropout(model):
        kinds = [type(module) for module in model]
        assert torch.equal(model.eval()(values), model[0](values))
        assert not torch.equal(model.train()(values), model[0](values))
    assert kinds == [nn.Linear, CheapDropout, nn.Dropout]
    assert [type(module) for module in model] == [nn.Linear, nn.Dropout, nn.Dropout]

"""Dropout on a CPU, whose masks cost an eighth of torch's: those were a third of a student's step.

torch draws one Bernoulli number for each value, one after the other. Here 64 random bits of SFC64 give four values
their 16 bits. Torch's own generator seeds SFC64 for each mask, so a resumed training draws the same masks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

_STEPS = 1 << 16  # of 16 bits, by which a rate is rounded


class CheapDropout(nn.Dropout):
    """`nn.Dropout` with the same statistics and other masks; a rate is rounded to a 65,536th."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop each value with probability `p` while training, and scale the others up, which keeps the mean."""
        dropped = round(self.p * _STEPS)
        if not self.training or not dropped:
            return input
        return input * keep_mask(input.shape, dropped).to(input.dtype).mul_(_STEPS / (_STEPS - dropped))


def keep_mask(shape: torch.Size, dropped: int) -> torch.Tensor:
    """A mask of this shape that is False with probability dropped / 65,536, each value by itself."""
    seed = int(torch.randint(2**62, (1,)))
    bits = np.random.SFC64(seed).random_raw(-(-shape.numel() // 4)).view(np.int16)[: shape.numel()]
    return torch.from_numpy(bits).view(shape) >= dropped - _STEPS // 2


@contextmanager
def cheap_dropout(model: nn.Module) -> Iterator[None]:
    """Let all dropout modules of a model on the CPU draw their masks so, for as long as the context lasts."""
    modules = [module for module in model.modules() if type(module) is nn.Dropout and 0 < module.p < 1]
    for module in modules:
        module.__class__ = CheapDropout
    try:
        yield
    finally:
        for module in modules:
            module.__class__ = nn.Dropout

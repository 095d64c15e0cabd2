"""The threads that torch computes with in this process: as many as are fastest here, now."""

import functools
import os

import torch

from kdc.common.cores import usable_cores
from kdc.common.pace import Pace, halvings


@functools.cache
def pace() -> Pace:
    """The pace of this process: all cores that it may use, half of them, a quarter, and so on to one thread.
    `OMP_NUM_THREADS`, which also torchrun sets, leaves nothing to choose."""
    if "OMP_NUM_THREADS" in os.environ:
        return Pace((torch.get_num_threads(),), torch.set_num_threads)
    return Pace(halvings(min(torch.get_num_threads(), usable_cores())), torch.set_num_threads)

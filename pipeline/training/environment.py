"""Times threads, precision and attention, and takes the fastest.

bf16 has twice the speed of fp32 on one CPU and half on another. Fused attention is slower only in bf16, for short
rows on a CPU without AMX.
"""

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdc.common.cores import usable_cores
from kdc.common.pace import Pace, halvings, least_seconds
from kdc.pipeline.training.batches import Collator, Rows
from kdc.pipeline.training.joining import parts_of

log = logging.getLogger("kdc")

# With fewer rows, fixed costs dominate.
_PROBED_TOKENS, _PROBED_ROWS = 1024, 32
_CLEARLY = 0.9


@dataclass(frozen=True)
class Environment:
    seed: int
    device: str = "cpu"
    bf16: bool | None = False  # None: `settle` chooses
    stepwise: bool = False  # unfused attention


@functools.cache
def pace() -> Pace:
    """Try all usable cores, half, ..., 1. `OMP_NUM_THREADS` (torchrun sets it) fixes the threads."""
    if "OMP_NUM_THREADS" in os.environ:
        return Pace((torch.get_num_threads(),), torch.set_num_threads)
    return Pace(halvings(min(torch.get_num_threads(), usable_cores())), torch.set_num_threads)


def attention(environment: Environment) -> AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH) if environment.stepwise else nullcontext()


@contextmanager
def answering(environment: Environment) -> Iterator[None]:
    """Use the environment's attention and, on a CPU, precision."""
    bf16 = environment.device == "cpu" and bool(environment.bf16)
    with attention(environment), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        yield


def settle(environment: Environment, model: Any, rows: Rows, *, pad_id: int, trains: bool = True) -> Environment:
    """Choose attention, and precision if open, by timing a step. Weights and random state stay."""
    if environment.device != "cpu" or environment.bf16 is False:
        return environment
    order = np.argsort(rows.lengths, kind="stable")[len(rows) // 2 :]
    middle = order[: min(_PROBED_ROWS, max(2, _PROBED_TOKENS // int(rows.lengths[order[0]])))]
    batch = Collator(pad_id)(rows.__getitems__(middle.tolist()))
    model.train(trains)

    def step(way: Environment) -> None:
        with answering(way), torch.inference_mode(not trains):
            loss = parts_of(model, batch).square().mean()
        if trains:
            loss.backward()
            model.zero_grad(set_to_none=True)

    is_open = environment.bf16 is None
    fused = replace(environment, bf16=True, stepwise=False)
    ways = [fused, replace(fused, stepwise=True), *([replace(fused, bf16=False)] if is_open else [])]
    with pace().work(), torch.random.fork_rng(devices=[]):
        seconds = least_seconds([functools.partial(step, way) for way in ways])
    by_time = dict(zip(ways, seconds, strict=True))
    chosen = ways[-1 if is_open else 0]
    for way in ways[:2]:
        if by_time[way] <= _CLEARLY * by_time[chosen]:
            chosen = way
    if is_open:
        log.info("%s in %s, which is faster here", "trains" if trains else "answers", "bf16" if chosen.bf16 else "fp32")
    return chosen

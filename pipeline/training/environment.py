"""What all trainings of a run have in common; the threads, number format and attention that are fastest, by timing.

torch multiplies in bf16 at twice the speed of fp32 on one CPU and at half of it on another. Its fused attention is the
faster one in fp32; in bf16, for short rows on a CPU without AMX, attention in single steps is faster.
"""

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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

# Rows used to compare two ways. With fewer, what a step does once would weigh too much.
_PROBED_TOKENS, _PROBED_ROWS = 1024, 32
_CLEARLY = 0.9  # share of another way's time in which a way is clearly faster


@dataclass(frozen=True)
class Environment:
    """What all trainings of a run have in common."""

    seed: int  # seeds initialisation, the order of the rows, and dropout
    device: str = "cpu"  # or "cuda"
    bf16: bool | None = False  # whether to train in bf16 autocast; None: by what is faster, see `settle`
    stepwise: bool = False  # whether attention is computed in single steps, and not by torch's fused kernel


@functools.cache
def pace() -> Pace:
    """How many threads torch computes with in this process: all cores that it may use, half of them, a quarter, and so
    on to one thread. `OMP_NUM_THREADS`, which also torchrun sets, leaves nothing to choose."""
    if "OMP_NUM_THREADS" in os.environ:
        return Pace((torch.get_num_threads(),), torch.set_num_threads)
    return Pace(halvings(min(torch.get_num_threads(), usable_cores())), torch.set_num_threads)


@contextmanager
def attention(environment: Environment) -> Iterator[None]:
    """Compute attention as the environment says, for as long as the context lasts."""
    with sdpa_kernel(SDPBackend.MATH) if environment.stepwise else nullcontext():
        yield


@contextmanager
def answering(environment: Environment) -> Iterator[None]:
    """Answer in the number format and with the attention of the environment, on a CPU; on a GPU as the model is."""
    bf16 = environment.device == "cpu" and bool(environment.bf16)
    with attention(environment), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        yield


def settle(environment: Environment, model: Any, rows: Rows, *, pad_id: int, trains: bool = True) -> Environment:
    """The environment with the number format, if that is open, and the attention that are faster on a CPU: for a step
    of the model on a few of the rows, or for its answers if it does not train. The model and the state of the random
    numbers stay as they were."""
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
    with pace().work(), torch.random.fork_rng(devices=[]):  # with as many threads as were fastest so far
        seconds = least_seconds([functools.partial(step, way) for way in ways])
    by_time = dict(zip(ways, seconds, strict=True))
    chosen = ways[-1 if is_open else 0]  # what is left as long as no other way is clearly faster
    for way in ways[:2]:
        if by_time[way] <= _CLEARLY * by_time[chosen]:
            chosen = way
    if is_open:
        does, work = ("trains", "a step") if trains else ("answers", "the answers")
        log.info("%s in %s, which is faster here for %s of this model", does, "bf16" if chosen.bf16 else "fp32", work)
    return chosen

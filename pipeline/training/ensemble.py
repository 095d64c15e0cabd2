"""Several teachers as one: the mean of their logits, weighted by their scores on the tuning slice or equally."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Weights = Literal["score", "equal"]


def role(index: int) -> str:
    """The role whose tokens the teacher of that index takes; 0 is the first teacher."""
    return "teacher" if index == 0 else f"teacher-{index + 1}"


def folder(index: int) -> str:
    """The folder in which stage `teacher` keeps the teacher of that index."""
    return "model" if index == 0 else f"model-{index + 1}"


def weights(scores: Sequence[float], how: Weights) -> NDArray[np.float64]:
    """The weight of each teacher; they sum to 1. A teacher whose score, in points on the tuning slice, is not above
    zero counts for nothing, unless that holds for all."""
    parts = np.maximum(np.asarray(scores, dtype=np.float64), 0.0)
    if how == "equal" or not parts.sum():
        parts = np.ones(len(scores))
    return parts / parts.sum()


def average(
    logits: Sequence[NDArray[np.floating]], shares: NDArray[np.float64], temperatures: Sequence[float]
) -> NDArray[np.float32]:
    """The weighted mean of several teachers' logits, each (rows, outputs), divided by its own temperature first: a
    teacher that is surer than it should be would outvote the others."""
    total = np.zeros(logits[0].shape, dtype=np.float64)
    for part, share, temperature in zip(logits, shares, temperatures, strict=True):  # together they may exceed memory
        total += share / temperature * part
    return total.astype(np.float32)

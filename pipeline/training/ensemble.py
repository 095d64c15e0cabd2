"""Several teachers as one, by weighted mean logits."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Weights = Literal["score", "equal"]


def role(index: int) -> str:
    return "teacher" if index == 0 else f"teacher-{index + 1}"


def folder(index: int) -> str:
    return "model" if index == 0 else f"model-{index + 1}"


def weights(scores: Sequence[float], how: Weights) -> NDArray[np.float64]:
    """Proportional to positive scores, with sum 1; equal if none is positive."""
    parts = np.maximum(np.asarray(scores, dtype=np.float64), 0.0)
    if how == "equal" or not parts.sum():
        parts = np.ones(len(scores))
    return parts / parts.sum()


def average(
    logits: Sequence[NDArray[np.floating]], shares: NDArray[np.float64], temperatures: Sequence[float]
) -> NDArray[np.float32]:
    """Weighted mean of logits (rows, outputs). Temperatures keep overconfident teachers from dominating."""
    total = np.zeros(logits[0].shape, dtype=np.float64)
    for part, share, temperature in zip(logits, shares, temperatures, strict=True):  # one at a time, to bound memory
        total += share / temperature * part
    return total.astype(np.float32)

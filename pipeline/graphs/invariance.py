"""Whether a row's answer depends on the other rows of its batch, which it must not where a variant serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from kdc.artifact.manifest import Kind


@dataclass(frozen=True)
class BatchInvariance:
    """How far a row's answer depends on the other rows of its batch.

    Attributes:
        max_difference: largest difference of a probability (or of regression's number) between the row alone and the
            row in a batch.
        label_flips: rows whose label differs between the two.
        rows: rows that were compared.
    """

    max_difference: float
    label_flips: int
    rows: int

    def passes(self, tolerance: float = 1e-3) -> bool:
        """Whether a variant may serve: no label changes, and no number changes by more than the tolerance."""
        return self.label_flips == 0 and self.max_difference <= tolerance


def batch_invariance(
    run: Callable[[Sequence[Encoding]], np.ndarray],
    encodings: Sequence[Encoding],
    *,
    kind: Kind,
    seed: int = 0,
    batch: int = 16,
) -> BatchInvariance:
    """Compare the answer to every row alone with the answer to it among random others.

    Args:
        run: answers one batch of rows: probabilities (rows, outputs), or regression's numbers.
        encodings: the tokenised rows, at least one.
        kind: the task's kind, which says what a label is.
        seed: chooses the rows of each batch.
        batch: rows in a batch.
    """
    alone = np.concatenate([run([encoding]) for encoding in encodings])
    together = np.empty_like(alone)
    order = np.random.default_rng(seed).permutation(len(encodings))
    for start in range(0, len(order), batch):
        # The last batch is filled up from the start, so that every row has neighbours.
        rows = np.resize(np.roll(order, -start), batch) if start + batch > len(order) else order[start : start + batch]
        together[rows] = run([encodings[row] for row in rows])
    if kind == "classification":
        flipped = alone.argmax(axis=1) != together.argmax(axis=1)
    elif kind == "multilabel":
        flipped = ((alone >= 0.5) != (together >= 0.5)).any(axis=1)
    else:
        flipped = np.zeros(len(alone), dtype=bool)
    return BatchInvariance(float(np.abs(alone - together).max()), int(flipped.sum()), len(encodings))

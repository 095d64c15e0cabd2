"""Checks of what a graph answers: the same as the model that it was made from, and the same to a row in any batch.

Reads a folder that `save_pretrained` wrote, and ONNX files; writes nothing.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from kdc.artifact.manifest import Kind
from kdc.common.errors import KdcError
from kdc.pipeline.config import metrics
from kdc.pipeline.graphs.onnx_graph import load_classifier
from kdc.serving.engine.providers import open_session

Feeds = dict[str, np.ndarray]  # int64 (batch, sequence) by the name of the graph's input
Row = Mapping[str, Sequence[int]]  # a tokenised row: "input_ids" and, if the tokenizer makes them, "token_type_ids"
LogitsFunction = Callable[[Feeds], np.ndarray]
Encoding = TypeVar("Encoding")  # a tokenised row, whatever its model takes

_SHORTEST_ROW = 3  # [CLS] word [SEP]
_INVARIANCE_BATCH = 16  # rows
_INVARIANCE_TOLERANCE = 1e-3  # of a probability


def torch_logits(model_dir: Path) -> LogitsFunction:
    """The saved torch classifier as a function from feeds to logits: the reference for parity."""
    model = load_classifier(model_dir)
    accepted = inspect.signature(model.forward).parameters

    def run(feeds: Feeds) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value) for name, value in feeds.items() if name in accepted}
            return model(**tensors).logits.float().numpy()

    return run


def onnx_logits(path: Path, *, threads: int | None = None) -> LogitsFunction:
    """An ONNX file on the CPU as a function from feeds to logits. Feeds that are no input of the graph are left out."""
    session = open_session(lambda _: path, device="cpu", threads=threads).session
    names = {value.name for value in session.get_inputs()}

    def run(feeds: Feeds) -> np.ndarray:
        return session.run(["logits"], {name: value for name, value in feeds.items() if name in names})[0]

    return run


def parity_batches(rows: Sequence[Row], *, pad_id: int, max_length: int, seed: int = 0) -> Iterator[Feeds]:
    """Padded batches that a graph must get right: 1, 2, 7 and 32 rows, from 3 tokens to `max_length`.

    Each batch size comes twice: once with its first row cut to 3 tokens, and once with its first row repeated to fill
    `max_length` tokens. So a batch of one row has no padding, and every other batch has some.
    """
    generator = np.random.default_rng(seed)
    fillers = {"input_ids": pad_id, "token_type_ids": 0}
    for size in (1, 2, 7, 32):
        for length in (_SHORTEST_ROW, max_length):
            first, *others = [rows[index] for index in generator.integers(len(rows), size=size)]
            batch = [{name: np.resize(ids, length).tolist() for name, ids in first.items()}, *others]
            feeds = {name: _padded([row[name] for row in batch], fillers[name]) for name in first if name in fillers}
            yield feeds | {"attention_mask": _padded([[1] * len(row["input_ids"]) for row in batch], 0)}


def _padded(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    """Numbers (rows, longest row)."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler).numpy()


def check_parity(
    run: LogitsFunction, reference: LogitsFunction, batches: Iterable[Feeds], *, tolerance: float = 1e-4
) -> float:
    """Compare two functions from feeds to logits (or to probabilities) on every batch of `parity_batches`, and return
    the largest difference.

    Raises:
        KdcError: a difference above the tolerance of `check_equal`, outputs of another shape, or no batch at all.
    """
    differences = []
    for feeds in batches:
        expected, actual = reference(feeds), run(feeds)
        if actual.shape != expected.shape:
            raise KdcError(
                "the graph gives outputs of another shape than the model",
                given=f"{actual.shape}, expected {expected.shape}",
            )
        difference, _ = check_equal(
            actual,
            expected,
            tolerance,
            problem="the graph does not compute what the model does",
            where=f"(batch, sequence) {feeds['input_ids'].shape}",
            remedy="try the other exporter: `--set export.exporter=torch` or `optimum`",
        )
        differences.append(difference)
    if not differences:
        raise KdcError("parity was checked on no batch", remedy="give at least one tokenised row")
    return max(differences)


def check_equal(
    actual: np.ndarray, expected: np.ndarray, tolerance: float, *, problem: str, where: str, remedy: str
) -> tuple[float, float]:
    """Compare the logits (or probabilities) of one model with those of another.

    Returns:
        The largest absolute difference, and the allowed one: the tolerance, times the largest absolute expected value
        if that exceeds 1.

    Raises:
        KdcError: the difference is larger or NaN.
    """
    difference = float(np.abs(actual - expected).max())
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:  # also catches NaN
        raise KdcError(problem, given=f"difference {difference:.3g} at {where}, allowed {allowed:.3g}", remedy=remedy)
    return difference, allowed


@dataclass(frozen=True)
class BatchInvariance:
    """How far the answer to a row alone differs from the answer to it in a batch."""

    max_probability_difference: float  # the largest, or the largest of regression's number
    label_flips: int  # rows whose label differs between the two
    compared_rows: int

    def passes(self) -> bool:
        """Whether a variant may serve: no label changes, and no number changes by more than 1e-3."""
        return self.label_flips == 0 and self.max_probability_difference <= _INVARIANCE_TOLERANCE


def batch_invariance(
    run: Callable[[Sequence[Encoding]], np.ndarray],
    encodings: Sequence[Encoding],
    *,
    kind: Kind,
    seed: int = 0,
) -> BatchInvariance:
    """Compare the answer to every row alone with the answer to it among random others, in batches of 16 rows.

    Args:
        run: answers one batch of rows: probabilities (rows, outputs), or regression's numbers.
        encodings: the tokenised rows, at least one.
        kind: the task's kind, which says what a label is.
        seed: chooses the rows of each batch.
    """
    alone = np.concatenate([run([encoding]) for encoding in encodings])
    together = np.empty_like(alone)
    order = np.random.default_rng(seed).permutation(len(encodings))
    for start in range(0, len(order), _INVARIANCE_BATCH):
        # The last batch is filled up from the start: every row has neighbours.
        rows = np.resize(np.roll(order, -start), _INVARIANCE_BATCH).tolist()
        together[rows] = run([encodings[row] for row in rows])
    # A probability of one half is a logit of zero, where a label of a multi-label task is on.
    flips = metrics.changed_labels(alone - 0.5, together - 0.5, kind)
    return BatchInvariance(float(np.abs(alone - together).max()), flips, len(encodings))

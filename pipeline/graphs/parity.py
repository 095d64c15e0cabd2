"""Checks that a graph answers like its model, and the same in any batch."""

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

Feeds = dict[str, np.ndarray]  # int64 (batch, sequence) by input name
Row = Mapping[str, Sequence[int]]  # "input_ids", maybe "token_type_ids"
LogitsFunction = Callable[[Feeds], np.ndarray]
Encoding = TypeVar("Encoding")  # any tokenised row

_SHORTEST_ROW = 3  # [CLS] word [SEP]
_INVARIANCE_BATCH = 16  # rows
_INVARIANCE_TOLERANCE = 1e-3  # in probability


def torch_logits(model_dir: Path) -> LogitsFunction:
    model = load_classifier(model_dir)
    accepted = inspect.signature(model.forward).parameters

    def run(feeds: Feeds) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value) for name, value in feeds.items() if name in accepted}
            return model(**tensors).logits.float().numpy()

    return run


def onnx_logits(path: Path, *, threads: int | None = None) -> LogitsFunction:
    """A function of feeds, which ignores those that the graph lacks."""
    session = open_session(lambda _: path, device="cpu", threads=threads).session
    names = {value.name for value in session.get_inputs()}

    def run(feeds: Feeds) -> np.ndarray:
        return session.run(["logits"], {name: value for name, value in feeds.items() if name in names})[0]

    return run


def parity_batches(rows: Sequence[Row], *, pad_id: int, max_length: int, seed: int = 0) -> Iterator[Feeds]:
    """Padded batches of 1, 2, 7 and 32 rows."""
    generator = np.random.default_rng(seed)
    fillers = {"input_ids": pad_id, "token_type_ids": 0}
    for size in (1, 2, 7, 32):
        for length in (_SHORTEST_ROW, max_length):
            first, *others = [rows[index] for index in generator.integers(len(rows), size=size)]
            batch = [{name: np.resize(ids, length).tolist() for name, ids in first.items()}, *others]
            feeds = {name: _padded([row[name] for row in batch], fillers[name]) for name in first if name in fillers}
            yield feeds | {"attention_mask": _padded([[1] * len(row["input_ids"]) for row in batch], 0)}


def _padded(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler).numpy()


def check_parity(
    run: LogitsFunction, reference: LogitsFunction, batches: Iterable[Feeds], *, tolerance: float = 1e-4
) -> float:
    """The largest difference over all batches; KdcError as `check_equal`."""
    differences = []
    for feeds in batches:
        expected, actual = reference(feeds), run(feeds)
        if actual.shape != expected.shape:
            raise KdcError(
                "the graph's outputs have another shape than the model's",
                given=f"{actual.shape}, expected {expected.shape}",
            )
        difference, _ = check_equal(
            actual,
            expected,
            tolerance,
            problem="the graph's outputs differ from the model's",
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
    """The largest difference, and its limit: the tolerance, times the largest absolute expected value if above 1.

    Raises:
        KdcError: the difference is above the limit or NaN.
    """
    difference = float(np.abs(actual - expected).max())
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:  # also catches NaN
        raise KdcError(problem, given=f"difference {difference:.3g} at {where}, allowed {allowed:.3g}", remedy=remedy)
    return difference, allowed


@dataclass(frozen=True)
class BatchInvariance:
    max_probability_difference: float  # for regression, of the number
    label_flips: int  # rows whose label differs
    compared_rows: int

    def passes(self) -> bool:
        return self.label_flips == 0 and self.max_probability_difference <= _INVARIANCE_TOLERANCE


def batch_invariance(
    run: Callable[[Sequence[Encoding]], np.ndarray],
    encodings: Sequence[Encoding],
    *,
    kind: Kind,
    seed: int = 0,
) -> BatchInvariance:
    """Compare each row alone with the row in random batches of 16.

    `run` maps rows to probabilities (rows, outputs), or regression's numbers.
    """
    alone = np.concatenate([run([encoding]) for encoding in encodings])
    together = np.empty_like(alone)
    order = np.random.default_rng(seed).permutation(len(encodings))
    for start in range(0, len(order), _INVARIANCE_BATCH):
        # Fill the last batch from the start.
        rows = np.resize(np.roll(order, -start), _INVARIANCE_BATCH).tolist()
        together[rows] = run([encodings[row] for row in rows])
    # `changed_labels` wants logits: probability 0.5 is logit 0.
    flips = metrics.changed_labels(alone - 0.5, together - 0.5, kind)
    return BatchInvariance(float(np.abs(alone - together).max()), flips, len(encodings))

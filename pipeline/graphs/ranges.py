"""Collects activation ranges for static quantisation in bounded memory.

ONNX Runtime's calibrators keep all intermediate tensors and need equal shapes.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from scipy.special import rel_entr

from kdc.common.errors import KdcError
from kdc.pipeline.data.tokens import apart
from kdc.pipeline.graphs.parity import Feeds, Row
from kdc.serving.engine.providers import open_session

RangeMethod = Literal["minmax", "percentile", "entropy"]

PERCENTILE = 99.99  # of the values
_FIRST_BINS, _MOST_BINS = 2048, 16384
_STEPS = 255  # of an 8-bit range
_THRESHOLDS = 128  # that the entropy method tries


class Histogram:
    """Counts in equal bins, which widen with the range."""

    def __init__(self) -> None:
        self.minimum = np.inf
        self.maximum = -np.inf
        self._width = 0.0
        self._first = 0
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._width = self._width or max(high - low, 1e-6) / _FIRST_BINS
        while (self.maximum - self.minimum) / self._width > _MOST_BINS:
            self._widen()
        bins = np.floor(values.reshape(-1) / self._width).astype(np.int64)
        first = int(bins.min())
        self._cover(first, int(bins.max()) + 1)
        counts = np.bincount(bins - first)
        start = first - self._first
        self._counts[start : start + len(counts)] += counts

    def range(self, method: RangeMethod) -> tuple[float, float]:
        """The range to represent, with zero."""
        if method == "minmax" or self.minimum == self.maximum:
            return min(self.minimum, 0.0), max(self.maximum, 0.0)
        if method == "entropy":
            return self._entropy_range()
        shares = np.cumsum(self._counts) / self._counts.sum()
        outside = (1 - PERCENTILE / 100) / 2
        low = (self._first + int(np.searchsorted(shares, outside, side="right"))) * self._width
        high = (self._first + int(np.searchsorted(shares, 1 - outside)) + 1) * self._width
        return min(max(low, self.minimum), 0.0), max(min(high, self.maximum), 0.0)

    def _entropy_range(self) -> tuple[float, float]:
        """By the smallest Kullback-Leibler divergence of the clipped values and their 8-bit form (Migacz 2017, 8-bit
        inference with TensorRT)."""
        largest = max(-self.minimum, self.maximum)
        smallest, best = np.inf, (min(self.minimum, 0.0), max(self.maximum, 0.0))
        for threshold in largest * np.arange(1, _THRESHOLDS + 1) / _THRESHOLDS:
            first = max(0, round(-threshold / self._width) - self._first)
            last = min(len(self._counts), round(threshold / self._width) - self._first)
            if last - first < _STEPS + 1:
                continue
            inside = self._counts[first:last].astype(np.float64)
            clipped = inside.copy()
            clipped[0] += self._counts[:first].sum()
            clipped[-1] += self._counts[last:].sum()
            in_steps = _in_steps(inside, clipped > 0)
            divergence = float(rel_entr(clipped / clipped.sum(), in_steps / max(in_steps.sum(), 1.0)).sum())
            if divergence < smallest:
                smallest = divergence
                best = max(-threshold, min(self.minimum, 0.0)), min(threshold, max(self.maximum, 0.0))
        return best

    def noise(self, method: RangeMethod) -> float:
        """Power of the 8-bit error, relative to the values' power."""
        if self.minimum == self.maximum == 0.0:
            return 0.0
        low, high = self.range(method)
        values = (self._first + np.arange(len(self._counts)) + 0.5) * self._width
        step = max(high - low, 1e-12) / _STEPS
        zero = np.rint(-low / step)
        restored = (np.clip(np.rint(values / step) + zero, 0, _STEPS) - zero) * step
        return float((self._counts * (values - restored) ** 2).sum() / (self._counts * values**2).sum())

    def _widen(self) -> None:
        """Join pairs of bins from an even bin on: zero stays an edge."""
        if self._first % 2:
            self._cover(self._first - 1, self._first)
        if len(self._counts) % 2:
            self._cover(self._first, self._first + len(self._counts) + 1)
        self._counts = self._counts.reshape(-1, 2).sum(axis=1)
        self._first //= 2
        self._width *= 2

    def _cover(self, first: int, end: int) -> None:
        if len(self._counts) == 0:
            self._first = first
        before = max(0, self._first - first)
        after = max(0, end - (self._first + len(self._counts)))
        self._counts = np.pad(self._counts, (before, after))
        self._first -= before


def _in_steps(counts: np.ndarray, filled: np.ndarray) -> np.ndarray:
    step = np.arange(len(counts)) * (_STEPS + 1) // len(counts)
    total, bins = np.bincount(step, counts), np.bincount(step, filled)
    return np.where(filled, (total / np.maximum(bins, 1))[step], 0.0)


Ranges = Mapping[str, Histogram]  # by tensor name


def collect_ranges(onnx_path: Path, tensors: Sequence[str], batches: Iterable[Feeds]) -> Ranges:
    """Raises as `watch`."""
    histograms = {name: Histogram() for name in tensors}
    for activations in watch(onnx_path, tensors, batches):
        for name, values in activations.items():
            histograms[name].add(values)
    return histograms


def watch(onnx_path: Path, tensors: Sequence[str], batches: Iterable[Feeds]) -> Iterator[dict[str, np.ndarray]]:
    """Yield a graph's inner tensors, by name, per batch.

    Raises:
        KdcError: no batch, or a value is not finite.
    """
    activations: dict[str, np.ndarray] | None = None
    with tempfile.TemporaryDirectory() as scratch:
        graph = onnx.load(onnx_path)
        graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
        watched = Path(scratch) / "watched.onnx"
        onnx.save(graph, watched)
        session = open_session(lambda _: watched, device="cpu").session
        for feeds in batches:
            # An empty list would return all outputs.
            values_of = session.run(list(tensors), feeds) if tensors else []
            activations = dict(zip(tensors, values_of, strict=True))
            for name, values in activations.items():
                if not np.isfinite(values).all():
                    raise KdcError("an activation is not finite during calibration", given=name)
            yield activations
    if activations is None:
        raise KdcError("there are no calibration rows", remedy="give rows of the training split")


def sample_batches(tokens: Any, input_names: Sequence[str], *, rows: int, seed: int) -> list[Feeds]:
    """Calibration batches of random rows or windows."""
    chosen = np.random.default_rng(seed).permutation(len(tokens))[:rows]
    return list(calibration_batches(apart(tokens[int(index)] for index in chosen)[:rows], input_names))


def calibration_batches(rows: Sequence[Row], input_names: Sequence[str], *, batch_size: int = 32) -> Iterator[Feeds]:
    """Unpadded: a batch has rows of equal length."""
    by_length: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_length[len(row["input_ids"])].append(row)
    for length, same in sorted(by_length.items()):
        for start in range(0, len(same), batch_size):
            batch = same[start : start + batch_size]
            columns = [name for name in input_names if name in batch[0]]
            feeds = {name: np.array([row[name] for row in batch], dtype=np.int64) for name in columns}
            yield feeds | {"attention_mask": np.ones((len(batch), length), dtype=np.int64)}

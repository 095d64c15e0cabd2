"""int8 candidates tried one by one: made, judged against fp32 on the tuning slice, and timed beside each other.

Reads the fp32 graph and the tuning slice; writes one ONNX file a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Kind
from kdc.common.errors import KdcError
from kdc.pipeline.graphs.int8 import Candidate, quantise
from kdc.pipeline.graphs.int8_choice import FP32, Standard
from kdc.pipeline.graphs.invariance import batch_invariance
from kdc.pipeline.graphs.parity import Feeds
from kdc.pipeline.graphs.sensitivity import layers_by_worth
from kdc.pipeline.graphs.smoothing import Source, make_source
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.latency import compare_speeds
from kdc.pipeline.results import Int8Measurement
from kdc.serving.engine.engine import Engine, activate
from kdc.serving.engine.tokenizing import Text

_INVARIANCE_ROWS = 500  # compared alone and in batches, at least
_MOST_KEPT = 0.5  # share of the linear layers that may stay in fp32: beyond, little is left to gain
# Tried where the best of `CANDIDATES` costs something: other ranges of the activations.
_OTHER_RANGES = (
    Candidate("channel-entropy", static=True, per_channel=True, ranges="entropy"),
    Candidate("channel-smooth-percentile", static=True, per_channel=True, ranges="percentile", smooth=True),
)


@dataclass(frozen=True)
class TuningSlice:
    """What candidates are judged on.

    Attributes:
        texts: of the rows.
        labels: (rows,), or (rows, outputs) for multi-label.
        logits: (rows, outputs) of the fp32 graph.
        kind: the task's kind.
        metric_names: the first one decides.
    """

    texts: Sequence[Text]
    labels: NDArray[np.generic]
    logits: NDArray[np.float32]
    kind: Kind
    metric_names: tuple[str, ...]


@dataclass
class Trials:
    """The candidates of one fp32 graph.

    Attributes:
        folder: where their files are written.
        fp32_file: the graph as exported.
        batches: calibration rows, see `kdc.pipeline.graphs.ranges.sample_batches`.
        rows: what they are judged on.
        fp32: the engine over the fp32 graph.
        open_engine: an ONNX file to the engine over it.
        invariance_rows: rows compared alone and in batches; at least 500.
        rounds: of the comparison of speeds.
        seed: chooses the neighbours in those batches.
        measured: what was measured, by candidate, and "fp32", which has only timings.
        engines: of those candidates that could be made and run.
        candidates: the same candidates.
    """

    folder: Path
    fp32_file: Path
    batches: Sequence[Feeds]
    rows: TuningSlice
    fp32: Engine
    open_engine: Callable[[Path], Engine]
    invariance_rows: int
    rounds: int
    seed: int
    measured: dict[str, Int8Measurement] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)

    def source_of(self, candidate: Candidate) -> Source:
        """What a candidate is made from: the graph as exported, or smoothed; each is made for the first that asks."""
        return self._smoothed if candidate.smooth else self._plain

    @cached_property
    def _plain(self) -> Source:
        return make_source(self.fp32_file, self.batches)

    @cached_property
    def _smoothed(self) -> Source:
        return make_source(self.fp32_file, self.batches, smoothed_file=self.folder / "smoothed.onnx")

    def judge(self, candidate: Candidate) -> Int8Measurement:
        """Make a candidate and measure all but its speed; one that cannot be made or run only notes why."""
        file = self.folder / f"{candidate.name}.onnx"
        record = Int8Measurement(static=candidate.static, graph=candidate.graph)
        try:
            source = self.source_of(candidate)
            nodes = quantise(source.file, file, candidate, source.ranges if candidate.static else None)
            record = record.model_copy(update={"nodes": nodes})
            engine = self.open_engine(file)
            rows = max(_INVARIANCE_ROWS, self.invariance_rows)
            record = record.model_copy(update=judge_engine(engine, self.rows, invariance_rows=rows, seed=self.seed))
        except KdcError as error:
            record = record.model_copy(update={"failed": f"{error.what} ({error.given})"})
        else:
            self.engines[candidate.name], self.candidates[candidate.name] = engine, candidate
        self.measured[candidate.name] = record
        return record

    def time(self) -> None:
        """Time fp32 and all candidates in turns. Short turns, so that a slow second of the machine hits all alike."""
        answers = {FP32: self.fp32.logits} | {name: engine.logits for name, engine in self.engines.items()}
        speeds = compare_speeds(answers, self.rows.texts, latency_rows=10, throughput_rows=32, rounds=self.rounds)
        for name in self.engines:
            ratio = round(speeds[name].latency_p50_ms / speeds[FP32].latency_p50_ms, 3)
            timings = speeds[name].model_dump() | {"latency_against_fp32": ratio}
            self.measured[name] = self.measured[name].model_copy(update=timings)
        self.measured[FP32] = Int8Measurement(**speeds[FP32].model_dump())

    def repair(self, standard: Standard) -> None:
        """Try more candidates, for a student that loses by those there are: other ranges of the activations, then the
        most accurate whole candidate with its most sensitive layers left in fp32, until nothing is lost."""
        for candidate in _OTHER_RANGES:
            self.judge(candidate)
        whole = {name: each for name, each in self.candidates.items() if each.static and not each.exclude}
        if not whole:
            return
        best = whole[min(whole, key=lambda name: self.measured[name].mean_difference)]
        source = self.source_of(best)
        worth = layers_by_worth(source.file, best, source.ranges, self.batches)
        for candidate in with_layers_kept(best, worth, most=_MOST_KEPT * self.measured[best.name].nodes["wanted"]):
            record = self.judge(candidate)
            if record.failed is None and standard.is_free(record):
                return


def with_layers_kept(candidate: Candidate, layers: Sequence[frozenset[str]], *, most: float) -> Iterator[Candidate]:
    """The candidate with the first one, two, four, ... groups of layers left in fp32.

    Args:
        candidate: how the other layers are quantised.
        layers: names of nodes by group, the group first that is worth most, see `layers_by_worth`.
        most: layers that may stay in fp32.
    """
    count = 1
    while count <= len(layers):
        keep = frozenset().union(*layers[:count])
        if len(keep) > most:
            return
        yield replace(candidate, name=f"{candidate.name}-keep-{len(keep)}", keep=keep)
        count *= 2


def judge_engine(engine: Engine, rows: TuningSlice, *, invariance_rows: int, seed: int) -> dict[str, Any]:
    """Compare the engine over a candidate with fp32, and its answers alone with those in batches.

    Args:
        engine: with the temperature that it will serve with.
        rows: the tuning slice.
        invariance_rows: rows compared alone and in batches.
        seed: chooses the neighbours in those batches.

    Returns:
        Fields of `Int8Measurement`.
    """
    logits = engine.logits(rows.texts)

    def answer(encodings: Any) -> NDArray[np.float32]:
        return activate(engine.run(encodings), rows.kind, engine.temperature)

    invariance = batch_invariance(answer, engine.encode(rows.texts[:invariance_rows]), kind=rows.kind, seed=seed)
    expected = activate(rows.logits, rows.kind, engine.temperature)
    difference = np.abs(activate(logits, rows.kind, engine.temperature) - expected)
    return {
        "tune": metrics.compute(logits, rows.labels, rows.kind, rows.metric_names),
        "label_changes": label_changes(logits, rows.logits, rows.kind),
        "parity": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "max_probability_difference": invariance.max_difference,
        "label_flips": invariance.label_flips,
        "compared_rows": invariance.rows,
        "batch_invariant": invariance.passes(),
    }


def label_changes(logits: NDArray[np.floating], before: NDArray[np.floating], kind: Kind) -> int:
    """Rows whose label differs: the largest logit, or for multi-label the sign of any logit; 0 for regression."""
    if kind == "classification":
        return int((logits.argmax(axis=1) != before.argmax(axis=1)).sum())
    return int(((logits > 0) != (before > 0)).any(axis=1).sum()) if kind == "multilabel" else 0

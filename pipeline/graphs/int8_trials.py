"""int8 candidates tried one by one: made, judged against fp32 on the tuning slice, and timed beside each other; the one
that is chosen is then shown to answer a row the same alone and in a batch.

Which layers lose most by 8 bits is found by measuring: each group of layers that reads the same tensor is taken back to
fp32, and the accuracy that this gains is divided by the time that it costs.

Reads the fp32 graph and the tuning slice; writes one ONNX file a candidate.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from kdc.common.errors import KdcError
from kdc.pipeline.config import metrics
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.graphs.int8 import Candidate, quantise
from kdc.pipeline.graphs.int8_choice import FP32, Standard
from kdc.pipeline.graphs.int8_storage import VectorBits
from kdc.pipeline.graphs.nodes import float_matrices, linear_layers, readers
from kdc.pipeline.graphs.parity import Feeds, batch_invariance, onnx_logits
from kdc.pipeline.graphs.ranges import Ranges
from kdc.pipeline.graphs.smoothing import Source, make_source
from kdc.pipeline.quality.latency import compare_speeds
from kdc.pipeline.results.artifact import Int8Choice, Int8Measurement
from kdc.serving.engine.engine import Engine, activate
from kdc.serving.engine.tokenizing import Text

_INVARIANCE_ROWS = 500  # compared alone and in batches, at least
_MOST_KEPT = 0.5  # share of the linear layers that may stay in fp32: beyond, little is left to gain
# Tried where the best of `CANDIDATES` costs something: other ranges of the activations.
_OTHER_RANGES = (
    Candidate("channel-entropy", per_channel=True, ranges="entropy"),
    Candidate("channel-smooth-percentile", per_channel=True, ranges="percentile", smooth=True),
)


@dataclass(frozen=True)
class TuningSlice:
    """What candidates are judged on."""

    texts: Sequence[Text]
    labels: NDArray[np.generic]  # (rows,), or (rows, outputs) for multi-label
    logits: NDArray[np.float32]  # (rows, outputs) of the fp32 graph
    task: Task  # its first metric decides


@dataclass
class Trials:
    """The candidates of one fp32 graph, by name; those that could be made and run have an engine."""

    folder: Path  # where their files are written
    fp32_file: Path  # the graph as exported
    batches: Sequence[Feeds]  # calibration rows, see `kdc.pipeline.graphs.ranges.sample_batches`
    rows: TuningSlice  # what they are judged on
    fp32: Engine  # over the fp32 graph
    open_engine: Callable[[Path], Engine]  # an ONNX file to the engine over it
    invariance_rows: int  # rows compared alone and in batches; at least 500
    rounds: int  # of the comparison of speeds
    seed: int  # chooses the neighbours in those batches
    vector_bits: VectorBits = 8  # of each number of a token's vector
    measured: dict[str, Int8Measurement] = field(default_factory=dict)  # also "fp32", which has only timings
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
        """Make a candidate and compare it with fp32; one that cannot be made or run only notes why."""
        file = self.folder / f"{candidate.name}.onnx"
        record = Int8Measurement(static=candidate.static, graph=candidate.graph)
        try:
            source = self.source_of(candidate)
            nodes = quantise(source.file, file, candidate, source.ranges, vector_bits=self.vector_bits)
            record = record.model_copy(update={"nodes": nodes})
            engine = self.open_engine(file)
            record = self._measure(engine, record)
        except KdcError as error:
            record = record.model_copy(update={"failed": f"{error.what} ({error.given})"})
        else:
            self.engines[candidate.name], self.candidates[candidate.name] = engine, candidate
        self.measured[candidate.name] = record
        return record

    def _measure(self, engine: Engine, record: Int8Measurement) -> Int8Measurement:
        """Compare the engine over a candidate with fp32."""
        rows, kind = self.rows, self.rows.task.kind
        logits = engine.logits(rows.texts)
        difference = np.abs(
            activate(logits, kind, engine.temperature) - activate(rows.logits, kind, engine.temperature)
        )
        measured = {
            "tune": metrics.compute(logits, rows.labels, kind, rows.task.metrics),
            "label_changes": metrics.changed_labels(logits, rows.logits, kind),
            "parity": float(difference.max()),
            "mean_difference": float(difference.mean()),
        }
        return record.model_copy(update=measured)

    def choose(self, choice: Callable[[Mapping[str, Int8Measurement]], Int8Choice]) -> Int8Choice:
        """Choose by what was measured, until the winner is one whose answers are the same alone and in a batch. Only
        winners are compared so: the scales of a static candidate are fixed, so that hardly one will differ."""
        while True:
            chosen = choice(self.measured)
            if chosen.winner is None or self._is_invariant(chosen.winner):
                return chosen

    def _is_invariant(self, name: str) -> bool:
        """Whether a candidate's answers to rows alone are those in batches; what is found is kept."""
        if (known := self.measured[name].batch_invariant) is not None:
            return known
        engine, kind = self.engines[name], self.rows.task.kind
        try:
            found = batch_invariance(
                lambda encodings: activate(engine.run(encodings), kind, engine.temperature),
                engine.encode(self.rows.texts[: max(_INVARIANCE_ROWS, self.invariance_rows)]),
                kind=kind,
                seed=self.seed,
            )
        except KdcError as error:
            failed = {"failed": f"{error.what} ({error.given})", "batch_invariant": False}
            self.measured[name] = self.measured[name].model_copy(update=failed)
            return False
        measured = {
            "max_probability_difference": found.max_difference,
            "label_flips": found.label_flips,
            "compared_rows": found.rows,
            "batch_invariant": found.passes(),
        }
        self.measured[name] = self.measured[name].model_copy(update=measured)
        return found.passes()

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
            if record.failed is None and standard.is_free(record) and self._is_invariant(candidate.name):
                return


def with_layers_kept(candidate: Candidate, layers: Sequence[frozenset[str]], *, most: float) -> Iterator[Candidate]:
    """The candidate with the first one, two, four, ... groups of layers left in fp32, `most` layers at the most; the
    groups are those of `layers_by_worth`."""
    count = 1
    while count <= len(layers):
        keep = frozenset().union(*layers[:count])
        if len(keep) > most:
            return
        yield replace(candidate, name=f"{candidate.name}-keep-{len(keep)}", keep=keep)
        count *= 2


def layers_by_worth(
    onnx_path: Path, candidate: Candidate, ranges: Ranges, batches: Sequence[Feeds]
) -> list[frozenset[str]]:
    """Groups of linear layers that gain by fp32, the group first that removes most error for the time that it costs. A
    group is the names of the nodes that read the same tensor.

    The error is the mean square of the change of the logits by quantising. A group's gain is the error of the candidate
    minus the error of the same candidate with this group in fp32. Its cost is the number of its multiplications for
    each token: the size of its weights. The candidate is made from the fp32 graph at `onnx_path`, whose activations
    have these ranges.
    """
    graph = onnx.load(onnx_path).graph
    sizes = {name: math.prod(tensor.dims) for name, tensor in float_matrices(graph).items()}
    fp32 = onnx_logits(onnx_path)
    expected = [fp32(feeds) for feeds in batches]

    def error(keep: frozenset[str]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "int8.onnx"
            quantise(onnx_path, file, replace(candidate, keep=candidate.keep | keep), ranges)
            answer = onnx_logits(file)
            squares = [(answer(feeds) - logits) ** 2 for feeds, logits in zip(batches, expected, strict=True)]
        return float(np.concatenate(squares).mean())

    before = error(frozenset())
    worth: dict[frozenset[str], float] = {}
    for nodes in readers(linear_layers(graph)).values():
        names = frozenset(node.name for node in nodes)
        try:
            gain = before - error(names)
        except KdcError:  # without this group nothing is left to quantise
            continue
        if gain > 0:
            worth[names] = gain / sum(sizes[node.input[1]] for node in nodes)
    return sorted(worth, key=lambda names: worth[names], reverse=True)

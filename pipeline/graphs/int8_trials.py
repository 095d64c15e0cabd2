"""int8 candidates are made one by one, compared with fp32 on the tuning slice, and timed in turns. The chosen candidate
must then answer a row the same alone and in a batch.

kdc measures which layers lose most by 8 bits: it takes each group of layers that read the same tensor back to fp32, and
divides the gain in accuracy by the cost in time.

Reads the fp32 graph and the tuning slice; writes one ONNX file a candidate.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kdc.common.errors import KdcError
from kdc.common.progress import Progress
from kdc.pipeline.config import metrics
from kdc.pipeline.config.graph_settings import QuantizeSettings
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.graphs.files import INT8_ONNX
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
    settings: QuantizeSettings
    seed: int  # chooses the neighbours of a row in batches
    vector_bits: VectorBits = 8  # of each number of a token's vector
    measured: dict[str, Int8Measurement] = field(default_factory=dict)  # also "fp32", which has only timings
    engines: dict[str, Engine] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    sources: dict[bool, Source] = field(default_factory=dict)  # by whether it is smoothed

    @cached_property
    def standard(self) -> Standard:
        """fp32's score on the tuning slice, and the loss that is allowed."""
        rows, metric = self.rows, self.rows.task.metrics[0]
        score = metrics.compute(rows.logits, rows.labels, rows.task.kind, (metric,))[metric]
        return Standard(metric, score, len(rows.texts), self.settings.max_int8_drop, self.settings.free_drop)

    def source_of(self, candidate: Candidate) -> Source:
        """The graph that a candidate is made from, as exported or smoothed, made when first asked for."""
        if candidate.smooth not in self.sources:
            smoothed = self.folder / "smoothed.onnx" if candidate.smooth else None
            self.sources[candidate.smooth] = make_source(self.fp32_file, self.batches, smoothed_file=smoothed)
        return self.sources[candidate.smooth]

    def judge_all(self, candidates: Sequence[Candidate], progress: Progress) -> None:
        """Judge candidates one after another."""
        for done, candidate in enumerate(candidates, 1):
            self.judge(candidate)
            progress(done, len(candidates))

    def judge(self, candidate: Candidate) -> Int8Measurement:
        """Make a candidate and compare it with fp32; a candidate that cannot be made or run only notes why."""
        name, file = candidate.name, self.folder / f"{candidate.name}.onnx"
        self.measured[name] = Int8Measurement(static=candidate.static, graph=candidate.graph)
        try:
            source = self.source_of(candidate)
            self._note(name, nodes=quantise(source.file, file, candidate, source.ranges, vector_bits=self.vector_bits))
            engine = self.open_engine(file)
            self._compare(name, engine)
        except KdcError as error:
            self._note(name, failed=f"{error.what} ({error.given})")
        else:
            self.engines[name], self.candidates[name] = engine, candidate
        return self.measured[name]

    def _note(self, name: str, **fields: Any) -> None:
        """Add to what was measured of a candidate."""
        self.measured[name] = self.measured[name].model_copy(update=fields)

    def _compare(self, name: str, engine: Engine) -> None:
        """Compare the engine over a candidate with fp32."""
        rows, kind = self.rows, self.rows.task.kind
        logits = engine.logits(rows.texts)
        difference = np.abs(
            activate(logits, kind, engine.temperature) - activate(rows.logits, kind, engine.temperature)
        )
        self._note(
            name,
            tune=metrics.compute(logits, rows.labels, kind, rows.task.metrics),
            label_changes=metrics.changed_labels(logits, rows.logits, kind),
            parity=float(difference.max()),
            mean_difference=float(difference.mean()),
        )

    def choose(self, choose: Callable[[Mapping[str, Int8Measurement], Standard], Int8Choice]) -> Int8Choice:
        """Choose by what was measured, until the winner answers rows the same alone and in a batch. Only winners are
        compared: the scales of a static candidate are fixed, and hardly one differs."""
        while True:
            choice = choose(self.measured, self.standard)
            if choice.winner is None or self._is_invariant(choice.winner):
                return choice

    def _is_invariant(self, name: str) -> bool:
        """Whether a candidate answers rows alone as in batches; the comparison is kept."""
        if (known := self.measured[name].batch_invariant) is not None:
            return known
        engine, kind = self.engines[name], self.rows.task.kind
        try:
            comparison = batch_invariance(
                lambda encodings: activate(engine.run(encodings), kind, engine.temperature),
                engine.encode(self.rows.texts[: max(_INVARIANCE_ROWS, self.settings.invariance_rows)]),
                kind=kind,
                seed=self.seed,
            )
        except KdcError as error:
            self._note(name, failed=f"{error.what} ({error.given})", batch_invariant=False)
            return False
        self._note(name, **asdict(comparison), batch_invariant=comparison.passes())
        return comparison.passes()

    def time(self) -> None:
        """Time fp32 and all candidates in short turns: a slow second of the machine then hits all alike."""
        answers = {FP32: self.fp32.logits} | {name: engine.logits for name, engine in self.engines.items()}
        rounds = self.settings.rounds
        speeds = compare_speeds(answers, self.rows.texts, latency_rows=10, throughput_rows=32, rounds=rounds)
        for name in self.engines:
            ratio = round(speeds[name].latency_p50_ms / speeds[FP32].latency_p50_ms, 3)
            self._note(name, **speeds[name].model_dump(), latency_against_fp32=ratio)
        self.measured[FP32] = Int8Measurement(**speeds[FP32].model_dump())

    def repair(self) -> None:
        """Try more candidates if the first ones cost too much: other ranges of the activations, then the most accurate
        whole candidate with its most sensitive layers left in fp32, until nothing is lost."""
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
            if record.failed is None and self.standard.is_free(record) and self._is_invariant(candidate.name):
                return

    def keep(self, winner: str | None) -> None:
        """Leave the winner's file and the table; the other candidates' files are not needed again."""
        table = {name: measurement.to_json() for name, measurement in self.measured.items()}
        (self.folder / "candidates.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
        if winner is not None:
            shutil.move(self.folder / f"{winner}.onnx", self.folder / INT8_ONNX)
        for name in (*self.measured, "smoothed"):
            (self.folder / f"{name}.onnx").unlink(missing_ok=True)


def with_layers_kept(candidate: Candidate, layers: Sequence[frozenset[str]], *, most: float) -> Iterator[Candidate]:
    """The candidate with the first one, two, four, ... groups of layers left in fp32, at most `most` layers."""
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
    """Groups of linear layers that gain by fp32, the most gain for its cost first. A group is the names of the nodes
    that read the same tensor.

    A group's gain is the candidate's error minus the error with this group in fp32; the error is the mean square of the
    change of the logits by quantising. Its cost is the size of its weights: the multiplications for a token. `ranges`
    are of the fp32 graph at `onnx_path`.
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

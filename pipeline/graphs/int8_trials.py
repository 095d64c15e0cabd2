"""Makes, compares and times int8 candidates on the tuning set."""

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
from kdc.pipeline.config.settings import QuantizeSettings
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

_INVARIANCE_ROWS = 500
_MOST_KEPT = 0.5  # share of layers; with more, int8 gains little
_OTHER_RANGES = (
    Candidate("channel-entropy", per_channel=True, ranges="entropy"),
    Candidate("channel-smooth-percentile", per_channel=True, ranges="percentile", smooth=True),
)


@dataclass(frozen=True)
class TuningSlice:
    texts: Sequence[Text]
    labels: NDArray[np.generic]  # (rows,) or (rows, outputs)
    logits: NDArray[np.float32]  # (rows, outputs) of the fp32 graph
    task: Task


@dataclass
class Trials:
    folder: Path  # for candidates' files
    fp32_file: Path  # as exported
    batches: Sequence[Feeds]  # from `sample_batches`
    rows: TuningSlice
    fp32: Engine
    open_engine: Callable[[Path], Engine]
    settings: QuantizeSettings
    seed: int  # for batch neighbours
    vector_bits: VectorBits = 8  # of token embeddings
    measured: dict[str, Int8Measurement] = field(default_factory=dict)  # "fp32" has only timings
    engines: dict[str, Engine] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    sources: dict[bool, Source] = field(default_factory=dict)  # by smoothing

    @cached_property
    def standard(self) -> Standard:
        rows, metric = self.rows, self.rows.task.metrics[0]
        score = metrics.compute(rows.logits, rows.labels, rows.task.kind, (metric,))[metric]
        return Standard(metric, score, len(rows.texts), self.settings.max_int8_drop, self.settings.free_drop)

    def source_of(self, candidate: Candidate) -> Source:
        if candidate.smooth not in self.sources:
            smoothed = self.folder / "smoothed.onnx" if candidate.smooth else None
            self.sources[candidate.smooth] = make_source(self.fp32_file, self.batches, smoothed_file=smoothed)
        return self.sources[candidate.smooth]

    def judge_all(self, candidates: Sequence[Candidate], progress: Progress) -> None:
        for done, candidate in enumerate(candidates, 1):
            self.judge(candidate)
            progress(done, len(candidates))

    def judge(self, candidate: Candidate) -> Int8Measurement:
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
        self.measured[name] = self.measured[name].model_copy(update=fields)

    def _compare(self, name: str, engine: Engine) -> None:
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
        """Choose until the winner is batch-invariant: static candidates rarely fail."""
        while True:
            choice = choose(self.measured, self.standard)
            if choice.winner is None or self._is_invariant(choice.winner):
                return choice

    def _is_invariant(self, name: str) -> bool:
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
        """In short turns: slow moments affect all."""
        answers = {FP32: self.fp32.logits} | {name: engine.logits for name, engine in self.engines.items()}
        rounds = self.settings.rounds
        speeds = compare_speeds(answers, self.rows.texts, latency_rows=10, throughput_rows=32, rounds=rounds)
        for name in self.engines:
            ratio = round(speeds[name].latency_p50_ms / speeds[FP32].latency_p50_ms, 3)
            self._note(name, **speeds[name].model_dump(), latency_against_fp32=ratio)
        self.measured[FP32] = Int8Measurement(**speeds[FP32].model_dump())

    def repair(self) -> None:
        """Try other ranges, then the most accurate candidate with more and more layers in fp32, until the loss
        `is_free`."""
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
        table = {name: measurement.to_json() for name, measurement in self.measured.items()}
        (self.folder / "candidates.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
        if winner is not None:
            shutil.move(self.folder / f"{winner}.onnx", self.folder / INT8_ONNX)
        for name in (*self.measured, "smoothed"):
            (self.folder / f"{name}.onnx").unlink(missing_ok=True)


def with_layers_kept(candidate: Candidate, layers: Sequence[frozenset[str]], *, most: float) -> Iterator[Candidate]:
    """With the first 1, 2, 4, ... groups in fp32, up to `most` layers."""
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
    """Groups of linear layers (node names) by falling gain per cost in fp32."""
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
        except KdcError:  # no other layer is left to quantise
            continue
        if gain > 0:
            worth[names] = gain / sum(sizes[node.input[1]] for node in nodes)
    return sorted(worth, key=lambda names: worth[names], reverse=True)

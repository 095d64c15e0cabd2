"""Stage `quantize`: int8 candidates for CPUs, each judged on the tuning slice, and the fastest good one chosen.

Where that one costs more than `quantize.free_drop` points beyond noise, more is tried: other ranges, and the layers
that lose most left in fp32, found by measuring.

Reads `data/`, `export/`. Writes `model.int8.onnx` (the winner; where none passes, the most accurate batch-invariant one
is kept for people who want it, but fp32 is what a CPU loads) and `candidates.json`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.manifest import Kind
from kdc.common.errors import KdcError
from kdc.pipeline.data.served import texts_of
from kdc.pipeline.graphs.int8 import CANDIDATES, Candidate, quantise
from kdc.pipeline.graphs.invariance import batch_invariance
from kdc.pipeline.graphs.layers import activations
from kdc.pipeline.graphs.parity import Feeds
from kdc.pipeline.graphs.ranges import Ranges, calibration_batches, collect_ranges
from kdc.pipeline.graphs.sensitivity import layers_by_worth
from kdc.pipeline.graphs.smoothing import largest_by_channel, smooth
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.intervals import calibrate
from kdc.pipeline.quality.measure import time_in_turns
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.served import open_engine
from kdc.serving.engine.engine import Engine, activate

_INVARIANCE_ROWS = 500
_NOISE = 0.15  # speeds that differ by less than that are taken as equal: shared machines are no quieter
_MOST_KEPT = 0.5  # share of the linear layers that may stay in fp32: beyond, little is left to gain


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make and judge the candidates in `out`."""
    settings = run.config.quantize
    bench = Bench(run, out)
    summary: dict[str, Any] = {"temperature": bench.temperature, "candidates": {}, "chosen": None, "winner": None}
    if not settings.enabled:
        return {**summary, "int8": False, "note": "int8 was not asked for", "headline": "not asked for"}
    for place, candidate in enumerate(CANDIDATES):
        bench.judge(candidate)
        run.progress(place + 1, len(CANDIDATES))
    found = bench.choose()
    if found["winner"] is not None and not bench.is_free(found["winner"]):
        run.say(f"int8 costs {bench.drop(found['winner']):.2f} points: more candidates are tried")
        for candidate in repairs(bench):
            bench.judge(candidate)
        found = bench.choose(before=found)
    if found["chosen"] is not None and not bench.is_faster(found["chosen"]):
        found["note"] = "int8 is not faster than fp32 on this CPU, only smaller; --set quantize.enabled=false is fp32"
    summary |= {"candidates": bench.found} | found
    _keep(out, summary)
    return summary


@dataclass(frozen=True)
class Source:
    """A graph to quantise, and the ranges of its activations."""

    file: Path
    ranges: Ranges


def plain_source(fp32_file: Path, batches: list[Feeds]) -> Source:
    """The graph as exported."""
    return Source(fp32_file, collect_ranges(fp32_file, activations(fp32_file), batches))


def smoothed_source(fp32_file: Path, batches: list[Feeds], out: Path) -> Source:
    """The same with outliers of its activations moved into the weights, written to `out`."""
    smooth(fp32_file, out, largest_by_channel(fp32_file, batches))
    return plain_source(out, batches)


def calibration(run: Run, input_names: tuple[str, ...], role: str) -> list[Feeds]:
    """Some training rows, tokenised for "teacher" or "student", in batches without padding."""
    tokens = run.data().tokens(role, "train")
    count = min(run.config.quantize.calibration_rows, len(tokens))
    chosen = np.random.default_rng(run.config.run.seed).permutation(len(tokens))[:count]
    return list(calibration_batches([tokens[int(index)] for index in chosen], input_names))


class Bench:
    """Makes candidates and judges them on the tuning slice against fp32.

    Attributes:
        found: what was measured, by candidate; "fp32" holds only timings.
        candidates: those that could be made and measured, by name.
        temperature: of the fp32 student, calibrated on the slice.
    """

    def __init__(self, run: Run, out: Path) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self._run, self._out = run, out
        self._task = run.data().task
        rows = run.data().rows("tune")
        self._texts, self._labels = texts_of(rows), np.asarray(rows["label"][:])
        self._fp32_file = run.folder("export") / "model.onnx"
        self._fp32 = open_engine(run, self._fp32_file)
        self._logits = self._fp32.logits(self._texts)
        self._engines: dict[str, Engine] = {}
        self.candidates: dict[str, Candidate] = {}
        self.temperature = calibrate(self._logits, self._labels, self._task.kind)

    @cached_property
    def batches(self) -> list[Feeds]:
        """Calibration rows."""
        return calibration(self._run, self._fp32.tokenizer_info.input_names, self._run.student_role)

    @cached_property
    def _plain(self) -> Source:
        return plain_source(self._fp32_file, self.batches)

    @cached_property
    def _smoothed(self) -> Source:
        return smoothed_source(self._fp32_file, self.batches, self._out / "smoothed.onnx")

    def source(self, candidate: Candidate) -> Source:
        """What a candidate is made from."""
        return self._smoothed if candidate.smooth else self._plain

    def judge(self, candidate: Candidate) -> None:
        """Make a candidate and measure it; one that cannot be made or run is a row of the table, not the run's end."""
        file = self._out / f"{candidate.name}.onnx"
        found: dict[str, Any] = {"static": candidate.static, "graph": candidate.graph}
        self.found[candidate.name] = found
        try:
            source = self.source(candidate)
            found["nodes"] = quantise(source.file, file, candidate, source.ranges if candidate.static else None)
            engine = open_engine(self._run, file, temperature=self.temperature)
            found |= self._measure(engine)
        except KdcError as error:
            found["failed"] = f"{error.what} ({error.given})"
            return
        self._engines[candidate.name], self.candidates[candidate.name] = engine, candidate

    def drop(self, name: str) -> float:
        """Points that a candidate costs against fp32."""
        return self._score(self._logits) - float(self.found[name]["tune"][self._task.metrics[0]])

    def is_free(self, name: str) -> bool:
        """Whether a candidate may serve, at a cost that counts as nothing, to within what the slice can tell.

        Each of the rows whose label changed may as well have changed for the better: the standard error of the cost is
        the root of their number.
        """
        settings, found = self._run.config.quantize, self.found[name]
        noise = 100 * math.sqrt(found["label_changes"]) / len(self._texts)
        cost = self.drop(name)
        may_serve = found["batch_invariant"] and cost <= settings.max_int8_drop
        return may_serve and cost - noise <= settings.free_drop

    def is_faster(self, name: str) -> bool:
        """Whether a candidate that was timed is faster than fp32, with single rows or in batches."""
        mine, theirs = self.found[name], self.found["fp32"]
        return mine["latency_against_fp32"] < 1 or mine["rows_per_second"] > theirs["rows_per_second"]

    def choose(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Time all candidates in turns, and choose: see `choose`. The second time of those that cost nothing, where
        there are such; and what was chosen before stays unless another is more accurate.
        """
        self._time()
        settings, metric = self._run.config.quantize, self._task.metrics[0]
        found, beaten = self.found, None if before is None else before["chosen"]
        if before is not None:
            better = {name: each for name, each in found.items() if is_eligible(each)}
            if beaten is not None:
                better = {name: each for name, each in better.items() if self.drop(name) < self.drop(beaten)}
                found = better
            found = {name: each for name, each in better.items() if self.is_free(name)} or found
        now = choose(found, metric, self._score(self._logits), settings.max_int8_drop)
        return dict(before or {}) if beaten is not None and now["chosen"] is None else now

    def _measure(self, engine: Engine) -> dict[str, Any]:
        kind, names = self._task.kind, self._task.metrics
        logits = engine.logits(self._texts)

        def answer(encodings: Any) -> NDArray[np.float32]:
            return activate(engine.run(encodings), kind, engine.temperature)

        rows = engine.encode(self._texts[: max(_INVARIANCE_ROWS, self._run.config.quantize.invariance_rows)])
        same = batch_invariance(answer, rows, kind=kind, seed=self._run.config.run.seed)
        right = activate(self._logits, kind, engine.temperature)
        difference = np.abs(activate(logits, kind, engine.temperature) - right)
        return {
            "tune": metrics.compute(logits, self._labels, kind, names),
            "label_changes": label_changes(logits, self._logits, kind),
            "parity": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "max_probability_difference": same.max_difference,
            "label_flips": same.label_flips,
            "compared_rows": same.rows,
            "batch_invariant": same.passes(),
        }

    def _score(self, logits: NDArray[np.float32]) -> float:
        names = self._task.metrics
        return float(metrics.compute(logits, self._labels, self._task.kind, names)[names[0]])

    def _time(self) -> None:
        answers = {"fp32": self._fp32.logits} | {name: engine.logits for name, engine in self._engines.items()}
        rounds = self._run.config.quantize.rounds
        # Short turns, so that a slow second of the machine hits all alike.
        timings = time_in_turns(answers, self._texts, latency_rows=10, throughput_rows=32, rounds=rounds)
        for name in self._engines:
            self.found[name] |= timings[name]
            against = timings[name]["latency_p50_ms"] / timings["fp32"]["latency_p50_ms"]
            self.found[name]["latency_against_fp32"] = round(against, 3)
        self.found["fp32"] = timings["fp32"]


def label_changes(logits: NDArray[np.floating], before: NDArray[np.floating], kind: Kind) -> int:
    """Rows whose label is another: the largest logit, or of a multi-label task any sign; none in regression."""
    if kind == "classification":
        return int((logits.argmax(axis=1) != before.argmax(axis=1)).sum())
    return int(((logits > 0) != (before > 0)).any(axis=1).sum()) if kind == "multilabel" else 0


def repairs(bench: Bench) -> Iterator[Candidate]:
    """More candidates, for a student that loses by those there are: other ranges, then the layers that lose most left
    in fp32, the fastest trade first, until nothing is lost or half of them are."""
    yield Candidate("channel-entropy", static=True, per_channel=True, ranges="entropy")
    yield Candidate("channel-smooth-percentile", static=True, per_channel=True, ranges="percentile", smooth=True)
    whole = {name: each for name, each in bench.candidates.items() if each.static and not each.exclude}
    if not whole:
        return
    best = whole[min(whole, key=lambda name: bench.found[name]["mean_difference"])]
    source = bench.source(best)
    worth = layers_by_worth(source.file, best, source.ranges, bench.batches)
    most = _MOST_KEPT * bench.found[best.name]["nodes"]["wanted"]
    count = 1
    while count <= len(worth):
        keep = frozenset().union(*worth[:count])
        if len(keep) > most:
            return
        candidate = replace(best, name=f"{best.name}-keep-{len(keep)}", keep=keep)
        yield candidate
        found = bench.found[candidate.name]
        if "failed" not in found and bench.is_free(candidate.name):
            return
        count *= 2


def is_eligible(found: Mapping[str, Any]) -> bool:
    """Whether a candidate was made and a text's answer from it does not depend on its neighbours. "fp32" is none."""
    return "failed" not in found and found.get("static", False) and found["batch_invariant"]


def choose(candidates: Mapping[str, Any], metric: str, fp32_score: float, max_drop: float) -> dict[str, Any]:
    """The fastest candidate that is batch-invariant and costs at most `max_drop` points against fp32. Among those whose
    speed differs by no more than noise, the one whose answers differ least from fp32's: over all rows that says more
    than the few labels by which their metrics differ.

    Fast is measured in rows a second, in batches of 32: the latency of single rows says the same, but a busy machine
    makes twenty percent of two. Candidates of one graph do the same work with other numbers, so the most of their
    speeds is the speed of each: what noise alone tells apart must not decide, or a seed would give another file next
    time.

    Args:
        candidates: by name, as `run` collects them; "fp32" holds only timings.
        metric: the deciding one.
        fp32_score: fp32 ONNX on the same rows, in points.
        max_drop: points that int8 may cost.

    Returns:
        chosen (name or None), winner (the file to keep, or None), int8 (whether there is one), note, headline.
    """
    invariant = {name: found for name, found in candidates.items() if is_eligible(found)}
    drops = {name: fp32_score - found["tune"][metric] for name, found in invariant.items()}
    good = {name: found for name, found in invariant.items() if drops[name] <= max_drop}
    if good:
        speed: dict[str, float] = {}
        for found in invariant.values():
            speed[found["graph"]] = max(found["rows_per_second"], speed.get(found["graph"], 0.0))
        limit = max(speed[found["graph"]] for found in good.values()) / (1 + _NOISE)
        fast = {name: found for name, found in good.items() if speed[found["graph"]] >= limit}
        winner = min(fast, key=lambda name: fast[name]["mean_difference"])
        against = good[winner]["latency_against_fp32"]
        headline = f"{winner}: {drops[winner]:+.2f} points lost, {against:.2f} x the latency of fp32"
        return {"chosen": winner, "winner": winner, "int8": True, "note": "", "headline": headline}
    if invariant:
        winner = max(invariant, key=lambda name: invariant[name]["tune"][metric])
        note = f"no int8 candidate lost at most {max_drop} points (the best lost {drops[winner]:.2f}): a CPU loads fp32"
        return {"chosen": None, "winner": winner, "int8": True, "note": note, "headline": note}
    reasons = {found.get("failed", "not batch-invariant") for name, found in candidates.items() if name != "fp32"}
    note = f"no int8 candidate is eligible ({'; '.join(sorted(reasons))[:300]}): a CPU loads fp32"
    return {"chosen": None, "winner": None, "int8": False, "note": note, "headline": note}


def _keep(out: Path, summary: dict[str, Any]) -> None:
    """Leave the winner's file and the table; the other candidates' files are not needed again."""
    (out / "candidates.json").write_text(json.dumps(summary["candidates"], indent=2), encoding="utf-8")
    if summary["winner"] is not None:
        shutil.move(out / f"{summary['winner']}.onnx", out / "model.int8.onnx")
    for name in (*summary["candidates"], "smoothed"):
        (out / f"{name}.onnx").unlink(missing_ok=True)

"""Stage `quantize`: int8 candidates for CPUs, each judged on the tuning slice, and the fastest good one chosen.

Reads `data/`, `export/`. Writes `model.int8.onnx` (the winner; where none passes, the most accurate batch-invariant one
is kept for people who want it, but fp32 is what a CPU loads) and `candidates.json`.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import KdcError
from pipeline import metrics
from pipeline.context import Run
from pipeline.graphs.int8 import CANDIDATES, activations, batch_invariance, quantise
from pipeline.graphs.ranges import Ranges, calibration_batches, collect_ranges
from pipeline.measure import time_in_turns
from pipeline.served import open_engine, texts_of
from pipeline.statistics import calibrate
from serving.engine import Engine, Text, activate

_INVARIANCE_ROWS = 500
_NOISE = 0.15  # latencies that differ by less than that are taken as equal: shared machines are no quieter


@dataclass(frozen=True)
class Slice:
    """The tuning slice in memory: (rows) texts and labels."""

    texts: list[Text]
    labels: NDArray[np.generic]


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make and judge the candidates in `out`."""
    settings = run.config.quantize
    data, fp32_file = run.data(), run.folder("export") / "model.onnx"
    rows = data.rows("tune")
    tune = Slice(texts_of(rows), np.asarray(rows["label"][:]))
    fp32 = open_engine(run, fp32_file)
    logits = fp32.logits(tune.texts)
    temperature = calibrate(logits, tune.labels, data.task.kind)
    summary: dict[str, Any] = {"temperature": temperature, "candidates": {}, "chosen": None, "winner": None}
    if not settings.enabled:
        return {**summary, "int8": False, "note": "int8 was not asked for", "headline": "not asked for"}

    ranges = calibrate_ranges(run, fp32_file, fp32.tokenizer_info.input_names, run.student_role)
    engines: dict[str, Engine] = {}
    rows_to_compare = max(_INVARIANCE_ROWS, settings.invariance_rows)
    for place, candidate in enumerate(CANDIDATES):
        file = out / f"{candidate.name}.onnx"
        found: dict[str, Any] = {"static": candidate.static, "graph": candidate.graph}
        summary["candidates"][candidate.name] = found
        try:  # a candidate that cannot be made or run is a row of the table, not the end of the run
            found["nodes"] = quantise(fp32_file, file, candidate, ranges if candidate.static else None)
            engine = open_engine(run, file, temperature=temperature)
            found |= _judge(engine, tune, logits, data.task.metrics, rows_to_compare, run.config.run.seed)
            engines[candidate.name] = engine
        except KdcError as error:
            found["failed"] = f"{error.what} ({error.given})"
        run.progress(place + 1, len(CANDIDATES))
    _time(summary["candidates"], fp32, engines, tune.texts, settings.rounds)
    summary |= choose(
        summary["candidates"], data.task.metrics[0], _score(logits, tune, data.task), settings.max_int8_drop
    )
    _keep(out, summary)
    return summary


def calibrate_ranges(run: Run, fp32_file: Path, input_names: tuple[str, ...], role: str) -> Ranges:
    """Ranges of a graph's activations over some training rows, tokenised for "teacher" or "student"."""
    tokens = run.data().tokens(role, "train")
    count = min(run.config.quantize.calibration_rows, len(tokens))
    chosen = np.random.default_rng(run.config.run.seed).permutation(len(tokens))[:count]
    rows = [tokens[int(index)] for index in chosen]
    return collect_ranges(fp32_file, activations(fp32_file), calibration_batches(rows, input_names))


def _judge(
    engine: Engine, tune: Slice, fp32_logits: NDArray[np.float32], names: tuple[str, ...], rows: int, seed: int
) -> dict[str, Any]:
    kind = engine.task.kind
    logits = engine.logits(tune.texts)

    def answer(encodings: Any) -> NDArray[np.float32]:
        return activate(engine.run(encodings), kind, engine.temperature)

    same = batch_invariance(answer, engine.encode(tune.texts[:rows]), kind=kind, seed=seed)
    difference = np.abs(activate(logits, kind, engine.temperature) - activate(fp32_logits, kind, engine.temperature))
    return {
        "tune": metrics.compute(logits, tune.labels, kind, names),
        "parity": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "max_probability_difference": same.max_difference,
        "label_flips": same.label_flips,
        "compared_rows": same.rows,
        "batch_invariant": same.passes(),
    }


def _score(logits: NDArray[np.float32], tune: Slice, task: Any) -> float:
    return metrics.compute(logits, tune.labels, task.kind, task.metrics)[task.metrics[0]]


def _time(candidates: dict[str, Any], fp32: Engine, engines: dict[str, Engine], texts: list[Text], rounds: int) -> None:
    answers = {"fp32": fp32.logits} | {name: engine.logits for name, engine in engines.items()}
    # Short turns, so that a slow second of the machine hits all alike.
    timings = time_in_turns(answers, texts, latency_rows=10, throughput_rows=32, rounds=rounds)
    for name in engines:
        candidates[name] |= timings[name]
        candidates[name]["latency_against_fp32"] = round(
            timings[name]["latency_p50_ms"] / timings["fp32"]["latency_p50_ms"], 3
        )
    candidates["fp32"] = timings["fp32"]


def choose(candidates: dict[str, Any], metric: str, fp32_score: float, max_drop: float) -> dict[str, Any]:
    """The fastest candidate that is batch-invariant and costs at most `max_drop` points against fp32. Among those whose
    latency differs by no more than noise, the one whose answers differ least from fp32's: over all rows that says more
    than the few labels by which their metrics differ.

    Candidates of one graph do the same work with other numbers, so the least of their latencies is the latency of each:
    what noise alone tells apart must not decide, or the same seed would give another int8 file the next time.

    Args:
        candidates: by name, as `run` collects them; "fp32" holds only timings.
        metric: the deciding one.
        fp32_score: fp32 ONNX on the same rows, in points.
        max_drop: points.

    Returns:
        chosen (name or None), winner (the file to keep, or None), int8 (whether there is one), note, headline.
    """
    invariant = {
        name: found
        for name, found in candidates.items()
        if name != "fp32" and "failed" not in found and found["static"] and found["batch_invariant"]
    }
    good = {name: found for name, found in invariant.items() if fp32_score - found["tune"][metric] <= max_drop}
    if good:
        latency: dict[str, float] = {}
        for found in invariant.values():
            latency[found["graph"]] = min(found["latency_p50_ms"], latency.get(found["graph"], math.inf))
        limit = (1 + _NOISE) * min(latency[found["graph"]] for found in good.values())
        fast = {name: found for name, found in good.items() if latency[found["graph"]] <= limit}
        winner = min(fast, key=lambda name: fast[name]["mean_difference"])
        drop = fp32_score - good[winner]["tune"][metric]
        headline = (
            f"{winner}: {drop:+.2f} points lost, {good[winner]['latency_against_fp32']:.2f} x the latency of fp32"
        )
        return {"chosen": winner, "winner": winner, "int8": True, "note": "", "headline": headline}
    if invariant:
        winner = max(invariant, key=lambda name: invariant[name]["tune"][metric])
        drop = fp32_score - invariant[winner]["tune"][metric]
        note = f"no int8 candidate lost at most {max_drop} points (the best lost {drop:.2f}): a CPU loads fp32"
        return {"chosen": None, "winner": winner, "int8": True, "note": note, "headline": note}
    reasons = {found.get("failed", "not batch-invariant") for name, found in candidates.items() if name != "fp32"}
    note = f"no int8 candidate is eligible ({'; '.join(sorted(reasons))[:300]}): a CPU loads fp32"
    return {"chosen": None, "winner": None, "int8": False, "note": note, "headline": note}


def _keep(out: Path, summary: dict[str, Any]) -> None:
    """Leave the winner's file and the table; the other candidates' files are not needed again."""
    (out / "candidates.json").write_text(json.dumps(summary["candidates"], indent=2), encoding="utf-8")
    if summary["winner"] is not None:
        shutil.move(out / f"{summary['winner']}.onnx", out / "model.int8.onnx")
    for candidate in CANDIDATES:
        (out / f"{candidate.name}.onnx").unlink(missing_ok=True)

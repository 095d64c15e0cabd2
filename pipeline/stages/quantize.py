"""Stage `quantize`: int8 candidates for CPUs, each judged on the tuning slice, and the fastest good one chosen.

Where that one costs more than `quantize.free_drop` points beyond noise, more is tried: other ranges, and the layers
that lose most left in fp32, found by measuring.

Reads `data/`, `export/`, and `search/` where there was a search. Writes `model.int8.onnx` (the winner; where none
passes, the most accurate batch-invariant one is kept for people who want it, but fp32 is what a CPU loads) and
`candidates.json`.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdc.pipeline.data.prepared import texts_of
from kdc.pipeline.graphs.int8 import CANDIDATES
from kdc.pipeline.graphs.int8_choice import FP32, Standard, choose, choose_again, is_faster
from kdc.pipeline.graphs.int8_trials import Trials, TuningSlice
from kdc.pipeline.graphs.ranges import sample_batches
from kdc.pipeline.quality import metrics
from kdc.pipeline.quality.calibration import calibrate
from kdc.pipeline.results import QuantizeResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import FP32_ONNX, INT8_ONNX
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.serving.engine.engine import Engine


def depends_on(run: Run) -> dict[str, Any]:
    """How candidates are judged, and on which machine."""
    return run.config.quantize.model_dump() | this_machine(run.device)


def run(run: Run, out: Path) -> QuantizeResult:
    """Make and judge the candidates in `out`."""
    settings = run.config.quantize
    fp32 = run.open_engine(run.folder("export") / FP32_ONNX)
    rows = _tuning_slice(run, fp32)
    temperature = calibrate(rows.logits, rows.labels, rows.task.kind)
    if not settings.enabled:
        return QuantizeResult(
            temperature=temperature,
            candidates={},
            chosen=None,
            winner=None,
            int8=False,
            note="int8 was not asked for",
            headline="not asked for",
        )
    trials = _trials(run, fp32, rows, temperature, out)
    for place, candidate in enumerate(CANDIDATES):
        trials.judge(candidate)
        run.progress(place + 1, len(CANDIDATES))
    trials.time()
    metric = rows.task.metrics[0]
    fp32_score = metrics.compute(rows.logits, rows.labels, rows.task.kind, rows.task.metrics)[metric]
    standard = Standard(metric, fp32_score, len(rows.texts), settings.max_int8_drop, settings.free_drop)
    choice = choose(trials.measured, standard)
    if choice.winner is not None and not standard.is_free(trials.measured[choice.winner]):
        cost = standard.drop(trials.measured[choice.winner])
        run.say(f"int8 costs {cost:.2f} points: more candidates are tried")
        trials.repair(standard)
        trials.time()
        choice = choose_again(choice, trials.measured, standard)
    result = QuantizeResult(temperature=temperature, candidates=trials.measured, **choice.to_json())
    if result.chosen is not None and not is_faster(trials.measured[result.chosen], trials.measured[FP32]):
        note = "int8 is not faster than fp32 on this CPU, only smaller; --set quantize.enabled=false is fp32"
        result = result.model_copy(update={"note": note})
    _keep_winner(result, out)
    return result


def _tuning_slice(run: Run, fp32: Engine) -> TuningSlice:
    """The tuning slice, and what fp32 answers to it."""
    data = run.data()
    rows = data.rows("tune")
    texts = texts_of(rows)
    return TuningSlice(texts, np.asarray(rows["label"][:]), fp32.logits(texts), data.task)


def _trials(run: Run, fp32: Engine, rows: TuningSlice, temperature: float, out: Path) -> Trials:
    """The run's settings as plain values, and no candidate tried yet."""
    settings, seed = run.config.quantize, run.config.run.seed
    tokens = run.data().tokens(run.student_role, "train")
    batches = sample_batches(tokens, fp32.tokenizer_info.input_names, rows=settings.calibration_rows, seed=seed)
    return Trials(
        folder=out,
        fp32_file=run.folder("export") / FP32_ONNX,
        batches=batches,
        rows=rows,
        fp32=fp32,
        open_engine=partial(run.open_engine, temperature=temperature),
        invariance_rows=settings.invariance_rows,
        rounds=settings.rounds,
        seed=seed,
    )


def _keep_winner(result: QuantizeResult, out: Path) -> None:
    """Leave the winner's file and the table; the other candidates' files are not needed again."""
    table = {name: measurement.to_json() for name, measurement in result.candidates.items()}
    (out / "candidates.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    if result.winner is not None:
        shutil.move(out / f"{result.winner}.onnx", out / INT8_ONNX)
    for name in (*result.candidates, "smoothed"):
        (out / f"{name}.onnx").unlink(missing_ok=True)

"""Stage `uncut`: the teacher as ONNX in fp32 and int8, to compare students with.

Reads `data/`, `teacher/`. Writes `export`'s files except fp16, `model.int8.onnx` and `candidates.json`; nothing if
the teacher is the student.
"""

from functools import partial
from pathlib import Path
from typing import Any

from kdc.common.errors import KdcError
from kdc.pipeline.config.settings import QuantizeSettings
from kdc.pipeline.graphs.exporting import export_model, tuning_slice
from kdc.pipeline.graphs.files import FP32_ONNX
from kdc.pipeline.graphs.int8 import worth_trying
from kdc.pipeline.graphs.int8_choice import choose
from kdc.pipeline.graphs.int8_storage import VectorBits
from kdc.pipeline.graphs.int8_trials import Trials
from kdc.pipeline.graphs.ranges import sample_batches
from kdc.pipeline.results.artifact import Int8Choice, UncutResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import this_machine

_ROWS = 300  # enough to find the closest to fp32
# The usual winners, and one for CPUs whose 8-bit products saturate. Nothing is timed: any close one will do.
_CANDIDATES = ("channel-minmax", "channel-percentile", "channel-smooth", "channel-minmax-7bit")


def depends_on(run: Run) -> dict[str, Any]:
    quantize = run.config.quantize
    settings = {
        "export": run.config.export.exporter,
        "quantize": quantize.model_dump() | {"vector_bits": _bits(quantize)},
    }
    return settings | {"is_student": run.is_uncut and run.student.has_all_pieces} | this_machine(run.device)


def run(run: Run, out: Path) -> UncutResult:
    if run.is_uncut and run.student.has_all_pieces:
        return UncutResult(headline="the student is the teacher itself")
    try:
        model = run.folder("teacher") / "model"
        exported = export_model(
            model,
            out,
            run.data().tokens("teacher", "tune"),
            exporter=run.config.export.exporter,
            is_pair=run.data().task.is_pair,
            max_length=run.max_length("teacher"),
            long=run.windows("teacher", model),
            seed=run.config.run.seed,
        )
    except KdcError as error:
        (out / FP32_ONNX).unlink(missing_ok=True)
        note = f"the uncut teacher could not be exported: {error.what} ({error.given})"
        return UncutResult(note=note, headline=note)
    result = UncutResult(fp32_parity=exported.parity, headline=f"largest logit difference {exported.parity:.1e}")
    if not run.config.quantize.enabled:
        return result
    try:
        choice = _quantised(run, out)
    except KdcError as error:
        return result.model_copy(update={"note": f"the uncut teacher has no int8: {error.what} ({error.given})"})
    note = f"of the uncut teacher: {choice.note}" if choice.note else ""
    headline = f"{result.headline}, int8 {choice.winner}"
    return result.model_copy(update={"int8": choice.winner, "note": note, "headline": headline})


def _bits(settings: QuantizeSettings) -> VectorBits:
    """The contract limits only the student's size."""
    return 8 if settings.vector_bits == "auto" else settings.vector_bits


def _quantised(run: Run, out: Path) -> Int8Choice:
    settings, data = run.config.quantize, run.data()
    open_engine = partial(run.open_engine, exported=out)
    fp32 = open_engine(out / FP32_ONNX)
    rows = tuning_slice(data, fp32, most=_ROWS)
    tokens, seed = data.tokens("teacher", "train"), run.config.run.seed
    trials = Trials(
        folder=out,
        fp32_file=out / FP32_ONNX,
        batches=sample_batches(tokens, fp32.tokenizer_info.input_names, rows=settings.calibration_rows, seed=seed),
        rows=rows,
        fp32=fp32,
        open_engine=open_engine,
        settings=settings,
        seed=seed,
        vector_bits=_bits(settings),
    )
    trials.judge_all(worth_trying(_CANDIDATES), run.progress)
    choice = trials.choose(choose)
    if choice.chosen is None:  # the student's int8 is repaired too
        trials.repair()
        choice = trials.choose(choose)
    trials.keep(choice.winner)
    return choice

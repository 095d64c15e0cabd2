"""Stage `uncut`: the teacher itself as ONNX, in fp32 and int8. It is the first competitor of any student: in the same
runtime, without a layer less.

Reads `data/`, `teacher/`. Writes what stage `export` writes for the student, `model.int8.onnx` and `candidates.json`;
nothing where the student is the teacher itself, whose graphs are in `export/` and `quantize/` already.
"""

from pathlib import Path
from typing import Any

from kdc.common.errors import KdcError
from kdc.pipeline.graphs.int8 import CANDIDATES
from kdc.pipeline.graphs.int8_choice import choose
from kdc.pipeline.results import UncutResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import FP32_ONNX
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.pipeline.rundir.graphs import export_model, keep_winner, standard_of, trials_of, tuning_slice

# Those that come out most often, and the one for CPUs whose 8-bit products saturate. A comparison has to be fair, but
# need not be the fastest by some percent: nothing is timed. A teacher that is to be served goes through `quantize`.
_CANDIDATES = ("channel-minmax", "channel-percentile", "channel-smooth", "channel-minmax-7bit")


def depends_on(run: Run) -> dict[str, Any]:
    """How graphs are made and judged, and on which machine; and whether the student is the teacher."""
    settings = {"export": run.config.export.exporter, "quantize": run.config.quantize.model_dump()}
    return settings | {"is_student": run.is_uncut} | this_machine(run.device)


def run(run: Run, out: Path) -> UncutResult:
    """Make the graphs in `out`. A teacher that has no such graph only notes why: the student may well have one."""
    if run.is_uncut:
        return UncutResult(headline="the student is the teacher itself")
    try:
        exported = export_model(run, run.folder("teacher") / "model", out, role="teacher")
    except KdcError as error:
        (out / FP32_ONNX).unlink(missing_ok=True)
        note = f"the uncut teacher could not be exported: {error.what} ({error.given})"
        return UncutResult(note=note, headline=note)
    int8 = _quantised(run, out) if run.config.quantize.enabled else None
    headline = f"largest logit difference {exported.parity:.1e}, int8 {int8 or 'not made'}"
    return UncutResult(fp32_parity=exported.parity, int8=int8, headline=headline)


def _quantised(run: Run, out: Path) -> str | None:
    """Keep the int8 candidate whose answers differ least from fp32's; its name, or None where there is none."""
    fp32 = run.open_engine(out / FP32_ONNX, exported=out)
    rows = tuning_slice(run, fp32)
    trials = trials_of(run, fp32, rows, exported=out, out=out, role="teacher")
    candidates = [candidate for candidate in CANDIDATES if candidate.name in _CANDIDATES]
    for place, candidate in enumerate(candidates):
        trials.judge(candidate)
        run.progress(place + 1, len(candidates))
    winner = choose(trials.measured, standard_of(run, rows)).winner
    keep_winner(trials, winner, out)
    return winner

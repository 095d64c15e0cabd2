"""Stage `export`: the merged student as ONNX in fp32, and in fp16 for CUDA.

Reads `data/`, `merge/`. Writes `model.onnx`, `model.fp16.onnx`, `tokenizer.json`, `tokenizer_info.json`.
"""

from pathlib import Path
from typing import Any

from kdc.artifact.manifest import Kind
from kdc.common.errors import KdcError
from kdc.pipeline.graphs.exporting import export_model
from kdc.pipeline.graphs.files import FP16_ONNX, FP32_ONNX
from kdc.pipeline.graphs.fp16 import to_fp16
from kdc.pipeline.graphs.parity import Feeds, LogitsFunction, check_parity, onnx_logits
from kdc.pipeline.results.artifact import ExportResult
from kdc.pipeline.rundir.context import Run
from kdc.serving.engine.engine import activate

_FP16_TOLERANCE = 1e-2  # of probabilities; fp16 holds three digits


def depends_on(run: Run) -> dict[str, Any]:
    return run.config.export.model_dump(exclude={"teacher", "formats"})


def run(run: Run, out: Path) -> ExportResult:
    model, role = run.folder("merge") / "model", run.student_role
    exported = export_model(
        model,
        out,
        run.data().tokens(role, "tune"),
        exporter=run.config.export.exporter,
        is_pair=run.data().task.is_pair,
        max_length=run.max_length(role),
        long=run.windows(role, model),
        seed=run.config.run.seed,
    )
    result = ExportResult(
        exporter=exported.exporter,
        fp32_parity=exported.parity,
        headline=f"{exported.exporter}, largest logit difference {exported.parity:.1e}",
    )
    if not run.config.export.fp16:
        return result
    fp16 = _make_fp16(out, exported.answer, exported.batches, run.data().task.kind)
    return result.model_copy(update={"fp16_parity": fp16})


def _make_fp16(out: Path, fp32: LogitsFunction, batches: list[Feeds], kind: Kind) -> float | str:
    target = out / FP16_ONNX

    def probabilities(logits: LogitsFunction) -> LogitsFunction:
        return lambda feeds: activate(logits(feeds), kind)

    try:
        to_fp16(out / FP32_ONNX, target)
        return check_parity(probabilities(onnx_logits(target)), probabilities(fp32), batches, tolerance=_FP16_TOLERANCE)
    except KdcError as error:
        target.unlink(missing_ok=True)
        return f"not made: {error.what} ({error.given})"

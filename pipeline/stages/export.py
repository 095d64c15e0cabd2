"""Stage `export`: the merged student as ONNX, fp32 for every device and fp16 for CUDA, proven equal to it.

Reads `data/`, `merge/`, and `search/` where there was a search. Writes `model.onnx`, `model.fp16.onnx`,
`tokenizer.json`, `tokenizer_info.json`.
"""

from pathlib import Path
from typing import Any

from kdc.artifact.manifest import Kind
from kdc.common.errors import KdcError
from kdc.pipeline.data.tokens import tokenizer_info
from kdc.pipeline.graphs.fp16 import to_fp16
from kdc.pipeline.graphs.onnx_graph import export_onnx, graph_inputs
from kdc.pipeline.graphs.parity import Feeds, LogitsFunction, check_parity, onnx_logits, parity_batches, torch_logits
from kdc.pipeline.models import loading
from kdc.pipeline.results import DataResult, ExportResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import FP16_ONNX, FP32_ONNX, TOKENIZER_INFO, TOKENIZER_JSON
from kdc.serving.engine.engine import activate

_ROWS = 64
_LONGEST = 512  # a batch of 32 longer rows would take gigabytes in eager attention
_FP16_TOLERANCE = 1e-2  # difference of a probability; fp16 holds three digits


def depends_on(run: Run) -> dict[str, Any]:
    """How the graph is made."""
    return run.config.export.model_dump()


def run(run: Run, out: Path) -> ExportResult:
    """Make the graphs in `out`."""
    settings = run.config.export
    merged = run.folder("merge") / "model"
    tokenizer = loading.load_tokenizer(str(merged))
    max_length = run.result(DataResult).max_length[run.student_role]
    tokens = run.data().tokens(run.student_role, "tune")
    typed = "token_type_ids" in tokens.column_names
    exporter = export_onnx(merged, out / FP32_ONNX, exporter=settings.exporter, token_type_ids=typed)
    info = tokenizer_info(
        tokenizer, max_length=max_length, token_type_ids="token_type_ids" in graph_inputs(out / FP32_ONNX)
    )
    (out / TOKENIZER_INFO).write_text(info.model_dump_json(indent=2), encoding="utf-8")
    tokenizer.backend_tokenizer.save(str(out / TOKENIZER_JSON), pretty=False)  # a third smaller

    rows = [tokens[index] for index in range(min(_ROWS, len(tokens)))]
    longest = min(max_length, _LONGEST)
    batches = list(parity_batches(rows, pad_id=info.pad_id, max_length=longest, seed=run.config.run.seed))
    fp32 = onnx_logits(out / FP32_ONNX)
    fp32_parity = check_parity(fp32, torch_logits(merged), batches)
    result = ExportResult(
        exporter=exporter,
        fp32_parity=fp32_parity,
        headline=f"{exporter}, largest logit difference {fp32_parity:.1e}",
    )
    if not settings.fp16:
        return result
    return result.model_copy(update={"fp16_parity": _make_fp16(out, fp32, batches, run.data().task.kind)})


def _make_fp16(out: Path, fp32: LogitsFunction, batches: list[Feeds], kind: Kind) -> float | str:
    """Make the fp16 graph.

    Returns:
        Its largest difference in probability to fp32, or a sentence that says why this graph has no fp16 form.
    """
    target = out / FP16_ONNX

    def probabilities(logits: LogitsFunction) -> LogitsFunction:
        return lambda feeds: activate(logits(feeds), kind)

    try:
        to_fp16(out / FP32_ONNX, target)
        return check_parity(probabilities(onnx_logits(target)), probabilities(fp32), batches, tolerance=_FP16_TOLERANCE)
    except KdcError as error:
        target.unlink(missing_ok=True)
        return f"not made: {error.what} ({error.given})"

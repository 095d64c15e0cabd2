"""Stage `quantize`: choose the fastest int8 model that loses at most `quantize.max_int8_drop` points.

If it loses more than `quantize.free_drop` beyond noise, kdc tries other ranges and keeps the worst layers in fp32.
Reads `data/`, `export/`. Writes `candidates.json`, and `model.int8.onnx`: if none passes, the most accurate
batch-invariant candidate, and CPUs load fp32.
"""

from functools import partial
from pathlib import Path
from typing import Any

from kdc.pipeline.graphs.exporting import tuning_slice
from kdc.pipeline.graphs.files import FP32_ONNX
from kdc.pipeline.graphs.int8 import worth_trying
from kdc.pipeline.graphs.int8_choice import FP32, choose, choose_again, is_faster
from kdc.pipeline.graphs.int8_trials import Trials
from kdc.pipeline.graphs.ranges import sample_batches
from kdc.pipeline.quality.calibration import calibrate
from kdc.pipeline.results.artifact import QuantizeResult
from kdc.pipeline.results.training import MergeResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import this_machine


def depends_on(run: Run) -> dict[str, Any]:
    return run.config.quantize.model_dump() | {"vector_bits": run.vector_bits} | this_machine(run.device)


def run(run: Run, out: Path) -> QuantizeResult:
    settings, exported = run.config.quantize, run.folder("export")
    fp32 = run.open_engine(exported / FP32_ONNX)
    rows = tuning_slice(run.data(), fp32)
    temperature = 1.0
    if run.result(MergeResult).temperature is None:
        temperature = calibrate(rows.logits, rows.labels, rows.task.kind, groups=run.data().groups("tune"))
    if not settings.enabled:
        return QuantizeResult(
            temperature=temperature, int8=False, note="int8 was not asked for", headline="not asked for"
        )
    bits = run.vector_bits
    if bits != 8 and settings.vector_bits == "auto":
        run.say(f"token vectors are stored in {bits} bits, to keep the contract's max_size_mb")
    tokens, seed = run.data().tokens(run.student_role, "train"), run.config.run.seed
    trials = Trials(
        folder=out,
        fp32_file=exported / FP32_ONNX,
        batches=sample_batches(tokens, fp32.tokenizer_info.input_names, rows=settings.calibration_rows, seed=seed),
        rows=rows,
        fp32=fp32,
        open_engine=partial(run.open_engine, temperature=temperature),
        settings=settings,
        seed=seed,
        vector_bits=bits,
    )
    trials.judge_all(worth_trying(), run.progress)
    trials.time()
    choice = trials.choose(choose)
    if choice.winner is not None and not trials.standard.is_free(trials.measured[choice.winner]):
        cost = trials.standard.drop(trials.measured[choice.winner])
        run.say(f"int8 costs {cost:.2f} points: more candidates are tried")
        trials.repair()
        trials.time()
        choice = trials.choose(partial(choose_again, choice))
    result = QuantizeResult(temperature=temperature, candidates=trials.measured, **choice.to_json())
    if result.chosen is not None and not is_faster(trials.measured[result.chosen], trials.measured[FP32]):
        note = "int8 is smaller than fp32, not faster on this CPU; for fp32: --set quantize.enabled=false"
        result = result.model_copy(update={"note": note})
    trials.keep(result.winner)
    return result

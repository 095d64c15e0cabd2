"""Judge what was packaged against the contract, and find the variant that keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Contract
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, Device, Manifest
from kdc.pipeline.data.served import texts_of
from kdc.pipeline.quality.comparison import compare
from kdc.pipeline.quality.costs import rows_to_time
from kdc.pipeline.quality.judge import judge, load
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.stages.evaluate import ALL_LOGITS
from kdc.serving.engine.engine import Engine

_RANK = {"pass": 0, "not shown": 1, "fail": 2}


def judged_device(run: Run) -> Device:
    """Where a contract is judged: on CUDA where the run trains there and ONNX Runtime can, else on the CPU."""
    import onnxruntime

    return "cuda" if run.device == "cuda" and CUDA_PROVIDER in onnxruntime.get_available_providers() else "cpu"


def judge_variants(run: Run, artifact: Path, manifest: Manifest, contract: Contract) -> tuple[Manifest, Judgement]:
    """Judge the variant that the manifest names; where that one does not pass on a CPU, the other precision too.

    Args:
        run: the run, evaluated.
        artifact: the folder with its manifest.
        manifest: of it.
        contract: what is asked.

    Returns:
        The manifest, whose provider loads the variant that stands best, and the judgement of that one.
    """
    device = judged_device(run)
    best = _judge(run, load(artifact, contract, device), contract)
    # int8 that cost more than --max-int8-drop is in the artifact for who asks for it, and nothing loads it unasked.
    allowed = ("int8", "fp32") if run.metrics("quantize")["chosen"] else ("fp32",)
    others = [name for name in allowed if name in manifest.variants and name != best.variant]
    for name in others if best.provider == CPU_PROVIDER else ():
        if best.verdict == "pass":
            break
        other = _judge(run, load(artifact, contract, device, variant=name), contract)
        best = min(best, other, key=lambda judgement: _RANK[judgement.verdict])
    providers = manifest.providers | {best.provider: best.variant}
    return manifest.model_copy(update={"providers": providers}), best


def _judge(run: Run, engine: Engine, contract: Contract) -> Judgement:
    data = run.data()
    split = data.eval_splits[0]
    with np.load(run.folder("evaluate") / ALL_LOGITS) as kept:
        on_gpu = f"{split}/{engine.variant} (cuda)"
        name = on_gpu if engine.provider == CUDA_PROVIDER and on_gpu in kept else f"{split}/{engine.variant}"
        student, teacher = kept[name], kept[f"{split}/teacher"]
    rows = data.rows(split)
    quality = compare(
        student,
        teacher,
        np.asarray(rows["label"][:]),
        data.task.kind,
        data.task.metrics[0],
        contract=contract,
        seed=run.config.run.seed,
    )
    return judge(engine, contract, rows_to_time(engine, texts_of(rows), contract.at), quality)

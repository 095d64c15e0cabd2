"""Judge an artifact against its contract: measure its costs on this machine, compare it with its teacher, and decide.

Reads an artifact's folder; writes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.contract.judgement import Judgement, decide
from kdc.artifact.contract.terms import Contract, Quality
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, Device, Manifest
from kdc.common import machine
from kdc.pipeline.quality.comparison import Other, compare
from kdc.pipeline.quality.latency import measure_costs, rows_to_time
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text

_RANK = {"pass": 0, "not shown": 1, "fail": 2}


@dataclass(frozen=True)
class EvaluationAnswers:
    """The rows of the evaluation split and what each model answered.

    The students' logits are by variant ("fp32", "int8", ...), and "fp32 (cuda)" and the like where the same variant was
    also run on a GPU.
    """

    texts: Sequence[Text]
    labels: NDArray[np.generic]  # (rows,), or (rows, outputs) for multi-label
    teacher: NDArray[np.floating]  # (rows, outputs) logits
    students: Mapping[str, NDArray[np.floating]]
    better: Other | None = None  # the baseline that is better than the teacher on the tuning slice, if one is

    def student(self, variant: str, *, on_gpu: bool) -> NDArray[np.floating]:
        """The logits of a variant, those of the GPU where it runs on one and was evaluated there."""
        name = f"{variant} (cuda)"
        return self.students[name if on_gpu and name in self.students else variant]

    def other(self, contract: Contract) -> Other:
        """What the contract compares the student with."""
        if contract.against == "best" and self.better is not None:
            return self.better
        return Other("teacher", self.teacher)


def judged_device(training_device: str) -> Device:
    """Where a contract is judged: on CUDA where the run trains there and ONNX Runtime has it, else on the CPU."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return "cuda" if training_device == "cuda" and CUDA_PROVIDER in available else "cpu"


def load(artifact: Path, contract: Contract, device: Device, *, variant: str | None = None) -> Engine:
    """Load an artifact's folder as it is judged: with the contract's threads, and without checking hashes. Without
    `variant` it is the one that the manifest names for the device."""
    return Engine.load(artifact, variant=variant, device=device, threads=contract.at.threads, verify=False)


def judge(
    engine: Engine, contract: Contract, rows: Sequence[Text], quality: Quality | None, *, compared: bool = True
) -> Judgement:
    """Measure the costs of an engine, and decide whether it keeps its contract.

    Args:
        engine: as `load` opens it.
        contract: what is asked.
        rows: the rows to time, see `kdc.pipeline.quality.latency.rows_to_time`.
        quality: the student beside its teacher; None where the contract asks for no `max_drop`.
        compared: whether the quality was measured now; otherwise it is that of an earlier judgement.
    """
    assert engine.manifest is not None
    size_bytes = engine.manifest.variants[engine.variant].size_bytes  # type: ignore[index]
    costs = measure_costs(engine, rows, contract.at, size_bytes=size_bytes)
    verdict, missed = decide(contract, costs, quality)
    return Judgement(
        contract=contract,
        variant=engine.variant,
        provider=engine.provider,
        cpu=machine.cpu().model,
        threads=engine.threads,
        lengths=tuple(len(encoding) for encoding in engine.encode(rows)),
        costs=costs,
        quality=quality,
        compared=compared,
        missed=missed,
        verdict=verdict,
    )


def judge_evaluated(engine: Engine, contract: Contract, answers: EvaluationAnswers, *, seed: int) -> Judgement:
    """Judge an engine by what stage `evaluate` kept of it; the seed is of the resampling behind the interval of the
    difference to the teacher."""
    student = answers.student(str(engine.variant), on_gpu=engine.provider == CUDA_PROVIDER)
    task = engine.task
    other = answers.other(contract)
    quality = compare(student, other, answers.labels, task.kind, task.metric, contract=contract, seed=seed)
    return judge(engine, contract, rows_to_time(engine, answers.texts, contract.at), quality)


def judge_variants(
    artifact: Path,
    manifest: Manifest,
    contract: Contract,
    answers: EvaluationAnswers,
    *,
    device: Device,
    int8_allowed: bool,
    seed: int,
) -> tuple[Manifest, Judgement]:
    """Judge the variant that the manifest names; where that one does not pass on a CPU, the other precision too.

    Returned are the manifest, whose provider now loads the variant that stands best, and the judgement of that variant.
    int8 is tried unasked only where it is allowed: one that cost more than `quantize.max_int8_drop` is in the artifact
    for people who ask for it. The device is that of `judged_device`, the seed is as in `judge_evaluated`.
    """
    best = judge_evaluated(load(artifact, contract, device), contract, answers, seed=seed)
    allowed = ("int8", "fp32") if int8_allowed else ("fp32",)
    others = [name for name in allowed if name in manifest.variants and name != best.variant]
    for name in others if best.provider == CPU_PROVIDER else ():
        if best.verdict == "pass":
            break
        other = judge_evaluated(load(artifact, contract, device, variant=name), contract, answers, seed=seed)
        best = min(best, other, key=lambda judgement: _RANK[judgement.verdict])
    providers = manifest.providers | {best.provider: best.variant}
    return manifest.model_copy(update={"providers": providers}), best

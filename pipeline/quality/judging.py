"""Judge an artifact by its costs on this machine and its answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdc.artifact.contract.judgement import Judgement, decide, missed_costs
from kdc.artifact.contract.terms import Contract, Costs, Quality, RequiredShare
from kdc.artifact.manifest import CPU_PROVIDER, CUDA_PROVIDER, Device, Manifest, TaskInfo
from kdc.common import machine
from kdc.pipeline.config.metrics import Groups, Labels, Outputs, Slices
from kdc.pipeline.quality.comparison import Other, compare
from kdc.pipeline.quality.decision_rates import found_rates
from kdc.pipeline.quality.latency import measure_costs, rows_to_time
from kdc.serving.engine.deciding import decided
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.long_texts import row_tokens
from kdc.serving.engine.tokenizing import Text

Answers = tuple[Quality | None, tuple[RequiredShare, ...]]


@dataclass(frozen=True)
class EvaluationAnswers:
    texts: Sequence[Text]
    labels: Labels
    students: Mapping[str, Outputs]  # logits by variant ("int8", "fp32 (cuda)", ...) and of "teacher"
    groups: Groups
    better: Other | None = None  # baseline that beats the teacher on the tuning set
    slices: Slices = field(default_factory=dict)

    @property
    def teacher(self) -> Outputs:
        return self.students["teacher"]

    def student(self, variant: str, *, on_gpu: bool) -> Outputs:
        name = f"{variant} (cuda)"
        return self.students[name if on_gpu and name in self.students else variant]

    def other(self, contract: Contract) -> Other:
        if contract.against == "best" and self.better is not None:
            return self.better
        return Other("teacher", self.teacher)


def judged_device(training_device: str) -> Device:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return "cuda" if training_device == "cuda" and CUDA_PROVIDER in available else "cpu"


def load(artifact: Path, contract: Contract, device: Device, *, variant: str | None = None) -> Engine:
    """Load an artifact without checking hashes."""
    return Engine.load(artifact, variant=variant, device=device, threads=contract.at.threads, verify=False)


def judge_artifact(
    artifact: Path,
    manifest: Manifest,
    contract: Contract,
    answers: EvaluationAnswers,
    tuning: Mapping[str, float],
    *,
    device: Device,
    int8_allowed: bool,
    look: Callable[[Labels], int],
    with_decisions: Callable[[Manifest], Manifest],
) -> tuple[Manifest, Judgement]:
    """Choose the variant by costs and the tuning set, so that the evaluation rows judge one model.

    Args:
        tuning: points on the tuning set by variant, relative to the teacher or better baseline.
        look: returns the number of this look, given the judged answers.
    """
    tried, most_lost = [], contract.limits.max_drop
    for variant in _in_turn(manifest, device, int8_allowed=int8_allowed):
        engine = load(artifact, contract, device, variant=variant)
        rows = rows_to_time(engine, answers.texts, contract.at)
        costs = _costs(engine, contract, rows)
        excess = 0.0 if most_lost is None else max(0.0, -tuning.get(variant, 0.0) - most_lost)
        misses = (len(missed_costs(contract, costs)), excess)
        tried.append((misses, variant, engine, rows, costs))
        if not any(misses):
            break
    _, variant, engine, rows, costs = min(tried, key=lambda one: one[0])  # ties: the first
    providers = manifest.providers | {engine.provider: variant}
    manifest = with_decisions(manifest.model_copy(update={"providers": providers}))
    student = answers.student(variant, on_gpu=engine.provider == CUDA_PROVIDER)
    probabilities, decisions = engine.activated(student), manifest.task.traits.predictions(student)
    has_thresholds = bool(manifest.task.points) or manifest.task.abstain is not None
    if contract.limits.require and has_thresholds:  # other thresholds count as another look
        decisions = np.column_stack([decisions, decided(probabilities, manifest.task)])
    judged = judge_answers(
        student,
        probabilities,
        answers.labels,
        manifest.task,
        contract=contract,
        other=answers.other(contract),
        groups=answers.groups,
        slices=answers.slices,
        look=look(decisions) if contract.limits.max_drop is not None or contract.limits.require else 1,
    )
    return manifest, judge_again(engine, contract, rows, judged, compared=True, costs=costs)


def judge_answers(
    logits: Outputs,
    probabilities: Outputs,
    labels: Labels,
    task: TaskInfo,
    *,
    contract: Contract,
    other: Other | None,
    groups: Groups,
    look: int,
    slices: Slices | None = None,
) -> Answers:
    quality = None
    if other is not None and contract.limits.max_drop is not None:
        quality = compare(logits, other, labels, task.kind, task.metric, contract=contract, groups=groups, look=look)
    rates = found_rates(contract, task, probabilities, labels, groups=groups, slices=slices, look=look)
    return quality, rates


def judge_again(
    engine: Engine,
    contract: Contract,
    rows: Sequence[Text],
    answers: Answers,
    *,
    compared: bool,
    costs: Costs | None = None,
) -> Judgement:
    """`compared` is False if the answers come from an earlier judgement."""
    costs = costs or _costs(engine, contract, rows)
    quality, required = answers
    verdict, missed = decide(contract, costs, quality, required)
    return Judgement(
        contract=contract,
        variant=engine.variant,
        provider=engine.provider,
        cpu=machine.cpu().model,
        threads=engine.threads,
        lengths=tuple(map(row_tokens, engine.encode(rows))),
        costs=costs,
        quality=quality,
        required=required,
        compared=compared,
        missed=missed,
        verdict=verdict,
    )


def _in_turn(manifest: Manifest, device: Device, *, int8_allowed: bool) -> list[str]:
    """Variants to try. On a GPU, only a cascade has a second variant: its first model."""
    if device == "cuda":
        first = manifest.providers[CUDA_PROVIDER]
        is_alone = all(variant.second is None for name, variant in manifest.variants.items() if name == first)
        has_fp16 = "fp16" in manifest.variants and "fp16 (cuda)" in manifest.metrics
        return [first] if is_alone else [first, "fp16" if has_fp16 else "fp32"]
    first = manifest.providers[CPU_PROVIDER]
    others = ("int8", "fp32") if int8_allowed else ("fp32",)
    return [first, *(name for name in others if name in manifest.variants and name != first)]


def _costs(engine: Engine, contract: Contract, rows: Sequence[Text]) -> Costs:
    assert engine.manifest is not None
    size_bytes = engine.manifest.variants[engine.variant].size_bytes  # type: ignore[index]
    return measure_costs(engine, rows, contract, size_bytes=size_bytes)

"""The operating points of a run's artifact: chosen on the tuning slice, told on the evaluation rows."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kdc.artifact.decision import OperatingPoint
from kdc.artifact.manifest import TaskInfo
from kdc.pipeline.config.aims import aims_of
from kdc.pipeline.quality.operating import choose, having, rates
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.evidence import answers_of
from kdc.pipeline.rundir.exporting import tuning_slice
from kdc.pipeline.rundir.files import FP32_ONNX, INT8_ONNX
from kdc.serving.engine.deciding import decided
from kdc.serving.engine.engine import activate

_MOST_TOLD = 5  # labels whose aim is not reached


def operating_points(run: Run, variant: str, temperature: float) -> tuple[tuple[OperatingPoint, ...], list[str]]:
    """The thresholds of the labels that have one, and what a person should know of them.

    Args:
        run: whose evaluation is done.
        variant: fp32 or int8, which a CPU loads: the thresholds are of its probabilities.
        temperature: by which its logits are divided.
    """
    info = run.data().task.info()
    aims = aims_of(run.config.operating.aims, info)
    if not aims:
        return (), []
    file = run.folder("quantize") / INT8_ONNX if variant == "int8" else run.folder("export") / FP32_ONNX
    with run.open_engine(file, temperature=temperature) as engine:
        tuning = tuning_slice(run, engine)
    answers = answers_of(run)
    held = activate(tuning.logits, info.kind, temperature)
    evaluated = activate(answers.students[variant], info.kind, temperature)
    points = []
    for label, aim in aims.items():
        place = info.labels.index(label)
        chosen = choose(held[:, place], having(tuning.labels, place), aim)
        point = OperatingPoint(
            label=label,
            threshold=chosen.threshold,
            aim=aim.text,
            reached=chosen.reached,
            note=chosen.note,
            variant=variant,
        )
        alone = info.model_copy(update={"points": (point,)})
        shown = {
            name: rates(decided(probabilities, alone)[:, place], having(labels, place))
            for name, probabilities, labels in (
                ("tuning", held, tuning.labels),
                ("evaluation", evaluated, answers.labels),
            )
        }
        points.append(point.model_copy(update=shown))
    notes = _unreached(points)
    notes += _flips(info.model_copy(update={"points": tuple(points)}), answers.students, variant, temperature)
    return tuple(points), notes


def _unreached(points: list[OperatingPoint]) -> list[str]:
    """Which aims the tuning slice does not reach, and why; of many labels the number."""
    missed = [point for point in points if not point.reached]
    if len(missed) > _MOST_TOLD:
        names = ", ".join(point.label for point in missed[:_MOST_TOLD])
        return [f"{len(missed)} labels do not reach their aim on the tuning slice, among them {names}"]
    return [f"{point.label}: {point.aim} is not reached on the tuning slice: {point.note}" for point in missed]


def _flips(task: TaskInfo, logits: Mapping[str, NDArray[np.floating]], variant: str, temperature: float) -> list[str]:
    """What int8 changes at the thresholds, in a sentence."""
    if variant != "int8":
        return []
    int8, fp32 = (decided(activate(logits[name], task.kind, temperature), task) for name in ("int8", "fp32"))
    flips = int((int8 != fp32).any(axis=1).sum())
    return [f"at the thresholds int8 decides otherwise than fp32 on {flips} of {len(int8)} evaluation rows"]

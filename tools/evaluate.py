"""`kdc evaluate`: the metrics of an artifact on a file of labelled rows, through the engine that serves."""

from collections.abc import Mapping
from pathlib import Path

from kdc.artifact.manifest import Device
from kdc.common.frozen import Frozen
from kdc.pipeline.config.tasks import TASKS
from kdc.pipeline.quality import metrics
from kdc.serving.engine.engine import Engine
from kdc.tools.labelled import read_rows_for


class Evaluation(Frozen):
    """What `kdc evaluate --json` prints.

    Attributes:
        variant, provider: the ONNX file that answered the rows, and the execution provider that ran it.
        promised: the metrics that the artifact's manifest states for this variant, of its own evaluation split.
    """

    artifact: str  # its folder
    rows: int  # of the file
    variant: str | None
    provider: str
    metrics: dict[str, float]  # in points, by name
    promised: dict[str, float]


def evaluate_artifact(
    artifact: Path,
    data: Path,
    *,
    columns: Mapping[str, str | None],
    variant: str | None = None,
    device: Device = "auto",
) -> Evaluation:
    """Answer the rows of a file and compare the answers with the labels.

    Args:
        artifact: its folder.
        data: the file.
        columns: see `kdc.tools.verify.verify_artifact`.
        variant: None takes the manifest's choice.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: the file does not fit the artifact's task.
    """
    engine = Engine.load(artifact, variant=variant, device=device)
    task, texts, labels = read_rows_for(engine.task, data, columns)
    known = TASKS.get(engine.task.name)
    names = known.metrics if known is not None else task.metrics
    promised = engine.manifest.variants[engine.variant].metrics if engine.manifest is not None else {}  # type: ignore[index]
    return Evaluation(
        artifact=str(artifact),
        rows=len(texts),
        variant=engine.variant,
        provider=engine.provider,
        metrics=metrics.compute(engine.logits(texts), labels, task.kind, names),
        promised=promised,
    )


def render(evaluation: Evaluation) -> str:
    """The metrics on the file beside those that the artifact promises, a line for each."""
    lines = [f"{evaluation.rows} rows through {evaluation.variant} on {evaluation.provider}"]
    for name, value in evaluation.metrics.items():
        promised = evaluation.promised.get(name)
        beside = "" if promised is None else f"   (on its own evaluation split {promised:.2f})"
        lines.append(f"{name:<12}{value:8.2f}{beside}")
    return "\n".join(lines)

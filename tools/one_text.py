"""`kdc try`: the answer to one text."""

from pathlib import Path
from typing import Any

from kdc.artifact.manifest import Device
from kdc.common.tables import aligned
from kdc.serving.engine.engine import Engine, Text


def answer(artifact: Path, row: Text, *, variant: str | None, device: Device) -> tuple[dict[str, Any], str]:
    """The answer as a JSON document, and as lines for people."""
    engine = Engine.load(artifact, variant=variant, device=device)
    (outputs,) = engine.predict([row])
    scores = dict(zip(engine.labels or ("score",), map(float, outputs), strict=True))
    best_first = sorted(scores, key=lambda label: -scores[label])
    bars = {label: "#" * round(40 * score) if engine.labels else "" for label, score in scores.items()}
    lines = [aligned([[label, f"{scores[label]:.4f}", bars[label]] for label in best_first], left=(0, 2))]
    entries = [{"label": label, "score": scores[label]} for label in best_first]
    document: dict[str, Any] = {"scores": entries, "variant": engine.variant, "provider": engine.provider}
    if engine.labels:
        (document["decision"],) = engine.decided(outputs[None])
    if engine.task.points or engine.task.abstain is not None:
        gets = document["decision"]
        lines.append(f"decision: {(', '.join(gets) or 'no label') if isinstance(gets, list) else gets}")
    if engine.task.sets is not None:
        (document["set"],) = engine.label_sets(outputs[None])
        lines.append(f"set: {', '.join(document['set'])}")
    return document, "\n".join(lines)

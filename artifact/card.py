"""The model card: the artifact's README.md."""

from __future__ import annotations

from typing import Any

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import sentence, table
from kdc.artifact.inspection import markdown, markdown_table
from kdc.artifact.manifest import Manifest


def model_card(manifest: Manifest, quantized: dict[str, Any], judgement: Judgement | None, example: str) -> str:
    """Markdown: what it answers, what was measured, how to use it, where it comes from, its limits."""
    task, lineage = manifest.task, manifest.lineage
    columns = f"`{task.text}`" if task.text_pair is None else f"the pair `{task.text}`, `{task.text_pair}`"
    answers = ", ".join(f"`{name}`" for name in task.labels) or "a number"
    call = '"a text"' if task.text_pair is None else '("first text", "second text")'
    loads = "; ".join(f"{variant} on {provider}" for provider, variant in manifest.providers.items())
    untouched = "On the evaluation split, which nothing was chosen by."
    if judgement is not None and quantized["chosen"] and judgement.variant == "fp32":
        untouched = "On the evaluation split, by which nothing was chosen but fp32 in place of int8, for the contract."
    int8 = quantized["note"] or f"int8 is the candidate `{quantized['winner']}`."
    return f"""# {task.name}: a compressed text classifier

Takes {columns}; answers {answers}. Distilled from `{lineage.teacher}` into {lineage.student} with KD-LoRA
(recipe `{lineage.recipe}`, seed {lineage.seed}), adapters merged, exported to ONNX.

## Measured

{markdown(manifest.metrics, task.metric)}

{_contract(judgement)}{_candidates(quantized, task.metric)}
{untouched} ONNX rows ran through the engine that serves. Latency is of one
row, tokenising included; rows/s at batch 32; size is the model file plus `tokenizer.json`. CPU: {lineage.cpu}.
{int8} Loaded by provider: {loads}. `evaluation.npz` holds the logits of every evaluation row.

## Use

```
kdc try . {example}
```

```python
from kdc.serving.engine.engine import Engine

engine = Engine.load(".")
probabilities = engine.predict([{call}])  # (rows, {task.outputs}), columns {list(task.labels) or "the number"}
```

## Limits

It answers what its training rows were like; texts of another kind, language or length may be answered badly and with
confidence. Longer texts are cut. Its labels mean what they meant in the training data (fingerprint
`{lineage.data_fingerprint[:16]}`), no more.
"""


def _contract(judgement: Judgement | None) -> str:
    """What was asked and found; empty where nothing was asked."""
    if judgement is None:
        return ""
    return f"{markdown_table(table(judgement))}\n\n{sentence(judgement)}\n\n"


def _candidates(quantized: dict[str, Any], metric: str) -> str:
    """The int8 candidates as judged on the tuning slice; empty where int8 was not asked for."""
    made = {name: found for name, found in quantized["candidates"].items() if "tune" in found}
    if not made:
        return ""
    lines = [
        f"int8 candidates, on the tuning slice | {metric} | batch-invariant | latency against fp32",
        "---|---:|---|---:",
    ]
    for name, found in made.items():
        mark = " (chosen)" if name == quantized["chosen"] else ""
        invariant = "yes" if found["batch_invariant"] else f"no, {found['max_probability_difference']:.2g}"
        lines.append(f"{name}{mark} | {found['tune'][metric]:.2f} | {invariant} | {found['latency_against_fp32']:.2f}")
    return "\n".join(lines) + "\n"

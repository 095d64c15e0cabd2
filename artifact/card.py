"""The model card: the artifact's README.md, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import sentence, table
from kdc.artifact.inspection import cells
from kdc.artifact.manifest import Manifest
from kdc.common.tables import markdown


@dataclass(frozen=True)
class Int8Candidate:
    """One way to quantise the model, as measured on the tuning slice.

    Attributes:
        name: of the candidate.
        score: the task's metric, in points.
        batch_invariant: whether a row's answer is the same alone and in a batch.
        max_probability_difference: largest difference of a row's probability between the two.
        latency_against_fp32: its median latency divided by fp32's.
    """

    name: str
    score: float
    batch_invariant: bool
    max_probability_difference: float
    latency_against_fp32: float


@dataclass(frozen=True)
class Int8Summary:
    """How the int8 variant came about.

    Attributes:
        chosen: name of the candidate that a CPU loads; None: a CPU loads fp32.
        winner: name of the candidate whose file is in the artifact; None: there is no int8 file.
        note: what a reader should know of the choice; "" where all is well.
        candidates: those that could be made and measured.
    """

    chosen: str | None
    winner: str | None
    note: str = ""
    candidates: Sequence[Int8Candidate] = ()


def model_card(manifest: Manifest, int8: Int8Summary, judgement: Judgement | None, example: str) -> str:
    """The card: what the model answers, what was measured, how to use it, and its limits.

    Args:
        manifest: of the artifact.
        int8: how its int8 variant came about.
        judgement: how it kept its contract; None where nothing was asked of it.
        example: arguments for `kdc try`, quoted for a shell.
    """
    task, lineage = manifest.task, manifest.lineage
    columns = f"`{task.text}`" if task.text_pair is None else f"the pair `{task.text}`, `{task.text_pair}`"
    answers = ", ".join(f"`{name}`" for name in task.labels) or "a number"
    row = '"a text"' if task.text_pair is None else '("first text", "second text")'
    loads = "; ".join(f"{variant} on {provider}" for provider, variant in manifest.providers.items())
    untouched = "On the evaluation split, which nothing was chosen by."
    if judgement is not None and int8.chosen and judgement.variant == "fp32":
        untouched = "On the evaluation split, by which nothing was chosen but fp32 in place of int8, for the contract."
    note = int8.note or f"int8 is the candidate `{int8.winner}`."
    return f"""# {task.name}: a compressed text classifier

Takes {columns}; answers {answers}. Distilled from `{lineage.teacher}` into {lineage.student} with KD-LoRA
(recipe `{lineage.recipe}`, seed {lineage.seed}), adapters merged, exported to ONNX.

## Measured

{markdown(cells(manifest.metrics, task.metric))}

{_contract(judgement)}{_candidates(int8, task.metric)}
{untouched} ONNX rows ran through the engine that serves. Latency is of one
row, tokenising included; rows/s at batch 32; size is the model file plus `tokenizer.json`. CPU: {lineage.cpu}.
{note} Loaded by provider: {loads}. `evaluation.npz` holds the logits of every evaluation row.

## Use

```
kdc try . {example}
```

```python
import kdc

engine = kdc.load(".")
probabilities = engine.predict([{row}])  # (rows, {task.outputs}), columns {list(task.labels) or "the number"}
```

## Limits

It answers what its training rows were like; texts of another kind, language or length may be answered badly and with
confidence. Longer texts are cut. Its labels mean what they meant in the training data (fingerprint
`{lineage.data_fingerprint[:16]}`), no more.
"""


def _contract(judgement: Judgement | None) -> str:
    """What was asked and what was measured; empty where nothing was asked."""
    if judgement is None:
        return ""
    return f"{markdown(table(judgement))}\n\n{sentence(judgement)}\n\n"


def _candidates(int8: Int8Summary, metric: str) -> str:
    """The table of int8 candidates; empty where int8 was not asked for."""
    if not int8.candidates:
        return ""
    lines = [
        f"int8 candidates, on the tuning slice | {metric} | batch-invariant | latency against fp32",
        "---|---:|---|---:",
    ]
    for each in int8.candidates:
        mark = " (chosen)" if each.name == int8.chosen else ""
        invariant = "yes" if each.batch_invariant else f"no, {each.max_probability_difference:.2g}"
        lines.append(f"{each.name}{mark} | {each.score:.2f} | {invariant} | {each.latency_against_fp32:.2f}")
    return "\n".join(lines) + "\n"

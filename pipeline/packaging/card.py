"""The model card: the artifact's README.md."""

from pathlib import Path

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import sentence, table
from kdc.artifact.decision import decision_table, sets_table, slice_table
from kdc.artifact.inspection import cells, labels_in_words
from kdc.artifact.manifest import Manifest
from kdc.artifact.stores.hub_layout import CONFIG, WEIGHTS
from kdc.pipeline.config.student_kinds import UNCUT_NAME
from kdc.pipeline.packaging.markup import render
from kdc.pipeline.results.artifact import QuantizeResult


def model_card(
    manifest: Manifest, int8: QuantizeResult, judgement: Judgement | None, example: str, *, teacher: str, adapted: bool
) -> str:
    """`teacher`: a note; "" if all is well. `adapted`: whether adapters trained the student."""
    task, lineage = manifest.task, manifest.lineage
    file = manifest.variants.get("int8", manifest.variants["fp32"]).file  # the smallest one
    return render(
        Path(__file__).with_name("card.md"),
        manifest=manifest,
        task=task,
        lineage=lineage,
        long=manifest.tokenizer.long,
        int8=int8,
        judgement=judgement,
        contract=judgement and table(judgement),
        verdict=judgement and sentence(judgement),
        example=example,
        teacher=teacher,
        adapted=adapted,
        uncut=lineage.student.removeprefix(UNCUT_NAME) if lineage.student.startswith(UNCUT_NAME) else None,
        labels=labels_in_words(lineage.labels),
        models=cells(manifest.metrics, task.metric),
        candidates=_candidates(int8, task.metric),
        decisions=decision_table(task.points, task.abstain),
        sets=sets_table(task.sets),
        slices=slice_table(manifest.slices),
        file=file if CONFIG in manifest.files else None,
        dtype=file.removesuffix(".onnx").removeprefix("model").removeprefix("_") or "fp32",
        has_weights=WEIGHTS in manifest.files,
    )


def _candidates(int8: QuantizeResult, metric: str) -> list[list[str]]:
    rows = [["int8 candidates, on the tuning set", metric, "batch-invariant", "latency against fp32"]]
    for name, candidate in int8.candidates.items():
        if candidate.tune is not None:
            mark = " (chosen)" if name == int8.chosen else ""
            invariant = "yes" if candidate.batch_invariant else f"no, {candidate.max_probability_difference or 0.0:.2g}"
            if candidate.batch_invariant is None:
                invariant = "not compared" if candidate.static else "no, by design"
            latency = f"{candidate.latency_against_fp32:.2f}"
            rows.append([f"{name}{mark}", f"{candidate.tune[metric]:.2f}", invariant, latency])
    return rows if len(rows) > 1 else []

"""An artifact and its evaluation table as text."""

from collections.abc import Iterable, Mapping
from typing import Any

from kdc.artifact.contract.text import render as render_contract
from kdc.artifact.decision import decision_table, sets_table, slice_table
from kdc.artifact.manifest import Manifest
from kdc.common.tables import aligned, number

NAMES = {
    "teacher": "teacher",
    "teacher_fp32": "teacher, uncut, ONNX fp32",
    "teacher_int8": "teacher, uncut, ONNX int8",
    "teacher_lora": "LoRA teacher",
    "student": "KD-LoRA student",
    "student_without_kd": "student without KD",
    "student_without_kd_by_score": "student without KD, step by score",
    "student_without_kd_by_loss": "student without KD, step by loss",
    "student_without_unlabeled": "student without the unlabelled texts",
    "merged": "merged student",
    "fp32": "ONNX fp32",
    "int8": "ONNX int8",
    "fp16": "ONNX fp16",
    "second_fp32": "second model, ONNX fp32",
    "second_int8": "second model, ONNX int8",
    "cascade": "student and second model",
    "cascade_fp32": "student and second model, fp32",
}
BASELINES = {"probe": "linear probe", "tfidf": "TF-IDF", "majority": "majority"}
# column, title, factor, digits
_COSTS = (
    ("size_bytes", "size MB", 1e-6, 1),
    ("parameters", "M params", 1e-6, 1),
    ("latency_p50_ms", "p50 ms", 1, 2),
    ("latency_p95_ms", "p95 ms", 1, 2),
    ("rows_per_second", "rows/s", 1, 0),
    ("peak_memory_bytes", "peak MB", 1e-6, 0),
)


def render(manifest: Manifest) -> str:
    task, lineage, length = manifest.task, manifest.lineage, manifest.tokenizer.max_length
    columns = task.text if task.text_pair is None else f"{task.text} + {task.text_pair}"
    windows = "" if manifest.tokenizer.long is None else f" in a window; {manifest.tokenizer.long.text}"
    lines = [
        f"task        {task.name} ({task.kind}): {columns} -> {', '.join(task.labels) or 'a number'}",
        *(f"question    {question.fingerprint[:16]}  {question.text}" for question in manifest.questions),
        f"made        {manifest.created} by kdc {manifest.kdc_version}",
        f"teacher     {lineage.teacher}",
        f"student     {lineage.student} (recipe {lineage.recipe}, seed {lineage.seed})"
        + (f", trained in {lineage.trained}" if lineage.trained else ""),
        *([] if manifest.second is None else [f"second      {manifest.second.text}"]),
        f"data        {lineage.data_fingerprint}",
        *([f"labels      {labels_in_words(lineage.labels)}"] if lineage.labels else []),
        f"packages    {', '.join(f'{name} {version}' for name, version in lineage.packages.items())}",
        f"judged on   {lineage.cpu}" + (f", {lineage.gpu}" if lineage.gpu else ""),
        f"length      at most {length} tokens{windows}; calibration temperature {manifest.fitted_temperature:.3f}",
        "loads       " + ", ".join(f"{variant} on {provider}" for provider, variant in manifest.providers.items()),
        f"files       {len(manifest.files)}, all hashes match",
        *(f"            {name}  {file.size} bytes  {file.sha256[:16]}" for name, file in manifest.files.items()),
        f"sha256      {manifest.sha256}",
    ]
    lines = [line.replace("\n", " ") for line in lines]  # a line break in a name would fake a line
    lines += ["", aligned(cells(manifest.metrics, manifest.task.metric))]
    decisions = decision_table(manifest.task.points, manifest.task.abstain)
    for more in (decisions, sets_table(manifest.task.sets), slice_table(manifest.slices)):
        lines += ["", aligned(more)] if more else []
    if manifest.contract is not None:
        lines += ["", render_contract(manifest.contract)]
    return "\n".join(lines)


def labels_in_words(labels: str | None) -> str:
    """What scores mean, given `Lineage.labels`."""
    if labels is None:
        return ""
    if labels == "people":
        return "scores are by people's labels"
    return f"scores are agreement with {labels.removeprefix('model:')}'s labels, not accuracy by people's labels"


def in_order(names: Iterable[str]) -> list[str]:
    order = [*NAMES, *(f"{name} (cuda)" for name in NAMES), *BASELINES]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def cells(rows: Mapping[str, Mapping[str, Any]], metric: str) -> list[list[str]]:
    """Cells, header first, of `Manifest.metrics`."""
    costs = {key for key, *_ in _COSTS} | {"runtime", "latency_mean_ms"}
    metrics = [key for key in next(iter(rows.values()), {}) if key not in costs]
    floor = rows.get("majority", {}).get(metric)
    titles = [title for _, title, _, _ in _COSTS]
    lines = [["model", *metrics, "kept %", *(["above chance %"] if floor is not None else []), *titles]]
    teacher = rows.get("teacher", {}).get(metric)
    for name in in_order(rows):
        row = rows[name]
        kept = [number(share(row.get(metric), teacher))]
        if floor is not None:
            kept.append(number(share(row.get(metric), teacher, floor)))
        scores = [number(row.get(key), 2) for key in metrics]
        lines.append(
            [name, *scores, *kept, *(number(row.get(key), digits, factor) for key, _, factor, digits in _COSTS)]
        )
    return lines


def share(score: float | None, teacher: float | None, floor: float = 0.0) -> float | None:
    """Percent of the teacher's score, counted from `floor`. None if the teacher does not beat the floor."""
    if score is None or teacher is None or teacher <= floor:
        return None
    return 100 * (score - floor) / (teacher - floor)

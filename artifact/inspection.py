"""An artifact as text for a terminal: what it is, where it comes from, what was measured. No heavy import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdc.artifact.contract.text import render as render_contract
from kdc.artifact.manifest import Manifest

_ORDER = ("teacher", "teacher_lora", "student", "student_without_kd", "merged", "fp32", "int8", "fp16")
_COLUMNS = (
    ("size_bytes", "size MB", 1e-6, 1),
    ("parameters", "M params", 1e-6, 1),
    ("latency_p50_ms", "p50 ms", 1, 2),
    ("latency_p95_ms", "p95 ms", 1, 2),
    ("rows_per_second", "rows/s", 1, 0),
    ("peak_memory_bytes", "peak MB", 1e-6, 0),
)


def render(manifest: Manifest) -> str:
    """The manifest for a person who reads."""
    task, lineage = manifest.task, manifest.lineage
    columns = task.text if task.text_pair is None else f"{task.text} + {task.text_pair}"
    lines = [
        f"task        {task.name} ({task.kind}): {columns} -> {', '.join(task.labels) or 'a number'}",
        f"made        {manifest.created} by kdc {manifest.kdc_version}",
        f"teacher     {lineage.teacher}",
        f"student     {lineage.student} (recipe {lineage.recipe}, seed {lineage.seed})",
        f"data        {lineage.data_fingerprint}",
        f"packages    {', '.join(f'{name} {version}' for name, version in lineage.packages.items())}",
        f"judged on   {lineage.cpu}" + (f", {lineage.gpu}" if lineage.gpu else ""),
        f"length      at most {manifest.max_length} tokens; calibration temperature {manifest.temperature:.3f}",
        "loads       " + ", ".join(f"{variant} on {provider}" for provider, variant in manifest.providers.items()),
        f"files       {len(manifest.files)}, all hashes match",
        *(f"            {name}  {file.size} bytes  {file.sha256[:16]}" for name, file in manifest.files.items()),
        f"sha256      {manifest.sha256}",
        "",
        table(manifest.metrics, manifest.task.metric),
    ]
    if manifest.contract is not None:
        lines += ["", render_contract(manifest.contract)]
    return "\n".join(lines)


def table(rows: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """The evaluation table in aligned plain text; what was not measured is a dash."""
    return _align(cells(rows, metric))


def markdown(rows: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """The evaluation table in Markdown."""
    return markdown_table(cells(rows, metric))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells, header first, in Markdown; all columns but the first are numbers."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of models as tables have them: teachers, students, then what was made of the student."""
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def cells(rows: Mapping[str, Mapping[str, Any]], metric: str) -> list[list[str]]:
    """The evaluation table as text, header first: metrics, percent of the teacher's, then costs."""
    costs = {key for key, *_ in _COLUMNS} | {"runtime"}
    metrics = [key for key in next(iter(rows.values()), {}) if key not in costs]
    result = [["model", *metrics, "kept %", *(title for _, title, _, _ in _COLUMNS)]]
    teacher = rows.get("teacher", {}).get(metric)
    for name in in_order(rows):
        row = rows[name]
        kept = f"{100 * row[metric] / teacher:.1f}" if teacher and metric in row else "-"
        numbers = [_number(row.get(key), 1, 2) for key in metrics]
        result.append(
            [name, *numbers, kept, *(_number(row.get(key), scale, digits) for key, _, scale, digits in _COLUMNS)]
        )
    return result


def _number(value: Any, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _align(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        rows.append(
            line[0].ljust(widths[0])
            + "".join(cell.rjust(width + 2) for cell, width in zip(line[1:], widths[1:], strict=True))
        )
    return "\n".join(rows)

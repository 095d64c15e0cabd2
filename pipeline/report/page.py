"""Writes the facts of a run as `report.html` (one file, no outside request), `report.json` and `report.md`."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.text import sentence
from kdc.artifact.contract.text import table as contract_table
from kdc.artifact.inspection import in_order
from kdc.common.tables import markdown as markdown_table
from kdc.pipeline.report import plots
from kdc.pipeline.report.facts import gather
from kdc.pipeline.report.markup import document, html_table, write_text
from kdc.pipeline.report.pareto import pareto

MOST_EXAMPLES = 50
_FACTS = "report.json"
NAMES = {
    "teacher": "teacher",
    "teacher_lora": "LoRA teacher",
    "student_without_kd": "student without KD",
    "student": "KD-LoRA student",
    "merged": "merged student",
    "fp32": "ONNX fp32",
    "int8": "ONNX int8",
    "fp16": "ONNX fp16",
}
_SHORT = {"teacher_lora": "LoRA teacher", "student_without_kd": "without KD", "merged": "merged"}
# key in the facts, title, factor, digits
_COLUMNS = (
    ("trainable_parameters", "trainable, M", 1e-6, 2),
    ("parameters", "parameters, M", 1e-6, 1),
    ("size_bytes", "size, MB", 1e-6, 1),
    ("latency_p50_ms", "p50, ms", 1, 2),
    ("latency_p95_ms", "p95, ms", 1, 2),
    ("rows_per_second", "rows/s", 1, 0),
    ("peak_memory_bytes", "peak, MB", 1e-6, 0),
    ("training_seconds", "training, s", 1, 0),
)


def write_report(root: Path, *, examples: bool = True) -> dict[str, Any]:
    """Write the report of a finished run into its directory.

    Args:
        root: the run directory.
        examples: quote rows on which teacher and student disagree.

    Returns:
        the facts: see `facts.gather`.

    Raises:
        InputError: not a finished run.
        KdcError: its artifact is damaged.
    """
    facts = gather(root, examples=MOST_EXAMPLES if examples else 0)
    write_text(root / "report.md", markdown(facts))
    write_text(root / "report.html", page(facts))
    write_text(root / _FACTS, json.dumps(facts, indent=2, ensure_ascii=False))  # last: it says that all are there
    return facts


def reported_artifact(root: Path) -> str | None:
    """SHA-256 of the artifact that a run's report is of; None where there is no whole report."""
    try:
        facts = json.loads((root / _FACTS).read_text(encoding="utf-8"))
        return str(facts["where"]["artifact_sha256"]) if (root / "report.html").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def table(facts: Mapping[str, Any]) -> list[list[str]]:
    """The models as text, header first."""
    metric = facts["task"]["metric"]
    others = [name for name in facts["models"]["teacher"]["metrics"] if name != metric]
    lines = [["model", metric, "95 % interval", *others, "kept %", *(title for _, title, _, _ in _COLUMNS)]]
    for name in in_order(facts["models"]):
        model = facts["models"][name]
        low, high = model["interval"]
        lines.append(
            [
                NAMES.get(name, name) + (" (served)" if name == facts["served"] else "") + (" *" * model["collapsed"]),
                _number(model["metrics"][metric], 1, 1),
                f"{low:.1f} to {high:.1f}",
                *(_number(model["metrics"].get(other), 1, 1) for other in others),
                _number(model["kept_percent"], 1, 1),
                *(_number(model.get(key), factor, digits) for key, _, factor, digits in _COLUMNS),
            ]
        )
    return lines


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def markdown(facts: Mapping[str, Any]) -> str:
    """Verdict, contract, table and origin."""
    parts = [f"# {facts['task']['name']}: what compression kept", facts["verdict"]]
    if facts["contract"] is not None:
        judgement = Judgement.model_validate(facts["contract"])
        parts += [markdown_table(contract_table(judgement)), sentence(judgement)]
    parts.append(markdown_table(table(facts)))
    parts.append("\n".join(f"- {title}: {text}" for title, text in _origin(facts)))
    return "\n\n".join(parts) + "\n"


def _origin(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and how, as title and text."""
    where = facts["where"]
    return [
        ("teacher", where["teacher"]),
        ("student", f"{where['student']}, recipe {where['recipe']}, seed {where['seed']}"),
        ("rows", ", ".join(f"{name} {count}" for name, count in where["rows"].items())),
        ("data fingerprint", where["data_fingerprint"]),
        ("measured on", where["cpu"] + (f", {where['gpu']}" if where["gpu"] else "")),
        ("packages", ", ".join(f"{name} {version}" for name, version in where["packages"].items())),
        ("seconds by stage", ", ".join(f"{name} {seconds:.0f}" for name, seconds in where["stage_seconds"].items())),
        ("made", where["created"]),
        ("artifact", f"manifest SHA-256 {where['artifact_sha256']}"),
    ]


def page(facts: Mapping[str, Any]) -> str:
    """The whole HTML page."""
    task = facts["task"]
    title = f"{task['name']}: what compression kept"
    head, *body = table(facts)
    marks = ["served" if name == facts["served"] else "" for name in in_order(facts["models"])]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="verdict">{html.escape(facts["verdict"])}</p>',
        *_contract(facts),
        "<h2>All models, on the evaluation rows</h2>",
        f'<div class="wide">{html_table(head, body, marks=marks)}</div>',
        "<p>Scores and differences are in points, intervals by 1000 bootstrap resamples of the evaluation rows, paired "
        "where two models are compared. p50, p95: one row, tokenising included; rows/s: batches of 32; size: the model "
        "file and tokenizer.json; a dash: not measured, or not trained by itself; *: it gives all rows one answer.</p>",
        "<h2>Figures</h2>",
        *(f"<figure>{svg}</figure>" for svg in _figures(facts)),
        _examples(facts),
        "<h2>Where and how</h2>",
        "<dl>"
        + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in _origin(facts))
        + "</dl>",
        *(f"<pre>{html.escape(command)}</pre>" for command in facts["where"]["commands"]),
    ]
    return document(title, parts)


def _contract(facts: Mapping[str, Any]) -> list[str]:
    """What was asked and found, and the Pareto picture where candidates were measured; nothing without a contract."""
    if facts["contract"] is None:
        return []
    judgement = Judgement.model_validate(facts["contract"])
    head, *body = contract_table(judgement)
    parts = [
        f"<h2>Contract: {judgement.verdict}</h2>",
        f'<div class="wide">{html_table(head, body)}</div>',
        f"<p>{html.escape(sentence(judgement))}</p>",
    ]
    if facts["candidates"] is not None:
        metric = facts["task"]["metric"]
        teacher, artifact = (facts["models"][name]["metrics"][metric] for name in ("teacher", judgement.variant))
        parts.append(f"<figure>{pareto(facts['candidates'], judgement, teacher=teacher, artifact=artifact)}</figure>")
    return parts


def _figures(facts: Mapping[str, Any]) -> list[str]:
    task = facts["task"]
    found = [plots.trade_offs(facts["models"], task["metric"], _SHORT)]
    if facts["confusion"] is not None:
        found.append(plots.confusion(facts["confusion"], task["labels"], facts["served"]))
    if facts["calibration"] is not None:
        found.append(plots.reliability(facts["calibration"]))
    if facts["training"]:
        found.append(plots.curves(facts["training"], task["metric"], _SHORT))
    return [*found, plots.lengths(facts["lengths"])]


def _examples(facts: Mapping[str, Any]) -> str:
    found, task = facts["disagreements"], facts["task"]
    if found["count"] is None:
        told = "The rows on which teacher and student differ most."
    else:
        told = (
            f"Teacher and student answer {found['count']} of {facts['where']['rows']['eval']} rows differently: the "
            f"teacher is right on {found['teacher_right']} of them, the student on {found['student_right']}."
        )
    quoted = [
        [
            *(row[key] for key in ("text", "text_pair")[: len(task["columns"])]),
            *(_answer(row[key]) for key in ("label", "teacher", "student")),
            _number(row["confidence"], 1, 2),
        ]
        for row in found["rows"]
    ]
    parts = ["<h2>What compression cost, in examples</h2>", f"<p>{told}"]
    if quoted:
        parts[-1] += " Those of which the student is most confident come first.</p>" if found["count"] else "</p>"
        head = [*task["columns"], "true label", "teacher", "student", "confidence"]
        parts.append(f'<div class="wide examples">{html_table(head, quoted)}</div>')
    else:
        parts[-1] += "</p>"
    return "\n".join(parts)


def _answer(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"

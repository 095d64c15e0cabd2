"""Writes the facts of a run as `report.html` (one file, no outside request), `report.json` and `report.md`."""

from __future__ import annotations

import html
import json
from pathlib import Path

from kdc.artifact.contract.text import sentence
from kdc.artifact.contract.text import table as contract_table
from kdc.artifact.inspection import in_order
from kdc.common.files import write_whole
from kdc.common.tables import markdown as markdown_table
from kdc.pipeline.report import plots
from kdc.pipeline.report.facts import Answer, Facts
from kdc.pipeline.report.gather import gather
from kdc.pipeline.report.markup import document, html_table
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
# Field of `ModelFacts`, title, factor, digits.
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
_NOTE = (
    "Scores and differences are in points, intervals by 1000 bootstrap resamples of the evaluation rows, paired where "
    "two models are compared. p50, p95: one row, tokenising included; rows/s: batches of 32; size: the model file and "
    "tokenizer.json; a dash: not measured, or not trained by itself; *: it gives all rows one answer."
)


def write_report(root: Path, *, examples: bool = True) -> Facts:
    """Write the report of a finished run into its directory.

    Args:
        root: the run directory.
        examples: quote rows on which teacher and student disagree.

    Raises:
        InputError: this is not the directory of a finished run.
        KdcError: the run's artifact is damaged.
    """
    facts = gather(root, examples=MOST_EXAMPLES if examples else 0)
    write_whole(root / "report.md", markdown(facts))
    write_whole(root / "report.html", page(facts))
    # The facts come last: `reported_artifact` takes them as the sign that all files are there.
    write_whole(root / _FACTS, json.dumps(facts.to_json(), indent=2, ensure_ascii=False))
    return facts


def reported_artifact(root: Path) -> str | None:
    """The SHA-256 of the artifact that a run's report is about; None where there is no whole report."""
    try:
        facts = json.loads((root / _FACTS).read_text(encoding="utf-8"))
        return str(facts["where"]["artifact_sha256"]) if (root / "report.html").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def table(facts: Facts) -> list[list[str]]:
    """The models as rows of text, header first."""
    metric = facts.task.metric
    others = [name for name in facts.models["teacher"].metrics if name != metric]
    lines = [["model", metric, "95 % interval", *others, "kept %", *(title for _, title, _, _ in _COLUMNS)]]
    for name in in_order(facts.models):
        model = facts.models[name]
        low, high = model.interval
        lines.append(
            [
                NAMES.get(name, name) + (" (served)" if name == facts.served else "") + (" *" * model.collapsed),
                _number(model.metrics[metric], 1),
                f"{low:.1f} to {high:.1f}",
                *(_number(model.metrics.get(other), 1) for other in others),
                _number(model.kept_percent, 1),
                *(_number(getattr(model, field), digits, factor) for field, _, factor, digits in _COLUMNS),
            ]
        )
    return lines


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def markdown(facts: Facts) -> str:
    """The report in Markdown: verdict, contract, table and origin."""
    parts = [f"# {facts.task.name}: what compression kept", facts.verdict]
    if facts.contract is not None:
        parts += [markdown_table(contract_table(facts.contract)), sentence(facts.contract)]
    parts.append(markdown_table(table(facts)))
    parts.append("\n".join(f"- {title}: {text}" for title, text in _origin(facts)))
    return "\n\n".join(parts) + "\n"


def _origin(facts: Facts) -> list[tuple[str, str]]:
    """Where and how the artifact was made, as title and text."""
    where = facts.where
    return [
        ("teacher", where.teacher),
        ("student", f"{where.student}, recipe {where.recipe}, seed {where.seed}"),
        ("rows", ", ".join(f"{name} {count}" for name, count in where.rows.items())),
        ("data fingerprint", where.data_fingerprint),
        ("measured on", where.cpu + (f", {where.gpu}" if where.gpu else "")),
        ("packages", ", ".join(f"{name} {version}" for name, version in where.packages.items())),
        ("seconds by stage", ", ".join(f"{name} {seconds:.0f}" for name, seconds in where.stage_seconds.items())),
        ("made", where.created),
        ("artifact", f"manifest SHA-256 {where.artifact_sha256}"),
    ]


def page(facts: Facts) -> str:
    """The whole HTML page."""
    title = f"{facts.task.name}: what compression kept"
    head, *body = table(facts)
    marks = ["served" if name == facts.served else "" for name in in_order(facts.models)]
    origin = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in _origin(facts))
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="verdict">{html.escape(facts.verdict)}</p>',
        *_contract(facts),
        "<h2>All models, on the evaluation rows</h2>",
        f'<div class="wide">{html_table(head, body, marks=marks)}</div>',
        f"<p>{html.escape(_NOTE)}</p>",
        "<h2>Figures</h2>",
        *(f"<figure>{svg}</figure>" for svg in _figures(facts)),
        _examples(facts),
        "<h2>Where and how</h2>",
        f"<dl>{''.join(origin)}</dl>",
        *(f"<pre>{html.escape(command)}</pre>" for command in facts.where.commands),
    ]
    return document(title, parts)


def _contract(facts: Facts) -> list[str]:
    """The contract and how it was kept, with the Pareto picture where candidates were measured; empty without one."""
    judgement = facts.contract
    if judgement is None:
        return []
    head, *body = contract_table(judgement)
    parts = [
        f"<h2>Contract: {judgement.verdict}</h2>",
        f'<div class="wide">{html_table(head, body)}</div>',
        f"<p>{html.escape(sentence(judgement))}</p>",
    ]
    if facts.candidates is not None:
        teacher, artifact = (facts.models[name].metrics[facts.task.metric] for name in ("teacher", judgement.variant))
        parts.append(f"<figure>{pareto(facts.candidates, judgement, teacher=teacher, artifact=artifact)}</figure>")
    return parts


def _figures(facts: Facts) -> list[str]:
    task = facts.task
    figures = [plots.trade_offs(facts.models, task.metric, _SHORT)]
    if facts.confusion is not None:
        figures.append(plots.confusion(facts.confusion, task.labels, facts.served))
    if facts.calibration is not None:
        figures.append(plots.reliability(facts.calibration))
    if facts.training:
        figures.append(plots.curves(facts.training, task.metric, _SHORT))
    return [*figures, plots.lengths(facts.lengths)]


def _examples(facts: Facts) -> str:
    """The rows on which teacher and student differ."""
    differ, columns = facts.disagreements, facts.task.columns
    if differ.count is None:
        words = "The rows on which teacher and student differ most."
    else:
        words = (
            f"Teacher and student answer {differ.count} of {facts.where.rows['eval']} rows differently: the "
            f"teacher is right on {differ.teacher_right} of them, the student on {differ.student_right}."
        )
        if differ.rows:
            words += " Those of which the student is most confident come first."
    parts = ["<h2>What compression cost, in examples</h2>", f"<p>{words}</p>"]
    quoted = [
        [
            *(row.text, row.text_pair or "")[: len(columns)],
            *map(_answer, (row.label, row.teacher, row.student)),
            _number(row.confidence, 2),
        ]
        for row in differ.rows
    ]
    if quoted:
        head = [*columns, "true label", "teacher", "student", "confidence"]
        parts.append(f'<div class="wide examples">{html_table(head, quoted)}</div>')
    return "\n".join(parts)


def _answer(value: Answer) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"

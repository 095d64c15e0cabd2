"""Writes a run's `report.html` (one file, no outside requests), `report.json` and `report.md`."""

import json
from pathlib import Path
from typing import Any

from kdc.artifact.contract.text import sentence
from kdc.artifact.contract.text import table as contract_table
from kdc.artifact.decision import decision_table, sets_table, slice_table
from kdc.artifact.inspection import BASELINES, NAMES, in_order, labels_in_words
from kdc.common.files import write_whole
from kdc.common.tables import number
from kdc.pipeline.config.labelled import PEOPLE
from kdc.pipeline.config.student_kinds import UNCUT_NAME
from kdc.pipeline.packaging.markup import render
from kdc.pipeline.report import plots
from kdc.pipeline.report.facts import Facts
from kdc.pipeline.report.gather import gather

MOST_EXAMPLES = 50
_FACTS = "report.json"
_FOLDER = Path(__file__).parent
_UNCUT_NAMES = {"student": "teacher as the student", "merged": "teacher as the student, saved"}
# Field of `ModelFacts`, title, factor, digits.
_COLUMNS = (
    ("trainable_parameters", "trainable, M", 1e-6, 2),
    ("parameters", "parameters, M", 1e-6, 1),
    ("size_bytes", "size, MB", 1e-6, 1),
    ("latency_p50_ms", "p50, ms", 1, 2),
    ("latency_p95_ms", "p95, ms", 1, 2),
    ("rows_per_second", "rows/s", 1, 0),
    ("share_of_products", "of peak, %", 100, 0),
    ("peak_memory_bytes", "peak, MB", 1e-6, 0),
    ("training_seconds", "training, s", 1, 0),
)


def write_report(root: Path, *, examples: bool = True) -> Facts:
    """Raises as `gather`. `examples`: quote rows on which teacher and student differ."""
    facts = gather(root, examples=MOST_EXAMPLES if examples else 0)
    write_whole(root / "report.md", markdown(facts))
    write_whole(root / "report.html", page(facts))
    # Last: `reported_artifact` takes the facts as the sign that all is there.
    write_whole(root / _FACTS, json.dumps(facts.to_json(), indent=2, ensure_ascii=False))
    return facts


def reported_artifact(root: Path) -> str | None:
    """SHA-256; None without a whole report."""
    try:
        facts = json.loads((root / _FACTS).read_text(encoding="utf-8"))
        return str(facts["where"]["artifact_sha256"]) if (root / "report.html").exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def table(facts: Facts) -> list[list[str]]:
    metric = facts.task.metric
    others = [name for name in facts.models["teacher"].metrics if name != metric]
    titles = [title for _, title, _, _ in _COLUMNS]
    lines = [["model", metric, "95 % interval", *others, "kept %", "above chance %", *titles]]
    names = NAMES | BASELINES | (_UNCUT_NAMES if facts.where.student.startswith(UNCUT_NAME) else {})
    for name in in_order(facts.models):
        model = facts.models[name]
        low, high = model.interval
        words = names.get(name, name) + (" (served)" if name == facts.served else "") + " *" * model.collapsed
        scores = [number(model.metrics.get(other)) for other in others]
        kept = [number(model.kept_percent), number(model.kept_above_chance_percent)]
        costs = [number(getattr(model, field), digits, factor) for field, _, factor, digits in _COLUMNS]
        lines.append([words, number(model.metrics[metric]), f"{low:.1f} to {high:.1f}", *scores, *kept, *costs])
    return lines


def replaced_table(facts: Facts) -> list[list[str]]:
    """The large model beside the student; empty if unknown."""
    large, student = facts.replaced, facts.models[facts.served]
    if large is None:
        return []
    costs = [number(large.p50_ms, 0), number(large.p95_ms, 0), number(large.usd_per_million_texts, 2)]
    own = [number(student.latency_p50_ms, 2), number(student.latency_p95_ms, 2), "-"]
    titles = ["model", "p50, ms", "p95, ms", "US dollars for a million texts"]
    return [titles, [large.model, *costs], [f"student, {facts.served}", *own]]


def deferred(facts: Facts) -> str:
    abstain = None if facts.abstention is None else facts.abstention.abstain
    if abstain is None or not abstain.defers or (rates := abstain.evaluation) is None or not rates.coverage.of:
        return ""
    share = 100 * (1 - rates.coverage.hits / rates.coverage.of)
    unlike = {"the teacher": rates.disagreement}
    if facts.where.labels != PEOPLE and facts.replaced is not None:
        unlike[f"{facts.replaced.model}'s labels"] = rates.error
    agreements = [f"{100 * (1 - rate.hits / rate.of):.1f} % with {whose}" for whose, rate in unlike.items() if rate]
    return (
        f"With --defer {abstain.aim}, {share:.1f} % of the evaluation rows go on upstream. "
        f"If these count as agreeing, the pair agrees on {' and '.join(agreements)}."
    )


def _values(facts: Facts) -> dict[str, Any]:
    judgement, where = facts.contract, facts.where
    trained = f", trained in {where.trained}" if where.trained else ""
    return {
        "title": f"{facts.task.name}: what compression kept",
        "facts": facts,
        "contract": judgement and contract_table(judgement),
        "judgement": judgement and sentence(judgement),
        "decisions": decision_table(
            tuple(decision.point for decision in facts.decisions),
            None if facts.abstention is None else facts.abstention.abstain,
        ),
        "sets": sets_table(facts.sets),
        "slices": slice_table(facts.slices),
        "worse": ["worse" * part.is_worse for part in facts.slices],
        "models": table(facts),
        "labels": labels_in_words(facts.where.labels),
        "replaced": replaced_table(facts),
        "deferred": deferred(facts),
        "origin": [
            ("teacher", where.teacher),
            ("student", f"{where.student}, recipe {where.recipe}, seed {where.seed}{trained}"),
            ("rows", ", ".join(f"{name} {count}" for name, count in where.rows.items())),
            ("data fingerprint", where.data_fingerprint),
            ("measured on", where.cpu + (f", {where.gpu}" if where.gpu else "")),
            ("packages", ", ".join(f"{name} {version}" for name, version in where.packages.items())),
            ("seconds by stage", ", ".join(f"{name} {seconds:.0f}" for name, seconds in where.stage_seconds.items())),
            ("made", where.created),
            ("artifact", f"manifest SHA-256 {where.artifact_sha256}"),
        ],
    }


def markdown(facts: Facts) -> str:
    return render(_FOLDER / "report.md", **_values(facts))


def page(facts: Facts) -> str:
    judgement, metric, pareto = facts.contract, facts.task.metric, None
    if judgement is not None and facts.candidates is not None:
        teacher, artifact = (facts.models[name].metrics[metric] for name in ("teacher", judgement.variant))
        pareto = plots.pareto(facts.candidates, judgement, teacher=teacher, artifact=artifact)
    figures = [
        plots.trade_offs(facts.models, metric),
        facts.confusion and plots.confusion(facts.confusion, facts.task.labels, facts.served),
        facts.calibration and plots.reliability(facts.calibration),
        facts.decisions and plots.decisions(facts.decisions),
        facts.abstention and plots.abstention(facts.abstention),
        facts.cascade and plots.cascade(facts.cascade, metric, teacher=facts.models["teacher"]),
        facts.training and plots.curves(facts.training, metric),
        plots.lengths(facts.lengths),
    ]
    return render(
        _FOLDER / "report.html",
        **_values(facts),
        pareto=pareto,
        marks=["served" if name == facts.served else "" for name in in_order(facts.models)],
        figures=[figure for figure in figures if figure],
    )

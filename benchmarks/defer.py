"""How many rows a deferral answers locally, computed from the recorded logits of finished runs.

Command: `python benchmarks/defer.py RUN... [--cascade FIRST,SECOND:SHARE] [--budgets 0.01,0.02,0.05] [--rivals]`.

The teacher's recorded answers stand for the hosted model. The rule of `--defer` chooses the threshold on half of the
evaluation rows, and the other half measures. With `--tuning` the tuning set chooses, and all evaluation rows measure.
Means are over 20 splits and over runs whose folders differ only in a last number. A cascade's first model sends its
least sure SHARE of rows to the second. `--rivals` adds logistic regressions by TF-IDF, and by the frozen MiniLM if its
package is installed. "ms" is the run's p50 of one row.
"""

import argparse
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdc.artifact.contract.judgement import quantile_of
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.tables import aligned, number
from kdc.pipeline.config.aims import parse_defer
from kdc.pipeline.config.metrics import Floats, Groups, Labels
from kdc.pipeline.data.prepared import PreparedData, open_data, texts_of
from kdc.pipeline.evaluation.evidence import read_logits
from kdc.pipeline.models.minilm import find_minilm
from kdc.pipeline.quality.intervals import wilson
from kdc.pipeline.quality.operating import choose_answered
from kdc.pipeline.rundir.files import TEACHER_LOGITS
from kdc.pipeline.training.baselines import Encoder, Fitted, Sample, fit_probe, fit_tfidf
from kdc.pipeline.training.environment import Environment
from kdc.serving.engine.engine import Engine, activate

_TITLES = ("model", "budget %", "local %", "agreement %", "local accuracy %", "all accuracy %", "upstream's %", "ms")
_OF_TUNING = ("run", "budget %", "local %", "unlike the teacher, tuning %", "evaluation %")


@dataclass(frozen=True)
class Local:
    name: str
    probabilities: Floats  # (rows, classes)
    teacher: Labels  # (rows,)
    labels: Labels  # (rows,)
    groups: Groups
    milliseconds: float | None

    @property
    def answers(self) -> Labels:
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> Floats:
        return np.asarray(self.probabilities.max(axis=1))

    def halves(self, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        names = np.random.default_rng(seed).permutation(np.unique(self.groups))
        chooses = np.isin(self.groups, names[: len(names) // 2])
        return np.flatnonzero(chooses), np.flatnonzero(~chooses)


def read_local(root: Path) -> Local:
    manifest, data = load_manifest(root / "artifact"), open_data(root / "data")
    split = data.eval_splits[0]
    logits, rows, served = read_logits(root / "evaluate", split), data.rows(split), manifest.providers[CPU_PROVIDER]
    return Local(
        name=_line(root),
        probabilities=activate(logits[served], manifest.task.kind, manifest.temperature),
        teacher=logits["teacher"].argmax(axis=1),
        labels=np.asarray(rows["label"][:]),
        groups=data.groups(split),
        milliseconds=float(manifest.metrics[served]["latency_p50_ms"] or 0),
    )


def _line(root: Path) -> str:
    return re.sub(r"-\d+$", "", root.name)


def joined(first: Local, second: Local, share: float) -> Local:
    """A cascade. The share is set without looking at answers, so the deferral's threshold stays valid."""
    if not np.array_equal(first.teacher, second.teacher):
        raise SystemExit(f"{first.name} and {second.name} have different teachers")
    goes_on = first.confidence < np.quantile(first.confidence, share)
    return replace(
        first,
        name=f"{first.name}, then {second.name} for {100 * share:g} %",
        probabilities=np.where(goes_on[:, None], second.probabilities, first.probabilities),
        milliseconds=(first.milliseconds or 0.0) + share * (second.milliseconds or 0.0),
    )


def on_tuning(root: Path, budget: float) -> tuple[str, ...]:
    data, local, engine = open_data(root / "data"), read_local(root), Engine.load(root / "artifact", device="cpu")
    rows = data.rows("tune")
    probabilities = engine.predict(texts_of(rows))
    targets = np.load(root / "targets" / TEACHER_LOGITS, mmap_mode="r")[np.asarray(rows["row"][:])].argmax(axis=1)
    confidence, agrees = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    chosen = choose_answered(confidence, agrees, parse_defer(f"disagreement<={budget}"), groups=data.groups("tune"))
    tuned = (confidence >= chosen.threshold) & ~agrees
    is_local = local.confidence >= chosen.threshold
    differs = is_local & (local.answers != local.teacher)
    low, high = wilson(float(differs.sum()), len(differs), quantile=quantile_of(0.95))
    shown = f"{_mean(differs):.1f} ({100 * low:.1f} to {100 * high:.1f})"
    return root.name, f"{100 * budget:g}", f"{_mean(is_local):.1f}", f"{_mean(tuned):.1f}", shown


def rivals(root: Path) -> list[Local]:
    data, local = open_data(root / "data"), read_local(root)
    targets = np.load(root / "targets" / TEACHER_LOGITS, mmap_mode="r")
    train, tune = (_as_answered(data, split, targets) for split in ("train", "tune"))
    fitted: dict[str, Fitted] = {"TF-IDF": fit_tfidf(train, tune, data.task)}
    if isinstance(source := find_minilm(), Path):
        encoder = Encoder(str(source), data.task, environment=Environment(0, "cpu", False), max_length=128)
        fitted["frozen encoder"] = fit_probe(encoder, train, tune, data.task)
    split, made = data.eval_splits[0], []
    for name, model in fitted.items():
        logits = model.answer(data.rows(split).remove_columns("label"), data.tokens("teacher", split))
        probabilities = activate(logits, data.task.kind, 1.0)
        made.append(replace(local, name=f"{name} + LR", probabilities=probabilities, milliseconds=None))
    return made


def _as_answered(data: PreparedData, split: str, targets: NDArray[np.float32]) -> Sample:
    rows = data.rows(split)
    return Sample(rows, data.tokens("teacher", split), targets[np.asarray(rows["row"][:])].argmax(axis=1))


def measure(local: Local, budget: float, seed: int) -> list[float]:
    """Percentages: local rows; their agreement and accuracy; accuracy of all rows, and of the teacher."""
    choose, rest = local.halves(seed)
    agrees, aim = np.asarray(local.answers == local.teacher), parse_defer(f"disagreement<={budget}")
    chosen = choose_answered(local.confidence[choose], agrees[choose], aim, groups=local.groups[choose])
    is_local = chosen.reached & (local.confidence[rest] >= chosen.threshold)
    answers, teacher, labels = local.answers[rest], local.teacher[rest], local.labels[rest]
    right = np.where(is_local, answers, teacher) == labels
    of_local = [_mean(agrees[rest][is_local]), _mean(right[is_local])]
    return [_mean(is_local), *of_local, _mean(right), _mean(teacher == labels)]


def _mean(flags: NDArray[np.bool_]) -> float:
    return 100 * float(flags.mean()) if len(flags) else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="directories of finished runs")
    parser.add_argument("--cascade", action="append", default=[], metavar="FIRST,SECOND:SHARE")
    parser.add_argument("--budgets", default="0.01,0.02,0.05")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--tuning", action="store_true", help="take thresholds from each run's tuning set")
    parser.add_argument("--rivals", action="store_true", help="fit logistic regressions to each teacher's answers")
    options = parser.parse_args()
    models = [read_local(root) for root in options.runs]
    for cascade in options.cascade:
        pair, _, share = cascade.rpartition(":")
        first, second = map(read_local, map(Path, pair.split(",")))
        models.append(joined(first, second, float(share)))
    if options.rivals:
        teachers = {read_local(root).teacher.tobytes(): root for root in options.runs}
        models += [rival for root in teachers.values() for rival in rivals(root)]
    if options.tuning:
        pairs = product(options.runs, map(float, options.budgets.split(",")))
        print(aligned([_OF_TUNING, *(on_tuning(*pair) for pair in pairs)], left=(0,)))
        return
    lines: dict[str, list[Local]] = defaultdict(list)
    for model in models:
        lines[model.name].append(model)
    table: list[tuple[str, ...]] = [_TITLES]
    for (name, of_line), budget in product(lines.items(), options.budgets.split(",")):
        every = [measure(model, float(budget), seed) for model in of_line for seed in range(options.splits)]
        times = [model.milliseconds for model in of_line if model.milliseconds is not None]
        cells = [f"{value:.1f}" for value in np.nanmean(every, axis=0)]
        table.append((name, f"{100 * float(budget):g}", *cells, number(float(np.mean(times)) if times else None, 2)))
    print(aligned(table, left=(0,)))


if __name__ == "__main__":
    main()

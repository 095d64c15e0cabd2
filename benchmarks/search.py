"""Does a short training rank students like the full one? The search of `kdc compress` relies on it.

Command: `python benchmarks/search.py RUN [--students layers:0,5 static ...]`, after `kdc compress ... --until targets`.
Trains each student for the search's first share of the steps, for twice that, and in full (`--full-only`: in full
alone). Takes hours; trainings in RUN/search.kept/ (short) and RUN/search.ranks/ (full) are reused.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FULL = "full"
_RANKS = "search.ranks"
# For a teacher of six layers.
STUDENTS = (
    "layers:0,1,2,4,5",
    "layers:0,1,2,5",
    "layers:0,1,5",
    "layers:0,2,4",
    "layers:0,5",
    "layers:0,1",
    "layers:5",
    "layers:0,1,2,5,ffn=768",
    "layers:0,1,5,ffn=768",
    "layers:0,5,ffn=768",
    "conv",
    "static",
)


@dataclass(frozen=True)
class Trained:
    tune: float
    evaluated: float = 0.0  # full training only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--full-only", action="store_true")
    options = parser.parse_args()
    from kdc.common.progress import Reporter
    from kdc.pipeline.config.settings import Config
    from kdc.pipeline.rundir.context import open_run
    from kdc.pipeline.rundir.record import read_record
    from kdc.pipeline.stages.search import first_share, steps_of_full_training

    config = Config.model_validate_json((options.run / "config.json").read_text(encoding="utf-8"))
    reporter = Reporter()
    run = open_run(options.run, config, reporter)
    targets = read_record(options.run / "targets")
    if targets is None:
        parser.error(f"{options.run} has no finished targets: `kdc compress ... --until targets` makes them")
    run.fingerprints["targets"] = targets.fingerprint
    steps = {student: steps_of_full_training(run, student) for student in options.students}
    first = first_share(steps.values())
    shares = [share for share in (first, 2 * first) if share < 1]
    if options.full_only:
        shares = []
    elif not shares:
        parser.error("the shortest full training is as short as the search's first one: there is nothing to compare")
    results: dict[str, dict[str, Trained]] = {}
    for student in options.students:
        reporter.started(student, f"{len(results) + 1} of {len(options.students)}")
        brief = {f"{share:.0%}": _briefly(run, student, round(share * steps[student])) for share in shares}
        results[student] = brief | {FULL: _in_full(run, student)}
    reporter.stop()
    sys.stdout.write(table(results))


def _briefly(run: Any, student: str, steps: int) -> Trained:
    from kdc.pipeline.stages.search import short_training

    out = run.root / _RANKS
    out.mkdir(exist_ok=True)
    trial = short_training(run, out, student, steps)
    return Trained(trial.score)


def _in_full(run: Any, student: str) -> Trained:
    from kdc.common.files import write_whole
    from kdc.pipeline.config.metrics import compute
    from kdc.pipeline.models import loading
    from kdc.pipeline.rundir.files import TEACHER_LOGITS
    from kdc.pipeline.rundir.fingerprints import as_json, fingerprint_of, training
    from kdc.pipeline.training.batches import Rows
    from kdc.pipeline.training.predict import predict
    from kdc.pipeline.training.students import distil, merged_student

    settings = run.settings_of(student)
    described = as_json(training(run.config, settings))
    name = fingerprint_of("full", described, [run.fingerprints["targets"]])[:16]
    record, work = run.root / _RANKS / f"{name}.json", run.root / _RANKS / f"{name}.work"
    if not record.exists():
        work.mkdir(parents=True, exist_ok=True)
        data, metric, origin = run.data(), run.data().task.metrics[0], run.origin_of(settings)
        teacher_logits = run.folder("targets") / TEACHER_LOGITS
        result = distil(settings, origin, data, teacher_logits, work, run.environment, progress=run.progress)
        rows = Rows([data.tokens(run.role_of(settings), "eval")])
        pad_id = loading.load_tokenizer(str(work / "base")).pad_token_id
        logits = predict(merged_student(work), rows, pad_id=pad_id)
        evaluated = compute(logits, np.asarray(data.rows("eval")["label"][:]), data.task.kind, (metric,))[metric]
        write_whole(record, json.dumps([result.tune[metric], evaluated]))
    shutil.rmtree(work, ignore_errors=True)
    return Trained(*json.loads(record.read_text(encoding="utf-8")))


def table(results: dict[str, dict[str, Trained]]) -> str:
    from scipy.stats import spearmanr

    shares = [name for name in next(iter(results.values())) if name != FULL]
    tune = {share: [each[share].tune for each in results.values()] for share in (*shares, FULL)}
    evaluated = [each[FULL].evaluated for each in results.values()]
    lines = [
        f"| student | {''.join(f'{share} of the training | ' for share in shares)}full | full, evaluation rows |",
        "|---|" + "---:|" * (len(shares) + 2),
        *(
            f"| {student} | {' | '.join(f'{each[share].tune:.1f}' for share in (*shares, FULL))} | {score:.1f} |"
            for (student, each), score in zip(results.items(), evaluated, strict=True)
        ),
        "",
    ]
    for share in shares:
        ranks = [float(spearmanr(tune[share], other).statistic) for other in (tune[FULL], evaluated)]
        taken = max(range(len(results)), key=tune[share].__getitem__)
        lines.append(
            f"{share}, {len(results)} students: rank correlation {ranks[0]:.2f} with the full training on the tuning "
            f"set, {ranks[1]:.2f} on the evaluation rows; its best has {evaluated[taken]:.1f} there in full, the "
            f"best of all {max(evaluated):.1f}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Stage `search`: which of the students that can keep the contract is the most accurate, by short trainings.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all survivors train for a few steps, the better half
for twice as many, until one is left; each training has a schedule of its own, since a cut schedule ranks badly. What
ranks is the tuning slice, the teacher's logits are shared. Reads `data/`, `candidates/`, `targets/`. Writes one record
a trial to `search.kept/`, so that a search that is cut off goes on, and one with other limits or more time repeats
nothing; trained weights are not kept.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from kdc.pipeline.config.settings import StudentSettings
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.folders import fingerprint_of, kept_folder
from kdc.pipeline.stages.candidates import kept
from kdc.pipeline.stages.student import distil, distillation
from kdc.pipeline.training.fit import planned_steps

_FIRST_STEPS = 400  # fewer rank by how fast a student begins
_QUICK_SURVIVORS = 3
_SECONDS_OF_AN_HOUR = 3600


def run(run: Run, out: Path) -> dict[str, Any]:
    """Find the student that gets the full training."""
    settings = run.config.contract
    survivors = kept(run)
    if settings.search == "quick":
        survivors = survivors[:_QUICK_SURVIVORS]
    trials: list[dict[str, Any]] = []
    most = planned_steps(run, run.config.student, role=run.role_of(run.config.student.model))
    steps = min(_FIRST_STEPS, most)
    stopped = ""
    while len(survivors) > 1 and not stopped:
        scores: dict[str, float] = {}
        for student in survivors:
            if trials and _out_of_time(trials, settings.max_hours):
                stopped = f"; stopped after {settings.max_hours:g} hours"
                break
            trial = _trial(run, out, student, steps)
            trials.append(trial)
            scores[student] = trial["score"]
            run.progress(len(trials), len(trials) + 1)
            run.say(f"search: {student}, {steps} steps: tuning slice {trial['score']:.1f}")
        # Of equal scores the larger student is the more promising one: it stands first, and sorting keeps the order.
        ranked = sorted(scores, key=lambda student: -scores[student]) or survivors
        survivors = ranked[: len(ranked) // 2 if 2 * steps <= most else 1] or ranked[:1]
        steps *= 2
    winner = survivors[0]
    return {"student": winner, "trials": trials, "headline": f"{winner}, after {len(trials)} short trainings{stopped}"}


def _trial(run: Run, out: Path, student: str, steps: int) -> dict[str, Any]:
    """One short training, or its record."""
    settings: StudentSettings = run.config.student.model_copy(
        update={"model": student, "min_steps": steps, "epochs": 1e-3, "evaluations": 2}
    )
    depends_on = {"precision": run.config.run.precision, "seed": run.config.run.seed}
    name = fingerprint_of("trial", settings.model_dump(mode="json") | depends_on, [run.fingerprints["targets"]])[:16]
    record, work = kept_folder(run.root, "search") / f"{name}.json", out / f"{name}.work"
    if not record.exists():
        record.parent.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        began = time.monotonic()
        summary = distil(run, settings, distillation(run, settings), work)
        found = {
            "student": student,
            "steps": summary["steps"],
            "parameters": summary["parameters"],
            "score": summary["tune"][run.data().task.metrics[0]],
            "seconds": round(time.monotonic() - began, 1),
        }
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        os.replace(temporary, record)
    shutil.rmtree(work, ignore_errors=True)
    return json.loads(record.read_text(encoding="utf-8"))


def _out_of_time(trials: list[dict[str, Any]], max_hours: float | None) -> bool:
    return max_hours is not None and sum(trial["seconds"] for trial in trials) >= max_hours * _SECONDS_OF_AN_HOUR

"""Stage `student`: distil the teacher, or keep it.

Reads `data/`, `teacher/`, `targets/`. Writes the folder of `training/students.py`.
"""

from pathlib import Path
from typing import Any

from kdc.pipeline.results.training import ModelResult, StudentResult, TeacherResult
from kdc.pipeline.rundir import fingerprints
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import TEACHER_LOGITS
from kdc.pipeline.training.finetuning import check_learned
from kdc.pipeline.training.students import distil, keep_teacher

_REMEDY = (
    "train longer (--epochs, --set student.min_steps=800), change --set student.learning_rate, take another "
    "student (--student layers:first-half), or --set student.allow_majority=true to continue anyway"
)
_OF_MODEL = {"tune", "majority", "constant", "chance"}  # from the teacher's result


def depends_on(run: Run) -> dict[str, Any]:
    if not run.is_uncut:
        return fingerprints.training(run.config, run.student)
    return {"model": run.student.model} | ({} if run.student.has_all_pieces else {"vocabulary": run.student.vocabulary})


def run(run: Run, out: Path) -> StudentResult:
    settings, origin = run.student, run.origin_of(run.student)
    if run.is_uncut:
        scored = run.result(TeacherResult).model_dump(include=_OF_MODEL, exclude_unset=True)
        known = ModelResult(**scored) if origin.vocabulary is None else None
        kept = keep_teacher(run.folder("teacher") / "model", origin, run.data(), out, known)
        return StudentResult(**kept.to_json(), headline="the teacher itself")
    logits = run.folder("targets") / TEACHER_LOGITS
    result = distil(settings, origin, run.data(), logits, out, run.environment, progress=run.progress)
    warning = check_learned(result, run.data().task, who="student", allow=settings.allow_majority, remedy=_REMEDY)
    if warning:
        run.say(f"warning: {warning}")
    return StudentResult(**result.to_json())

"""Stage `student`: make a smaller model and distil the teacher into it, through LoRA adapters or in all its weights. A
student that is the teacher itself is kept as it is.

Reads `data/`, `teacher/`, `targets/`, and `vocabulary/` and `search/` if they are there. Writes the student's folder as
`training/students.py` describes it.
"""

from pathlib import Path
from typing import Any

from kdc.pipeline.results.training import StudentResult, TeacherResult
from kdc.pipeline.rundir import fingerprints
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import TEACHER_LOGITS
from kdc.pipeline.training.finetuning import check_learned
from kdc.pipeline.training.students import distil, keep_teacher, score_uncut

_REMEDY = (
    "train longer (--epochs, --set student.min_steps=800), change --set student.learning_rate, take another "
    "student (--student layers:first-half), or --set student.allow_majority=true to go on all the same"
)
_OF_MODEL = {"tune", "majority", "constant", "chance", "parameters"}  # what the teacher's result says of the model


def depends_on(run: Run) -> dict[str, Any]:
    """How the student, or the one that a search chose, is trained, if it is."""
    if not run.is_uncut:
        return fingerprints.training(run.config, run.student)
    return {"model": run.student.model} | ({} if run.student.has_all_pieces else {"vocabulary": run.student.vocabulary})


def run(run: Run, out: Path) -> StudentResult:
    """Make the distilled student in `out`."""
    settings, origin = run.student, run.origin_of(run.student)
    if run.is_uncut:
        teacher = run.folder("teacher") / "model"
        keep_teacher(teacher, origin, run.data(), out)
        if origin.vocabulary is None:
            kept = run.result(TeacherResult).model_dump(include=_OF_MODEL, exclude_unset=True)
        else:
            kept = score_uncut(teacher, origin, run.data()).to_json()
        return StudentResult(**kept, headline="the teacher itself")
    logits = run.folder("targets") / TEACHER_LOGITS
    result = distil(settings, origin, run.data(), logits, out, run.environment, progress=run.progress)
    warning = check_learned(result, run.data().task, who="student", allow=settings.allow_majority, remedy=_REMEDY)
    if warning:
        run.say(f"warning: {warning}")
    return StudentResult(**result.to_json())

"""Stage `controls`: models to compare KD-LoRA with, on request (`run.controls`).

Students without KD, by two rules for the kept step; one without unlabelled texts; a LoRA teacher. Reads `data/`,
`teacher/`, `targets/`.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kdc.common.files import write_whole
from kdc.pipeline.config.presets import method_rates
from kdc.pipeline.config.training_settings import KeptStep, StudentSettings
from kdc.pipeline.models import loading
from kdc.pipeline.results.training import ControlsResult, ModelResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.files import TEACHER_LOGITS
from kdc.pipeline.training.finetuning import plan_for, score_model
from kdc.pipeline.training.students import distil, merged_student
from kdc.pipeline.training.teachers import train_teacher


def depends_on(run: Run) -> dict[str, Any]:
    return {"controls": run.config.run.controls}


def run(run: Run, out: Path) -> ControlsResult:
    if not run.config.run.controls:
        return ControlsResult(headline="not asked for")
    results, data, student = {}, run.data(), run.student
    makers: dict[str, Callable[[Run, Path], ModelResult]] = {"teacher_lora": teacher_lora}
    if not run.is_uncut:
        other: KeptStep = "loss" if student.kept_step == "score" else "score"
        makers["student_without_kd"] = partial(student_control, settings=student)
        by_other = student.model_copy(update={"kept_step": other})
        makers[f"student_without_kd_by_{other}"] = partial(student_control, settings=by_other)
        if data.has("unlabeled"):
            rows = sum(len(data.tokens(run.student_role, split)) for split in ("train", "unlabeled"))
            as_long = student.model_copy(update={"min_steps": plan_for(student, rows, run.environment).steps})
            logits = run.folder("targets") / TEACHER_LOGITS
            makers["student_without_unlabeled"] = partial(student_control, settings=as_long, logits=logits)
    for name, make in makers.items():
        record, work = out / f"{name}.json", out / f"{name}.work"
        if not (out / name).exists():
            write_whole(record, make(run, work).model_dump_json(exclude_unset=True))
            (work / "model").rename(out / name)
            shutil.rmtree(work, ignore_errors=True)
        results[name] = ModelResult.model_validate_json(record.read_text(encoding="utf-8"))
    return ControlsResult(**results)


def student_control(run: Run, work: Path, *, settings: StudentSettings, logits: Path | None = None) -> ModelResult:
    """Train on labelled rows, with the teacher's `logits` if given."""
    origin, data = run.origin_of(settings), run.data()
    result = distil(settings, origin, data, logits, work, run.environment, progress=run.progress, unlabeled=False)
    merged_student(work).save_pretrained(work / "model")
    loading.load_tokenizer(str(work / "base")).save_pretrained(work / "model")
    return result


def teacher_lora(run: Run, work: Path) -> ModelResult:
    """With the student's adapters and rate (recipe `paper`: the authors')."""
    teacher, recipe = run.config.teacher, run.config.run.recipe
    rates = {"learning_rate": run.student.learning_rate}
    if recipe == "paper":
        rates = method_rates(recipe, "teacher", "lora")
    source = str(run.folder("teacher") / "model") if teacher.finetuned else teacher.model
    model, training = train_teacher(
        source,
        teacher.model_copy(update={"method": "lora", "lora": run.student.lora, **rates}),
        run.data(),
        run.environment,
        role="teacher",
        checkpoints=work / "checkpoints",
        progress=run.progress,
        join=run.join,
    )
    model.save_pretrained(work / "model")
    tokenizer = loading.load_tokenizer(source, run.config.data.prefix)
    tokenizer.save_pretrained(work / "model")
    return score_model(model.to(run.device), run.data(), "teacher", tokenizer.pad_token_id, training)

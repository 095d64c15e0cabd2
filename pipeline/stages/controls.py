"""Stage `controls`: what KD-LoRA is compared with, trained only when asked for (`--controls`).

The same student without KD (labels alone), and the teacher with LoRA in place of full fine-tuning.
Reads `data/`, `teacher/`. Writes one plain model a control.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import set_seed

from kdc.pipeline.rundir.context import Run
from kdc.pipeline.stages.merge import load_student
from kdc.pipeline.stages.student import distil
from kdc.pipeline.training import adapters, models
from kdc.pipeline.training.fit import finish, fit

CONTROLS = {"student_without_kd": "student", "teacher_lora": "teacher"}  # name, and whose tokens


def run(run: Run, out: Path) -> dict[str, Any]:
    """Train the controls into `out`; nothing where they are not asked for."""
    if not run.config.run.controls:
        return {"headline": "not asked for"}
    summary = {}
    for name, make in (("student_without_kd", student_without_kd), ("teacher_lora", teacher_lora)):
        record = out / f"{name}.json"
        if not (out / name).exists():  # a control that is there was finished before the stage was cut off
            record.write_text(json.dumps(make(run, out / f"{name}.work")), encoding="utf-8")
            (out / f"{name}.work" / "model").rename(out / name)
            finish(out / f"{name}.work")
        summary[name] = json.loads(record.read_text(encoding="utf-8"))
    return summary


def student_without_kd(run: Run, work: Path) -> dict[str, Any]:
    summary = distil(run, run.student, None, work)
    student = load_student(work)
    merged = student.merge_and_unload() if (work / "adapter").exists() else student
    merged.save_pretrained(work / "model")
    models.load_tokenizer(str(work / "base")).save_pretrained(work / "model")
    return summary


def teacher_lora(run: Run, work: Path) -> dict[str, Any]:
    """The student's adapters and learning rate on the whole pretrained teacher."""
    student, teacher = run.student, run.config.teacher
    source = str(run.folder("teacher") / "model") if teacher.finetuned else teacher.model
    set_seed(run.config.run.seed)
    loaded = models.load_model(source, run.data().task)
    tokenizer = models.load_tokenizer(source)
    settings = teacher.model_copy(update={"learning_rate": student.learning_rate})
    adapted = adapters.with_adapters(loaded.model, loaded.new_modules, student.lora.model_dump())
    summary = fit(run, adapted, settings, role="teacher", pad_id=tokenizer.pad_token_id, folder=work / "checkpoints")
    adapted.merge_and_unload().save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    return summary

"""Stage `student`: make a smaller model and distil the teacher into it through LoRA adapters.

Reads `data/`, `teacher/`, `targets/`. Writes `base/` (the student before training, with its tokenizer), `adapter/`
(PEFT), or `full/` where all weights are trained, and `trained_logits.npy`, against which the merge is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from kdc.pipeline.config.settings import StudentSettings
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.stages.targets import LOGITS
from kdc.pipeline.training import adapters, models
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.fit import Distillation, check_learned, fit
from kdc.pipeline.training.predict import predict

_PROBE_ROWS = 64
_REMEDY = (
    "train longer (--epochs, --set student.min_steps=800), change --set student.learning_rate, keep other layers "
    "(--student layers:first-half), or --set student.allow_majority=true to go on all the same"
)


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make the distilled student in `out`."""
    settings = run.student
    summary = distil(run, settings, distillation(run, settings), out)
    warning = check_learned(summary, run.data().task, who="student", allow=settings.allow_majority, remedy=_REMEDY)
    if warning:
        run.say(f"warning: {warning}")
    return summary


def distillation(run: Run, settings: StudentSettings) -> Distillation:
    """What stage `targets` kept, as the student learns from it."""
    return Distillation(run.folder("targets") / LOGITS, settings.alpha, settings.temperature)


def distil(run: Run, settings: StudentSettings, learns_from: Distillation | None, out: Path) -> dict[str, Any]:
    """Train one student; without `learns_from` on the labels alone (a control)."""
    set_seed(run.config.run.seed)
    loaded, source = new_student(run, settings)
    tokenizer = models.load_tokenizer(source)
    loaded.model.save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")
    # What is trained is what a reading of the file gives: an architecture may build a layer by its number.
    base = models.load_model(str(out / "base"), run.data().task).model
    parameters = models.count_parameters(base)
    trained: Any = base
    if settings.method == "lora":
        trained = adapters.with_adapters(base, loaded.new_modules, settings.lora.model_dump())
        adapters.save_rewritten(trained, out / "base", out / "below")
    summary = fit(
        run,
        trained,
        settings,
        role=run.role_of(settings.model),
        pad_id=tokenizer.pad_token_id,
        folder=out / "checkpoints",
        distillation=learns_from,
        by_loss=True,
    )
    if settings.method == "lora":
        adapters.save_adapters(trained, out / "adapter")
    else:
        trained.save_pretrained(out / "full")
    rows = probe_rows(run, settings.model)
    np.save(out / "trained_logits.npy", predict(trained, rows, pad_id=tokenizer.pad_token_id))
    return {**summary, "parameters": parameters}


def probe_rows(run: Run, student: str) -> Rows:
    """The rows on which every hand-off of a student is compared."""
    tokens = run.data().tokens(run.role_of(student), "tune")
    return Rows([tokens.select(range(min(_PROBE_ROWS, len(tokens))))])


def new_student(run: Run, settings: StudentSettings) -> tuple[models.Loaded, str]:
    """The student before training, and where its tokenizer is: cut from a teacher, or a checkpoint of its own."""
    task = run.data().task
    if not settings.model.startswith("layers:"):
        return models.load_model(settings.model, task), settings.model
    # A teacher brought along fine-tuned has no pretrained form at hand: it is cut as it is.
    teacher = run.config.teacher
    finetuned = teacher.scores is None and (settings.cut_from == "finetuned" or teacher.finetuned)
    source = str(run.folder("teacher") / "model") if finetuned else teacher.model
    whole = models.load_model(source, task)
    layers = models.parse_layers(settings.model, whole.model.config.num_hidden_layers)
    return models.Loaded(models.cut(whole.model, layers), whole.new_modules), source

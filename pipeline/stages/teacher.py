"""Stage `teacher`: fine-tune the teacher (all weights, or adapters that are merged), or check one brought along.

Reads `data/`. Writes `model/` (save_pretrained, outputs in the task's label order, with its tokenizer), and `model-2/`
and so on for further teachers; where a black box is the teacher, `scores.npy` alone: (rows, outputs) by row id.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, set_seed

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.scores import scores_of_rows
from kdc.pipeline.quality.metrics import predictions
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.training import adapters, ensemble, models
from kdc.pipeline.training.batches import Rows
from kdc.pipeline.training.fit import check_learned, finish, fit, judge, judge_logits

SCORES = "scores.npy"


def run(run: Run, out: Path) -> dict[str, Any]:
    """Make `out/model`, the fine-tuned teacher; `out/model-2` and so on where there are several."""
    if run.config.teacher.scores is not None:
        return _black_box(run, run.config.teacher.scores, out)
    found = []
    for place in range(len(run.config.teacher.sources)):
        name = ensemble.folder(place)
        record, checkpoints = out / f"{name}.json", out / ("checkpoints" + name.removeprefix("model"))
        if not record.exists():  # one that is there was finished before the stage was cut off
            summary = _make(run, place, out / name, checkpoints)
            temporary = record.with_suffix(".tmp")
            temporary.write_text(json.dumps(summary), encoding="utf-8")
            os.replace(temporary, record)
        finish(checkpoints)
        found.append(json.loads(record.read_text(encoding="utf-8")))
    first, *others = found
    return {**first, "others": others} if others else first


def _black_box(run: Run, scores: Path, out: Path) -> dict[str, Any]:
    """Answers that somebody else gave, kept by row id."""
    data = run.data()
    logits = scores_of_rows(scores, data)
    np.save(out / SCORES, logits)
    rows = data.rows("tune")
    found, labels = logits[np.asarray(rows["row"][:])], np.asarray(rows["label"][:])
    summary = judge_logits(found, labels, data.task)
    _check(run, summary)
    if are_the_labels(found, labels, data.task):
        run.say(
            f"warning: {scores.name} gives all {len(labels)} rows of the tuning slice their own label: is its column "
            "the labels themselves, and not what the black box answered?"
        )
    return summary


def are_the_labels(found: NDArray[np.float32], labels: NDArray[np.generic], task: Task) -> bool:
    """Whether no answer of a black box, as logits, differs from the row's label."""
    if task.kind == "regression":
        return bool(np.allclose(task.center + task.spread * found[:, 0], labels, atol=1e-5 * task.spread))
    return bool((predictions(found, task.kind) == labels).all())


def _check(run: Run, summary: dict[str, Any]) -> None:
    """Refuse a teacher that learned nothing, or say so."""
    warning = check_learned(
        summary,
        run.data().task,
        who="teacher",
        allow=run.config.student.allow_majority,
        remedy="try --set teacher.learning_rate=2e-5, more --epochs, or look at the labels; "
        "--set student.allow_majority=true goes on all the same",
    )
    if warning:
        run.say(f"warning: {warning}")


def _make(run: Run, place: int, target: Path, checkpoints: Path) -> dict[str, Any]:
    """Fine-tune or check one teacher, and save it."""
    settings = run.config.teacher
    source, role, task = settings.sources[place], ensemble.role(place), run.data().task
    tokenizer = models.load_tokenizer(source)
    set_seed(run.config.run.seed)
    if settings.finetuned:
        model: Any = load_finetuned(source, task, settings.labels)
        rows = Rows([run.data().tokens(role, "tune")])
        summary = judge(model.to(run.device), rows, task, tokenizer.pad_token_id)
        model.to("cpu")
    else:
        loaded = models.load_model(source, task)
        model = loaded.model
        trained: Any = model
        if settings.method == "lora":
            trained = adapters.with_adapters(model, loaded.new_modules, settings.lora.model_dump())
        summary = fit(run, trained, settings, role=role, pad_id=tokenizer.pad_token_id, folder=checkpoints)
        if settings.method == "lora":
            model = trained.merge_and_unload()
    _check(run, summary)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return {**summary, "parameters": models.count_parameters(model)}


def load_finetuned(source: str, task: Task, names: tuple[str, ...] | None) -> PreTrainedModel:
    """A teacher that is fine-tuned already, its outputs put into the task's label order.

    Args:
        source: path or hub id.
        task: the task, labels filled in.
        names: label names of a model that only says LABEL_0, in its order; None reads them from the model.

    Raises:
        InputError: its labels are not the task's.
    """
    place = models.locate(source)
    try:
        config = AutoConfig.from_pretrained(place)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the teacher: {error}", given=source, remedy="check --teacher") from error
    if info["missing_keys"]:
        raise InputError(
            "the teacher is not fine-tuned: its checkpoint has no weights for these modules",
            given=", ".join(sorted(info["missing_keys"])),
            remedy="drop --teacher-is-finetuned to fine-tune it here",
        )
    order = label_order(config, task, names)
    head = _output_layer(model, task.outputs)
    if order is None:
        _standardise(head, task)
    else:
        _reorder(head, order)
    model.config.id2label = dict(enumerate(task.labels or ("score",)))
    model.config.label2id = {name: index for index, name in enumerate(task.labels or ("score",))}
    return model


def label_order(config: Any, task: Task, names: tuple[str, ...] | None) -> list[int] | None:
    """For each of the task's labels the teacher's output that means it; None for regression."""
    if config.num_labels != task.outputs:
        raise InputError(
            "the teacher has another number of outputs than the task",
            given=f"{config.num_labels}, task {task.outputs}",
            remedy=f"bring a teacher for the labels {', '.join(task.labels) or '(one number)'}",
        )
    if task.kind == "regression":
        return None
    own = tuple(config.id2label[index] for index in range(config.num_labels))
    theirs = names or own
    stated, given = ([name.lower() for name in names] for names in (own, theirs))
    if given != stated and sorted(given) == sorted(stated):
        raise InputError(
            "the teacher says itself what its outputs mean, and otherwise",
            given=f"its config.json {', '.join(own)}; --teacher-labels {', '.join(theirs)}",
            remedy="leave out --teacher-labels, which is for all teachers, or correct the one that is wrong (id2label "
            "in its config.json)",
        )
    if names is None and all(re.fullmatch(r"LABEL_\d+", name) for name in theirs):
        raise InputError(
            "the teacher does not say what its outputs mean",
            given=", ".join(theirs),
            remedy=f"name them in its order, for example --teacher-labels {','.join(task.labels)}, or in its "
            "config.json (id2label)",
        )
    place = {name.lower(): index for index, name in enumerate(theirs)}
    if sorted(place) != sorted(name.lower() for name in task.labels):
        raise InputError(
            "the teacher's labels are not the task's",
            given=f"teacher {', '.join(theirs)}; task {', '.join(task.labels)}",
            remedy="rename the labels in the data, or name the teacher's outputs with --teacher-labels",
        )
    return [place[name.lower()] for name in task.labels]


def _output_layer(model: PreTrainedModel, outputs: int) -> torch.nn.Linear:
    heads = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module.out_features == outputs
        and not name.startswith(model.base_model_prefix + ".")
    ]
    if not heads:
        raise InputError(
            "cannot find the teacher's output layer",
            given=type(model).__name__,
            remedy="bring a teacher whose last layer is linear, with one output for each label",
        )
    return heads[-1]


def _reorder(head: torch.nn.Linear, order: list[int]) -> None:
    with torch.no_grad():
        head.weight.copy_(head.weight[order])
        if head.bias is not None:
            head.bias.copy_(head.bias[order])


def _standardise(head: torch.nn.Linear, task: Task) -> None:
    """The teacher answers in the labels' unit; from here on it gives (answer - center) / spread."""
    with torch.no_grad():
        bias = torch.zeros(head.out_features) if head.bias is None else head.bias
        head.bias = torch.nn.Parameter((bias - task.center) / task.spread)
        head.weight.div_(task.spread)

"""The one training loop: teacher, student and controls go through `train`.

It is a `transformers.Trainer` that pads to the longest row of a batch, groups rows by length, joins the teacher's
logits by row id, keeps the step that is best on the tuning slice (for a student by its loss there, since the metric of
some hundred rows is mostly chance), and resumes from the last complete checkpoint.

Writes checkpoints, which the caller removes once the trained model is saved.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from kdc.artifact.manifest import Kind
from kdc.common.errors import KdcError
from kdc.pipeline.quality import metrics
from kdc.pipeline.results import History, TrainingSummary
from kdc.pipeline.training.batches import Collator, LengthGroupedSampler, Rows
from kdc.pipeline.training.checkpoints import seal
from kdc.pipeline.training.losses import distillation_loss, label_loss
from kdc.pipeline.training.ranks import on_all_ranks

log = logging.getLogger("kdc")

Progress = Callable[[int, int], None]
_LOGS_A_LOOK = 5  # values of the training loss that are logged between two looks at the tuning slice


@dataclass(frozen=True)
class Plan:
    """How to train, in plain numbers.

    Attributes:
        steps: updates of the weights in all.
        batch_size: rows in a batch, over all ranks.
        accumulate: batches whose gradients are added up for one update.
        learning_rate: its peak.
        warmup_steps: updates during which the learning rate rises linearly; afterwards it falls linearly to 0.
        weight_decay: of AdamW.
        evaluate_every: updates between two looks at the tuning slice; each look also writes a checkpoint.
        patience: training stops after this many looks without a better one; None never stops early.
        seed: of the order of rows and of dropout.
        device: "cpu" or "cuda".
        bf16: whether to train in bf16 autocast.
        pad_to: tokens to pad every row to (for benchmarks); None pads to the longest row of the batch.
        group_by_length: whether to batch rows of similar length.
        gradient_checkpointing: whether to compute activations twice instead of keeping them in memory.
        ranks: processes that share each batch.
    """

    steps: int
    batch_size: int
    accumulate: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    evaluate_every: int
    patience: int | None
    seed: int
    device: str
    bf16: bool
    pad_to: int | None = None
    group_by_length: bool = True
    gradient_checkpointing: bool = False
    ranks: int = 1


@dataclass(frozen=True)
class Objective:
    """What to minimise.

    Attributes:
        kind: the task's kind.
        metric_names: metrics on the tuning slice; the first one decides.
        alpha: weight of the teacher's term, within [0, 1]; ignored where rows have no teacher logits.
        temperature: T, which divides the logits of both sides in the teacher's term.
        class_weights: factor of each class; None weighs all classes alike.
        center, spread: mean and standard deviation of regression's labels; the model learns (label - center) / spread.
    """

    kind: Kind
    metric_names: tuple[str, ...]
    alpha: float = 0.0
    temperature: float = 1.0
    class_weights: tuple[float, ...] | None = None
    center: float = 0.0
    spread: float = 1.0


class DistillationTrainer(Trainer):
    """A `Trainer` with the distillation loss, rows grouped by length, and checkpoints that are sealed when complete."""

    def __init__(self, *, objective: Objective, plan: Plan, **trainer: Any) -> None:
        super().__init__(**trainer)
        self.model_accepts_loss_kwargs = False  # the loss is a mean, so the Trainer divides it by `accumulate`
        self.objective: Objective = objective
        self.plan: Plan = plan
        weights = objective.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=self.args.device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The distillation loss if the batch has teacher logits, otherwise the loss against the labels."""
        inputs = dict(inputs)
        labels, labelled = inputs.pop("labels"), inputs.pop("labelled")
        teacher_logits = inputs.pop("teacher_logits", None)
        logits = model(**inputs).logits.float()
        goal = self.objective
        if goal.kind == "regression":
            labels = (labels - goal.center) / goal.spread
        if teacher_logits is None:
            loss = label_loss(logits, labels, goal.kind, self.class_weights).mean()
        else:
            loss = distillation_loss(
                logits,
                teacher_logits,
                labels,
                labelled,
                kind=goal.kind,
                alpha=goal.alpha,
                temperature=goal.temperature,
                class_weights=self.class_weights,
            )
        return (loss, {"logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset
        return LengthGroupedSampler(rows.lengths, self.plan.batch_size, self.plan.seed, self.plan.group_by_length)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # each rank writes the state of its random numbers
        if self.args.should_save:
            seal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


class _Report(TrainerCallback):
    """Reports progress, stops a training whose loss is not a number, and finds the best checkpoint again after the run
    directory was moved."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_model_checkpoint is not None:
            state.best_model_checkpoint = str(Path(args.output_dir) / Path(state.best_model_checkpoint).name)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise KdcError("the training loss is not a number", given=loss, remedy="lower the learning rate by half")


@on_all_ranks
def train(
    model: Any,
    train_rows: Rows,
    tune_rows: Rows,
    *,
    pad_id: int,
    objective: Objective,
    plan: Plan,
    folder: Path,
    resume: Path | None = None,
    progress: Progress | None = None,
    by_loss: bool = False,
) -> TrainingSummary:
    """Train in place and leave the best step's weights in the model. Under torchrun all processes do it together.

    Args:
        model: a sequence classifier, or a PEFT model over one.
        train_rows: rows to train on.
        tune_rows: the tuning slice, by which the best step is chosen.
        pad_id: the tokenizer's padding id.
        objective: what to minimise.
        plan: how to train.
        folder: where checkpoints are written.
        resume: the checkpoint to go on from, see `last_checkpoint`; None begins anew.
        progress: called with (step, steps).
        by_loss: choose the step with the smallest loss on the tuning slice; otherwise the one with the best metric.

    Raises:
        KdcError: the loss is not a number.
    """
    if plan.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = DistillationTrainer(
        objective=objective,
        plan=plan,
        model=model.to(plan.device),
        args=training_arguments(plan, folder, by_loss=by_loss),
        train_dataset=train_rows,
        eval_dataset=tune_rows,
        data_collator=Collator(pad_id, plan.pad_to),
        compute_metrics=lambda output: _score(output, objective),
        callbacks=[_Report(progress)] + ([EarlyStoppingCallback(plan.patience)] if plan.patience else []),
    )
    trainer.remove_callback(PrinterCallback)
    if resume is not None:
        log.info("resumes from step %s", resume.name.rsplit("-", 1)[1])
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # otherwise the model would still answer in bf16
    looks = [entry for entry in trainer.state.log_history if "eval_score" in entry]
    best = min(looks, key=lambda entry: entry["eval_loss"] if by_loss else -entry["eval_score"])
    history = trainer.state.log_history
    summary = TrainingSummary(
        best_score=best["eval_score"],
        best_step=best["step"],
        steps=trainer.state.global_step,
        resumed_from=int(resume.name.rsplit("-", 1)[1]) if resume else 0,
        train_rows=len(train_rows),
        rows_per_second=round(result.metrics["train_samples_per_second"], 1),
        seconds=round(result.metrics["train_runtime"], 1),
        trainable_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        history=History(
            loss=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
            score=[(entry["step"], entry["eval_score"]) for entry in looks],
            tune_loss=[(entry["step"], entry["eval_loss"]) for entry in looks],
        ),
    )
    if plan.device != "cuda":
        return summary
    return summary.model_copy(update={"peak_memory_bytes": torch.cuda.max_memory_allocated()})


def _score(output: Any, objective: Objective) -> dict[str, float]:
    scores = metrics.compute(output.predictions, output.label_ids, objective.kind, objective.metric_names)
    return {"score": scores[objective.metric_names[0]]}


def training_arguments(plan: Plan, folder: Path, *, by_loss: bool = False) -> TrainingArguments:
    """The plan in the Trainer's terms.

    Args:
        plan: how to train.
        folder: where checkpoints are written.
        by_loss: see `train`.
    """
    # TrainingArguments sets this variable, and reads it where bf16 is off: the value of the last training would count.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if plan.bf16 else "no"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.batch_size // plan.ranks,
        per_device_eval_batch_size=plan.batch_size // plan.ranks,
        ddp_find_unused_parameters=True,
        gradient_checkpointing=plan.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        gradient_accumulation_steps=plan.accumulate,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        eval_strategy="steps",
        save_strategy="steps",
        logging_strategy="steps",
        eval_steps=plan.evaluate_every,
        save_steps=plan.evaluate_every,
        logging_steps=max(1, plan.evaluate_every // _LOGS_A_LOOK),
        logging_nan_inf_filter=False,
        save_total_limit=3,  # the best, the last, and the one before the last until that is known to be complete
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss" if by_loss else "eval_score",
        greater_is_better=not by_loss,
        seed=plan.seed,
        data_seed=plan.seed,
        use_cpu=plan.device == "cpu",
        bf16=plan.bf16,
        dataloader_pin_memory=plan.device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        restore_callback_states_from_checkpoint=plan.patience is not None,
    )
    if arguments.n_gpu > 1:  # the Trainer would give each GPU a whole batch: n times the rows of a step
        arguments._n_gpu = 1
    return arguments

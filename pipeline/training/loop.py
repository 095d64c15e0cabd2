"""The training loop of teacher, student and controls. The caller removes its checkpoints."""

import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments

from kdc.common.progress import Progress
from kdc.pipeline.config import metrics
from kdc.pipeline.config.metrics import Groups
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.config.training_settings import TrainSettings
from kdc.pipeline.quality.intervals import score_interval
from kdc.pipeline.results.training import History, TrainingSummary
from kdc.pipeline.training import ranks
from kdc.pipeline.training.batches import Collator, LengthGroupedSampler, Rows
from kdc.pipeline.training.callbacks import Deadline, Paced, Rate, Report, kept_look, looks_of
from kdc.pipeline.training.checkpoints import seal, step_of
from kdc.pipeline.training.dropout import cheap_dropout
from kdc.pipeline.training.embeddings import only_met_tokens
from kdc.pipeline.training.environment import Environment, attention, pace
from kdc.pipeline.training.joining import joined, parts_of
from kdc.pipeline.training.losses import distillation_loss

log = logging.getLogger("kdc")

_ERRORS_OF_AN_INTERVAL = 2 * 1.96  # standard errors in a 95 % interval
_LOGS_A_LOOK = 5  # losses logged between evaluations


@dataclass(frozen=True)
class Plan:
    settings: TrainSettings
    environment: Environment
    steps: int  # replaces epochs
    evaluate_every: int  # updates; each evaluation has a checkpoint
    new_modules: tuple[str, ...] = ()
    pad_to: int | None = None  # tokens, for benchmarks; None groups by length


@dataclass(frozen=True)
class Objective:
    task: Task  # standardises regression labels
    class_weights: tuple[float, ...] | None = None  # see `losses.Losses.weights`
    alpha: float = 0.0  # teacher's weight in [0, 1]
    temperature: float = 1.0  # T > 0
    each_window: bool = False


class DistillationTrainer(Trainer):
    def __init__(self, *, objective: Objective, plan: Plan, **trainer: Any) -> None:
        super().__init__(**trainer)
        self.model_accepts_loss_kwargs = False  # the mean loss needs division by `accumulate`
        self.objective: Objective = objective
        self.plan: Plan = plan
        self.rate = Rate(plan.steps, round(plan.settings.warmup * plan.steps), plan.settings.hours)
        self.tokens = 0  # with padding
        weights = objective.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=self.args.device)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model: Any = self.model
            settings, decayed = self.plan.settings, set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
            for name, weight in model.named_parameters():
                if weight.requires_grad:
                    is_new = not set(name.split(".")).isdisjoint(self.plan.new_modules)
                    groups.setdefault((name in decayed, is_new), []).append(weight)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(
                [
                    {
                        "params": weights,
                        "weight_decay": settings.weight_decay if decays else 0.0,
                        "lr": settings.new_modules_rate if is_new else settings.learning_rate,
                    }
                    for (decays, is_new), weights in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        stepped: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(stepped, self.rate)
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, labelled, teacher_logits = inputs["labels"], inputs["labelled"], inputs.get("teacher_logits")
        self.tokens += inputs["input_ids"].numel()
        goal, task = self.objective, self.objective.task
        logits = parts_of(model, inputs)
        counts = inputs.get("windows")
        if counts is not None and goal.each_window and model.training:
            labels, labelled = labels.repeat_interleave(counts, 0), labelled.repeat_interleave(counts, 0)
            if teacher_logits is not None:
                teacher_logits = teacher_logits.repeat_interleave(counts, 0)
        elif counts is not None:
            logits = joined(logits, counts, self.model.config)  # type: ignore[union-attr]
        if not task.traits.has_labels:
            labels = (labels - task.center) / task.spread
        loss = distillation_loss(
            logits,
            teacher_logits,
            labels,
            labelled,
            kind=task.kind,
            alpha=goal.alpha,
            temperature=goal.temperature,
            class_weights=self.class_weights,
        )
        return (loss, {"logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset
        batch_size, seed = self.plan.settings.batch_size, self.plan.environment.seed
        return LengthGroupedSampler(rows.lengths, batch_size, seed, group=self.plan.pad_to is None)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # each rank saves its random state
        folder, kept_step = Path(str(self.args.output_dir)), self.plan.settings.kept_step
        if self.args.should_save:
            seal(folder / f"checkpoint-{self.state.global_step}")
        if self.control.should_training_stop and kept_step != "last":
            step = kept_look(looks_of(self.state.log_history), kept_step)["step"]
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{step}")


@ranks.on_all_ranks
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
    groups: Groups | None = None,
) -> TrainingSummary:
    """Train in place, across ranks under torchrun, and keep the kept step's weights.

    Args:
        groups: (tuning rows,), equal for dependent rows; None: all are independent.

    Raises:
        Diverged: the loss is not finite.
    """
    device, patience = plan.environment.device, plan.settings.patience
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = DistillationTrainer(
        objective=objective,
        plan=plan,
        model=model.to(device),
        args=training_arguments(plan, folder),
        train_dataset=train_rows,
        eval_dataset=tune_rows,
        data_collator=Collator(pad_id, plan.pad_to),
        compute_metrics=partial(_score, objective.task, groups),
        callbacks=[Report(progress, plan.settings.batch_size * plan.settings.accumulate)]
        + ([EarlyStoppingCallback(patience)] if patience else []),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Deadline(trainer.rate))
    if device == "cpu":
        trainer.add_callback(Paced(trainer))
    resumed_from = 0
    if resume is not None:
        resumed_from = step_of(resume)
        log.info("resumes from step %s", resumed_from)
    cheap = cheap_dropout(model) if device == "cpu" else nullcontext()
    with only_met_tokens(model, train_rows), pace().work(), cheap, attention(plan.environment):
        result = trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # else it still answers in bf16
    return _summary(trainer, result.metrics, model, resumed_from)


def _score(task: Task, groups: Groups | None, output: Any) -> dict[str, float]:
    deciding = task.metrics[0]
    low, high = score_interval(output.predictions, output.label_ids, task.kind, deciding, groups=groups)
    score = metrics.compute(output.predictions, output.label_ids, task.kind, (deciding,))[deciding]
    return {"score": score, "score_error": (high - low) / _ERRORS_OF_AN_INTERVAL}


def _summary(trainer: DistillationTrainer, costs: dict[str, float], model: Any, resumed_from: int) -> TrainingSummary:
    plan, history = trainer.plan, trainer.state.log_history
    device, looks = plan.environment.device, looks_of(history)
    kept = kept_look(looks, plan.settings.kept_step)
    memory = {"peak_memory_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
    rows: Any = trainer.train_dataset
    return TrainingSummary(
        best_score=kept["eval_score"],
        best_step=kept["step"],
        steps=trainer.state.global_step,
        planned_steps=plan.steps,
        resumed_from=resumed_from,
        train_rows=len(rows),
        rows_per_second=round(costs["train_samples_per_second"], 1),
        seconds=round(costs["train_runtime"], 1),
        trainable_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        history=History(
            loss=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
            score=[(entry["step"], entry["eval_score"]) for entry in looks],
            tune_loss=[(entry["step"], entry["eval_loss"]) for entry in looks],
        ),
        learning_rate=plan.settings.learning_rate,
        head_learning_rate=plan.settings.new_modules_rate,
        precision="bf16" if plan.environment.bf16 else "fp32",
        threads=pace().threads if device == "cpu" else None,
        **memory,
    )


def training_arguments(plan: Plan, folder: Path) -> TrainingArguments:
    settings, environment = plan.settings, plan.environment
    by_loss = settings.kept_step == "loss"
    # With bf16 off, TrainingArguments reads this variable.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if environment.bf16 else "no"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=settings.batch_size // ranks.size(),
        per_device_eval_batch_size=settings.batch_size // ranks.size(),
        ddp_find_unused_parameters=True,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=plan.evaluate_every,
        save_steps=plan.evaluate_every,
        logging_steps=max(1, plan.evaluate_every // _LOGS_A_LOOK),
        logging_nan_inf_filter=False,
        save_total_limit=3,  # best, last, and one until the last is sealed
        load_best_model_at_end=settings.kept_step != "last",
        metric_for_best_model="eval_loss" if by_loss else "eval_score",
        greater_is_better=not by_loss,
        seed=environment.seed,
        use_cpu=environment.device == "cpu",
        bf16=bool(environment.bf16),
        dataloader_pin_memory=environment.device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
        restore_callback_states_from_checkpoint=settings.patience is not None,
    )
    if arguments.n_gpu > 1:  # else each GPU takes a whole batch
        arguments._n_gpu = 1
    return arguments

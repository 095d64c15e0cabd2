"""Training settings of all models."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdc.pipeline.config.section import SPLIT, Section
from kdc.pipeline.config.student_kinds import CHECKPOINT, KINDS, StudentKind, kind_of

KeptStep = Literal["score", "loss", "last"]  # rule that chooses the checkpoint


class LoraSettings(Section):
    """Low-rank adapters (LoRA), named as in PEFT's `LoraConfig`."""

    r: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32, gt=0, description="scale of the adapters: their updates are multiplied by alpha / r")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout rate before the adapters, 0 to 1 (a student of recipe best: 0)"
    )
    targets: Literal["all-linear", "query-value"] | Annotated[tuple[str, ...], SPLIT] = Field(
        "all-linear", description="linear layers of the encoder to adapt: all-linear, query-value, or their names"
    )
    rslora: bool = Field(False, description="use the rank-stabilised scale alpha / sqrt(r)")
    dora: bool = Field(False, description="use weight-decomposed adapters (DoRA)")
    init: str = Field(
        "default", description="how adapters begin: default, gaussian, pissa, pissa_niter_N, olora, orthogonal, ..."
    )


class TrainSettings(Section):
    """Settings of every training."""

    epochs: float = Field(3, gt=0, description="passes over the training rows")
    min_steps: int = Field(0, ge=0, description="steps to train at least, even if they are more than the epochs give")
    batch_size: int = Field(32, ge=1, description="rows in one step")
    accumulate: int = Field(1, ge=1, description="steps whose gradients are added up for one update of the weights")
    learning_rate: float = Field(5e-5, gt=0, description="highest learning rate")
    head_learning_rate: float | None = Field(
        None,
        gt=0,
        description="highest learning rate of what starts at random, such as a new head (default: learning_rate; for a "
        "teacher 20 times that, at most 2e-3)",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again instead of keeping them: less memory, about a third slower"
    )
    warmup: float = Field(
        0.06, ge=0, lt=1, description="share of the steps during which the learning rate rises, 0 to 1"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    evaluations: int = Field(8, ge=1, description="evaluations on the tuning slice during training")
    patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one (default: never)"
    )
    kept_step: KeptStep = Field(
        "score",
        description="the step whose weights are kept: that of the best score on the tuning slice (or the last one, "
        "where that is within a standard error of it), that of the least loss there, or the last one",
    )
    dropout: Literal["own"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        "own", description="rate of all dropout but the adapters', 0 to 1; own: the checkpoint's"
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="hours that the training may take; its rate falls so that it is done by then (default: no limit)",
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none", description="weights of the classes in the cross-entropy: none, balanced, or a table of them by label"
    )
    window_loss: Literal["row", "each"] = Field(
        "row",
        description="of a row in windows (--long windows): the loss of the answer that is made of all (row), or of "
        "each window's, as if its label were the row's (each)",
    )

    @model_validator(mode="after")
    def _patience_needs_a_best_step(self) -> Self:
        if self.patience is not None and self.kept_step == "last":
            raise ValueError(
                f"patience={self.patience} waits for a better step, and kept_step=last, as recipe paper sets it, keeps "
                "the last: set kept_step too, or no patience"
            )
        return self

    @property
    def dropout_rate(self) -> float | None:
        """None keeps the checkpoint's rates."""
        return None if self.dropout == "own" else self.dropout

    @property
    def new_modules_rate(self) -> float:
        """Learning rate of randomly initialised modules."""
        return self.head_learning_rate or self.learning_rate


class BaselinesSettings(Section):
    """Stage `baselines`: cheap models to beat."""

    enabled: bool = Field(True, description="fit the baselines and put them beside the models in every table")
    max_rows: int = Field(20_000, ge=20, description="training rows that they are fitted to at most, drawn at random")


class TeacherSettings(TrainSettings):
    """Stage `teacher`: fine-tune a teacher, or check a fine-tuned one."""

    model: str = Field("google-bert/bert-base-uncased", description="teacher: hub id or path")
    more: Annotated[tuple[str, ...], SPLIT] | None = Field(
        None, description="further teachers, separated by commas; the logits of all are averaged (default: none)"
    )
    scores: Path | None = Field(
        None, description="file with a black box's answers to all rows; they take the teacher's place (default: none)"
    )
    pooling: Literal["auto", "first", "mean"] = Field(
        "auto",
        description="what a new head reads: the first token by the architecture's own head (first), the mean of the "
        "token vectors (mean), or what the checkpoint was made for (auto)",
    )
    from_probe: Literal["auto", "off"] = Field(
        "auto",
        description="where the fine-tuned teacher is not better than the best baseline beyond chance, also fine-tune "
        "from the linear probe's head, and take the best of these two and the probe itself (auto), or not (off)",
    )
    search: Literal["off", "quick"] = Field(
        "off",
        description="find the learning rates of encoder and head by short trainings first, of at most a third of the "
        "steps together (quick), or not (off)",
    )
    min_steps: int = Field(500, ge=0, description="steps to train at least, even if they are more than the epochs give")
    finetuned: bool = Field(False, description="the teacher is fine-tuned for this task already: only check it")
    labels: Annotated[tuple[str, ...], SPLIT] | None = Field(
        None, description="label names, in order, of a teacher that calls them LABEL_0, LABEL_1, ..."
    )
    method: Literal["full", "lora"] = Field("full", description="what to train: all weights (full) or adapters (lora)")
    lora: LoraSettings = LoraSettings()

    @property
    def new_modules_rate(self) -> float:
        """A random head has far to go; at the rate of pretrained weights it would lag behind."""
        return self.head_learning_rate or max(self.learning_rate, min(20 * self.learning_rate, 2e-3))

    @property
    def sources(self) -> tuple[str, ...]:
        """All teachers; a student is cut from the first."""
        return (self.model, *(self.more or ()))


class TargetsSettings(Section):
    """Stage `targets`: what the student learns from."""

    weights: Literal["score", "equal"] = Field(
        "score", description="weights of several teachers: their score on the tuning slice, or equal"
    )
    calibrate: bool = Field(
        False,
        description="divide the teacher's logits by the temperature at which the tuning slice's labels are likeliest",
    )


class StudentSettings(TrainSettings):
    """Stage `student`: distil the teacher into a student."""

    model: str = Field(
        "layers:first-and-last",
        description="student: hub id, path, the teacher's layers to keep: layers:0,1,5 (by number), or half of them "
        "by layers:first-and-last, layers:first-half or layers:every-second, each with ,ffn=768 for so many neurons of "
        "their feed-forward parts and ,heads=6 for so many of their attention heads, those that matter most; conv, "
        "static or linear: its token vectors under convolutions, in a bag, or added up, in sizes of their own by "
        "conv:channels=128,window=5; or teacher: the teacher itself, which is not trained again",
    )
    vocabulary: Literal["all", "auto"] | Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="pieces of the teacher's vocabulary that a student made of it keeps: all; auto, those that the "
        "training and unlabelled texts use, and what all characters can be written with; or a number, these and the "
        "most frequent others up to so many. Where it is not set: all, or auto where a contract's size would be missed",
    )
    cut_from: Literal["finetuned", "pretrained"] = Field(
        "finetuned", description="whether a student is cut from the fine-tuned or the pretrained teacher"
    )
    method: Literal["full", "lora"] = Field("lora", description="what to train: adapters (lora) or all weights (full)")
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")
    min_steps: int = Field(
        1500, ge=0, description="steps to train at least, even if they are more than the epochs give"
    )
    dropout: Literal["own"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="rate of all dropout but the adapters', 0 to 1; own: the checkpoint's"
    )
    alpha: float = Field(
        0.9, ge=0, le=1, description="weight of the teacher in the loss, 0 to 1; the labels have 1 - alpha"
    )
    temperature: float = Field(
        2.0, gt=0, description="temperature that softens the distributions of teacher and student"
    )
    allow_majority: bool = Field(
        False, description="warn of a student that is no better than the majority class, instead of failing"
    )
    lora: LoraSettings = LoraSettings()

    @field_validator("model")
    @classmethod
    def _no_kind_that_is_misspelt(cls, value: str) -> str:
        """Refuse a misspelt kind, which would be looked up on the hub."""
        name = value.partition(":")[0]
        nearest = difflib.get_close_matches(name.strip().lower(), KINDS, n=1, cutoff=0.75)
        if not nearest or kind_of(value) is not CHECKPOINT or "/" in value or Path(name).exists():
            return value
        examples = "layers:0,1,5, layers:first-and-last, conv, conv:channels=128, static, linear, teacher"
        raise ValueError(f"there is no such student, did you mean {nearest[0]}? For example {examples}")

    @property
    def kind(self) -> StudentKind:
        """The student's kind."""
        return kind_of(self.model)

    @property
    def has_all_pieces(self) -> bool:
        """Whether it keeps the whole vocabulary."""
        return self.vocabulary in (None, "all")

    def of(self, model: str) -> Self:
        """These settings for another student, as its kind changes them."""
        other = self.model_copy(update={"model": model})
        return other.model_copy(update=other.training_beside(self.kind))

    def training_beside(self, other: StudentKind) -> dict[str, Any]:
        """Changes this student makes to another kind's training."""
        return self.kind.training(self.epochs, self.min_steps, self.kept_step, beside=other)

"""Training settings of all models."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdc.pipeline.config.section import SPLIT, Section
from kdc.pipeline.config.student_kinds import CHECKPOINT, KINDS, StudentKind, kind_of

KeptStep = Literal["score", "loss", "last"]  # rule that chooses the checkpoint


class LoraSettings(Section):
    r: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32, gt=0, description="scale of the adapters: their updates are multiplied by alpha / r")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout rate before the adapters, 0 to 1 (recipe best: 0 for the student)"
    )
    targets: Literal["all-linear", "query-value"] | Annotated[tuple[str, ...], SPLIT] = Field(
        "all-linear", description="linear layers of the encoder to adapt: all-linear, query-value, or their names"
    )
    rslora: bool = Field(False, description="use the rank-stabilised scale alpha / sqrt(r)")
    dora: bool = Field(False, description="use weight-decomposed adapters (DoRA)")
    init: str = Field(
        "default",
        description="initialisation of the adapters: default, gaussian, pissa, pissa_niter_N, olora, orthogonal, ...",
    )


class TrainSettings(Section):
    epochs: float = Field(3, gt=0)
    min_steps: int = Field(0, ge=0, description="train at least this many steps, even if the epochs give fewer")
    batch_size: int = Field(32, ge=1, description="rows per step")
    accumulate: int = Field(1, ge=1, description="sum the gradients of this many steps for one update of the weights")
    learning_rate: float = Field(5e-5, gt=0, description="highest learning rate")
    head_learning_rate: float | None = Field(
        None,
        gt=0,
        description="highest learning rate of modules that start at random, such as a new head (default: "
        "learning_rate; for a teacher 20 times that, at most 2e-3)",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations instead of storing them: less memory, about a third slower"
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the learning rate rises, 0 to 1")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    evaluations: int = Field(8, ge=1, description="evaluations on the tuning set during training")
    patience: int | None = Field(
        None, ge=1, description="stop early after this many evaluations without a better one (default: never)"
    )
    kept_step: KeptStep = Field(
        "score",
        description="checkpoint to keep: score (best score on the tuning set, or the last step if it is within a "
        "standard error of the best), loss (lowest loss on the tuning set) or last",
    )
    dropout: Literal["own"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        "own", description="rate of all dropout except the adapters', 0 to 1; own keeps the checkpoint's rates"
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="train for at most this many hours; the learning rate falls fast enough to end by then (default: "
        "no limit)",
    )
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none", description="class weights in the cross-entropy: none, balanced, or a table by label"
    )
    window_loss: Literal["row", "each"] = Field(
        "row",
        description="loss of a row in windows (--long windows): row takes the loss of the combined answer, each the "
        "loss of every window's answer, as if the row's label were the window's",
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
        """Of randomly initialised modules."""
        return self.head_learning_rate or self.learning_rate


class BaselinesSettings(Section):
    enabled: bool = Field(True, description="fit the baselines and show them beside the models in every table")
    max_rows: int = Field(
        20_000, ge=20, description="fit the baselines to at most this many training rows, drawn at random"
    )


class TeacherSettings(TrainSettings):
    model: str = Field("google-bert/bert-base-uncased", description="teacher: hub id or path")
    more: Annotated[tuple[str, ...], SPLIT] | None = Field(
        None, description="more teachers, separated by commas; the logits of all teachers are averaged (default: none)"
    )
    scores: Path | None = Field(
        None, description="file with a black box's answers to all rows, used instead of a teacher (default: none)"
    )
    pooling: Literal["auto", "first", "mean"] = Field(
        "auto",
        description="input of a new head: first (the first token, by the architecture's own head), mean (the mean of "
        "the token vectors) or auto (what the checkpoint was made for)",
    )
    from_probe: Literal["auto", "off"] = Field(
        "auto",
        description="what to do if the fine-tuned teacher does not beat the best baseline beyond chance: auto also "
        "fine-tunes from the linear probe's head, and takes the best of both and the probe itself; off keeps the "
        "teacher",
    )
    search: Literal["off", "quick"] = Field(
        "off",
        description="quick first finds the learning rates of encoder and head by short trainings, which take at most "
        "a third of the steps together; off does not",
    )
    min_steps: int = Field(500, ge=0, description="train at least this many steps, even if the epochs give fewer")
    finetuned: bool = Field(False, description="the teacher is already fine-tuned for this task: only check it")
    labels: Annotated[tuple[str, ...], SPLIT] | None = Field(
        None, description="label names, in order, for a teacher that calls them LABEL_0, LABEL_1, ..."
    )
    method: Literal["full", "lora"] = Field("full", description="what to train: all weights (full) or adapters (lora)")
    lora: LoraSettings = LoraSettings()

    @property
    def new_modules_rate(self) -> float:
        """A random head would lag behind at the rate of pretrained weights."""
        return self.head_learning_rate or max(self.learning_rate, min(20 * self.learning_rate, 2e-3))

    @property
    def sources(self) -> tuple[str, ...]:
        """All teachers; a student is cut from the first."""
        return (self.model, *(self.more or ()))


class TargetsSettings(Section):
    weights: Literal["score", "equal"] = Field(
        "score", description="weights of several teachers: score (their score on the tuning set) or equal"
    )
    calibrate: bool = Field(
        False,
        description="divide the teacher's logits by the temperature that makes the tuning set's labels likeliest",
    )


class StudentSettings(TrainSettings):
    model: str = Field(
        "layers:first-and-last",
        description="student: a hub id or path, or made of the teacher. layers:0,1,5 keeps these layers; "
        "layers:first-and-last, layers:first-half and layers:every-second keep half of them. Add ,ffn=768 to keep 768 "
        "feed-forward neurons of each layer, and ,heads=6 to keep 6 attention heads, the most important "
        "ones. conv, static and linear keep the token embeddings: under convolutions, in a bag, or added up; "
        "conv:channels=128,window=5 sets their sizes. teacher is the teacher itself, without further training",
    )
    vocabulary: Literal["all", "auto"] | Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="vocabulary of a student made of the teacher: all; auto (the tokens in the training and "
        "unlabelled texts, and the tokens that can write every character); or a number (auto's tokens and the most "
        "frequent others, up to that number). Default: all, or auto if a contract's size would be missed",
    )
    cut_from: Literal["finetuned", "pretrained"] = Field(
        "finetuned", description="teacher to cut a student from: finetuned or pretrained"
    )
    method: Literal["full", "lora"] = Field("lora", description="what to train: adapters (lora) or all weights (full)")
    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")
    min_steps: int = Field(1500, ge=0, description="train at least this many steps, even if the epochs give fewer")
    dropout: Literal["own"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="rate of all dropout except the adapters', 0 to 1; own keeps the checkpoint's rates"
    )
    alpha: float = Field(
        0.9, ge=0, le=1, description="weight of the teacher in the loss, 0 to 1; the labels get 1 - alpha"
    )
    temperature: float = Field(
        2.0, gt=0, description="temperature that softens the distributions of teacher and student"
    )
    pooling: Literal["same", "first"] = Field(
        "same",
        description="what the student's head reads if the teacher's reads the mean of the token vectors: same, or "
        "first (the first token, by the architecture's own head, which transformers opens)",
    )
    allow_majority: bool = Field(
        False, description="warn instead of failing if the student is no better than the majority class"
    )
    lora: LoraSettings = LoraSettings()

    @field_validator("model")
    @classmethod
    def _no_kind_that_is_misspelt(cls, value: str) -> str:
        """Otherwise kdc would look it up on the hub."""
        name = value.partition(":")[0]
        nearest = difflib.get_close_matches(name.strip().lower(), KINDS, n=1, cutoff=0.75)
        if not nearest or kind_of(value) is not CHECKPOINT or "/" in value or Path(name).exists():
            return value
        examples = "layers:0,1,5, layers:first-and-last, conv, conv:channels=128, static, linear, teacher"
        raise ValueError(f"there is no such student, did you mean {nearest[0]}? For example {examples}")

    @property
    def kind(self) -> StudentKind:
        return kind_of(self.model)

    @property
    def has_all_pieces(self) -> bool:
        return self.vocabulary in (None, "all")

    def of(self, model: str) -> Self:
        """For another student, as its kind changes settings."""
        other = self.model_copy(update={"model": model})
        return other.model_copy(update=other.training_beside(self.kind))

    def training_beside(self, other: StudentKind) -> dict[str, Any]:
        return self.kind.training(self, beside=other)

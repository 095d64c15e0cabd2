"""The settings of one run: frozen, one section a stage. A section's field says its default, unit and meaning.

How they come about from flags, files and presets is in `config.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from kdc.artifact.contract.terms import Conditions, Contract, Limits, Proof
from kdc.common.frozen import Frozen


class Section(Frozen):
    """A frozen group of settings that knows no others."""

    # Defaults are validated too: 32 for a float becomes 32.0, as it does where a person gives it. Otherwise the two
    # would have different fingerprints, and a stage would be done again for nothing.
    model_config = ConfigDict(validate_default=True)


class RunSettings(Section):
    """What holds for the whole run."""

    out: Path | None = Field(None, description="run directory (default runs/<task>)")
    family: Literal["bert", "roberta", "deberta", "minilm"] | None = Field(
        None, description="model family that gives teacher and student (default bert, unless a teacher is named)"
    )
    recipe: Literal["best", "paper"] = Field("best", description="distillation recipe")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of splits, initialisation, order and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of training; auto: bf16 on CUDA and on CPUs with AMX or AVX512-BF16, else fp32"
    )
    controls: bool = Field(False, description="also train the student without KD, and the teacher with LoRA")


class DataSettings(Section):
    """Where the rows come from and what they hold."""

    task: str | None = Field(None, description="a GLUE task or pydocs; see `kdc tasks`")
    data: Path | None = Field(None, description="folder with local data: GLUE's TSV layout, save_to_disk, or files")
    train: Path | None = Field(None, description="training file of your own: .csv .tsv .jsonl .parquet")
    eval: Path | None = Field(None, description="evaluation file (default: a stratified tenth of the training file)")
    unlabeled: Path | None = Field(None, description="file with further texts that only the teacher labels")
    text: str | None = Field(None, description="column with the (first) text")
    text_pair: str | None = Field(None, description="column with the second text of a pair")
    label: str | None = Field(None, description="column with the label (default label)")
    kind: Literal["auto", "classification", "multilabel", "regression"] = Field(
        "auto", description="what the label column holds"
    )
    separator: str | None = Field(None, description="separator between the labels of a multi-label cell")
    max_train_rows: int | None = Field(None, ge=20, description="at most that many rows to train on")
    max_length: int | None = Field(None, ge=4, le=8192, description="tokens after which a text is cut (task's default)")


class LoraSettings(Section):
    """Low-rank adapters, as PEFT's `LoraConfig` names them."""

    r: int = Field(16, ge=1, description="rank")
    alpha: float = Field(32, gt=0, description="scale: updates are multiplied by alpha / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout before the adapters")
    targets: Literal["all-linear", "query-value"] | tuple[str, ...] = Field(
        "all-linear", description="linear layers of the encoder to adapt: all, query and value, or names"
    )
    rslora: bool = Field(False, description="rank-stabilised scale alpha / sqrt(r)")
    dora: bool = Field(False, description="weight-decomposed adapters (DoRA)")
    init: str = Field("default", description="default, gaussian, pissa, pissa_niter_N, olora, orthogonal, ...")

    @field_validator("targets", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("all-linear", "query-value"):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value


class TrainSettings(Section):
    """What teacher and student training share."""

    epochs: float = Field(3, gt=0, description="passes over the rows")
    min_steps: int = Field(0, ge=0, description="train at least that many steps, whatever the epochs say")
    batch_size: int = Field(32, ge=1, description="rows a step")
    accumulate: int = Field(1, ge=1, description="steps whose gradients are added up before an update")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate")
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: less memory, a third slower"
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="fraction of the steps with rising learning rate")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay")
    evaluations: int = Field(8, ge=1, description="looks at the tuning slice during training; the best one is kept")
    patience: int | None = Field(None, ge=1, description="stop after that many looks without a better one")
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none", description="weights of the classes in the cross-entropy: none, balanced, or a table by label name"
    )


class TeacherSettings(TrainSettings):
    """Stage `teacher`: fine-tune, or check one that is fine-tuned already."""

    model: str = Field("google-bert/bert-base-uncased", description="hub id or path")
    more: tuple[str, ...] | None = Field(
        None, description="further teachers, separated by commas, whose logits are averaged with its own"
    )
    scores: Path | None = Field(
        None, description="file with a black box's answers to all rows, which then is the teacher"
    )
    finetuned: bool = Field(False, description="the model is fine-tuned for this task already: check it, train nothing")
    labels: tuple[str, ...] | None = Field(None, description="label names of a LABEL_0 teacher, in order")
    method: Literal["full", "lora"] = Field("full", description="train all weights, or adapters")
    lora: LoraSettings = LoraSettings()

    @property
    def sources(self) -> tuple[str, ...]:
        """All teachers; a student is cut from the first."""
        return (self.model, *(self.more or ()))

    @field_validator("labels", "more", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


class TargetsSettings(Section):
    """Stage `targets`: what the student learns from."""

    weights: Literal["score", "equal"] = Field(
        "score", description="of several teachers: by their score on the tuning slice, or equal"
    )
    calibrate: bool = Field(
        False, description="divide the teacher's logits by the temperature under which the tuning slice is likeliest"
    )


class StudentSettings(TrainSettings):
    """Stage `student`: distil through adapters."""

    model: str = Field(
        "layers:first-and-last",
        description="hub id, path, or layers:0,1,5 | layers:first-and-last | layers:first-half | layers:every-second "
        "(half of them, each)",
    )
    cut_from: Literal["finetuned", "pretrained"] = Field(
        "finetuned", description="which teacher a student of layers:... is cut from"
    )
    method: Literal["full", "lora"] = Field("lora", description="train adapters, or all weights")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    min_steps: int = Field(1500, ge=0, description="train at least that many steps, whatever the epochs say")
    alpha: float = Field(0.9, ge=0, le=1, description="weight of the teacher's term; 1 - alpha is the labels'")
    temperature: float = Field(2.0, gt=0, description="softening of both distributions")
    allow_majority: bool = Field(False, description="a student no better than the majority class only warns")
    lora: LoraSettings = LoraSettings()


class ExportSettings(Section):
    """Stage `export`."""

    exporter: Literal["auto", "optimum", "torch"] = Field("auto", description="auto: Optimum where it is installed")
    fp16: bool = Field(True, description="also make the fp16 variant for CUDA")


class QuantizeSettings(Section):
    """Stage `quantize`."""

    enabled: bool = Field(True, description="make and judge int8 candidates")
    max_int8_drop: float = Field(1.0, ge=0, description="points of the metric that int8 may cost against fp32 ONNX")
    free_drop: float = Field(
        0.3, ge=0, description="points that count as nothing; where int8 costs more, other candidates are tried too"
    )
    calibration_rows: int = Field(256, ge=8, description="training rows that set the activation ranges")
    invariance_rows: int = Field(
        500, ge=2, description="rows compared alone and in random batches of 16 (at least 500)"
    )
    rounds: int = Field(20, ge=1, description="rounds of the latency comparison; medians are kept")


class EvaluateSettings(Section):
    """Stage `evaluate`."""

    latency_rows: int = Field(100, ge=10, description="rows timed one by one (p50, p95)")
    throughput_rows: int = Field(512, ge=32, description="rows timed in batches of 32")
    rounds: int = Field(3, ge=1, description="rounds in turns over all models; medians are kept")
    memory: bool = Field(True, description="measure each model's peak memory, in a process of its own")


class ContractSettings(Section, Proof, Limits):
    """What the artifact must keep. Nothing is judged unless a limit is set."""

    search: Literal["quick", "full", "off"] = Field(
        "quick",
        description="for the student: short trainings of the three largest that can keep latency and size, of all, or "
        "none: the configured one (so too where --student names it)",
    )
    max_hours: float | None = Field(
        None, gt=0, description="hours that the short trainings may take; after that the best student so far is taken"
    )
    at: Conditions = Conditions()

    @property
    def limits(self) -> Limits:
        """The limits alone, as the artifact's manifest has them."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

    @property
    def terms(self) -> Contract | None:
        """The contract as the artifact's manifest has it; None where no limit is set."""
        if not self.any:
            return None
        return Contract(limits=self.limits, at=self.at, evidence=self.evidence, confidence=self.confidence)


class ReportSettings(Section):
    """The report, written after the last stage."""

    examples: bool = Field(True, description="quote rows on which teacher and student disagree")


class Config(Section):
    """Everything one run needs."""

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    teacher: TeacherSettings = TeacherSettings()
    targets: TargetsSettings = TargetsSettings()
    student: StudentSettings = StudentSettings()
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    contract: ContractSettings = ContractSettings()
    report: ReportSettings = ReportSettings()

    @property
    def measures_first(self) -> bool:
        """Whether candidates are measured before anything is trained: the contract limits what that can show."""
        return self.contract.limits.model_copy(update={"max_drop": None}).any

    @property
    def searches(self) -> bool:
        """Whether the student is searched for."""
        return self.measures_first and self.contract.search != "off"

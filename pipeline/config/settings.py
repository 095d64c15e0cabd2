"""All settings of a run, one section per stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from kdc.artifact.contract.terms import Conditions, Contract, Evidence, Limits, Proof, Texts
from kdc.pipeline.config.aims import Aim, parse_abstain, parse_aim, parse_defer
from kdc.pipeline.config.data_settings import DataSettings, LongSettings
from kdc.pipeline.config.section import SPLIT, Section
from kdc.pipeline.config.training_settings import BaselinesSettings, StudentSettings, TargetsSettings, TeacherSettings

Family = Literal["bert", "roberta", "deberta", "minilm", "modernbert", "ettin", "e5", "multilingual-minilm", "mmbert"]


class RunSettings(Section):
    out: Path | None = None
    family: Family | None = None
    recipe: Literal["best", "paper", "paper-as-described"] = Field(
        "best",
        description="distillation recipe: best (what measured best here), paper (the published script of KD-LoRA's "
        "authors) or paper-as-described (the text of their paper)",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="random seed of splits, initialisation, row order and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device to train on; auto takes CUDA if there is a GPU"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="number format of training; auto takes bf16 on CUDA, and the faster format on a CPU",
    )
    controls: bool = Field(
        False,
        description="also train controls: the student without distillation, the student without unlabelled texts, and "
        "the LoRA teacher",
    )


class ExportSettings(Section):
    exporter: Literal["auto", "optimum", "torch"] = Field(
        "auto", description="exporter of the ONNX file; auto takes torch, or Optimum if onnxscript is not installed"
    )
    fp16: bool = Field(True, description="also make an fp16 variant, for CUDA")
    teacher: bool = Field(
        True,
        description="also export the uncut teacher in fp32 and int8, and show it beside the student in every table",
    )
    formats: Annotated[tuple[Literal["onnx", "hf"], ...], SPLIT] = Field(
        ("onnx", "hf"),
        description="formats of the artifact, separated by commas: onnx, which kdc serves (always), and hf, a Hugging "
        "Face folder with config, tokenizer and weights for transformers, Optimum and transformers.js",
    )

    @field_validator("formats")
    @classmethod
    def _can_be_served(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "onnx" not in value:
            raise ValueError("an artifact is always onnx: give onnx, or onnx,hf")
        return tuple(name for name in ("onnx", "hf") if name in value)


class QuantizeSettings(Section):
    enabled: bool = Field(True, description="make int8 candidates and judge them")
    max_int8_drop: float = Field(
        1.0, ge=0, description="points of the metric that int8 may lose against the fp32 ONNX file"
    )
    free_drop: float = Field(
        0.3,
        ge=0,
        description="points of the metric that int8 may lose before kdc tries more candidates",
    )
    vector_bits: Literal["auto", 8, 4] = Field(
        "auto",
        description="bits of each number of the token embeddings in an int8 file: 8; 4, for little more than half the "
        "size (if 32 divides their width); auto: 4 if a contract's max_size_mb needs it, otherwise 8",
    )
    calibration_rows: int = Field(256, ge=8, description="training rows that set the ranges of activations")
    invariance_rows: int = Field(
        500, ge=2, description="compare the answers to this many rows alone and in random batches of 16; at least 500"
    )
    rounds: int = Field(20, ge=1, description="timing rounds, in turns over all candidates; the median counts")


def _read_by(parse: Callable[[str], Aim]) -> AfterValidator:
    def check(texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            parse(text)
        return texts

    return AfterValidator(check)


class OperatingSettings(Section):
    aims: Annotated[Texts, _read_by(parse_aim)] = ()
    evidence: Evidence = Field(
        "interval",
        description="how to check an aim's bound: interval (the tuning set shows, with an error of 5 %, that it holds "
        "on other rows) or point (it holds on the tuning set)",
    )
    abstain: str | None = None
    defer: Annotated[Texts, _read_by(parse_defer)] = ()
    sets: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="probability, such as 0.95, that a row's set of labels holds the true label; for three or more "
        "classes (default: no sets)",
    )

    question: Path | None = None

    @field_validator("abstain", mode="before")
    @classmethod
    def _says_when(cls, value: Any) -> Any:
        if value is None:
            return None
        parse_abstain(str(value))
        return str(value)


class CascadeSettings(Section):
    second: Literal["off", "auto"] | Path | None = None
    max_drop: float = Field(
        0.1,
        ge=0,
        description="points of the metric that both models together may lose against the second model alone, on the "
        "tuning set; with contract.max_drop, half of that instead, against what the contract compares with",
    )


class EvaluateSettings(Section):
    latency_rows: int = Field(100, ge=10, description="time this many rows one by one (p50, p95)")
    throughput_rows: int = Field(256, ge=32, description="time this many rows in batches of 32")
    rounds: int = Field(3, ge=1, description="timing rounds, in turns over all models; the median counts")
    memory: bool = Field(True, description="measure each model's peak memory in a process of its own")


class ContractSettings(Section, Proof, Limits):
    search: Literal["quick", "full", "off"] = Field(
        "quick",
        description="search for the student that keeps the contract, by short trainings of candidates that can keep "
        "latency and size: quick (the three largest with layers, and three without), full (all) or off (train "
        "student.model; the default if it is set). The teacher itself is a candidate without training, if it can keep "
        "both",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        description="hours that the short trainings may take; then kdc takes the best student so far (default: no "
        "limit)",
    )
    at: Conditions = Conditions()

    @property
    def terms(self) -> Contract | None:
        """None if no limit is set."""
        if not self.set_ones:
            return None
        limits = Limits(**self.model_dump(include=set(Limits.model_fields)))
        return Contract(limits=limits, at=self.at, **self.model_dump(include=set(Proof.model_fields)))


class ReportSettings(Section):
    examples: bool = Field(True, description="quote some rows on which teacher and student disagree")


class Config(Section):
    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    long: LongSettings = LongSettings()
    baselines: BaselinesSettings = BaselinesSettings()
    teacher: TeacherSettings = TeacherSettings()
    targets: TargetsSettings = TargetsSettings()
    student: StudentSettings = StudentSettings()
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    cascade: CascadeSettings = CascadeSettings()
    operating: OperatingSettings = OperatingSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    contract: ContractSettings = ContractSettings()
    report: ReportSettings = ReportSettings()

    @property
    def has_one_teacher(self) -> bool:
        """A black box counts as none."""
        return self.teacher.scores is None and len(self.teacher.sources) == 1

    @property
    def measures_first(self) -> bool:
        """Whether a limit on costs makes kdc measure candidates."""
        return bool({*self.contract.set_ones} - {"max_drop", "require"})

    @property
    def tries_fewer_pieces(self) -> bool:
        """Whether a size limit makes kdc try smaller vocabularies."""
        is_left_open = self.student.vocabulary is None and self.cascade.second in (None, "off")
        are_some = self.searches or self.student.kind.is_of_teacher
        return is_left_open and are_some and self.contract.max_size_mb is not None

    @property
    def makes_vocabulary(self) -> bool:
        return not self.student.has_all_pieces or self.tries_fewer_pieces

    @property
    def cascades(self) -> bool:
        second = self.cascade.second
        if second is not None:
            return second != "off"
        return self.searches and self.export.teacher and self.has_one_teacher and self.student.has_all_pieces

    @property
    def searches(self) -> bool:
        return self.measures_first and self.contract.search != "off"

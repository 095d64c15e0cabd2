"""All settings of a run, one section per stage."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from kdc.pipeline.config.data_settings import DataSettings, LongSettings
from kdc.pipeline.config.graph_settings import ExportSettings, QuantizeSettings
from kdc.pipeline.config.judging_settings import CascadeSettings, ContractSettings, EvaluateSettings, OperatingSettings
from kdc.pipeline.config.section import Section
from kdc.pipeline.config.training_settings import BaselinesSettings, StudentSettings, TargetsSettings, TeacherSettings


class RunSettings(Section):
    """Settings of the whole run."""

    out: Path | None = None
    family: Literal["bert", "roberta", "deberta", "minilm", "modernbert", "ettin"] | None = None
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


class ReportSettings(Section):
    """The report's settings."""

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
        """Whether one model, not a black box, is the teacher."""
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
        """Whether a smaller vocabulary is made."""
        return not self.student.has_all_pieces or self.tries_fewer_pieces

    @property
    def cascades(self) -> bool:
        """Whether to look for a second model."""
        second = self.cascade.second
        if second is not None:
            return second != "off"
        return self.searches and self.export.teacher and self.has_one_teacher and self.student.has_all_pieces

    @property
    def searches(self) -> bool:
        """Whether stage `search` chooses the student."""
        return self.measures_first and self.contract.search != "off"

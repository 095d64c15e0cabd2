"""What each stage gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdc.artifact.manifest import Join, LongTexts
from kdc.common.errors import InputError
from kdc.common.progress import Progress, Reporter
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.training_settings import StudentSettings
from kdc.pipeline.data.prepared import FEWER, PreparedData, open_data
from kdc.pipeline.graphs.files import TOKENIZER_JSON, read_tokenizer_info
from kdc.pipeline.models.loading import load_config
from kdc.pipeline.quality.feasibility import as_stored
from kdc.pipeline.results.data import DataResult, VocabularyResult
from kdc.pipeline.results.training import CandidatesResult, SearchResult, StudentCosts
from kdc.pipeline.rundir.files import PIECES
from kdc.pipeline.rundir.record import AnyResult, read_result
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.joining import join_of
from kdc.pipeline.training.students import StudentOrigin

if TYPE_CHECKING:
    from kdc.pipeline.graphs.int8_storage import VectorBits
    from kdc.serving.engine.engine import Engine


@dataclass(frozen=True)
class Run:
    root: Path
    config: Config  # resolved
    device: str = "cpu"  # "cpu" or "cuda"
    bf16: bool | None = False  # train in autocast; None: in the faster format
    fingerprints: dict[str, str] = field(default_factory=dict)  # of the stages so far
    siblings: tuple[Path, ...] = ()
    progress: Progress = lambda done, total, /, *, rows=0, loss=None: None
    say: Callable[[str], None] = print

    def folder(self, stage: str) -> Path:
        return self.root / stage

    def windows(self, role: str, model: Path) -> LongTexts | None:
        """None if rows are cut."""
        return self.config.long.of(self.max_length(role), join_of(load_config(str(model))))

    def data(self) -> PreparedData:
        return open_data(self.folder("data"), self.folder("vocabulary"))

    def open_engine(self, onnx_file: Path, *, exported: Path | None = None, temperature: float = 1.0) -> Engine:
        """The tokenizer is from `exported`, or else the student's."""
        from kdc.serving.engine.engine import Engine  # adds to a training's peak memory

        exported = exported or self.folder("export")
        return Engine.from_files(
            onnx_file,
            exported / TOKENIZER_JSON,
            task=self.data().task.info(),
            tokenizer_info=read_tokenizer_info(exported),
            temperature=temperature,
            device="cpu",
        )

    def result(self, kind: type[AnyResult]) -> AnyResult:
        return read_result(self.root, kind)

    def result_or_none(self, kind: type[AnyResult]) -> AnyResult | None:
        return self.result(kind) if kind.STAGE in self.fingerprints else None

    def origin_of(self, student: StudentSettings) -> StudentOrigin:
        return StudentOrigin(
            cut_from=self.cut_from(student),
            vocabulary=self.vocabulary_of(student),
            role=self.role_of(student),
            join=self.join,
            prefix=self.config.data.prefix,
        )

    @property
    def join(self) -> tuple[Join, ...] | None:
        if self.config.long.mode == "cut" or self.config.teacher.scores is not None:
            return self.config.long.trained_join(self.data().task.kind)
        return join_of(load_config(str(self.folder("teacher") / "model")))

    @property
    def environment(self) -> Environment:
        return Environment(self.config.run.seed, self.device, self.bf16)

    @property
    def student(self) -> StudentSettings:
        return self.settings_of(self.result(SearchResult).student if self.config.searches else None)

    def settings_of(self, student: str | None) -> StudentSettings:
        """A searched student's settings (None: the configured one's), with the vocabulary that a size limit needs."""
        settings = self.config.student if student is None else self.config.student.of(student)
        contract = self.config.contract.terms
        if contract is None or not self.config.tries_fewer_pieces:
            return settings
        costs = self._costs_of(student)
        is_smaller = costs is not None and as_stored(costs, contract).has_fewer_pieces
        return settings.model_copy(update={"vocabulary": "auto"}) if is_smaller else settings

    def _costs_of(self, student: str | None) -> StudentCosts | None:
        measured = self.result(CandidatesResult).candidates
        # Without a search there is one.
        return next(iter(measured.values())) if student is None else measured.get(student)

    @property
    def tries_fewer_pieces(self) -> bool:
        """Whether a size limit may need the smaller vocabulary."""
        return self.config.tries_fewer_pieces and self.result(VocabularyResult).pieces is not None

    def vocabulary_of(self, student: StudentSettings) -> Path | None:
        return None if student.has_all_pieces else self.folder("vocabulary") / PIECES

    @property
    def vector_bits(self) -> VectorBits:
        """Of token embeddings, as set or as a size limit needs."""
        asked, contract = self.config.quantize.vector_bits, self.config.contract.terms
        if asked != "auto":
            return asked
        if contract is None or contract.limits.max_size_mb is None:
            return 8
        costs = self._costs_of(self.student.model if self.config.searches else None)
        return 8 if costs is None else as_stored(costs, contract).bits

    @property
    def is_uncut(self) -> bool:
        """Whether the student is the teacher itself."""
        return not self.student.kind.is_trained

    @property
    def student_role(self) -> str:
        return self.role_of(self.student)

    def role_of(self, student: StudentSettings) -> str:
        """Role "fewer" with a smaller vocabulary, else "student"; "teacher" if a search makes it of the teacher."""
        if not student.has_all_pieces:
            return FEWER
        configured = self.config.student
        return "student" if student.model == configured.model or configured.kind.is_of_teacher else "teacher"

    def max_length(self, role: str) -> int:
        """In tokens."""
        return self.result(DataResult).max_length["teacher" if role == FEWER else role]

    def cut_from(self, student: StudentSettings) -> str:
        teacher = self.config.teacher
        # A given fine-tuned teacher has no pretrained form.
        finetuned = teacher.scores is None and (student.cut_from == "finetuned" or teacher.finetuned)
        return str(self.folder("teacher") / "model") if finetuned else teacher.model


def open_run(root: Path, config: Config, reporter: Reporter, siblings: tuple[Path, ...] = ()) -> Run:
    """Raise InputError if the device or precision is not available."""
    has_cuda = torch.cuda.is_available()
    if config.run.device == "cuda" and not has_cuda:
        raise InputError("no CUDA device is available", given="run.device=cuda", remedy="`kdc doctor` says why")
    device = "cuda" if has_cuda and config.run.device != "cpu" else "cpu"
    bf16 = _is_bf16(device, config.run.precision)
    return Run(root, config, device, bf16, siblings=siblings, progress=reporter.progress, say=reporter.say)


def _is_bf16(device: str, precision: str) -> bool | None:
    """None lets a timed step decide: a CPU's bf16 instructions can be slower than fp32."""
    if device == "cuda" and precision != "fp32":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not has_bf16:
            raise InputError("this GPU has no bf16", given="run.precision=bf16", remedy="--set run.precision=fp32")
        return has_bf16
    if precision != "auto":
        return precision == "bf16"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.6
    return None if any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16")) else False

"""What a stage is given: the run's folder, its settings, the device, and someone to tell about progress."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kdc.common.errors import KdcError
from kdc.common.progress import Reporter
from kdc.pipeline.config.settings import Config, StudentSettings
from kdc.pipeline.data.prepared import PreparedData, open_data
from kdc.pipeline.results import SearchResult, StageResult
from kdc.pipeline.rundir.device import choose_device
from kdc.pipeline.training.loop import Environment

AnyResult = TypeVar("AnyResult", bound=StageResult)


def read_result(root: Path, kind: type[AnyResult]) -> AnyResult:
    """What a finished stage of a run directory handed on, e.g. `read_result(root, StudentResult)`.

    Raises:
        KdcError: the stage's record is damaged.
    """
    file = root / kind.STAGE / "stage.json"
    try:
        return kind.model_validate(json.loads(file.read_text(encoding="utf-8"))["metrics"])
    except (ValueError, KeyError, TypeError) as error:
        raise KdcError(
            "the record of a stage is damaged, or of another version of kdc",
            given=file,
            remedy=f"run `kdc compress` again with --from {kind.STAGE}",
        ) from error


def _silent(done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Run:
    """One run in one directory.

    Attributes:
        root: the run directory.
        config: resolved settings.
        device: "cpu" or "cuda", decided.
        bf16: train in bf16 autocast.
        fingerprints: of the stages so far, by name.
        progress: called with (done, total) during long work of the current stage.
        say: prints one line for the person who watches.
    """

    root: Path
    config: Config
    device: str = "cpu"
    bf16: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)
    progress: Callable[[int, int], None] = _silent
    say: Callable[[str], None] = print

    def folder(self, stage: str) -> Path:
        """Where a finished stage keeps its files."""
        return self.root / stage

    def data(self) -> PreparedData:
        """The rows that stage `data` made."""
        return open_data(self.folder("data"))

    def result(self, kind: type[AnyResult]) -> AnyResult:
        """What a finished stage handed on; see `read_result`."""
        return read_result(self.root, kind)

    @property
    def environment(self) -> Environment:
        """What all trainings of the run have in common."""
        return Environment(self.config.run.seed, self.device, self.bf16)

    @property
    def student(self) -> StudentSettings:
        """The student's settings, with the model that the search found where there was one."""
        if not self.config.searches:
            return self.config.student
        return self.config.student.model_copy(update={"model": self.result(SearchResult).student})

    @property
    def student_role(self) -> str:
        """Whose tokens the student takes, see `role_of`."""
        return self.role_of(self.student.model)

    def role_of(self, student: str) -> str:
        """Whose tokens a student takes: "student" for the configured one, "teacher" for one that is cut from the
        teacher in its place."""
        configured = self.config.student.model
        return "student" if student == configured or configured.startswith("layers:") else "teacher"

    def cut_from(self, student: StudentSettings) -> str:
        """The model that a student of "layers:..." is cut from: the fine-tuned teacher, or the pretrained one."""
        teacher = self.config.teacher
        # A teacher that was brought along fine-tuned has no pretrained form at hand: it is cut as it is.
        finetuned = teacher.scores is None and (student.cut_from == "finetuned" or teacher.finetuned)
        return str(self.folder("teacher") / "model") if finetuned else teacher.model


def open_run(root: Path, config: Config, reporter: Reporter) -> Run:
    """A run directory as stages are given it.

    Raises:
        InputError: the device or the precision that was asked for is not there.
    """
    device, bf16 = choose_device(config.run.device, config.run.precision)
    return Run(root=root, config=config, device=device, bf16=bf16, progress=reporter.progress, say=reporter.say)

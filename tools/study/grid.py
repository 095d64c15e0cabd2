"""Which trainings a study has, and the settings of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.common.errors import InputError
from kdc.pipeline.config.presets import FAMILIES, RECIPES
from kdc.pipeline.config.resolve import layer_of, parse_sets, resolve
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import TASKS

# Each method, and what it trains.
METHODS = {
    "fft": "the teacher, all weights",
    "lora": "the teacher, LoRA",
    "kd-lora": "the student, LoRA, with the teacher's logits",
    "student-lora": "the student, LoRA, labels alone",
    "student-fft": "the student, all weights, labels alone",
    "probe": "the teacher's encoder as it was before, a linear model on it",
    "tfidf": "TF-IDF, a linear model",
}
BASELINES = ("probe", "tfidf")  # methods that train no network: the stage `baselines` has made them
RANKED = ("lora", "kd-lora", "student-lora")  # methods that train adapters, which have a rank


@dataclass(frozen=True)
class Cell:
    """One training."""

    task: str
    family: str
    method: str  # one of `METHODS`
    rank: int  # rank of its adapters; 0 where it trains none
    seed: int  # seed of the slices of the data and of the training

    @property
    def name(self) -> str:
        """How progress and failures call it."""
        rank = f" r{self.rank}" if self.rank else ""
        return f"{self.task} {self.family} {self.method}{rank} seed {self.seed}"

    def base(self, out: Path) -> Path:
        """The run directory of its data, teacher and targets, which all cells of its task, family and seed share."""
        return out / "runs" / self.task / self.family / f"seed-{self.seed}"

    def file(self, out: Path) -> Path:
        """The file that keeps its result."""
        return self.base(out) / "cells" / f"{self.method}{f'-r{self.rank}' if self.rank else ''}.json"


@dataclass(frozen=True)
class Grid:
    """What a study is asked to train: every combination of these names, which stand in the order of the tables."""

    tasks: tuple[str, ...]
    families: tuple[str, ...]
    methods: tuple[str, ...]
    ranks: tuple[int, ...]  # ranks of the adapters, for the methods that train any
    seeds: tuple[int, ...]  # seeds of the slices of the data and of the training
    out: Path  # directory of the study
    sets: tuple[str, ...] = ()  # settings of every cell, written as for `--set`: "section.key=value"
    flags: tuple[tuple[str, Any], ...] = ()  # settings of every cell: dotted key and value

    def cells(self) -> list[Cell]:
        """All trainings. The fully fine-tuned teacher comes first, because the others share what it made."""
        return [
            Cell(task, family, method, rank, seed)
            for task in self.tasks
            for family in self.families
            for seed in self.seeds
            for method in sorted(self.methods, key=lambda name: name != "fft")
            for rank in (self.ranks if method in RANKED else (0,))
        ]

    def config(self, cell: Cell) -> Config:
        """Resolve the settings of one cell.

        Raises:
            InputError: a setting is wrong.
        """
        sets = list(self.sets)
        if cell.rank:
            sets += [f"student.lora.r={cell.rank}", f"student.lora.alpha={2 * cell.rank}"]
        if cell.method == "student-fft":
            sets.append("student.method=full")
        flags = {
            "data.task": cell.task,
            "run.family": cell.family,
            "run.seed": cell.seed,
            "run.out": cell.base(self.out),
            "teacher.from_probe": "off",  # the method fft is fine-tuning alone
            **dict(self.flags),
        }
        return resolve(flags=layer_of(flags), sets=parse_sets(sets), file={})


def check(grid: Grid) -> None:
    """Check the whole study before anything is trained, and report all wrong names together.

    Raises:
        InputError: an unknown task, family, method or recipe, one that is named twice, or a wrong setting.
    """
    recipe = dict(grid.flags).get("run.recipe")
    problems = [
        f"no such {kind}: {name} (known: {', '.join(known)})"
        for kind, names, known in (
            ("task", grid.tasks, TASKS),
            ("family", grid.families, FAMILIES),
            ("method", grid.methods, METHODS),
            ("recipe", (recipe,) if recipe else (), RECIPES),
        )
        for name in names
        if name not in known
    ]
    lists: tuple[Sequence[Any], ...] = (grid.tasks, grid.families, grid.methods, grid.ranks, grid.seeds)
    problems += [f"named twice: {names}" for names in lists if len(set(names)) < len(names)]
    if problems:
        raise InputError("\n    ".join(["the study has mistakes:", *problems]), remedy="see `kdc study --help`")
    for cell in grid.cells():
        student = grid.config(cell).student
        if cell.method in ("kd-lora", "student-lora") and student.method != "lora":
            raise InputError(
                "a method trains the student's adapters, and this student has none",
                given=f"{cell.method}, student.model={student.model}, student.method={student.method}",
                remedy="leave it out of --methods, or the student out of --set",
            )

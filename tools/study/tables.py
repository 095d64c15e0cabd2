"""A study's outcomes as tables: means over seeds, kept percents, the paper's figures beside them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from kdc.pipeline.config.tasks import TASKS
from kdc.tools.study import paper
from kdc.tools.study.grid import RANKED, Grid
from kdc.tools.study.jobs import Outcome

_HARD = "wnli"  # nobody beats its majority


@dataclass(frozen=True)
class Score:
    """One task's score of one row of the table.

    Attributes:
        values: of the seeds that count.
        collapsed: seeds whose model gave one answer to all rows; they are not in `values`.
        failed: seeds whose training failed, or was not done.
        published: the paper's figure, where it has one.
    """

    values: tuple[float, ...]
    collapsed: int
    failed: int
    published: float | None

    @property
    def mean(self) -> float | None:
        """Over the seeds that count."""
        return mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation (n - 1); None for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Line:
    """One method of one family at one rank.

    Attributes:
        family, method, rank: which.
        scores: by column of `columns`.
        costs: means over its cells: peak_memory_mb, inference_s_per_1000_rows, seconds, trainable_parameters,
            parameters.
        published_average, published_memory_mb, published_inference_s: the paper's, where it has them.
    """

    family: str
    method: str
    rank: int
    scores: dict[str, Score]
    costs: dict[str, float]
    published_average: float | None
    published_memory_mb: float | None
    published_inference_s: float | None

    @property
    def label(self) -> str:
        """As tables have it."""
        return f"{self.family} {self.method}" + (f", r {self.rank}" if self.rank else "")

    def average(self, *, without_wnli: bool = False) -> float | None:
        """Mean over the tasks (MNLI's two columns count half each); None where a task has no score."""
        by_task: dict[str, list[float]] = {}
        for column, score in self.scores.items():
            task = column.removesuffix("_mismatched")
            if without_wnli and task == _HARD:
                continue
            if score.mean is None:
                return None
            by_task.setdefault(task, []).append(score.mean)
        return mean(map(mean, by_task.values())) if by_task else None


def columns(tasks: Iterable[str]) -> list[str]:
    """Of the table: the tasks, MNLI's mismatched set by itself."""
    found = []
    for task in tasks:
        found += [task, f"{task}_mismatched"] if task == "mnli" else [task]
    return found


def lines(grid: Grid, outcomes: Sequence[Outcome]) -> list[Line]:
    """The rows of the table, families together, methods in the order asked for."""
    return [
        _line(grid, outcomes, family, method, rank)
        for family in grid.families
        for method in grid.methods
        for rank in (grid.ranks if method in RANKED else (0,))
    ]


def _line(grid: Grid, outcomes: Sequence[Outcome], family: str, method: str, rank: int) -> Line:
    mine = [
        outcome
        for outcome in outcomes
        if (outcome.cell.family, outcome.cell.method, outcome.cell.rank) == (family, method, rank)
    ]
    published = paper.SCORES.get(family, {}).get(method, {}) if rank in (0, 8) else {}
    scores = {}
    for column in columns(grid.tasks):
        task = column.removesuffix("_mismatched")
        name = TASKS[task].metrics[0] + column.removeprefix(task)
        cells = [outcome.result for outcome in mine if outcome.cell.task == task]
        done = [cell for cell in cells if cell is not None]
        scores[column] = Score(
            values=tuple(cell["scores"][name] for cell in done if not cell["collapsed"]),
            collapsed=sum(cell["collapsed"] for cell in done),
            failed=len(cells) - len(done),
            published=published.get(column),
        )
    complete = bool(published) and set(columns(grid.tasks)) == set(published)
    return Line(
        family,
        method,
        rank,
        scores,
        _costs([outcome.result for outcome in mine if outcome.result is not None]),
        published_average=paper.AVERAGES[family][method] if complete else None,
        published_memory_mb=paper.MEMORY_MB.get(family, {}).get(method) if published else None,
        published_inference_s=paper.INFERENCE_S.get(family, {}).get(method) if published else None,
    )


def _costs(cells: Sequence[dict[str, Any]]) -> dict[str, float]:
    if not cells:
        return {}
    names = ("inference_s_per_1000_rows", "seconds", "trainable_parameters", "parameters")
    found = {name: mean(cell[name] for cell in cells) for name in names}
    return {"peak_memory_mb": max(cell["peak_memory_bytes"] for cell in cells) / 1e6, **found}


def kept(line: Line, others: Sequence[Line], method: str) -> float | None:
    """Percent of the average of the same family's other method (at the same rank where both have one); None without."""
    for other in others:
        same_rank = not (line.rank and other.rank) or line.rank == other.rank
        if (other.family, other.method) == (line.family, method) and same_rank:
            mine, theirs = line.average(), other.average()
            return 100 * mine / theirs if mine is not None and theirs else None
    return None

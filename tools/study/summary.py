"""Summarises the cells of a study: means over seeds, what each method keeps, the paper's figures beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from kdc.pipeline.config.tasks import TASKS
from kdc.tools.study.grid import RANKED, Grid
from kdc.tools.study.jobs import CellResult, Outcome

# The published figures, for comparison. CoLA's is the Matthews correlation, STS-B's the Pearson or Spearman correlation
# as reported there; whether MRPC's and QQP's are accuracy or F1 is not said there.
SOURCE = (
    "Azimi et al. 2024, arXiv 2410.20777, tables 1 to 3; transcribed second-hand from a public reproduction's tables"
)
_RANK = 8  # of the paper's adapters in these tables
# MNLI's two evaluation sets are the matched and the mismatched one.
_COLUMNS = ("cola", "mnli", "mnli_mismatched", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
_UNBEATABLE = "wnli"  # no model answers it better than its most frequent label, so that it blurs an average


@dataclass(frozen=True)
class Published:
    """The paper's figures of one method of one family; without values where it has none."""

    points: tuple[float, ...] = ()  # one for each of `_COLUMNS`
    average: float | None = None  # mean over the columns, in points
    memory_mb: float | None = None  # peak memory while training
    inference_s: float | None = None  # seconds of inference on the paper's own rows and GPU

    @property
    def scores(self) -> dict[str, float]:
        """Points by column: the name of a task, or "mnli_mismatched"."""
        return dict(zip(_COLUMNS, self.points, strict=False))


# By family and method.
_PUBLISHED = {
    ("bert", "fft"): Published((57.7, 84.5, 84.9, 89.0, 91.8, 89.7, 71.6, 92.8, 89.5, 56.3), 80.8, 1332.0, 6.10),
    ("bert", "lora"): Published((56.9, 83.4, 83.9, 89.2, 91.1, 87.9, 70.1, 92.6, 88.9, 56.9), 80.1, 463.5, 6.22),
    ("bert", "kd-lora"): Published((56.3, 82.0, 82.4, 88.3, 89.7, 89.1, 64.0, 92.0, 88.7, 56.3), 78.9, 296.8, 5.36),
    ("roberta", "fft"): Published((60.9, 87.7, 87.4, 91.1, 92.7, 89.8, 74.8, 94.3, 90.8, 56.3), 82.6, 1515.9, 7.21),
    ("roberta", "lora"): Published((59.4, 87.2, 86.9, 89.9, 92.8, 88.6, 71.8, 94.2, 90.3, 56.3), 81.7, 531.9, 7.19),
    ("roberta", "kd-lora"): Published((56.8, 83.3, 83.4, 89.3, 90.7, 87.3, 65.3, 92.9, 87.9, 56.3), 79.3, 358.3, 4.44),
    ("deberta", "fft"): Published((67.8, 90.3, 90.6, 91.9, 94.1, 91.2, 85.0, 95.9, 91.5, 66.9), 86.5, 2234.5, 14.37),
    ("deberta", "lora"): Published((69.1, 90.3, 90.2, 90.9, 94.3, 90.4, 84.0, 96.0, 91.1, 56.3), 85.3, 763.4, 15.62),
    ("deberta", "kd-lora"): Published((68.1, 88.8, 89.0, 90.7, 93.4, 89.9, 78.8, 95.7, 89.8, 56.3), 84.1, 590.3, 10.38),
}


@dataclass(frozen=True)
class Score:
    """One method's score on one column."""

    values: tuple[float, ...]  # points of the seeds that count
    collapsed: int  # seeds whose model gave one answer to all rows; they are not in `values`
    failed: int  # seeds whose training failed, or was not done

    @property
    def mean(self) -> float | None:
        """Over the seeds that count."""
        return mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation (n - 1) over the seeds that count; None for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class MethodSummary:
    """One method of one family at one rank: a row of the tables."""

    family: str
    method: str
    rank: int  # rank of its adapters; 0 where it trains none
    scores: dict[str, Score]  # scores by column, see `columns`
    results: tuple[CellResult, ...]  # results of the cells that were done
    published: Published  # the paper's figures, as far as it has them

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.family} {self.method}" + (f", r {self.rank}" if self.rank else "")

    @property
    def published_average(self) -> float | None:
        """The paper's average; None unless the columns are the paper's."""
        return self.published.average if self.scores.keys() == self.published.scores.keys() else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most that any of the cells held while it was trained; None where no cell was done."""
        known = (result.peak_memory_bytes for result in self.results)
        return max((peak for peak in known if peak is not None), default=None)

    def mean_of(self, cost: str) -> float | None:
        """Mean over the cells of that field of `CellResult`; None where it was measured of none."""
        known = [value for result in self.results if (value := getattr(result, cost)) is not None]
        return mean(known) if known else None

    def average(self, *, without_wnli: bool = False) -> float | None:
        """Mean over the columns, of which MNLI has two, as the published averages are; None where one has no score."""
        scores = [score.mean for column, score in self.scores.items() if not (without_wnli and column == _UNBEATABLE)]
        known = [score for score in scores if score is not None]
        return mean(known) if known and len(known) == len(scores) else None


def columns(tasks: Iterable[str]) -> list[str]:
    """The columns of the table: the tasks, with MNLI's mismatched evaluation set as a column of its own."""
    return [column for task in tasks for column in ((task, f"{task}_mismatched") if task == "mnli" else (task,))]


def summarise(grid: Grid, outcomes: Sequence[Outcome]) -> list[MethodSummary]:
    """Summarise the outcomes of all cells: families together, methods in the order asked for."""
    return [
        _summary(grid, outcomes, family, method, rank)
        for family in grid.families
        for method in grid.methods
        for rank in (grid.ranks if method in RANKED else (0,))
    ]


def _summary(grid: Grid, outcomes: Sequence[Outcome], family: str, method: str, rank: int) -> MethodSummary:
    own = [
        outcome
        for outcome in outcomes
        if (outcome.cell.family, outcome.cell.method, outcome.cell.rank) == (family, method, rank)
    ]
    scores = {}
    for column in columns(grid.tasks):
        task = column.removesuffix("_mismatched")
        metric = TASKS[task].metrics[0] + column.removeprefix(task)
        results = [outcome.result for outcome in own if outcome.cell.task == task]
        done = [result for result in results if result is not None]
        scores[column] = Score(
            values=tuple(result.scores[metric] for result in done if not result.collapsed),
            collapsed=sum(result.collapsed for result in done),
            failed=len(results) - len(done),
        )
    all_done = tuple(outcome.result for outcome in own if outcome.result is not None)
    published = _PUBLISHED.get((family, method), Published()) if rank in (0, _RANK) else Published()
    return MethodSummary(family, method, rank, scores, all_done, published)


def kept_percent(summary: MethodSummary, others: Sequence[MethodSummary], method: str) -> float | None:
    """The average of a method in percent of that of another method of the same family.

    Args:
        summary: of the method.
        others: where the other one is looked for, at the same rank where both have one.
        method: the other one.

    Returns:
        None where the other one, or either average, is missing.
    """
    for other in others:
        same_rank = not (summary.rank and other.rank) or summary.rank == other.rank
        if (other.family, other.method) == (summary.family, method) and same_rank:
            average, base = summary.average(), other.average()
            return 100 * average / base if average is not None and base else None
    return None

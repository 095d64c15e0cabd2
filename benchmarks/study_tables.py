"""The tables of `study.py`, with the paper's figures."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from kdc.common.files import write_whole
from kdc.common.tables import markdown, number, plain
from kdc.pipeline.config.tasks import TASKS

RANKED = ("lora", "kd-lora", "student-lora")  # methods with adapters
_COLLAPSED, _FAILED = "†", "‡"
# CoLA: Matthews; STS-B: Pearson or Spearman as reported. The paper does not say if MRPC's and QQP's are accuracy or F1.
_SOURCE = (
    "Azimi et al. 2024, arXiv 2410.20777, tables 1 to 3; transcribed second-hand from a public reproduction's tables"
)
_PAPER_RANK = 8
_COLUMNS = ("cola", "mnli", "mnli_mismatched", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
_UNBEATABLE = "wnli"  # no model beats the majority
_TEX = str.maketrans(
    {character: rf"\{character}" for character in "&%_#$"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", _COLLAPSED: r"$\dagger$", _FAILED: r"$\ddagger$"}
)


@dataclass(frozen=True)
class Cell:
    task: str
    family: str
    method: str  # of `study.METHODS`
    rank: int  # 0 without adapters
    seed: int  # of splits and training

    @property
    def teacher(self) -> "Cell":
        return Cell(self.task, self.family, "fft", 0, self.seed)

    @property
    def name(self) -> str:
        rank = f" r{self.rank}" if self.rank else ""
        return f"{self.task} {self.family} {self.method}{rank} seed {self.seed}"


@dataclass(frozen=True)
class Figures:
    """Results of one training. A baseline has no costs."""

    scores: dict[str, float]  # points by metric
    collapsed: bool = False  # all answers alike
    inference_s_per_1000_rows: float | None = None
    seconds: float | None = None  # of training
    parameters: int | None = None  # with adapters merged
    trainable_parameters: int | None = None
    peak_memory_bytes: int | None = None  # of the GPU, else of the process


@dataclass(frozen=True)
class Outcome:
    cell: Cell
    figures: Figures | None
    failure: str = ""  # why it failed


@dataclass(frozen=True)
class Published:
    points: tuple[float, ...] = ()  # for each column
    average: float | None = None  # in points
    memory_mb: float | None = None  # peak while training
    inference_s: float | None = None  # on the paper's GPU

    @property
    def scores(self) -> dict[str, float]:
        return dict(zip(_COLUMNS, self.points, strict=False))


PUBLISHED = {
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
    values: tuple[float, ...]  # of counted seeds
    collapsed: int = 0  # seeds with one answer, not in `values`
    failed: int = 0

    @property
    def mean(self) -> float | None:
        return mean(self.values) if self.values else None

    def __str__(self) -> str:
        """Mean, standard deviation (n - 1) and marks."""
        text = number(self.mean) + (f" ± {stdev(self.values):.1f}" if len(self.values) > 1 else "")
        text += f" {_COLLAPSED}{self.collapsed}" if self.collapsed else ""
        return text + (f" {_FAILED}{self.failed}" if self.failed else "")


@dataclass(frozen=True)
class MethodSummary:
    family: str
    method: str
    rank: int  # 0 without adapters
    scores: dict[str, Score]  # by column
    figures: tuple[Figures, ...] = ()  # of successful cells

    @property
    def label(self) -> str:
        return f"{self.family} {self.method}" + (f", r {self.rank}" if self.rank else "")

    @property
    def published(self) -> Published:
        """Empty at ranks that the paper lacks."""
        return PUBLISHED.get((self.family, self.method), Published()) if self.rank in (0, _PAPER_RANK) else Published()

    @property
    def published_average(self) -> float | None:
        return self.published.average if self.scores.keys() == self.published.scores.keys() else None

    def cost(self, name: str, of_cells: Callable[[list[float]], float] = mean) -> float | None:
        """Mean (or `of_cells`) of a field of `Figures`; None without values."""
        known = [value for figures in self.figures if (value := getattr(figures, name)) is not None]
        return of_cells(known) if known else None

    def average(self, *, without_wnli: bool = False) -> float | None:
        """Mean over columns, with both of MNLI's, as in the paper; None if incomplete."""
        scores = [score.mean for column, score in self.scores.items() if not (without_wnli and column == _UNBEATABLE)]
        known = [score for score in scores if score is not None]
        return mean(known) if known and len(known) == len(scores) else None


def columns(tasks: Iterable[str]) -> list[str]:
    """MNLI has two columns."""
    return [column for task in tasks for column in ((task, f"{task}_mismatched") if task == "mnli" else (task,))]


def summarise(outcomes: Sequence[Outcome]) -> list[MethodSummary]:
    names = columns(dict.fromkeys(outcome.cell.task for outcome in outcomes))
    rows: dict[tuple[str, str, int], list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault((outcome.cell.family, outcome.cell.method, outcome.cell.rank), []).append(outcome)
    return [
        MethodSummary(
            *row,
            {column: _score(column, own) for column in names},
            tuple(outcome.figures for outcome in own if outcome.figures is not None),
        )
        for row, own in rows.items()
    ]


def _score(column: str, outcomes: Sequence[Outcome]) -> Score:
    task = column.removesuffix("_mismatched")
    metric = TASKS[task].metrics[0] + column.removeprefix(task)
    of_task = [outcome.figures for outcome in outcomes if outcome.cell.task == task]
    done = [figures for figures in of_task if figures is not None]
    return Score(
        values=tuple(figures.scores[metric] for figures in done if not figures.collapsed),
        collapsed=sum(figures.collapsed for figures in done),
        failed=len(of_task) - len(done),
    )


def kept_percent(summary: MethodSummary, others: Sequence[MethodSummary], method: str) -> float | None:
    """The average in percent of another method's, of the same family and rank."""
    for other in others:
        same_rank = not (summary.rank and other.rank) or summary.rank == other.rank
        if (other.family, other.method) == (summary.family, method) and same_rank:
            average, base = summary.average(), other.average()
            return 100 * average / base if average is not None and base else None
    return None


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    note: str


def scores_table(summaries: Sequence[MethodSummary]) -> Table:
    """The paper's table 1, with differences."""
    names = list(summaries[0].scores)
    body = []
    for summary in summaries:
        averages = (summary.average(), summary.average(without_wnli=True))
        shares = (kept_percent(summary, summaries, "lora"), kept_percent(summary, summaries, "fft"))
        body.append((summary.label, *map(str, summary.scores.values()), *map(number, (*averages, *shares))))
        published = [*map(summary.published.scores.get, names), summary.published_average]
        if any(value is not None for value in published):
            means = [*(score.mean for score in summary.scores.values()), averages[0]]
            body.append(("  paper", *map(number, published), "", "", ""))
            body.append(("  difference", *map(_gap, means, published), "", "", ""))
    return Table(
        "Scores",
        ("model", *names, "average", "without WNLI", "kept % of LoRA", "kept % of FFT"),
        tuple(body),
        "Points on the evaluation split: the task's first metric (see `kdc tasks`), mean and standard deviation over "
        f"the seeds. {_COLLAPSED}n: n seeds gave one answer to all rows and are not in the mean. "
        f"{_FAILED}n: n seeds failed. An average needs a score of every task. Published: {_SOURCE}.",
    )


def costs_table(summaries: Sequence[MethodSummary]) -> Table:
    rows = [
        {
            "model": summary.label,
            "peak memory while training, MB": number(summary.cost("peak_memory_bytes", max), 0, 1e-6),
            "paper": number(summary.published.memory_mb),
            "inference, s per 1000 rows": number(summary.cost("inference_s_per_1000_rows"), 2),
            "paper, s": number(summary.published.inference_s, 2),
            "training, s": number(summary.cost("seconds"), 0),
            "trainable, M": number(summary.cost("trainable_parameters"), 2, 1e-6),
            "parameters, M": number(summary.cost("parameters"), 1, 1e-6),
        }
        for summary in summaries
    ]
    note = (
        "Peak memory is the most at any moment: of the GPU (torch.cuda.max_memory_allocated) if there is one, else "
        "resident memory of the training's own process. Inference: torch, batches of 32, tokenising included, adapters "
        "merged, mean over tasks and seeds. The paper's seconds are of its own rows and GPU: only ratios compare."
    )
    return Table("Memory and time", tuple(rows[0]), tuple(tuple(row.values()) for row in rows), note)


def ranks_table(summaries: Sequence[MethodSummary]) -> Table:
    ranked = [summary for summary in summaries if summary.rank]
    ranks = list(dict.fromkeys(summary.rank for summary in ranked))
    body = []
    for name in dict.fromkeys((summary.family, summary.method) for summary in ranked):
        by_rank = [summary for summary in ranked if (summary.family, summary.method) == name]
        averages = [number(summary.average()) for summary in by_rank]
        sizes = [number(summary.cost("trainable_parameters"), 2, 1e-6) for summary in by_rank]
        body.append((" ".join(name), *averages, *sizes))
    head = ("model", *(f"r {rank}" for rank in ranks), *(f"trainable at r {rank}, M" for rank in ranks))
    return Table("Ranks", head, tuple(body), "Average over the tasks, in points; alpha is twice the rank.")


def _gap(value: float | None, published: float | None) -> str:
    return "-" if value is None or published is None else f"{value - published:+.1f}"


def write_study(out: Path, outcomes: Sequence[Outcome], origin: dict[str, str]) -> str:
    """Write `study.md`, `.csv`, `.tex` and `.json`; returns the text of `study.md`. `origin` has command and machine,
    by title.
    """
    summaries = summarise(outcomes)
    tables = [scores_table(summaries), costs_table(summaries)]
    if len({summary.rank for summary in summaries} - {0}) > 1:
        tables.append(ranks_table(summaries))
    page = _page(tables, outcomes, origin)
    out.mkdir(parents=True, exist_ok=True)
    cells = [asdict(outcome) for outcome in outcomes]
    write_whole(out / "study.json", json.dumps({"origin": origin, "cells": cells}, indent=2))
    write_whole(out / "study.md", page)
    write_whole(out / "study.csv", _csv(tables))
    write_whole(out / "study.tex", "\n".join(map(_tex, tables)))
    return page


def _page(tables: Sequence[Table], outcomes: Sequence[Outcome], origin: dict[str, str]) -> str:
    parts = ["# Study", *(f"{title}: {text}" for title, text in origin.items())]
    for table in tables:
        parts += [f"## {table.title}", markdown([table.head, *table.body]), table.note]
    failures = [f"- {plain(f'{one.cell.name}: {one.failure}')}" for one in outcomes if one.failure]
    if failures:
        parts += ["## Failed", "\n".join(failures)]
    return "\n\n".join(parts) + "\n"


def _csv(tables: Sequence[Table]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for table in tables:
        writer.writerows([(table.title,), table.head, *table.body, ()])
    return stream.getvalue()


def _tex(table: Table) -> str:
    rows = [" & ".join(cell.strip().translate(_TEX) for cell in row) + r" \\" for row in (table.head, *table.body)]
    caption = f"{table.title}. {table.note}".translate(_TEX)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\hline", rows[0], r"\hline", *rows[1:]]
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}", ""])

"""The tables of a study as rows of text, which all its files share."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdc.common.tables import number
from kdc.tools.study.grid import RANKED, Grid
from kdc.tools.study.summary import SOURCE, MethodSummary, Score, columns, kept_percent

COLLAPSED, FAILED = "†", "‡"


@dataclass(frozen=True)
class Table:
    """A table as text."""

    title: str  # one line
    head: tuple[str, ...]  # titles of the columns
    body: tuple[tuple[str, ...], ...]  # rows
    note: str  # what marks and figures mean

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """All rows, header first."""
        return (self.head, *self.body)

    @property
    def marks(self) -> list[str]:
        """The class in HTML of each row of the body: "quiet" for one that belongs to the row above it."""
        return ["quiet" if row[0].startswith("  ") else "" for row in self.body]


def scores_table(grid: Grid, summaries: Sequence[MethodSummary]) -> Table:
    """The paper's table 1: scores, averages and what is kept; below each row the published figures and differences."""
    places = columns(grid.tasks)
    body = []
    for summary in summaries:
        scores = [summary.scores[place] for place in places]
        averages = (summary.average(), summary.average(without_wnli=True))
        shares = (kept_percent(summary, summaries, "lora"), kept_percent(summary, summaries, "fft"))
        body.append((summary.label, *map(_score, scores), *map(number, (*averages, *shares))))
        published = [*map(summary.published.scores.get, places), summary.published_average]
        if any(value is not None for value in published):
            means = [*(score.mean for score in scores), averages[0]]
            body.append(("  paper", *map(number, published), "", "", ""))
            body.append(("  difference", *map(_gap, means, published), "", "", ""))
    return Table(
        "Scores",
        ("model", *places, "average", "without WNLI", "kept % of LoRA", "kept % of FFT"),
        tuple(body),
        "Points on the evaluation split: the task's first metric (see `kdc tasks`), mean and standard deviation over "
        f"{len(grid.seeds)} seeds. {COLLAPSED}n: n seeds gave one answer to all rows and are not in the mean. "
        f"{FAILED}n: n seeds failed. An average needs a score of every task. Published: {SOURCE}.",
    )


def costs_table(summaries: Sequence[MethodSummary]) -> Table:
    """The paper's table of memory and inference time."""
    rows = [
        {
            "model": summary.label,
            "peak memory while training, MB": number(summary.peak_memory_bytes, 0, 1e-6),
            "paper": number(summary.published.memory_mb),
            "inference, s per 1000 rows": number(summary.mean_of("inference_s_per_1000_rows"), 2),
            "paper, s": number(summary.published.inference_s, 2),
            "training, s": number(summary.mean_of("seconds"), 0),
            "trainable, M": number(summary.mean_of("trainable_parameters"), 2, 1e-6),
            "parameters, M": number(summary.mean_of("parameters"), 1, 1e-6),
        }
        for summary in summaries
    ]
    note = (
        "Peak memory is the true one, the most at any moment: of the GPU (torch.cuda.max_memory_allocated) where there "
        "is one, else resident memory of the training's own process. Inference: batches of like length, adapters "
        "merged, mean over tasks and seeds. The paper's seconds are of its own rows and GPU: only ratios compare."
    )
    return Table("Memory and time", tuple(rows[0]), tuple(tuple(row.values()) for row in rows), note)


def ranks_table(grid: Grid, summaries: Sequence[MethodSummary]) -> Table:
    """The paper's rank table: the average score by rank."""
    body = []
    for family in grid.families:
        for method in grid.methods:
            if method in RANKED:
                by_rank = [summary for summary in summaries if (summary.family, summary.method) == (family, method)]
                averages = [number(summary.average()) for summary in by_rank]
                sizes = [number(summary.mean_of("trainable_parameters"), 2, 1e-6) for summary in by_rank]
                body.append((f"{family} {method}", *averages, *sizes))
    head = ("model", *(f"r {rank}" for rank in grid.ranks), *(f"trainable at r {rank}, M" for rank in grid.ranks))
    return Table("Ranks", head, tuple(body), "Average over the tasks, in points; alpha is twice the rank.")


def _score(score: Score) -> str:
    text = number(score.mean)
    text += "" if score.deviation is None else f" ± {score.deviation:.1f}"
    text += f" {COLLAPSED}{score.collapsed}" if score.collapsed else ""
    return text + (f" {FAILED}{score.failed}" if score.failed else "")


def _gap(value: float | None, published: float | None) -> str:
    return "-" if value is None or published is None else f"{value - published:+.1f}"

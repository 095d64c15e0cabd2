"""A study's tables as texts in rows, which every format shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdc.tools.study import paper
from kdc.tools.study.grid import RANKED, Grid
from kdc.tools.study.tables import Line, Score, columns, kept

COLLAPSED, FAILED = "†", "‡"


@dataclass(frozen=True)
class Table:
    """Texts in rows, as every format has them.

    Attributes:
        title: one line.
        head: titles of columns.
        body: rows.
        note: what marks and figures mean.
    """

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    note: str


def scores_table(grid: Grid, found: Sequence[Line]) -> Table:
    """The paper's table 1: scores, averages, what is kept; published figures and differences below ours."""
    places = columns(grid.tasks)
    head = ("model", *places, "average", "without WNLI", "kept % of LoRA", "kept % of FFT")
    body = []
    for line in found:
        averages = (line.average(), line.average(without_wnli=True))
        shares = (kept(line, found, "lora"), kept(line, found, "fft"))
        body.append((line.label, *(_score(line.scores[place]) for place in places), *map(_one, (*averages, *shares))))
        published = [line.scores[place].published for place in places]
        if any(value is not None for value in published):
            body.append(("  paper", *map(_one, published), _one(line.published_average), "", "", ""))
            gaps = [_gap(line.scores[place].mean, line.scores[place].published) for place in places]
            body.append(("  difference", *gaps, _gap(averages[0], line.published_average), "", "", ""))
    note = (
        "Points on the evaluation split: the task's first metric (see `kdc tasks`), mean and standard deviation over "
        f"{len(grid.seeds)} seeds. {COLLAPSED}n: n seeds gave one answer to all rows and are not in the mean. "
        f"{FAILED}n: n seeds failed. An average needs a score of every task. Published: {paper.SOURCE}."
    )
    return Table("Scores", head, tuple(body), note)


def costs_table(found: Sequence[Line]) -> Table:
    """The paper's memory and inference-time table."""
    head = (
        "model",
        "peak memory while training, MB",
        "paper",
        "inference, s per 1000 rows",
        "paper, s",
        "training, s",
        "trainable, M",
        "parameters, M",
    )
    body = [
        (
            line.label,
            _cost(line, "peak_memory_mb", 1, 0),
            _one(line.published_memory_mb),
            _cost(line, "inference_s_per_1000_rows", 1, 2),
            _two(line.published_inference_s),
            _cost(line, "seconds", 1, 0),
            _cost(line, "trainable_parameters", 1e-6, 2),
            _cost(line, "parameters", 1e-6, 1),
        )
        for line in found
    ]
    note = (
        "Peak memory is the true one, the most at any moment: of the GPU (torch.cuda.max_memory_allocated) where there "
        "is one, else resident memory of the training's own process. Inference: batches of like length, adapters "
        "merged, mean over tasks and seeds. The paper's seconds are of its own rows and GPU: only ratios compare."
    )
    return Table("Memory and time", head, tuple(body), note)


def ranks_table(grid: Grid, found: Sequence[Line]) -> Table:
    """The paper's rank table: average score by rank."""
    head = ("model", *(f"r {rank}" for rank in grid.ranks), *(f"trainable at r {rank}, M" for rank in grid.ranks))
    body = []
    for family in grid.families:
        for method in grid.methods:
            if method in RANKED:
                row = [line for line in found if (line.family, line.method) == (family, method)]
                sizes = [_cost(line, "trainable_parameters", 1e-6, 2) for line in row]
                body.append((f"{family} {method}", *(_one(line.average()) for line in row), *sizes))
    return Table("Ranks", head, tuple(body), "Average over the tasks, in points; alpha is twice the rank.")


def _score(score: Score) -> str:
    text = "-" if score.mean is None else f"{score.mean:.1f}"
    text += "" if score.deviation is None else f" ± {score.deviation:.1f}"
    text += f" {COLLAPSED}{score.collapsed}" if score.collapsed else ""
    return text + (f" {FAILED}{score.failed}" if score.failed else "")


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gap(mine: float | None, theirs: float | None) -> str:
    return "-" if mine is None or theirs is None else f"{mine - theirs:+.1f}"


def _cost(line: Line, name: str, factor: float, digits: int) -> str:
    return f"{line.costs[name] * factor:.{digits}f}" if name in line.costs else "-"

"""The tables of `benchmarks/study.py`, from figures that are made up against sums done by hand."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from live import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.study_tables import (
    PUBLISHED,
    Cell,
    Figures,
    MethodSummary,
    Outcome,
    Published,
    Score,
    columns,
    costs_table,
    kept_percent,
    ranks_table,
    scores_table,
    summarise,
    write_study,
)


def outcome(task: str, method: str, seed: int, score: float, **changes: Any) -> Outcome:
    rank = changes.pop("rank", 0 if method == "fft" else 8)
    figures: dict[str, Any] = {
        "scores": {"accuracy": score},
        "peak_memory_bytes": 500_000_000,
        "seconds": 10.0,
        "inference_s_per_1000_rows": 2.0,
        "trainable_parameters": 300_000,
        "parameters": 66_000_000,
    }
    return Outcome(Cell(task, "bert", method, rank, seed), Figures(**(figures | changes)))


def outcomes() -> list[Outcome]:
    scores = {"fft": (92.0, 94.0, 50.0, 60.0), "lora": (90.0, 92.0, 56.0, 56.0), "kd-lora": (91.0, 89.0, 40.0, 40.0)}
    return [
        outcome(task, method, seed, values[2 * number + seed - 1])
        for method, values in scores.items()
        for number, task in enumerate(("sst2", "wnli"))
        for seed in (1, 2)
    ]


def test_means_and_deviations_are_over_seeds() -> None:
    fft, *_ = summarise(outcomes())
    assert fft.scores["sst2"].mean == 93.0
    assert str(fft.scores["sst2"]) == "93.0 ± 1.4"  # the square root of 2


def test_the_second_average_leaves_wnli_out() -> None:
    fft, *_ = summarise(outcomes())
    assert fft.average() == (93 + 55) / 2
    assert fft.average(without_wnli=True) == 93.0


@pytest.mark.parametrize("published", list(PUBLISHED.values()), ids=lambda published: str(published.average))
def test_an_average_counts_columns_as_the_published_ones_do(published: Published) -> None:
    """Would catch: MNLI's two columns as one task, by which our averages lay up to 0.6 points below."""
    scores = {column: Score((points,)) for column, points in published.scores.items()}
    assert MethodSummary("bert", "fft", 0, scores).average() == pytest.approx(published.average, abs=0.06)


def test_what_is_kept_is_a_share_of_the_average() -> None:
    summaries = summarise(outcomes())
    assert kept_percent(summaries[2], summaries, "lora") == pytest.approx(100 * (90 + 40) / (91 + 56))
    assert kept_percent(summaries[2], summaries, "fft") == pytest.approx(100 * (90 + 40) / (93 + 55))
    assert kept_percent(summaries[2], summaries, "student-fft") is None


def test_a_collapsed_cell_is_marked_and_not_in_the_mean() -> None:
    summaries = summarise([outcome("sst2", "fft", 1, 90.0), outcome("sst2", "fft", 2, 50.0, collapsed=True)])
    assert summaries[0].scores["sst2"].values == (90.0,)
    assert "90.0 †1" in scores_table(summaries).body[0]


def test_a_task_without_a_score_has_no_average() -> None:
    failed = Outcome(Cell("wnli", "bert", "fft", 0, 1), None, "out of memory")
    summaries = summarise([outcome("sst2", "fft", 1, 90.0), failed])
    assert summaries[0].average() is None
    assert summaries[0].average(without_wnli=True) == 90.0
    assert scores_table(summaries).body[0][1:4] == ("90.0", "- ‡1", "-")


def test_the_papers_figures_stand_below_with_the_difference() -> None:
    body = scores_table(summarise(outcomes())).body
    assert body[0][:3] == ("bert fft", "93.0 ± 1.4", "55.0 ± 7.1")
    assert body[1][:4] == ("  paper", "92.8", "56.3", "-")  # its average is of all nine tasks
    assert body[2][:3] == ("  difference", "+0.2", "-1.3")


def test_mnli_counts_twice_in_the_average_since_it_has_two_columns() -> None:
    assert columns(("mnli", "rte")) == ["mnli", "mnli_mismatched", "rte"]
    mnli = outcome("mnli", "fft", 1, 0, scores={"accuracy": 80.0, "accuracy_mismatched": 90.0})
    (row,) = summarise([mnli, outcome("rte", "fft", 1, 65.0)])
    assert row.average() == pytest.approx((80 + 90 + 65) / 3)


def test_costs_are_the_most_memory_and_mean_seconds() -> None:
    more = outcome("sst2", "kd-lora", 2, 90.0, peak_memory_bytes=700_000_000, seconds=20)
    (row,) = costs_table(summarise([outcome("sst2", "kd-lora", 1, 90.0), more])).body
    assert row == ("bert kd-lora, r 8", "700", "296.8", "2.00", "5.36", "15", "0.30", "66.0")


def test_ranks_stand_beside_each_other() -> None:
    made = [outcome("sst2", "kd-lora", 1, score, rank=rank) for rank, score in ((8, 90.0), (16, 91.0))]
    assert ranks_table(summarise(made)).body == (("bert kd-lora", "90.0", "91.0", "0.30", "0.30"),)


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    made = [*outcomes()[:-1], Outcome(Cell("wnli", "bert", "kd-lora", 8, 2), None, "no room & <b>")]
    printed = write_study(tmp_path, made, {"command": "study.py --tasks sst2,wnli"})
    texts = {name: (tmp_path / f"study.{name}").read_text(encoding="utf-8") for name in ("md", "csv", "tex", "json")}
    first = scores_table(summarise(made)).body[0]
    assert printed == texts["md"]
    assert list(csv.reader(texts["csv"].splitlines()))[2] == list(first)
    assert f"| {' | '.join(first)} |" in texts["md"]
    assert r"bert fft & 93.0 $\pm$ 1.4 & 55.0 $\pm$ 7.1" in texts["tex"]
    assert r"kept \% of LoRA" in texts["tex"]
    assert r"no room \& \<b>" in texts["md"]
    cells = json.loads(texts["json"])["cells"]
    assert cells[-1]["failure"] == "no room & <b>"
    assert cells[0]["figures"]["scores"] == {"accuracy": 92.0}
    assert texts["tex"].count(r"\begin{tabular}") == texts["tex"].count(r"\end{tabular}") == 2

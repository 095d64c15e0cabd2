"""A study's tables from outcomes that are made up, against sums done by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from kdc.common.errors import InputError
from kdc.tools.study.grid import Cell, Grid, check
from kdc.tools.study.jobs import CellResult, Outcome
from kdc.tools.study.summary import _PUBLISHED, MethodSummary, Published, Score, columns, kept_percent, summarise
from kdc.tools.study.tables import costs_table, ranks_table, scores_table
from kdc.tools.study.write import write_study


def grid(out: Path = Path("study"), **changes: Any) -> Grid:
    given: dict[str, Any] = {
        "tasks": ("sst2", "wnli"),
        "families": ("bert",),
        "methods": ("fft", "lora", "kd-lora"),
        "ranks": (8,),
        "seeds": (1, 2),
        "out": out,
    }
    return Grid(**(given | changes))


def outcome(task: str, method: str, seed: int, score: float, **changes: Any) -> Outcome:
    rank = changes.pop("rank", 0 if method == "fft" else 8)
    cell = Cell(task, "bert", method, rank, seed)
    figures: dict[str, Any] = {
        "scores": {"accuracy": score},
        "tune": {"accuracy": score},
        "collapsed": False,
        "peak_memory_bytes": 500_000_000,
        "seconds": 10.0,
        "steps": 100,
        "inference_s_per_1000_rows": 2.0,
        "trainable_parameters": 300_000,
        "parameters": 66_000_000,
        "device": "cpu",
    }
    config = grid().config(cell)
    return Outcome(cell, CellResult(cell=cell, config=config, rows="", file=Path("cell.json"), **(figures | changes)))


def outcomes() -> list[Outcome]:
    scores = {"fft": (92.0, 94.0, 50.0, 60.0), "lora": (90.0, 92.0, 56.0, 56.0), "kd-lora": (91.0, 89.0, 40.0, 40.0)}
    return [
        outcome(task, method, seed, values[2 * place + seed - 1])
        for method, values in scores.items()
        for place, task in enumerate(("sst2", "wnli"))
        for seed in (1, 2)
    ]


def test_means_and_deviations_are_over_seeds() -> None:
    fft, *_ = summarise(grid(), outcomes())
    assert fft.scores["sst2"].mean == 93.0
    assert fft.scores["sst2"].deviation == pytest.approx(2**0.5)


def test_the_second_average_leaves_wnli_out() -> None:
    fft, *_ = summarise(grid(), outcomes())
    assert fft.average() == (93 + 55) / 2
    assert fft.average(without_wnli=True) == 93.0


@pytest.mark.parametrize("published", list(_PUBLISHED.values()), ids=lambda published: str(published.average))
def test_an_average_counts_columns_as_the_published_ones_do(published: Published) -> None:
    """Would catch: MNLI's two columns as one task, by which our averages lay up to 0.6 points below."""
    scores = {column: Score((points,), 0, 0) for column, points in published.scores.items()}
    assert MethodSummary("bert", "fft", 0, scores, (), published).average() == pytest.approx(
        published.average, abs=0.06
    )


def test_what_is_kept_is_a_share_of_the_average() -> None:
    summaries = summarise(grid(), outcomes())
    assert kept_percent(summaries[2], summaries, "lora") == pytest.approx(100 * (90 + 40) / (91 + 56))
    assert kept_percent(summaries[2], summaries, "fft") == pytest.approx(100 * (90 + 40) / (93 + 55))
    assert kept_percent(summaries[2], summaries, "student-fft") is None


def test_a_collapsed_cell_is_marked_and_not_in_the_mean() -> None:
    made = [outcome("sst2", "fft", 1, 90.0), outcome("sst2", "fft", 2, 50.0, collapsed=True)]
    study = grid(tasks=("sst2",), methods=("fft",))
    (line,) = summarise(study, made)
    assert line.scores["sst2"].values == (90.0,)
    assert "90.0 †1" in scores_table(study, [line]).body[0]


def test_a_task_without_a_score_has_no_average() -> None:
    made = [outcome("sst2", "fft", 1, 90.0), Outcome(Cell("wnli", "bert", "fft", 0, 1), None, "out of memory")]
    study = grid(methods=("fft",), seeds=(1,))
    (line,) = summarise(study, made)
    assert line.average() is None
    assert line.average(without_wnli=True) == 90.0
    assert scores_table(study, [line]).body[0][1:4] == ("90.0", "- ‡1", "-")


def test_the_papers_figures_stand_below_with_the_difference() -> None:
    study = grid()
    body = scores_table(study, summarise(study, outcomes())).body
    assert body[0][:3] == ("bert fft", "93.0 ± 1.4", "55.0 ± 7.1")
    assert body[1][:4] == ("  paper", "92.8", "56.3", "-")  # its average is of all nine tasks
    assert body[2][:3] == ("  difference", "+0.2", "-1.3")


def test_mnli_counts_twice_in_the_average_since_it_has_two_columns() -> None:
    assert columns(("mnli", "rte")) == ["mnli", "mnli_mismatched", "rte"]
    made = [
        outcome("mnli", "fft", 1, 0, scores={"accuracy": 80.0, "accuracy_mismatched": 90.0}),
        outcome("rte", "fft", 1, 65.0),
    ]
    (line,) = summarise(grid(tasks=("mnli", "rte"), methods=("fft",), seeds=(1,)), made)
    assert line.average() == pytest.approx((80 + 90 + 65) / 3)


def test_costs_are_the_most_memory_and_mean_seconds() -> None:
    made = [
        outcome("sst2", "kd-lora", 1, 90.0),
        outcome("sst2", "kd-lora", 2, 90.0, peak_memory_bytes=700_000_000, seconds=20),
    ]
    study = grid(tasks=("sst2",), methods=("kd-lora",))
    (row,) = costs_table(summarise(study, made)).body
    assert row == ("bert kd-lora, r 8", "700", "296.8", "2.00", "5.36", "15", "0.30", "66.0")


def test_ranks_stand_beside_each_other() -> None:
    made = [outcome("sst2", "kd-lora", 1, score, rank=rank) for rank, score in ((8, 90.0), (16, 91.0))]
    study = grid(tasks=("sst2",), methods=("kd-lora",), ranks=(8, 16), seeds=(1,))
    assert ranks_table(study, summarise(study, made)).body == (("bert kd-lora", "90.0", "91.0", "0.30", "0.30"),)


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    study = grid(out=tmp_path, ranks=(8,))
    made = [*outcomes()[:-1], Outcome(Cell("wnli", "bert", "kd-lora", 8, 2), None, "no room & <b>")]
    write_study(study, made, {"command": "kdc study --tasks sst2,wnli"})
    texts = {
        name: (tmp_path / f"study.{name}").read_text(encoding="utf-8") for name in ("html", "md", "csv", "tex", "json")
    }
    table = scores_table(study, summarise(study, made))
    rows = list(csv.reader(texts["csv"].splitlines()))
    assert rows[2][:3] == list(table.body[0][:3])
    assert f"| {' | '.join(cell.strip() for cell in table.body[0])} |" in texts["md"]
    assert "bert fft & 93.0 $\\pm$ 1.4 & 55.0 $\\pm$ 7.1" in texts["tex"]
    assert "<td>93.0 ± 1.4</td><td>55.0 ± 7.1</td>" in texts["html"]
    assert "no room &amp; &lt;b&gt;" in texts["html"]
    assert "<script" not in texts["html"]
    assert r"no room \& \<b>" in texts["md"]
    cells = json.loads(texts["json"])["cells"]
    assert [cell["failure"] for cell in cells][-1] == "no room & <b>"
    assert cells[0]["scores"] == {"accuracy": 92.0}
    assert texts["tex"].count(r"\begin{tabular}") == texts["tex"].count(r"\end{tabular}") == 2


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        check(grid(tasks=("sst3",), families=("gpt",), methods=("magic", "fft"), seeds=(1, 1)))
    for word in ("sst3", "gpt", "magic", "named twice"):
        assert word in caught.value.what


def test_a_rank_has_twice_as_much_alpha(tmp_path: Path) -> None:
    study = grid(out=tmp_path, families=("minilm",), methods=("kd-lora",), ranks=(4, 32))
    settings = [study.config(cell).student.lora for cell in study.cells()]
    assert {(setting.r, setting.alpha) for setting in settings} == {(4, 8), (32, 64)}

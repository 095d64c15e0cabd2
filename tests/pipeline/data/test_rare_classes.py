"""Rare classes among many are told of, where each class counts alike and no weights were asked for."""

from pathlib import Path
from typing import Any

import pytest
import tiny_runs

from kdc.common.progress import Reporter
from kdc.pipeline.config.tasks import custom_task, find_task
from kdc.pipeline.data.report import rare_classes
from kdc.pipeline.results.data import DataReport, SplitCounts
from kdc.pipeline.run import compress

OWN = custom_task("own", "text", None, "label", "classification")


def report(**counts: int) -> DataReport:
    return DataReport(splits={"train": SplitCounts(rows=sum(counts.values()), labels=counts)})


@pytest.mark.parametrize(
    ("task", "counts", "told"),
    [
        (
            OWN,
            {"a": 100, "b": 100, "c": 9},
            "less than a fifth of the average class's 70 training rows (c 9)",
        ),
        (OWN, {"a": 300, "b": 300, "c": 2, "d": 9, "e": 8, "f": 1}, "(f 1, c 2, e 8)"),
        (OWN, {"a": 100, "b": 100, "c": 40}, None),
        (OWN, {"a": 100, "b": 2}, None),  # of two classes no gain is shown
        (OWN, {"a": 100, "b": 100, "c": 0}, None),  # which no weight helps
        (find_task("mnli"), {"a": 100, "b": 100, "c": 9}, None),  # decided by accuracy, which weights cost
    ],
)
def test_what_is_told_of_rare_classes(task: Any, counts: dict[str, int], told: str | None) -> None:
    found = rare_classes(task, report(**counts))
    assert found is None if told is None else told in str(found)


@pytest.mark.parametrize(("weights", "hints"), [("none", True), ("balanced", False)])
def test_a_run_tells_of_them_unless_they_have_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str, hints: bool
) -> None:
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    for name, count in (("train", 400), ("eval", 60)):
        tiny_runs.write_rows(
            tmp_path / f"{name}.csv",
            count,
            seed=count,
            label=lambda yes, generator: "rare" if generator.random() < 0.04 else "yes" if yes else "no",
        )
    sets = ("teacher.epochs=1", "student.allow_majority=true", f"teacher.class_weights={weights}")
    config = tiny_runs.config_for(tmp_path, teacher, *sets)
    compress(config, reporter=Reporter(), until="teacher")
    assert ("teacher.class_weights=balanced" in capsys.readouterr().err.replace("\n", "")) is hints

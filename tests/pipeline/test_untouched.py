"""The evaluation rows decide nothing: with their labels scrambled, a run is the same up to its evaluation."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from tiny_runs import base_model, config_for, write_rows

pytestmark = pytest.mark.slow  # two whole runs

_TIMES = ("latency", "rows_per_second", "seconds")
# Of the candidate that is kept, which of equals the times decide.
_OF_THE_KEPT = ("max_probability_difference", "label_flips", "compared_rows", "batch_invariant")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs whose evaluation files have the same texts and other labels."""
    folder = tmp_path_factory.mktemp("untouched")
    write_rows(folder / "train.csv", 320, seed=1)
    write_rows(folder / "eval.csv", 100, seed=2)
    with (folder / "eval.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    with (folder / "scrambled.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "label": label} for row, label in zip(rows, labels, strict=True))
    teacher = base_model("bert", folder / "base")
    runs = []
    for name in ("eval", "scrambled"):
        flags = {"data.eval": folder / f"{name}.csv", "run.out": folder / name}
        tiny_runs.compress(config_for(folder, teacher, flags=flags), until="evaluate")
        runs.append(folder / name)
    return runs[0], runs[1]


def without_times(value: Any) -> Any:
    """JSON without what a clock says, and what depends on that."""
    if isinstance(value, dict):
        told = {key: each for key, each in value.items() if not any(part in key for part in (*_TIMES, *_OF_THE_KEPT))}
        return {key: without_times(each) for key, each in told.items()}
    return [without_times(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("stage", ["teacher", "student", "merge", "export"])
def test_weights_are_the_same_byte_by_byte(both: tuple[Path, Path], stage: str) -> None:
    files = [file for file in sorted((both[0] / stage).rglob("*")) if file.suffix in (".safetensors", ".onnx")]
    assert files
    for file in files:
        assert file.read_bytes() == (both[1] / file.relative_to(both[0])).read_bytes(), file.name


def test_candidates_for_int8_and_the_temperature_are_the_same(both: tuple[Path, Path]) -> None:
    """Would catch: ranges, a temperature or a candidate's score that evaluation rows have a part in."""
    records = [json.loads((run / "quantize" / "stage.json").read_text(encoding="utf-8"))["metrics"] for run in both]
    assert records[0]["temperature"] == records[1]["temperature"]
    assert without_times(records[0]["candidates"]) == without_times(records[1]["candidates"])


def test_the_evaluation_is_not_the_same(both: tuple[Path, Path]) -> None:
    tables = [json.loads((run / "evaluate" / "table.json").read_text(encoding="utf-8")) for run in both]
    assert tables[0]["student"]["accuracy"] > tables[1]["student"]["accuracy"] + 20

"""With other labels of its evaluation rows, a run makes the same model, and decides the same."""

import csv
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_runs
from conftest import Finished
from tiny_runs import base_model, config_for, write_rows

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import Manifest, TaskInfo
from kdc.common.errors import InputError
from kdc.pipeline.data.prepared import PreparedData
from kdc.pipeline.evaluation.evidence import answers_of
from kdc.pipeline.evaluation.thresholds import decided_task
from kdc.pipeline.evaluation.variants import variants_of
from kdc.pipeline.graphs import int8_trials
from kdc.pipeline.quality.latency import Speed
from kdc.pipeline.results.artifact import CascadeResult, PackageResult, QuantizeResult
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.record import read_result
from kdc.pipeline.stages import cascade

DECISIONS: dict[str, dict[str, Any]] = {
    "two": {"operating.aims": ["b:precision>=0.8"]},
    "three": {"operating.abstain": "accuracy>=0.6", "operating.sets": 0.9},
}
ASKED: tuple[dict[str, Any], ...] = (
    {"aims": ("yes:recall>=0.9",)},
    {"abstain": "accuracy>=0.8"},
    {"sets": 0.9},
)
# A student that makes mistakes, and a second model for the rows that it is not sure of.
SETTINGS = ("student.model=static", "student.min_steps=8", "student.epochs=0.01", "student.allow_majority=true")
SECOND = ("export.teacher=true", "cascade.second=auto", "contract.max_drop=0.2", "contract.search=off")


def no_clock(models: Mapping[str, Any], texts: Any, **how: Any) -> dict[str, Speed]:
    """Speeds that do not depend on the machine: the student is a hundred times as fast as the second model."""
    return {
        name: Speed(
            latency_p50_ms=1.0,
            latency_p95_ms=1.0,
            latency_mean_ms=1.0,
            rows_per_second=10.0 if "second" in name else 1000.0,
        )
        for name in models
    }


@pytest.fixture(scope="module", params=DECISIONS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs whose evaluation files have the same texts and other labels."""
    folder, others = tmp_path_factory.mktemp("untouched"), "b" if request.param == "two" else "bc"
    for name, count, seed in (("train", 700, 1), ("eval", 100, 2)):
        label = lambda yes, generator: "a" if yes else generator.choice(others)  # noqa: E731
        write_rows(folder / f"{name}.csv", count, seed=seed, label=label)
    with (folder / "eval.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    with (folder / "scrambled.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "label": label} for row, label in zip(rows, labels, strict=True))
    teacher = base_model("bert", folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        for module in (int8_trials, cascade):
            patch.setattr(module, "compare_speeds", no_clock)
        for name in ("eval", "scrambled"):
            flags = {"data.eval": folder / f"{name}.csv", "run.out": folder / name} | DECISIONS[request.param]
            tiny_runs.compress(config_for(folder, teacher, *SETTINGS, *SECOND, flags=flags))
    return folder / "eval", folder / "scrambled"


def manifests(both: tuple[Path, Path]) -> list[Manifest]:
    return [load_manifest(root / read_result(root, PackageResult).artifact) for root in both]


def chosen(task: TaskInfo) -> dict[str, Any]:
    """What a task decides by, without what is told of the evaluation rows."""
    told = {"points": {"__all__": {"evaluation"}}, "abstain": {"evaluation"}, "sets": {"evaluation"}}
    return task.model_dump(include={"points", "abstain", "sets"}, exclude=told)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["teacher", "student", "merge", "export", "quantize", "uncut"])
def test_weights_are_the_same_byte_by_byte(both: tuple[Path, Path], stage: str) -> None:
    files = [file for file in sorted((both[0] / stage).rglob("*")) if file.suffix in (".safetensors", ".onnx")]
    assert files
    for file in files:
        assert file.read_bytes() == (both[1] / file.relative_to(both[0])).read_bytes(), file.name


@pytest.mark.slow
def test_int8_the_temperature_and_the_second_model_are_the_same(both: tuple[Path, Path]) -> None:
    """Would catch: ranges, a temperature, a candidate's score or a cascade that evaluation rows have a part in."""
    for kind in (QuantizeResult, CascadeResult):
        assert read_result(both[0], kind) == read_result(both[1], kind)
    assert read_result(both[0], CascadeResult).variants


@pytest.mark.slow
def test_the_artifact_decides_the_same(both: tuple[Path, Path]) -> None:
    """Would catch thresholds, sets or a precision that evaluation rows have a part in."""
    first, second = manifests(both)
    assert chosen(first.task) == chosen(second.task)
    assert any(chosen(first.task).values())
    assert first.providers == second.providers
    assert (first.temperature, first.folded_temperature) == (second.temperature, second.folded_temperature)
    assert {name: each.second for name, each in first.variants.items()} == {
        name: each.second for name, each in second.variants.items()
    }


@pytest.mark.slow
def test_the_evaluation_is_not_the_same(both: tuple[Path, Path]) -> None:
    tables: list[Any] = [read_result(root, PackageResult).table for root in both]
    assert tables[0]["teacher"]["accuracy"] > tables[1]["teacher"]["accuracy"] + 10


def decided(run: Run) -> TaskInfo:
    """The task of a finished run with its thresholds, by the fp32 graph."""
    data, answers = run.data(), answers_of(run.data(), run.folder("evaluate"), None)
    settings, variants, teacher = run.config.operating, variants_of(run), np.zeros((len(data.rows("tune")), 2))
    return decided_task(settings, data, variants, answers, variant="fp32", temperature=1.0, teacher=teacher)[0]


@pytest.mark.parametrize("asked", ASKED)
def test_thresholds_are_the_same_whatever_the_evaluation_rows_are(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """Would catch each kind of threshold chosen by the evaluation rows: their labels are the contrary."""
    operating = finished.config.operating.model_copy(update=asked)
    config = finished.config.model_copy(update={"operating": operating})
    run, rows_of = Run(root=finished.folder / "run", config=config), PreparedData.rows

    def contrary(data: PreparedData, split: str) -> datasets.Dataset:
        rows = rows_of(data, split)
        return rows if split != "eval" else rows.map(lambda row: {"label": 1 - row["label"]})

    before = decided(run)
    if before.abstain is not None and before.abstain.tuning is not None:
        assert sum(before.abstain.shares) == pytest.approx(before.abstain.tuning.coverage.value, abs=1e-5)
    monkeypatch.setattr(PreparedData, "rows", contrary)
    after = decided(run)
    assert chosen(before) == chosen(after)
    assert before != after  # what is told of the evaluation rows


@pytest.mark.parametrize("asked", ASKED)
def test_thresholds_know_the_groups_of_the_tuning_slice(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """Would catch a kind of threshold that counts rows of one group as independent: three groups show nothing."""
    operating = finished.config.operating.model_copy(update=asked)
    run = Run(root=finished.folder / "run", config=finished.config.model_copy(update={"operating": operating}))
    monkeypatch.setattr(PreparedData, "groups", lambda data, split: np.arange(len(data.rows(split))) % 3)
    with pytest.raises((InputError, AssertionError), match=r"confirms no threshold|too small"):
        decided(run)

"""`--slice` in a whole run: figures in manifest, report and `kdc evaluate`, and a bound on one slice."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import WORDS
from tiny_runs import arguments, base_model, kdc

from kdc.artifact.contract.judgement import judge_share
from kdc.artifact.folder import load_manifest
from kdc.pipeline.report.page import write_report
from kdc.tools.labelled import evaluate_artifact, render
from kdc.tools.verify import verify_artifact

pytestmark = pytest.mark.slow


def write(path: Path, count: int, *, seed: int) -> Path:
    """Pairs as `write_rows` makes them, with a language; in "de" the label is a coin."""
    generator = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("first", "second", "label", "language"))
        for number in range(count):
            yes, language = generator.random() < 0.5, ("en", "en", "de")[number % 3]
            first, second = (generator.choices(WORDS[3:], k=generator.randint(1, 8)) for _ in range(2))
            told = yes if language == "en" else generator.random() < 0.5
            label = "yes" if yes else "no"
            writer.writerow((" ".join(["w1" if told else "w2", *first]), " ".join(second), label, language))
    return path


SLICES = ("--slice", "language", "--slice", "length")
BOUNDS = ("--require", "accuracy[language=de]>=0.8", "--require", "accuracy[language=en]>=0.8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slices")
    base_model("bert", folder / "teacher", num_hidden_layers=2)
    write(folder / "train.csv", 500, seed=1)
    write(folder / "eval.csv", 300, seed=2)
    done = compress(folder)
    assert done.returncode == 0, done.stderr
    return folder


def compress(folder: Path, *more: str) -> Any:
    return kdc(*arguments(folder, folder / "teacher", *more), "--json")


def test_slices_redo_no_training_and_are_told_everywhere(folder: Path) -> None:
    """Would catch a column that the model reads, or hours of training for a table."""
    before = load_manifest(folder / "run" / "artifact")
    done = compress(folder, *SLICES, *BOUNDS)
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert [name for name, stage in document["stages"].items() if not stage["skipped"]] == ["data", "package"]
    manifest = load_manifest(folder / "run" / document["result"]["artifact"])
    assert {name: variant.metrics for name, variant in manifest.variants.items()} == {
        name: variant.metrics for name, variant in before.variants.items()
    }
    names = {part.name: part for part in manifest.slices}
    assert [name for name in names if name.startswith("language")] == ["language=en", "language=de"]
    assert [name for name, part in names.items() if part.is_worse] == ["language=de"]
    assert sum(part.rows for name, part in names.items() if name.startswith("length")) == 300
    with np.load(folder / "run" / document["result"]["artifact"] / "evaluation.npz") as kept:
        served = "student_int8_logits" if manifest.providers["CPUExecutionProvider"] == "int8" else "student_logits"
        right = (kept[served].argmax(1) == kept["label"])[2::3]  # the rows in "de"
    assert names["language=de"].metrics["accuracy"] == pytest.approx(100 * right.mean(), abs=1e-4)
    assert manifest.contract is not None
    assert [judge_share(share, "interval") for share in manifest.contract.required] == ["fail", "pass"]
    assert (manifest.contract.required[0].rate.hits, manifest.contract.required[0].rate.of) == (right.sum(), 100)
    assert any(note.startswith("language=de: macro_f1") for note in document["result"]["notes"])
    facts = write_report(folder / "run")
    assert facts.slices == manifest.slices
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert '<tr class="worse"><th scope="row">language=de</th>' in page
    assert "| language=de | 100 |" in (folder / "run" / "report.md").read_text(encoding="utf-8")
    artifact = folder / "run" / document["result"]["artifact"]
    evaluation = evaluate_artifact(
        artifact, folder / "eval.csv", columns={}, slices=("language", "length"), device="cpu"
    )
    assert evaluation.slices == manifest.slices
    assert "language=de" in render(evaluation)
    judged, _ = verify_artifact(artifact, data=folder / "eval.csv")
    assert [share.rate for share in judged.required] == [share.rate for share in manifest.contract.required]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--slice", "language", "--require", "accuracy[language=fr]>=0.8"), "one of de, en"),
        (("--require", "accuracy[language=de]>=0.8"), "add --slice language"),
        (("--slice", "land"), "no column 'land'; did you mean 'language'?"),
        (("--slice", "length", "--require", "accuracy[length=1-9]>=0.8"), "one of 1-8, 17-32, 9-16"),
    ],
)
def test_a_slice_that_no_row_has_is_refused_before_training(folder: Path, given: tuple[str, ...], told: str) -> None:
    done = compress(folder, *given)
    assert done.returncode == 2
    assert told in done.stderr
    assert "package" not in done.stderr

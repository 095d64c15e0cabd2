"""Every architecture from its encoder to a prediction by the engine in a fresh process, and every kind of task."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
import transformers
from conftest import Finished
from tiny_models import ARCHITECTURES, GATED

from kdc.artifact.folder import load_manifest
from kdc.common.errors import KdcError
from kdc.pipeline.models.opening import open_classifier
from kdc.pipeline.report.page import write_report

PREDICT = """
import json, sys
from kdc.serving.engine.engine import Engine
engine = Engine.load(sys.argv[1], variant="fp32", device="cpu", threads=1)
texts = [tuple(text) if isinstance(text, list) else text for text in json.loads(sys.argv[2])]
print(json.dumps([engine.logits(texts).tolist(), engine.predict(texts).tolist(), list(engine.labels),
                  "torch" in sys.modules or "transformers" in sys.modules]))
"""


def served(artifact: Path, texts: list[Any]) -> tuple[np.ndarray, np.ndarray, list[str], bool]:
    """Logits, probabilities, labels and whether torch was loaded, of the engine in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(artifact), json.dumps(texts)],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
        },
    )
    logits, probabilities, labels, heavy = json.loads(done.stdout)
    return np.array(logits), np.array(probabilities), labels, heavy


def trained(run: Path, texts: list[Any]) -> np.ndarray:
    """Logits of the merged student, one text at a time, by torch."""
    from transformers import AutoTokenizer

    model = open_classifier(run / "merge" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "merge" / "model")
    with torch.no_grad():
        rows = [
            model(**tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")).logits[0]
            for text in texts
        ]
    return torch.stack(rows).numpy()


# MiniLM is a BERT that reads the mean; DeBERTa has relative positions and a pooler of its own; the last two
# architectures have no entry in any table. Two students have fewer neurons, by two names of that in their configs; one
# of these has fewer heads too.
# One whose last layer moves to a place where another kind of attention stands, where the config can say it.
MOVED = "layers:0,3" if hasattr(transformers.ModernBertConfig(), "layer_types") else "layers:first-half"
STUDENTS = {"distilbert": "layers:0,1,ffn=9,heads=1", "mpnet": "layers:1,ffn=9", "modernbert": MOVED}
WHOLE_WAY = [
    ("bert", "first"),
    pytest.param("bert", "mean", marks=pytest.mark.slow),  # test_pooling.py compares its graph with the model
    *(pytest.param(name, "first", marks=pytest.mark.slow) for name in (*ARCHITECTURES, *GATED) if name != "bert"),
]


@pytest.mark.parametrize(("architecture", "pooling"), WHOLE_WAY)
def test_the_served_answer_is_the_trained_models(architecture: str, pooling: str, tmp_path: Path) -> None:
    teacher = tiny_runs.base_model(architecture, tmp_path / "teacher")
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    config = tiny_runs.config_for(
        tmp_path, teacher, "export.fp16=false", "quantize.enabled=false", f"teacher.pooling={pooling}"
    )
    if architecture in STUDENTS:
        student = config.student.model_copy(update={"model": STUDENTS[architecture]})
        config = config.model_copy(update={"student": student})
    table = tiny_runs.table_of(config)
    assert table["merged"]["accuracy"] > 75

    texts = [["w1 w7", "w9"], ["w2 w8 w9", "w4 w4 w5 w6 w7"], ["w1", "w80"]]
    logits, probabilities, labels, heavy = served(tmp_path / "run" / "artifact", texts)
    expected = trained(tmp_path / "run", texts)
    tolerance = 1e-4 * max(1.0, np.abs(expected).max())
    assert np.abs(expected[0] - expected[1]).min() > 1000 * tolerance  # a yes and a no are far from equal
    assert np.allclose(logits, expected, atol=tolerance)
    assert labels == ["no", "yes"]
    assert [labels[row.argmax()] for row in probabilities] == ["yes", "no", "yes"] or table["merged"]["accuracy"] < 99
    assert not heavy


SHORT = ("teacher.epochs=8", "student.epochs=8")


def run_kind(tmp_path: Path, label: Any, *sets: str, flags: dict[str, Any] | None = None) -> dict[str, Any]:
    teacher = tiny_runs.base_model("distilbert", tmp_path / "teacher")
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1, label=label)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2, label=label)
    longer = ("teacher.epochs=20", "student.epochs=20")  # these losses start with small gradients
    config = tiny_runs.config_for(tmp_path, teacher, *longer, "export.fp16=false", *sets, pair=False, flags=flags)
    table = tiny_runs.table_of(config)
    models = write_report(tmp_path / "run").models  # of every kind of task
    assert models.keys() == table.keys()
    return table


@pytest.mark.slow
def test_multi_label_from_a_cell_with_a_separator(tmp_path: Path) -> None:
    table = run_kind(
        tmp_path,
        lambda yes, generator: "|".join((["one"] if yes else ["two"]) + ["any"]),
        flags={"data.separator": "|"},
    )
    assert table["merged"]["macro_f1"] > 80
    _, probabilities, labels, _ = served(tmp_path / "run" / "artifact", ["w1 w5"])
    assert labels == ["any", "one", "two"]
    assert probabilities[0].sum() > 1.2  # each label for itself: "any" and "one"
    points = {point.label: point for point in load_manifest(tmp_path / "run" / "artifact").task.points}
    assert {label: point.aim for label, point in points.items()} == {"any": "f1", "one": "f1", "two": "f1"}
    assert (points["any"].threshold, points["any"].reached) == (0.5, False)  # no row is without it
    rates = points["one"].evaluation
    assert rates is not None
    assert rates.recall.of == sum("one" in row for row in (tmp_path / "eval.csv").read_text().splitlines())
    assert (rates.recall.value or 0) > 0.8


@pytest.mark.slow
def test_regression_answers_in_the_labels_own_unit(tmp_path: Path) -> None:
    table = run_kind(
        tmp_path, lambda yes, generator: f"{350_000 if yes else 50_000}", flags={"data.kind": "regression"}
    )
    assert table["merged"]["pearson"] > 90
    _, numbers, labels, _ = served(tmp_path / "run" / "artifact", ["w1 w5", "w2 w5"])
    assert labels == []
    assert numbers[0, 0] == pytest.approx(350_000, abs=70_000)
    assert numbers[1, 0] == pytest.approx(50_000, abs=70_000)


@pytest.mark.slow
def test_a_held_out_slice_stands_in_for_a_missing_evaluation_file(tmp_path: Path) -> None:
    table = run_kind(tmp_path, None, "quantize.enabled=false", *SHORT, flags={"data.eval": None})
    report = json.loads((tmp_path / "run" / "data" / "report.json").read_text())
    assert report["held_out"] == 50
    assert table["merged"]["accuracy"] > 75


@pytest.mark.slow
def test_the_paper_recipe_cuts_every_second_layer_of_the_pretrained_teacher(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    config = tiny_runs.config_for(tmp_path, teacher, flags={"run.recipe": "paper"})
    tiny_runs.compress(config, until="student")
    name = "encoder.layer.{}.output.dense.weight"
    cut = load_file(tmp_path / "run" / "student" / "base" / "model.safetensors")
    whole = load_file(teacher / "model.safetensors")
    assert torch.equal(cut["bert." + name.format(0)], whole[name.format(1)])
    adapters = json.loads((tmp_path / "run" / "student" / "adapter" / "adapter_config.json").read_text())
    assert all(target.endswith(("query", "value")) for target in adapters["target_modules"])


@pytest.mark.slow
def test_a_student_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    student = tiny_runs.base_model("mpnet", tmp_path / "student")  # pads with 1, makes no token types
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    sets = ("export.fp16=false", "quantize.enabled=false")
    config = tiny_runs.config_for(tmp_path, teacher, *sets, flags={"student.model": str(student)})
    table = tiny_runs.table_of(config)
    assert table["merged"]["accuracy"] > 75
    texts = [["w1 w7", "w9"], ["w2 w8 w9", "w4"]]
    logits, *_ = served(tmp_path / "run" / "artifact", texts)
    assert np.allclose(logits, trained(tmp_path / "run", texts), atol=1e-3)


@pytest.mark.slow
def test_a_teacher_of_the_hub_in_several_files_whose_labels_have_no_names(finished: Finished, tmp_path: Path) -> None:
    """As many of the hub's are: LABEL_0, LABEL_1, and weights in shards. Would catch names in another order, and files
    that are not read, in place of which a head is drawn at random."""
    made = finished.folder / "run" / "teacher" / "model"
    model, tokenizer = open_classifier(made), transformers.AutoTokenizer.from_pretrained(made)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    model.save_pretrained(tmp_path / "teacher", max_shard_size="5KB")
    tokenizer.save_pretrained(tmp_path / "teacher")
    assert len(list((tmp_path / "teacher").glob("*.safetensors"))) > 1
    flags = {"teacher.finetuned": True, "teacher.labels": "no,yes", "run.out": tmp_path / "run"}
    config = tiny_runs.config_for(finished.folder, tmp_path / "teacher", flags=flags)
    stages = tiny_runs.compress(config, until="student").stages
    assert stages["teacher"].metrics["tune"] == finished.result.stages["teacher"].metrics["tune"]
    assert "steps" not in stages["teacher"].metrics  # it is not trained again
    assert stages["student"].metrics["tune"]["accuracy"] > 75
    swapped = tiny_runs.config_for(
        finished.folder, tmp_path / "teacher", flags=flags | {"teacher.labels": "yes,no", "run.out": tmp_path / "other"}
    )
    with pytest.raises(KdcError, match="does not beat the majority"):
        tiny_runs.compress(swapped, until="teacher")


@pytest.mark.slow
def test_mnli_is_measured_on_both_its_validation_sets(tmp_path: Path) -> None:
    names = ("entailment", "neutral", "contradiction")
    generator = np.random.default_rng(0)
    (tmp_path / "MNLI").mkdir()
    for file, count in (("train", 600), ("dev_matched", 60), ("dev_mismatched", 50)):
        lines = ["index\tsentence1\tsentence2\tgold_label"]
        for index, label in enumerate(generator.integers(3, size=count)):
            words = " ".join(f"w{number}" for number in generator.integers(10, 80, size=4))
            lines.append(f"{index}\tw{label + 1} {words}\t{words}\t{names[label]}")
        (tmp_path / "MNLI" / f"{file}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    flags = {"data.task": "mnli", "data.data": tmp_path, "data.train": None, "data.eval": None, "data.text": None}
    sets = ("export.fp16=false", "quantize.enabled=false")
    config = tiny_runs.config_for(tmp_path, teacher, *sets, pair=False, flags=flags)
    table = tiny_runs.table_of(config)
    assert table["merged"]["accuracy"] > 60
    assert table["merged"]["accuracy_mismatched"] > 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda_reports_its_memory_and_ends_in_an_artifact(tmp_path: Path) -> None:
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    tiny_runs.write_rows(tmp_path / "train.csv", 500, seed=1)
    tiny_runs.write_rows(tmp_path / "eval.csv", 60, seed=2)
    config = tiny_runs.config_for(tmp_path, teacher, "run.precision=auto", flags={"run.device": "cuda"})
    result = tiny_runs.compress(config)
    for stage in ("teacher", "student"):
        assert result.stages[stage].metrics["peak_memory_bytes"] > 0
    accuracy: Any = result.metrics["merged"]["accuracy"]
    assert accuracy > 75

"""Runs on texts of which the telling word stands anywhere, and most are longer than a window."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from tiny_models import WORDS

import kdc
from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.pipeline.config.resolve import layer_of, resolve
from kdc.pipeline.config.tasks import Task
from kdc.pipeline.data.prepared import open_data, texts_of
from kdc.pipeline.models.loading import load_tokenizer
from kdc.pipeline.models.opening import open_classifier
from kdc.pipeline.training.baselines import Encoder
from kdc.pipeline.training.batches import Collator, Rows
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.joining import joined, parts_of
from kdc.serving.engine.long_texts import spread
from kdc.tools.reference import teacher_of

LENGTH = 24


def text_of(place: int, words: int, *, yes: bool, seed: int = 0) -> str:
    """Words that tell nothing, and one that tells."""
    drawn = random.Random(seed).choices(WORDS[3:], k=words)
    drawn.insert(place, "w1" if yes else "w2")
    return " ".join(drawn)


def write_rows(path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("first", "label"))
        for row in range(count):
            words, yes = draw.randint(5, 90), draw.random() < 0.5
            text = text_of(draw.randint(0, words), words, yes=yes, seed=seed * 10_000 + row)
            writer.writerow((text, "yes" if yes else "no"))


def settings(folder: Path, *changes: str) -> Any:
    return tiny_runs.config_for(
        folder, folder / "teacher", "long.mode=windows", f"data.max_length={LENGTH}", *changes, pair=False
    )


def finished(folder: Path, *changes: str) -> Path:
    tiny_runs.base_model("bert", folder / "teacher")
    write_rows(folder / "train.csv", 900, seed=1)
    write_rows(folder / "eval.csv", 200, seed=2)
    tiny_runs.compress(settings(folder, "export.fp16=false", *changes))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had no time to learn much, by which a way to join windows could be chosen."""
    shortly = ("long.join=mean", "teacher.epochs=1", "student.epochs=1", "student.allow_majority=true")
    return finished(tmp_path_factory.mktemp("long"), *shortly, "quantize.enabled=false")


@pytest.mark.slow
def test_a_word_is_found_wherever_it_stands(tmp_path: Path) -> None:
    """Who cuts these texts sees the word of some, and can but guess the others. Would catch windows that training
    leaves out, or that do not reach the artifact."""
    run = finished(tmp_path, "teacher.epochs=15", "student.epochs=15")
    manifest = json.loads((run / "artifact" / "manifest.json").read_text(encoding="utf-8"))
    with (run.parent / "eval.csv").open(encoding="utf-8") as stream:
        seen = np.mean([bool({"w1", "w2"} & {*row["first"].split()[: LENGTH - 2]}) for row in csv.DictReader(stream)])
    assert manifest["metrics"]["int8"]["accuracy"] > 100 * (seen + (1 - seen) / 2) + 4
    assert manifest["tokenizer"]["long"] == {"stride": 18, "windows": 8, "keep": 0, "join": ["mean"]}
    with kdc.load(run / "artifact") as engine:
        for yes in (True, False):
            texts = [text_of(place, 80, yes=yes, seed=place) for place in (0, 20, 40, 60, 80)]
            rows = engine.predict(texts)
            assert (rows[:, engine.labels.index("yes" if yes else "no")] > 0.5).sum() >= 4


def test_the_artifact_answers_as_the_trained_model_does_window_by_window(run: Path) -> None:
    """The oracle asks transformers for each window by itself and takes the mean of its log-probabilities."""
    texts = [text_of(5, 7, yes=True), text_of(50, 60, yes=False), text_of(3, 85, yes=True)]
    model = open_classifier(run / "merge" / "model").eval()
    assert model.config.kdc_join == ["mean"]
    with kdc.load(run / "artifact", variant="fp32") as engine, torch.inference_mode():
        answers = []
        for row in engine.encode(texts):
            parts, _ = spread([row])
            ids = [torch.tensor([part.ids]) for part in parts]
            logits = torch.cat([model(input_ids=each, attention_mask=torch.ones_like(each)).logits for each in ids])
            answers.append(logits[0] if len(parts) == 1 else logits.log_softmax(1).mean(0))
        assert [len(spread([row])[0]) for row in engine.encode(texts)] == [1, 4, 5]
        np.testing.assert_allclose(engine.logits(texts), torch.stack(answers), atol=1e-3)


def test_a_teacher_answers_texts_in_windows_as_it_answered_the_tokens_of_the_run(run: Path) -> None:
    """`kdc verify --teacher` compares with these answers. Would catch texts whose windows are cut or not joined."""
    data = open_data(run / "data")
    answer = teacher_of(data.task, str(run / "teacher" / "model"), load_manifest(run / "artifact").tokenizer)
    with np.load(run / "artifact" / "evaluation.npz") as kept:
        np.testing.assert_allclose(answer(texts_of(data.rows("eval"))), kept["teacher_logits"], atol=1e-5)


def test_rows_are_kept_in_windows_and_counted_as_rows(run: Path) -> None:
    data = open_data(run / "data")
    tokens, rows = data.tokens("student", "train"), data.rows("train")
    assert len(tokens) == len(rows)
    longest = max(tokens, key=lambda row: row["length"])
    assert sum(longest["windows"]) == longest["length"] == len(longest["input_ids"])
    assert max(longest["windows"]) == LENGTH
    assert len(longest["windows"]) > 4


def test_the_loss_may_be_of_each_window(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch labels that are not repeated with their windows, and a loss of whole rows under that name."""
    from kdc.pipeline.training import loop

    model = open_classifier(run / "merge" / "model").eval()
    model.training = True  # of the modules within none, which would draw dropout
    data = open_data(run / "data")
    rows = Rows([data.tokens("student", "train")])
    batch = Collator(pad_id=0)(rows.__getitems__(list(range(16))))
    task = Task(name="t", kind="classification", labels=("no", "yes"), text="first", label="label", metrics=())
    losses = {}
    for each in (False, True):
        trainer: Any = object.__new__(loop.DistillationTrainer)
        trainer.objective, trainer.tokens, trainer.class_weights = loop.Objective(task, each_window=each), 0, None
        trainer.model = model
        losses[each] = float(trainer.compute_loss(model, batch).detach())
    parts = parts_of(model, batch).detach()
    labels = batch["labels"]
    whole = joined(parts, batch["windows"], model.config)
    per_window = np.repeat(labels.numpy(), batch["windows"].numpy())
    assert len(per_window) == len(parts) > len(labels)
    assert losses[False] == pytest.approx(float(-whole.log_softmax(1)[range(16), labels].mean()), rel=1e-4)
    assert losses[True] == pytest.approx(float(-parts.log_softmax(1)[range(len(parts)), per_window].mean()), rel=1e-4)


def test_a_teacher_that_came_fine_tuned_and_a_student_from_elsewhere_join_as_asked(run: Path) -> None:
    """The teacher came fine-tuned, and its own config says the mean. Would catch an artifact whose windows are joined
    as another run chose, and a student whose config, which comes from elsewhere, says nothing of windows."""
    quick = ("student.min_steps=2", "student.epochs=0.1", "student.evaluations=1", "student.allow_majority=true")
    config = settings(run.parent, "teacher.finetuned=true", "long.join=max", *quick)
    changes = {
        "run": config.run.model_copy(update={"out": run.parent / "another"}),
        "teacher": config.teacher.model_copy(update={"model": str(run / "teacher" / "model")}),
        "student": config.student.model_copy(update={"model": str(run.parent / "teacher")}),
    }
    tiny_runs.compress(config.model_copy(update=changes), until="student")
    for folder in ("teacher/model", "student/base"):
        said = json.loads((run.parent / "another" / folder / "config.json").read_text(encoding="utf-8"))
        assert said["kdc_join"] == ["max"], folder


def test_a_baseline_takes_the_mean_whatever_the_checkpoint_says(run: Path) -> None:
    """Would catch the ways of a fine-tuned checkpoint's labels, taken for those of the encoder's vectors."""
    data = open_data(run / "data")
    tokens = data.tokens("teacher", "tune").select(range(8))
    answers = []
    for join in (None, ["max"], ["max", "first"]):
        model = open_classifier(run / "teacher" / "model")
        if join is not None:
            model.config.kdc_join = join
        model.save_pretrained(run.parent / "encoder")
        load_tokenizer(str(run / "teacher" / "model")).save_pretrained(run.parent / "encoder")
        encoder = Encoder(str(run.parent / "encoder"), data.task, environment=Environment(0), max_length=LENGTH)
        answers.append(encoder.vectors(None, tokens, apart=False))
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (("teacher.window_loss=each", "long.mode=cut"), "to take losses of"),
        (("data.max_length=15",), "hold too little"),
        (("long.stride=23",), "left out"),
        (("long.stride=18", "long.keep=5"), "left out"),
        (("long.keep=13",), "leaves no room"),
        (("data.kind=regression", "long.join=noisy-or"), "noisy-or"),
    ],
)
def test_windows_that_cannot_be_are_refused_before_any_training(
    changes: tuple[str, ...], problem: str, run: Path, tmp_path: Path
) -> None:
    tiny_runs.base_model("bert", tmp_path / "teacher")
    for name in ("train", "eval"):
        text = (run.parent / f"{name}.csv").read_text(encoding="utf-8")
        numbers = text.replace(",yes", ",1.5").replace(",no", ",0.5") if "regression" in changes[0] else text
        (tmp_path / f"{name}.csv").write_text(numbers, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        tiny_runs.compress(settings(tmp_path, *changes))
    assert not (tmp_path / "run" / "teacher").exists()


def test_settings_of_windows_without_windows_are_refused() -> None:
    """Would catch hours of training on cut rows by who forgot `--long windows`."""
    with pytest.raises(InputError, match="keep=3"):
        resolve(flags=layer_of({"data.task": "pydocs", "long.keep": 3}), sets={}, file={})


def test_a_title_cannot_be_kept_by_a_tokenizer_that_cuts_it(run: Path, tmp_path: Path) -> None:
    tiny_runs.base_model("bert", tmp_path / "teacher")
    said = tmp_path / "teacher" / "tokenizer_config.json"
    said.write_text(json.dumps(json.loads(said.read_text("utf-8")) | {"truncation_side": "left"}), "utf-8")
    for name in ("train", "eval"):
        (tmp_path / f"{name}.csv").write_text((run.parent / f"{name}.csv").read_text(encoding="utf-8"), "utf-8")
    with pytest.raises(InputError, match="cannot keep it"):
        tiny_runs.compress(settings(tmp_path, "long.keep=2"))

"""A student's folder: what was trained is what is read again, whatever was trained of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_models
import tiny_runs
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.config.training_settings import StudentSettings
from kdc.pipeline.models.loading import load_plain, load_tokenizer
from kdc.pipeline.models.vocabulary import read_kept, save_smaller
from kdc.pipeline.results.training import History, TrainingSummary
from kdc.pipeline.training import students
from kdc.pipeline.training.checkpoints import seal
from kdc.pipeline.training.environment import Environment
from kdc.pipeline.training.importance import unit_importance
from kdc.pipeline.training.students import StudentOrigin

SUMMARY = TrainingSummary(
    best_score=1.0,
    best_step=1,
    steps=1,
    rows_per_second=1.0,
    seconds=1.0,
    trainable_parameters=1,
    history=History(loss=[], score=[], tune_loss=[]),
    learning_rate=1.0,
    head_learning_rate=1.0,
    precision="fp32",
)


class Data:
    """Tokenised rows of every split, the same ones, whose class is that of their first word."""

    task = custom_task("t", "text", None, "label", "classification", ("no", "yes"))

    def __init__(self, rows: int = 70) -> None:
        draw = np.random.default_rng(0)
        self.ids = [[2, *draw.integers(4, 90, draw.integers(1, 9)).tolist(), 3] for _ in range(rows)]
        self.roles: set[str] = set()

    def tokens(self, role: str, split: str) -> Any:
        self.roles.add(role)
        label = [ids[1] % 2 for ids in self.ids]
        columns = {"row": range(len(label)), "input_ids": self.ids, "length": list(map(len, self.ids)), "label": label}
        return datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()})

    def rows(self, split: str) -> Any:
        return self.tokens("teacher", split)

    def groups(self, split: str) -> Any:
        return np.arange(len(self.ids))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    tiny_models.build("bert", tmp_path / "teacher", outputs=2)
    return tmp_path / "teacher"


def shaken(model: Any, *given: Any, **more: Any) -> TrainingSummary:
    """A training: what is trainable is changed."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    model.train()
    return SUMMARY


def distil(out: Path, teacher: Path, data: Data | None = None, **settings: Any) -> Any:
    given = StudentSettings(**({"model": "layers:0", "lora": {"r": 2, "dropout": 0.5}} | settings))
    origin = StudentOrigin(cut_from=str(teacher), role="teacher")
    environment, progress = Environment(seed=0), lambda *given, **more: None
    return students.distil(given, origin, data or Data(), None, out, environment, progress=progress)  # type: ignore[arg-type]


def answers(model: Any, data: Data, rows: int = 64) -> NDArray[np.float32]:
    """One row at a time, without padding."""
    with torch.no_grad():
        each = [torch.tensor([ids]) for ids in data.ids[:rows]]
        return np.stack([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy() for ids in each])


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"method": "lora"}, ["adapter", "base", "trained_logits.npy"]),
        ({"method": "lora", "lora": {"r": 2, "init": "olora"}}, ["adapter", "base", "below", "trained_logits.npy"]),
        ({"method": "full"}, ["base", "full", "trained_logits.npy"]),
        ({"method": "full", "model": "conv:channels=8"}, ["base", "full", "trained_logits.npy"]),
    ],
)
def test_a_trained_student_is_read_again_and_merged(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], files: list[str]
) -> None:
    """Would catch a student that is read without what was trained, or over other weights than it was trained on."""
    monkeypatch.setattr(students, "fine_tune", shaken)
    data, out = Data(), tmp_path / "student"
    result = distil(out, teacher, data, **settings)
    assert sorted(path.name for path in out.iterdir()) == files
    trained, merged = np.load(out / students.TRAINED_LOGITS), students.merged_student(out)
    assert trained.shape == (64, 2)
    loaded = students.load_student(out)
    assert not loaded.training
    largest = np.abs(trained).max()
    np.testing.assert_allclose(answers(loaded, data), trained, rtol=0, atol=1e-6 * largest)
    np.testing.assert_allclose(answers(merged.eval(), data), trained, rtol=0, atol=1e-5 * largest)
    assert np.abs(answers(load_plain(out / "base"), data) - trained).max() > 0.01
    assert not [name for name, _ in merged.named_modules() if "lora" in name]
    assert result.parameters == sum(weight.numel() for weight in merged.parameters())
    assert result.training == SUMMARY
    assert load_tokenizer(str(out / "base"))("w1")["input_ids"] == [2, 5, 3]
    assert data.roles == {"teacher"}


def test_adapters_that_are_no_numbers_are_not_merged(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "fine_tune", shaken)
    distil(tmp_path / "student", teacher)
    file = tmp_path / "student" / "adapter" / "adapter_model.safetensors"
    save_file({name: weight * torch.nan for name, weight in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="NaN"):
        students.merged_student(tmp_path / "student")


def test_a_student_is_trained_as_its_settings_say(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch rows padded by another id, checkpoints in another folder, or a control that gets what it does
    without."""
    asked: dict[str, Any] = {}

    def caught(model: Any, *given: Any, **more: Any) -> TrainingSummary:
        asked.update(more)
        return SUMMARY

    monkeypatch.setattr(students, "fine_tune", caught)
    tiny_models.build("roberta", tmp_path / "roberta", outputs=2)
    distil(tmp_path / "student", tmp_path / "roberta")
    progress = asked.pop("progress")
    assert progress(1, 2) is None
    assert asked == {
        "role": "teacher",
        "pad_id": 1,
        "checkpoints": tmp_path / "student" / "checkpoints",
        "new_modules": (),
        "teacher_logits": None,
        "unlabeled": True,
    }


@pytest.mark.parametrize(("dropout", "drops"), [(StudentSettings().dropout, False), ("own", True)])
def test_a_student_is_trained_without_dropout_unless_it_is_asked_for(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: Any, drops: bool
) -> None:
    """Would catch the checkpoint's own dropout under a student that is to copy its teacher's logits."""
    trained: list[Any] = []

    def caught(student: Any, *given: Any, **more: Any) -> TrainingSummary:
        trained.append(student)
        raise InterruptedError

    monkeypatch.setattr(students, "fine_tune", caught)
    with pytest.raises(InterruptedError):
        distil(tmp_path / "student", teacher, dropout=dropout, lora={"r": 2, "dropout": 0})
    ids = torch.arange(4, 12)[None]
    first, second = (trained[0].train()(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second) is not drops


def summary(losses: list[float], planned: int, seconds: float) -> TrainingSummary:
    """A training with an evaluation every 10 steps, whose least loss is kept."""
    looks = [(10 * number, loss) for number, loss in enumerate(losses, 1)]
    best = min(looks, key=lambda look: look[1])[0]
    history = History(loss=[], score=[], tune_loss=looks)
    update = {"best_step": best, "steps": looks[-1][0], "planned_steps": planned, "seconds": seconds}
    return SUMMARY.model_copy(update={**update, "history": history})


@pytest.mark.parametrize(
    ("model", "planned", "hours", "shorter_loss", "trainings", "kept"),
    [
        ("static", 90, None, 0.4, 2, 1),
        ("static", 90, None, 0.6, 2, 0),
        ("static", 90, 1.0, 0.4, 2, 1),
        ("static", 40, None, 0.4, 1, 0),
        ("static", 90, 0.25, 0.4, 1, 0),
        ("layers:0", 90, None, 0.4, 1, 0),
    ],
    ids=["better", "worse", "within the hours", "late best step", "out of time", "layers"],
)
def test_a_training_whose_best_step_came_early_is_repeated_by_a_schedule_of_twice_that_step(
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    planned: int,
    hours: float | None,
    shorter_loss: float,
    trainings: int,
    kept: int,
) -> None:
    """Would catch a shorter training that starts from trained weights, is kept though worse, or passes the hours."""
    runs = [summary([0.7, 0.5, 0.6, 0.6], planned, 900.0), summary([0.9, 0.8, shorter_loss], 30, 100.0)]
    asked: list[StudentSettings] = []
    starts: list[float] = []

    def caught(student: Any, settings: StudentSettings, *given: Any, **more: Any) -> TrainingSummary:
        asked.append(settings)
        starts.append(student.classifier.bias.sum().item())
        student.classifier.bias.data.fill_(float(len(asked)))
        return runs[len(asked) - 1]

    monkeypatch.setattr(students, "fine_tune", caught)
    result = distil(tmp_path / "student", teacher, model=model, method="full", patience=2, hours=hours)
    assert len(asked) == trainings
    assert starts == [0.0] * trainings
    saved: Any = load_plain(tmp_path / "student" / "full")
    assert saved.classifier.bias.tolist() == [kept + 1.0] * 2
    assert result.training is not None
    assert (result.training.best_step, result.training.seconds) == ((20, 30)[kept], sum((900, 100)[:trainings]))
    if trainings == 2:
        assert (asked[1].min_steps, asked[1].patience) == (40, None)
        assert asked[1].hours == (None if hours is None else hours - 0.25)


def stopped(model: Any, *given: Any, **more: Any) -> TrainingSummary:
    raise InterruptedError(float(model.classifier.bias.sum()))


def test_a_training_that_goes_on_keeps_its_base(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch adapters of a checkpoint over other neurons: another machine may choose others."""
    monkeypatch.setattr(students, "fine_tune", stopped)
    out = tmp_path / "student"
    settings: dict[str, Any] = {"model": "layers:0,ffn=8", "method": "full"}
    chosen: list[int] = []

    def importance(*given: Any, **more: Any) -> Any:
        chosen.append(1)
        return unit_importance(*given, **more)

    monkeypatch.setattr(students, "unit_importance", importance)
    for _ in range(2):  # without a checkpoint the base is made anew
        with pytest.raises(InterruptedError) as caught:
            distil(out, teacher, **settings)
        assert caught.value.args[0] == 0
        changed: Any = load_plain(out / "base")
        changed.classifier.bias.data.fill_(3.5)
        changed.save_pretrained(out / "base")
    assert len(chosen) == 2
    checkpoint = out / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text("")
    seal(checkpoint)
    with pytest.raises(InterruptedError) as caught:
        distil(out, teacher, **settings)
    assert caught.value.args[0] == pytest.approx(7.0)
    assert len(chosen) == 2


def test_the_neurons_of_a_narrower_student_are_those_that_matter(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle: neurons whose outgoing weights are 0 matter to no answer."""
    whole: Any = load_plain(teacher)
    for layer in whole.bert.encoder.layer:
        layer.output.dense.weight.data[:, ::2] = 0
    whole.save_pretrained(teacher)
    monkeypatch.setattr(students, "fine_tune", lambda *given, **more: SUMMARY)
    distil(tmp_path / "student", teacher, model="layers:0,ffn=16", method="full")
    narrow: Any = load_plain(tmp_path / "student" / "base")
    kept, before = (model.bert.encoder.layer[0].output.dense.weight for model in (narrow, whole))
    assert torch.equal(kept, before[:, 1::2])


@pytest.fixture
def pieces(tmp_path: Path) -> tuple[Path, Path]:
    """A teacher and a smaller vocabulary of it."""
    teacher = tiny_runs.pieces_model(tmp_path / "whole")
    save_smaller(str(teacher), range(tiny_runs.SINGLE), 0, tmp_path / "smaller")
    return teacher, tmp_path / "smaller"


def test_a_teacher_that_is_its_own_student_answers_as_before(
    teacher: Path, pieces: tuple[Path, Path], tmp_path: Path
) -> None:
    data = Data(10)
    (tmp_path / "a").mkdir()
    students.keep_teacher(teacher, StudentOrigin(str(teacher), "teacher"), data, tmp_path / "a")  # type: ignore[arg-type]
    expected = answers(load_plain(teacher), data)
    np.testing.assert_allclose(np.load(tmp_path / "a" / students.TRAINED_LOGITS), expected, atol=1e-5)
    np.testing.assert_allclose(answers(students.merged_student(tmp_path / "a"), data), expected, atol=1e-5)
    assert load_tokenizer(str(tmp_path / "a" / "base"))("w1")["input_ids"] == [2, 5, 3]


def test_a_teacher_with_fewer_pieces_answers_as_the_whole_one(pieces: tuple[Path, Path], tmp_path: Path) -> None:
    """Would catch vectors of other pieces, and a score by other tokens than those of the role."""
    teacher, smaller = pieces
    model = students.new_student("teacher", Data.task, cut_from=str(teacher))[0].model
    model.save_pretrained(tmp_path / "tuned")
    load_tokenizer(str(teacher)).save_pretrained(tmp_path / "tuned")
    data, kept = Data(10), read_kept(smaller)
    data.ids = [[2, 4, place, 3] for place in range(5, 15)]
    expected = answers(model.eval(), data)
    data.ids = np.searchsorted(kept, data.ids).tolist()
    origin = StudentOrigin(str(tmp_path / "tuned"), "fewer", vocabulary=smaller)
    (tmp_path / "b").mkdir()
    result = students.keep_teacher(tmp_path / "tuned", origin, data, tmp_path / "b")  # type: ignore[arg-type]
    np.testing.assert_allclose(np.load(tmp_path / "b" / students.TRAINED_LOGITS), expected, atol=1e-5)
    assert len(load_tokenizer(str(tmp_path / "b" / "base"))) == len(kept) < len(load_tokenizer(str(teacher)))
    right = expected.argmax(1) == [ids[1] % 2 for ids in data.ids]
    assert result.tune["accuracy"] == pytest.approx(100 * right.mean())
    assert result.parameters == load_plain(tmp_path / "b" / "base").num_parameters()
    assert data.roles == {"fewer", "teacher"}  # the labels are of no role


@pytest.mark.parametrize(("rows", "probed"), [(70, 64), (64, 64), (9, 9)])
def test_the_first_rows_of_the_tuning_slice_are_compared(rows: int, probed: int) -> None:
    data = Data(rows)
    found = students.probe_rows(data, "student")  # type: ignore[arg-type]
    assert [row["row"] for row in found.__getitems__(range(len(found)))] == list(range(probed))  # type: ignore[arg-type]
    assert data.roles == {"student"}


def test_a_student_that_is_a_checkpoint_has_its_own_tokenizer(
    teacher: Path, pieces: tuple[Path, Path], tmp_path: Path
) -> None:
    own, (whole, smaller) = tmp_path / "own", pieces
    tiny_models.build("roberta", own, outputs=2)
    loaded, place = students.new_student(str(own), Data.task, cut_from=str(teacher))
    assert (type(loaded.model).__name__, place) == ("RobertaForSequenceClassification", str(own))
    loaded, place = students.new_student("layers:1", Data.task, cut_from=str(teacher))
    assert (loaded.model.config.num_hidden_layers, place) == (1, str(teacher))
    loaded, place = students.new_student("layers:1", Data.task, cut_from=str(whole), vocabulary=smaller)
    assert (loaded.model.config.vocab_size, place) == (len(read_kept(smaller)), str(smaller))


def test_a_students_windows_are_joined_as_its_origin_says(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "fine_tune", lambda *given, **more: SimpleNamespace(**SUMMARY.model_dump()))
    monkeypatch.setattr(students, "score_model", stopped_at_score)
    origin = StudentOrigin(cut_from=str(teacher), role="teacher", join=("max",))
    with pytest.raises(InterruptedError):
        students.distil(
            StudentSettings(model="layers:0", method="full"),
            origin,
            Data(),  # type: ignore[arg-type]
            None,
            tmp_path / "student",
            Environment(seed=0),
            progress=lambda *given, **more: None,
        )
    assert load_plain(tmp_path / "student" / "base").config.kdc_join == ["max"]


def stopped_at_score(*given: Any, **more: Any) -> Any:
    raise InterruptedError

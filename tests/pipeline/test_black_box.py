"""A black box in the teacher's place: what it said is learned from and compared with; what does not fit is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny_runs
from scipy.special import softmax
from tiny_runs import base_model, config_for, write_rows

from kdc.artifact.folder import load_manifest
from kdc.artifact.task_kinds import Kind
from kdc.common.errors import InputError
from kdc.common.progress import Reporter
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.prepared import PreparedData, digest, open_data
from kdc.pipeline.data.scores import Scores, scores_of_rows
from kdc.pipeline.report.page import write_report
from kdc.pipeline.results.training import ModelResult
from kdc.pipeline.run import compress
from kdc.pipeline.rundir.context import open_run
from kdc.pipeline.stages import controls
from kdc.pipeline.stages.teacher import _keep_scores, are_the_labels
from kdc.pipeline.training import students

ALMOST = 0.9  # how sure the black box is of what it says


def answers(folder: Path, *, names: tuple[str, str] = ("no", "yes"), wrong_every: int = 20) -> list[dict[str, str]]:
    """What a black box says of all rows: mostly the truth."""
    rows = []
    for file in ("train.csv", "eval.csv"):
        with (folder / file).open(encoding="utf-8") as stream:
            rows += list(csv.DictReader(stream))
    found = {}
    for number, row in enumerate(rows, 1):
        yes = (row["label"] == "yes") != (number % wrong_every == 0)
        share = ALMOST if yes else 1 - ALMOST
        found[row["first"], row["second"]] = {
            "first": row["first"],
            "second": row["second"],
            names[0]: f"{1 - share}",
            names[1]: f"{share}",
        }
    return list(found.values())


def without(row: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in names}


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A finished data stage, and settings whose teacher is a file."""
    folder = tmp_path_factory.mktemp("boxed")
    write_rows(folder / "train.csv", 320, seed=1)
    write_rows(folder / "eval.csv", 100, seed=2)
    scores = write(folder / "scores.csv", answers(folder))
    config = config_for(
        folder,
        base_model("bert", folder / "base"),
        f"teacher.scores={scores}",
        "student.cut_from=finetuned",
        "export.fp16=false",
        "student.epochs=20",
    )
    tiny_runs.compress(config, until="data")
    return folder, config


@pytest.fixture
def data(boxed: tuple[Path, Config]) -> PreparedData:
    return open_data(boxed[0] / "run" / "data")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_probabilities_become_logits_by_row_id(
    boxed: tuple[Path, Config], data: PreparedData, tmp_path: Path, ending: str
) -> None:
    found = scores_of_rows(write(tmp_path / f"scores{ending}", answers(boxed[0])), data)
    total = sum(len(data.rows(split)) for split in ("train", "tune", "eval"))
    assert found.shape == (total, 2)
    shares = np.exp(found.astype(np.float64))
    assert set(np.round(shares[:, 1], 4).tolist()) == {0.1, 0.9}
    rows = data.rows("eval")
    agree = found[np.asarray(rows["row"][:])].argmax(1) == np.asarray(rows["label"][:])
    assert 0.9 < agree.mean() < 1


def test_labels_are_found_whatever_their_case(boxed: tuple[Path, Config], data: PreparedData, tmp_path: Path) -> None:
    rows = answers(boxed[0])
    exact = scores_of_rows(write(tmp_path / "exact.csv", rows), data)
    other = [without(row, "no", "yes") | {"label": "no", "No": row["no"], "YES": row["yes"]} for row in rows]
    assert (scores_of_rows(write(tmp_path / "other.csv", other), data) == exact).all()


@pytest.mark.parametrize(("wrong_every", "warns"), [(10**9, True), (20, False)])
def test_answers_that_are_all_the_labels_are_asked_about(
    boxed: tuple[Path, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong_every: int, warns: bool
) -> None:
    folder, _ = boxed
    scores = write(tmp_path / "scores.csv", answers(folder, wrong_every=wrong_every))
    config = config_for(folder, folder / "base", f"teacher.scores={scores}", flags={"run.out": tmp_path / "run"})
    compress(config, reporter=Reporter(), until="teacher")
    assert ("their true label" in capsys.readouterr().err) is warns


def test_a_table_of_labels_and_scores_is_not_asked_about(
    boxed: tuple[Path, Config], data: PreparedData, tmp_path: Path
) -> None:
    """`kdc label` writes one: its labels are the black box's answers."""
    scores, said = write(tmp_path / "scores.csv", answers(boxed[0], wrong_every=10**9)), list[str]()
    for train in (scores, tmp_path / "train.csv", None):
        _keep_scores(scores, train, data, tmp_path, said.append)
        assert len(said) == (0 if train == scores else 1)
        said.clear()


def by_id(data: PreparedData) -> list[dict[str, str]]:
    """The truth of each row, by the data stage's ids."""
    found = []
    for split in ("train", "tune", "eval"):
        rows = data.rows(split)
        found += [
            {"row": str(row), "label": data.task.labels[label]}
            for row, label in zip(rows["row"][:], rows["label"][:], strict=True)
        ]
    return found


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_answers_are_found_by_the_rows_id(data: PreparedData, tmp_path: Path, ending: str) -> None:
    rows = by_id(data)
    found = scores_of_rows(write(tmp_path / f"answers{ending}", rows[::-1]), data)
    assert [data.task.labels[place] for place in found.argmax(1)] == [row["label"] for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "do not cover all rows"),
        (lambda rows: [{**rows[0], "row": "0.5"}, *rows[1:]], "no whole numbers"),
        (lambda rows: [{**rows[0], "row": "-1"}, *rows[1:]], "no whole numbers"),
        (lambda rows: [*rows, {**rows[0], "label": "no" if rows[0]["label"] == "yes" else "yes"}], "two answers"),
    ],
)
def test_ids_that_do_not_fit_are_refused(
    data: PreparedData, tmp_path: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        scores_of_rows(write(tmp_path / "answers.csv", change(by_id(data))), data)


def test_bare_answers_are_taken_for_nearly_sure(boxed: tuple[Path, Config], data: PreparedData, tmp_path: Path) -> None:
    rows = [
        {"first": row["first"], "second": row["second"], "label": "yes" if float(row["yes"]) > 0.5 else "no"}
        for row in answers(boxed[0])
    ]
    found = scores_of_rows(write(tmp_path / "answers.csv", rows), data)
    assert np.exp(found).max(1).tolist() == pytest.approx([0.95] * len(found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-30], "do not cover all rows"),
        (lambda rows: [row | {"yes": "1.5"} for row in rows], "no probabilities"),
        (lambda rows: [row | {"yes": "0.5", "no": "0.1"} for row in rows], "no probabilities"),
        (lambda rows: [row | {"yes": ""} for row in rows], "not all numbers"),
        (
            lambda rows: [{"first": row["first"], "yes": row["yes"], "no": row["no"]} for row in rows],
            "no column second",
        ),
        (lambda rows: [{"first": row["first"], "second": row["second"]} for row in rows], "neither a column for each"),
        (
            lambda rows: [{"first": row["first"], "second": row["second"], "label": "perhaps"} for row in rows],
            "unknown labels",
        ),
        # The data itself with scores added: its label is not what the black box said.
        (
            lambda rows: [
                without(row, "no", "yes") | {"label": "yes", "prob_no": row["no"], "prob_yes": row["yes"]}
                for row in rows
            ],
            r"label, and also what may be probabilities \(prob_no, prob_yes\)",
        ),
        (
            lambda rows: [without(row, "no", "yes") | {"label": "yes", "answer": "no"} for row in rows],
            "label, answer may all be the answer",
        ),
        (lambda rows: [*rows[:4], rows[4] | {"yes": "sure"}, *rows[5:]], "row 5"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    boxed: tuple[Path, Config], data: PreparedData, tmp_path: Path, change: object, message: str
) -> None:
    rows = change(answers(boxed[0]))  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        scores_of_rows(write(tmp_path / "scores.csv", rows), data)


def test_a_file_without_rows_is_refused(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("first,second,label,score\n")
    with pytest.raises(InputError, match="no rows"):
        scores_of_rows(tmp_path / "scores.csv", data)


def test_a_number_beside_the_answer_may_be_the_answer_in_regression(data: PreparedData, tmp_path: Path) -> None:
    task = custom_task("ratings", "first", "second", "rating", "regression")
    rows = [
        {"first": "a", "second": "b", "rating": "1", "model": "x", "": "0"},  # as pandas writes its index
        {"first": "c", "second": "d", "rating": "2.5", "model": "x", "": "1"},
    ]
    known, _ = Scores(write(tmp_path / "answers.csv", rows), task).by_key()
    assert known[digest(("c", "d"))].tolist() == [2.5]
    with pytest.raises(InputError, match="rating, score may all be the answer"):
        Scores(write(tmp_path / "both.csv", [row | {"score": "4.5"} for row in rows]), task).by_key()


@pytest.mark.parametrize(
    ("kind", "logits", "labels", "other"),
    [
        ("regression", [[-1.0], [1.0]], [1.0, 5.0], [1.0, 4.0]),
        ("multilabel", [[9.0, -9.0], [-9.0, 9.0]], [[1, 0], [0, 1]], [[1, 0], [1, 1]]),
        ("classification", [[9.0, -9.0], [-9.0, 9.0]], [0, 1], [0, 0]),
    ],
)
def test_answers_that_are_the_labels_are_known_for_every_kind(
    kind: Kind, logits: list, labels: list, other: list
) -> None:
    task = custom_task("ratings", "text", None, "rating", kind)
    task = task.model_copy(update={"center": 3.0, "spread": 2.0})
    found = np.array(logits, dtype=np.float32)
    assert are_the_labels(found, np.array(labels), task)
    assert not are_the_labels(found, np.array(other), task)


def test_a_file_of_another_format_is_refused(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "scores.xml").write_text("")
    with pytest.raises(InputError, match="unknown file format"):
        scores_of_rows(tmp_path / "scores.xml", data)


@pytest.mark.slow
def test_a_student_is_made_from_a_black_box_and_compared_with_it(boxed: tuple[Path, Config]) -> None:
    folder, config = boxed
    table = tiny_runs.table_of(config)
    assert table["teacher"]["macro_f1"] == pytest.approx(95, abs=4)
    assert "latency_p50_ms" not in table["teacher"]
    assert table["merged"]["macro_f1"] > 80
    run = folder / "run"
    with np.load(run / "artifact" / "evaluation.npz") as kept:
        assert set(np.round(np.exp(kept["teacher_logits"].astype(np.float64)).max(1), 4).tolist()) == {0.9}
    lineage = load_manifest(run / "artifact").lineage
    assert lineage.teacher == "a black box (scores.csv)"
    assert "pretrained" in lineage.student
    facts = write_report(run)
    assert "times smaller" not in facts.verdict
    assert facts.models["int8"].kept_percent is not None
    assert facts.models["int8"].kept_percent > 80


def test_at_alpha_1_a_black_box_is_followed_though_it_contradicts_every_label(
    boxed: tuple[Path, Config], tmp_path: Path
) -> None:
    """Would catch: distillation that is switched off, or labels that get into its loss."""
    folder, _ = boxed
    scores = write(tmp_path / "scores.csv", answers(folder, wrong_every=1))
    config = config_for(
        folder,
        folder / "base",
        f"teacher.scores={scores}",
        "student.cut_from=finetuned",
        "student.epochs=20",
        "student.alpha=1",
        "student.allow_majority=true",
        flags={"run.out": tmp_path / "run"},
    )
    tiny_runs.compress(config, until="student")
    record = json.loads((tmp_path / "run" / "student" / "stage.json").read_text(encoding="utf-8"))
    assert record["metrics"]["tune"]["accuracy"] < 20


def test_calibrated_targets_are_as_sure_as_the_teacher_is_right(boxed: tuple[Path, Config], tmp_path: Path) -> None:
    folder, _ = boxed
    scores = write(tmp_path / "scores.csv", answers(folder, wrong_every=4))  # surer than it is right
    config = config_for(
        folder,
        folder / "base",
        f"teacher.scores={scores}",
        "targets.calibrate=true",
        flags={"run.out": tmp_path / "run"},
    )
    tiny_runs.compress(config, until="targets")
    tune = open_data(tmp_path / "run" / "data").rows("tune")
    places = np.asarray(tune["row"][:])
    said = np.load(tmp_path / "run" / "teacher" / "scores.npy")[places].argmax(1)
    right = float((said == np.asarray(tune["label"][:])).mean())
    shares = softmax(np.load(tmp_path / "run" / "targets" / "logits.npy").astype(np.float64), axis=1).max(axis=1)
    assert 0.6 < right < 0.85
    assert shares.tolist() == pytest.approx([right] * len(shares), abs=1e-3)


@pytest.mark.slow
def test_other_unlabelled_rows_are_not_given_the_answers_of_the_old_ones(
    boxed: tuple[Path, Config], tmp_path: Path
) -> None:
    folder, _ = boxed
    rows = answers(folder)
    extra = [rows[0] | {"first": f"w1 extra {number}", "second": f"w3 of {number}"} for number in range(40)]
    scores = write(tmp_path / "scores.csv", rows + extra)
    found = []
    for part, most in ((extra[:20], None), (extra[20:30], None), (extra[20:30], 4)):
        texts = write(tmp_path / "texts.csv", [without(row, "yes", "no") for row in part])
        config = config_for(
            folder,
            folder / "base",
            f"teacher.scores={scores}",
            "student.min_steps=0",
            flags={"run.out": tmp_path / "run", "data.unlabeled": texts, "data.max_unlabeled_rows": most},
        )
        tiny_runs.compress(config, until="targets")
        data = open_data(tmp_path / "run" / "data")
        kept = np.load(tmp_path / "run" / "teacher" / "scores.npy")
        assert len(kept) == sum(len(data.rows(split)) for split in ("train", "tune", "unlabeled", "eval"))
        found.append(len(np.load(tmp_path / "run" / "targets" / "logits.npy")))
    assert found[0] - found[1] == 10
    assert found[1] - found[2] == 6
    tiny_runs.compress(config, until="student")
    record = json.loads((tmp_path / "run" / "student" / "stage.json").read_text(encoding="utf-8"))
    both = len(data.rows("train")) + len(data.rows("unlabeled"))
    assert record["metrics"]["train_rows"] == both  # a student learns from the unlabelled rows too
    # The control without them. The bugs to catch: it has them too, or learns from the labels alone.
    asked = config.model_copy(update={"run": config.run.model_copy(update={"controls": True})})
    run, made = open_run(tmp_path / "run", asked, Reporter()), dict[str, Any]()

    def noted(_: Any, work: Path, **how: Any) -> ModelResult:
        made[work.stem] = how
        (work / "model").mkdir(parents=True)
        return ModelResult.model_validate(record["metrics"])

    (tmp_path / "controls").mkdir()
    with mock.patch.multiple(controls, student_control=noted, teacher_lora=noted):
        controls.run(run, tmp_path / "controls")
    with mock.patch("kdc.pipeline.stages.controls.distil", wraps=students.distil) as distil:
        control = controls.student_control(run, tmp_path / "control", **made["student_without_unlabeled"])
    assert control.training is not None
    assert control.training.train_rows == len(data.rows("train"))
    assert distil.call_args.args[0].min_steps == record["metrics"]["steps"]  # as many as with them
    assert distil.call_args.args[3] == tmp_path / "run" / "targets" / "logits.npy"
    assert (tmp_path / "control" / "model" / "tokenizer.json").exists()


def test_texts_that_look_like_nothing_or_a_number_are_texts(data: PreparedData, tmp_path: Path) -> None:
    odd = [("null", "007", "0.9", "0.1"), ("NA", "1.50", "1", "0")]
    names = ("first", "second", "yes", "no")
    path = write(tmp_path / "odd.csv", [dict(zip(names, row, strict=True)) for row in odd])
    known, _ = Scores(path, data.task).by_key()
    assert set(known) == {digest(("null", "007")), digest(("NA", "1.50"))}

"""`kdc verify --unlabelled`: who labels only what two models answer differently gets the same verdict."""

import csv
import json
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bag_models
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import kdc
from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.terms import Contract, replace
from kdc.cli import app
from kdc.common.errors import InputError, KdcError
from kdc.tools.filled import check_task
from kdc.tools.unlabelled import ToLabel, texts_to_label
from kdc.tools.verify import verify_artifact

TASK = bag_models.SINGLE.model_copy(update={"metric": "accuracy"})
LABELS = TASK.labels
Row = tuple[str, str, str]  # text, the teacher's answer, the true label


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bag_models.write_artifact(tmp_path_factory.mktemp("unlabelled") / "artifact", TASK)


def answer_of(text: str) -> str:
    return LABELS[int(bag_models.expected_logits(text, scale=1.01).argmax())]


def other_than(*labels: str) -> str:
    return next(label for label in LABELS if label not in labels)


def texts(count: int, seed: int = 0) -> list[str]:
    """Different ones, of at most five words."""
    generator, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        found[" ".join(generator.choices([f"w{n}" for n in range(20)], k=generator.randint(1, 5)))] = None
    return list(found)


def rows_with(lost: int, won: int, neither: int, alike: int) -> list[Row]:
    """Rows of which so many are lost and won by the artifact, wrong in two ways, and answered alike."""
    rows = []
    for place, text in enumerate(texts(lost + won + neither + alike)):
        mine = answer_of(text)
        other = other_than(mine)
        if place < lost:
            rows.append((text, other, other))
        elif place < lost + won:
            rows.append((text, other, mine))
        elif place < lost + won + neither:
            rows.append((text, other, other_than(mine, other)))
        else:
            rows.append((text, mine, mine))
    random.Random(1).shuffle(rows)
    return rows


def write(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sentence", "old_model"])
        writer.writerows((text, teacher) for text, teacher, _ in rows)
    return path


def to_label(artifact: Path, folder: Path, rows: Sequence[Row], **how: Any) -> ToLabel:
    given = {"max_drop": 1.0} | how.pop("given", {})
    source, out = write(folder / "rows.csv", rows), folder / "label.csv"
    how = {"teacher_column": "old_model"} | how
    return texts_to_label(artifact, given=given, columns={}, unlabelled=str(source), to_label=out, **how)


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return list(csv.reader(stream))


def fill(path: Path, labels: dict[str, str]) -> Path:
    """Write a label beside each text that has one."""
    header, *rows = read(path)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *([*row[:-1], labels.get(row[1], "")] for row in rows)])
    return path


def truth(rows: Sequence[Row]) -> dict[str, str]:
    return {text: label for text, _, label in rows}


def judged(artifact: Path, filled: Path, max_drop: float = 1.0, **given: Any) -> Judgement:
    return verify_artifact(artifact, labelled=filled, given={"max_drop": max_drop} | given)[0]


def one_hot(answers: Sequence[str]) -> NDArray[np.float64]:
    return np.eye(len(LABELS))[[LABELS.index(answer) for answer in answers]]


def fully_labelled(rows: Sequence[Row], max_drop: float = 1.0) -> Any:
    """What `kdc.judge` says of all rows with all their labels."""
    mine, theirs, labels = zip(*((answer_of(text), teacher, label) for text, teacher, label in rows), strict=True)
    names = [text for text, _, _ in rows]
    places = [LABELS.index(label) for label in labels]
    return kdc.judge(one_hot(mine), one_hot(theirs), places, max_drop=max_drop, groups=names)


def test_only_differing_texts_are_to_be_labelled_and_each_counts_by_its_label(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=4, won=1, neither=2, alike=193)
    written = to_label(artifact, tmp_path, rows)
    assert (written.rows, written.differing, written.to_label, written.rows_judged) == (200, 7, 7, 200)
    differing = {text for text, teacher, _ in rows if answer_of(text) != teacher}
    assert {row[1] for row in read(tmp_path / "label.csv")[1:]} == differing
    quality = judged(artifact, fill(tmp_path / "label.csv", truth(rows))).quality
    assert quality is not None
    assert quality.difference == -1.5  # (1 - 4) of 200 rows
    assert (quality.rows, quality.metric, quality.student, quality.teacher) == (200, "accuracy", None, None)


def test_a_file_that_a_spreadsheet_saved_gives_the_same_verdict(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=4, won=1, neither=2, alike=193)
    to_label(artifact, tmp_path, rows)
    before = judged(artifact, fill(tmp_path / "label.csv", truth(rows)))
    filled = read(tmp_path / "label.csv")
    with (tmp_path / "label.csv").open("w", newline="", encoding="cp1252") as stream:
        csv.writer(stream, delimiter=";").writerows(filled)
    columns = {"delimiter": ";", "encoding": "cp1252"}
    after = verify_artifact(artifact, labelled=tmp_path / "label.csv", given={"max_drop": 1.0}, columns=columns)[0]
    assert after.quality == before.quality


@pytest.mark.parametrize(
    ("counts", "max_drop", "verdict"),
    [((0, 2, 0, 798), 1.0, "pass"), ((40, 2, 3, 355), 1.0, "fail"), ((4, 4, 4, 288), 1.0, "not shown")],
)
def test_the_verdict_is_the_one_of_all_labels(
    artifact: Path, tmp_path: Path, counts: tuple[int, int, int, int], max_drop: float, verdict: str
) -> None:
    rows = rows_with(*counts)
    to_label(artifact, tmp_path, rows)
    judgement = judged(artifact, fill(tmp_path / "label.csv", truth(rows)), max_drop)
    whole = fully_labelled(rows, max_drop)
    assert judgement.verdict == whole.verdict == verdict
    assert judgement.quality is not None
    assert judgement.quality.interval == pytest.approx(whole.interval)
    assert judgement.quality.difference == pytest.approx(whole.difference)


def test_a_text_that_comes_again_is_labelled_once_and_counts_as_a_group(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=6, won=3, neither=1, alike=290)
    rows += [row for row in rows if row[1] != answer_of(row[0])] * 3
    written = to_label(artifact, tmp_path, rows)
    assert (written.rows, written.to_label) == (330, 10)
    quality = judged(artifact, fill(tmp_path / "label.csv", truth(rows))).quality
    whole = fully_labelled(rows)
    assert quality is not None
    assert (quality.groups, quality.rows) == (300, 330)
    assert quality.interval == pytest.approx(whole.interval)


def test_a_sample_is_judged_as_its_own_rows_with_all_labels(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=60, won=40, neither=10, alike=890)
    written = to_label(artifact, tmp_path, rows, most_labels=20)
    texts_to = [row[1] for row in read(tmp_path / "label.csv")[1:]]
    assert (written.differing, written.to_label, len(texts_to)) == (110, 20, 20)
    assert 100 < written.rows_judged < 300  # 20 of 110 differing texts stand for about 1000 * 20 / 110 rows
    quality = judged(artifact, fill(tmp_path / "label.csv", truth(rows)), 10.0).quality
    assert quality is not None
    counts = {text: (answer_of(text) == label) - (teacher == label) for text, teacher, label in rows}
    won, lost = (sum(counts[text] == each for text in texts_to) for each in (1, -1))
    alike = written.rows_judged - 20
    sample = rows_with(lost, won, 20 - won - lost, alike)
    assert quality.interval == pytest.approx(fully_labelled(sample, 10.0).interval)


@pytest.mark.parametrize("most", [None, 15])
def test_the_order_and_the_sample_do_not_depend_on_the_order_of_the_file(
    artifact: Path, tmp_path: Path, most: int | None
) -> None:
    rows = rows_with(lost=30, won=30, neither=0, alike=100)
    files = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / name).mkdir()
        to_label(artifact, tmp_path / name, order, most_labels=most)
        files.append(read(tmp_path / name / "label.csv"))
    assert files[0] == files[1]


def test_the_file_does_not_say_who_answered_what(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=5, won=5, neither=0, alike=5)
    to_label(artifact, tmp_path, rows)
    header, *cells = read(tmp_path / "label.csv")
    assert header == ["id", "text", "label: bad | so so | good"]
    assert all(row[-1] == "" for row in cells)
    others = [
        (text, teacher if answer_of(text) == teacher else other_than(answer_of(text), teacher), "")
        for text, teacher, _ in rows
    ]
    (tmp_path / "other").mkdir()
    to_label(artifact, tmp_path / "other", others)
    assert read(tmp_path / "other" / "label.csv") == [header, *cells]


def test_texts_survive_the_file_and_none_is_a_formula(artifact: Path, tmp_path: Path) -> None:
    plain = ['w1 "quoted", w2', "w1\nw2 \u2014 \u00fcber \U0001f600", "w3; w4,w5", "w6\r\nw7"]
    formulas = {"=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0", "w8 ;=1+1": "w8 ;'=1+1", " @SUM(A1)": "' @SUM(A1)"}
    answers = kdc.load(artifact, device="cpu").predict([*plain, *formulas]).argmax(-1)
    rows = [(text, other_than(LABELS[at]), "") for text, at in zip([*plain, *formulas], answers, strict=True)]
    to_label(artifact, tmp_path, rows)
    assert {row[1] for row in read(tmp_path / "label.csv")[1:]} == {*plain, *formulas.values()}
    assert judged(artifact, fill(tmp_path / "label.csv", dict.fromkeys([*plain, *formulas.values()], "bad"))).quality


def test_labels_are_taken_as_people_type_them(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=3, won=2, neither=0, alike=95)
    to_label(artifact, tmp_path, rows)
    typed = {text: f" {label.title()} " for text, label in truth(rows).items()}
    quality = judged(artifact, fill(tmp_path / "label.csv", typed)).quality
    assert quality is not None
    assert quality.difference == -1.0


def test_a_verdict_that_no_missing_label_can_change_is_given(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=40, won=2, neither=0, alike=158)
    to_label(artifact, tmp_path, rows)
    won = {text for text, teacher, label in rows if teacher != answer_of(text) == label}
    without_two = {text: label for text, label in truth(rows).items() if text not in won}
    assert judged(artifact, fill(tmp_path / "label.csv", without_two), 5.0).verdict == "fail"


def test_missing_labels_that_matter_are_counted(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=5, won=5, neither=0, alike=190)
    to_label(artifact, tmp_path, rows)
    won = {text for text, teacher, label in rows if teacher != answer_of(text) == label}
    lost_alone = {text: label for text, label in truth(rows).items() if text not in won}
    with pytest.raises(InputError, match=r"5 of 10; .* -5.00 to \+0.00 points"):
        judged(artifact, fill(tmp_path / "label.csv", lost_alone))
    with pytest.raises(InputError, match=r"10 of 10; .* -5.00 to \+5.00 points"):
        judged(artifact, fill(tmp_path / "label.csv", {}), evidence="point")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda cells: [*cells[:2], [*cells[2][:-1], "excellent"], *cells[3:]],
            r"no such label\n  given: 'excellent' \(.*line 3",
        ),
        (lambda cells: [*cells, ["r0123", "w1", "bad"]], r"not to be labelled\n  given: .*line 5"),
        (lambda cells: [*cells, [*cells[1][:-1], other_than(cells[1][-1])]], r"two labels\n  given: .*line 5"),
        (lambda cells: [[";".join(row)] for row in cells], "no columns id and label"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_line(
    artifact: Path, tmp_path: Path, change: Any, message: str
) -> None:
    rows = rows_with(lost=2, won=1, neither=0, alike=10)
    to_label(artifact, tmp_path, rows)
    filled = fill(tmp_path / "label.csv", truth(rows))
    cells = change(read(filled))
    with filled.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(cells)
    with pytest.raises(InputError, match=message):
        judged(artifact, filled)


def test_labels_are_for_the_answers_beside_them_alone(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_with(lost=2, won=1, neither=0, alike=10)
    to_label(artifact, tmp_path, rows)
    filled = fill(tmp_path / "label.csv", truth(rows))
    with pytest.raises(InputError, match="answers of another artifact"):
        judged(bag_models.write_artifact(tmp_path / "other", TASK, scale=2.0), filled)
    beside = tmp_path / "label.csv.answers.npz"
    beside.write_bytes(beside.read_bytes()[:-40])
    with pytest.raises(KdcError, match="cannot be read"):
        judged(artifact, filled)
    monkeypatch.setattr("kdc.tools.reference._MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("texts.npy", bytes(2 << 20))
    with pytest.raises(KdcError, match="once unpacked"):
        judged(artifact, filled)
    beside.unlink()
    with pytest.raises(InputError, match="not beside the labels"):
        judged(artifact, filled)


def test_a_file_that_may_hold_labels_is_never_replaced(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=2, won=1, neither=0, alike=10)
    to_label(artifact, tmp_path, rows)
    before = fill(tmp_path / "label.csv", truth(rows)).read_bytes()
    with pytest.raises(InputError, match="there already"):
        to_label(artifact, tmp_path, rows)
    assert (tmp_path / "label.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"kind": "multilabel"}, {}, "only accuracy of single labels"),
        ({}, {"require": ["accuracy>=0.9"]}, "--require needs"),
    ],
)
def test_what_needs_all_labels_is_refused(
    tmp_path: Path, changes: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    artifact = bag_models.write_artifact(tmp_path / "artifact", TASK.model_copy(update=changes))
    with pytest.raises(InputError, match=message):
        to_label(artifact, tmp_path, rows_with(1, 1, 0, 3), given=given)


def test_a_limit_of_another_metric_is_not_taken_for_one_of_accuracy() -> None:
    task, contract = TASK.model_copy(update={"metric": "macro_f1"}), replace(Contract(), {"max_drop": 1.0})
    check_task(task, contract, {"max_drop": 1.0})  # given now, for this verdict
    with pytest.raises(InputError, match="limit is one of macro_f1"):
        check_task(task, contract, {})


def test_an_answer_of_the_teacher_that_is_no_label_is_refused_with_its_line(artifact: Path, tmp_path: Path) -> None:
    rows = [("w1", "bad", ""), ("w2", "dunno", "")]
    with pytest.raises(InputError, match=r"old_model does not hold a label .*\n  given: .*rows.csv, line 3"):
        to_label(artifact, tmp_path, rows)
    with pytest.raises(InputError, match="a model or a column"):
        to_label(artifact, tmp_path, rows, teacher="x")
    assert not (tmp_path / "label.csv").exists()


def test_the_teacher_may_be_an_artifact_with_its_labels_in_another_order(artifact: Path, tmp_path: Path) -> None:
    turned = TASK.model_copy(update={"labels": LABELS[::-1]})
    teacher = bag_models.write_artifact(tmp_path / "teacher", turned)
    words = texts(60)
    written = to_label(
        artifact, tmp_path, [(text, "", "") for text in words], teacher=str(teacher), teacher_column=None
    )
    expected = {text for text in words if answer_of(text) != "so so"}  # the middle label stays where it is
    assert {row[1] for row in read(tmp_path / "label.csv")[1:]} == expected
    assert written.differing == len(expected)
    fewer = bag_models.write_artifact(
        tmp_path / "fewer", TASK.model_copy(update={"labels": ("bad", "good")}), outputs=2
    )
    (tmp_path / "label.csv").unlink()
    (tmp_path / "label.csv.answers.npz").unlink()
    with pytest.raises(InputError, match="another task"):
        to_label(artifact, tmp_path, [("w1", "", "")], teacher=str(fewer), teacher_column=None)


def test_the_teacher_may_be_a_checkpoint(artifact: Path, tmp_path: Path) -> None:
    import tiny_models
    import torch
    import transformers

    model, _ = tiny_models.build("bert", tmp_path / "teacher")
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: place for place, label in enumerate(LABELS)}
    model.save_pretrained(tmp_path / "teacher")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")
    words = texts(40)
    with torch.inference_mode():
        alone = [model(**tokenizer(text, return_tensors="pt", padding=False)).logits.argmax().item() for text in words]
    expected = {text for text, place in zip(words, alone, strict=True) if answer_of(text) != LABELS[place]}
    rows = [(text, "", "") for text in words]
    to_label(artifact, tmp_path, rows, teacher=str(tmp_path / "teacher"), teacher_column=None)
    assert 0 < len(expected) < 40
    assert {row[1] for row in read(tmp_path / "label.csv")[1:]} == expected


def test_rows_without_a_text_are_counted_and_left_out(artifact: Path, tmp_path: Path) -> None:
    rows = [*rows_with(lost=2, won=2, neither=0, alike=6), ("  ", "bad", "")]
    written = to_label(artifact, tmp_path, rows)
    assert (written.rows, written.skipped) == (10, 1)


def test_the_command_line_writes_and_judges(artifact: Path, tmp_path: Path) -> None:
    rows = rows_with(lost=1, won=3, neither=0, alike=796)
    source, out = write(tmp_path / "rows.csv", rows), tmp_path / "label.csv"
    options = ["--unlabelled", str(source), "--teacher-column", "old_model", "--to-label", str(out), "--max-drop", "1"]
    written = CliRunner().invoke(app, ["verify", str(artifact), *options])
    assert written.exit_code == 0
    assert "800 rows" in written.stdout
    assert "4 texts to label" in written.stdout
    assert f"then: kdc verify {artifact} --labelled {out} --max-drop 1" in written.stdout
    assert "w1" not in written.output.replace(str(tmp_path), "").replace(str(artifact), "")  # no text is told
    fill(out, truth(rows))
    result = CliRunner().invoke(app, ["verify", str(artifact), "--labelled", str(out), "--max-drop", "1", "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["verdict"] == "pass"
    assert document["quality"]["difference"] == 0.25

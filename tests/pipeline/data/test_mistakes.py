"""What people get wrong in their rows: named with file and line, all at once, without quoting a text."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from kdc.artifact.manifest import Kind
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.tasks import Task, custom_task
from kdc.pipeline.data.prepared import open_data, prepare

GOOD = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)]


def _task(kind: Kind = "classification", labels: tuple[str, ...] = ()) -> Task:
    return custom_task("own", "text", None, "label", kind, labels)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _message(
    tmp_path: Path, task: Task | None = None, *, kind: Kind | Literal["auto"] | None = None, **data: Any
) -> str:
    """What `prepare` refuses; `kind` and `data` are settings of the section `data`."""
    task = task or _task()
    with pytest.raises(InputError) as caught:
        prepare(tmp_path / "data", task, DataSettings(kind=kind or task.kind, **data), seed=0)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{tmp_path}/", "")


def _mistake(tmp_path: Path, row: dict[str, Any], kind: Kind = "classification", infer: bool = False) -> str:
    good = [dict(item, label=n / 3) for n, item in enumerate(GOOD)] if kind == "regression" else GOOD
    train = _write(tmp_path / "train.jsonl", [*good, row])
    return _message(tmp_path, _task(kind), kind="auto" if infer else None, train=train)


ROWS: dict[str, tuple[dict[str, Any], Kind, str]] = {
    "empty text": ({"text": "", "label": "a"}, "classification", "text is empty (column 'text')"),
    "blank text": ({"text": " \n\u00a0", "label": "a"}, "classification", "text is empty (column 'text')"),
    "no text": ({"text": None, "label": "a"}, "classification", "text is missing (column 'text')"),
    "NaN": ({"text": float("nan"), "label": "a"}, "classification", "text is missing (column 'text')"),
    "NaN in letters": ({"text": "NaN", "label": "a"}, "classification", "text is NaN (column 'text')"),
    "number as text": ({"text": 3, "label": "a"}, "classification", "text is not a string (column 'text' holds int)"),
    "half a character": ({"text": "\ud83d", "label": "a"}, "classification", "text holds half a character"),
    "no label": ({"text": "t", "label": None}, "classification", "label is missing"),
    "empty label": ({"text": "t", "label": " "}, "classification", "label is missing"),
    "NaN label": ({"text": "t", "label": float("nan")}, "classification", "label is missing"),
    "list label": ({"text": "t", "label": ["a"]}, "classification", "label is a list (['a'])"),
    "object label": ({"text": "t", "label": {}}, "classification", "label is neither a string nor a number (dict)"),
    "word for number": ({"text": "t", "label": "good"}, "regression", "label is not a finite number ('good')"),
    "infinite": ({"text": "t", "label": float("inf")}, "regression", "label is not a finite number ('inf')"),
    "beyond float32": ({"text": "t", "label": 1e39}, "regression", "label is not a finite number ('1e+39')"),
    "decimal comma": ({"text": "t", "label": "1,5"}, "regression", "write decimals with a point"),
}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_wrong_row_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    row, kind, expected = ROWS[name]
    message = _mistake(tmp_path, row, kind)
    assert "train.jsonl:21: " in message
    assert expected in message


def test_single_label_in_a_multi_label_column_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": ["a", "b"][: n % 3]} for n in range(20)]
    train = _write(tmp_path / "train.jsonl", [*rows, {"text": "t", "label": "a"}])
    assert "train.jsonl:21: label is not a list ('a')" in _message(tmp_path, kind="auto", train=train)


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_more_labels_than_an_artifact_holds_are_refused(tmp_path: Path, kind: Kind) -> None:
    names = [f"c{n}" for n in range(10_001)]
    rows: list[dict[str, Any]] = [{"text": f"t{n}", "label": name} for n, name in enumerate(names)]
    if kind == "multilabel":
        rows = [{"text": f"t{n}", "label": names[n::20]} for n in range(20)]
    train = _write(tmp_path / "train.jsonl", rows)
    assert "more than 10,000 different labels" in _message(tmp_path, _task(kind), train=train)


def test_a_word_among_numbers_is_refused_when_the_kind_is_inferred(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", [{"text": f"t{n}", "label": "?" if n == 7 else n / 2} for n in range(90)])
    assert "train.jsonl:8: label is not a finite number ('?')" in _message(tmp_path, kind="auto", train=train)


def test_unknown_label_names_the_nearest(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", [*GOOD, {"text": "t", "label": "Negative"}])
    message = _message(tmp_path, _task(labels=("a", "b", "negative")), train=train)
    assert "train.jsonl:21: unknown label ('Negative'; did you mean 'negative'?)" in message
    assert "the labels of this task are: a, b, negative" in message


def test_label_only_in_eval_is_refused(tmp_path: Path) -> None:
    train, other = _write(tmp_path / "train.jsonl", GOOD), [{"text": "new", "label": "c"}]
    evaluation = _write(tmp_path / "eval.jsonl", other)
    message = _message(tmp_path, train=train, eval=evaluation)
    assert "eval.jsonl:1: label is not in the training rows ('c')" in message
    declared = _message(tmp_path, _task(labels=("a", "b", "c")), train=train, eval=evaluation)
    assert "eval.jsonl: label is not in the training rows ('c')" in declared


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", [{"text": f"t{n}", "label": "a"} for n in range(20)])
    assert "all rows have the same label (a)" in _message(tmp_path, train=train)
    numbers = _write(tmp_path / "numbers.jsonl", [{"text": f"t{n}", "label": 2.5} for n in range(20)])
    assert "all rows have the same label" in _message(tmp_path, _task("regression"), train=numbers)


def test_label_names_that_no_manifest_could_hold_are_refused_before_training(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": f"{n % 300}-" + "x" * 2000} for n in range(900)]
    message = _message(tmp_path, _task(), train=_write(tmp_path / "train.jsonl", rows))
    assert "label names are too long" in message


def test_header_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n")
    assert "t.csv: no rows" in _message(tmp_path, train=tmp_path / "t.csv")


@pytest.mark.parametrize("rows", [2, 3])
def test_too_few_rows_to_split_are_refused(tmp_path: Path, rows: int) -> None:
    train = _write(tmp_path / "train.jsonl", [{"text": f"t{n}", "label": str(n)} for n in range(rows)])
    assert f"too few rows to hold out an evaluation set\n  given: {rows} training rows" in _message(
        tmp_path, train=train
    )


def test_label_column_with_a_value_for_each_row_is_refused(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", [{"text": f"t{n}", "label": f"id{n}"} for n in range(50)])
    assert "50 training rows with 50 classes" in _message(tmp_path, train=train)


def test_cap_below_the_number_of_classes_is_refused(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", [{"text": f"t{n}", "label": f"c{n % 30}"} for n in range(300)])
    assert "10 classes have no row to train on" in _message(tmp_path, train=train, max_train_rows=20)


def test_first_five_mistakes_of_each_file_are_shown_and_all_counted(tmp_path: Path) -> None:
    bad = [{"text": "", "label": "a"}] * 7 + [{"text": "t", "label": None}] * 2
    train = _write(tmp_path / "train.jsonl", GOOD + bad)
    evaluation = _write(tmp_path / "eval.jsonl", [{"text": "", "label": "a"}])
    message = _message(tmp_path, train=train, eval=evaluation)
    assert "10 mistakes: 8 x text is empty, 2 x label is missing" in message
    assert [f"train.jsonl:{line}:" in message for line in range(20, 28)] == [False] + [True] * 5 + [False] * 2
    assert "eval.jsonl:1: text is empty" in message
    assert "and 4 more" in message


def test_texts_are_not_quoted_in_messages(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nmy secret,a,too many\nsecret,\n")
    assert "secret" not in _message(tmp_path, train=tmp_path / "t.csv")


def test_missing_columns_are_named_for_all_files_at_once(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("txt,lable\na,x\n")
    (tmp_path / "eval.csv").write_text("text\na\n")
    message = _message(tmp_path, train=tmp_path / "train.csv", eval=tmp_path / "eval.csv")
    assert "no column 'text'; did you mean 'txt'?; no column 'label'; did you mean 'lable'?" in message
    assert "eval.csv: wrong columns (no column 'label'" in message


def test_damaged_data_stage_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text("{")
    with pytest.raises(KdcError, match="--from data"):
        open_data(tmp_path)


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    _mistake(tmp_path, {"text": "", "label": "a"})
    assert list((tmp_path / "data").iterdir()) == []

"""Columns that slice the evaluation rows: which files they are read from, and what a value may be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdc.common.errors import InputError
from kdc.pipeline.config.aims import check_slices
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.data.fingerprint import input_fingerprint
from kdc.pipeline.data.prepared import PreparedData, open_data, prepare, read_labelled, slices_of
from kdc.pipeline.data.sources import unsliced

TASK = custom_task("own", "text", None, "label", "classification", ("a", "b"))


def write(path: Path, count: int, **columns: Any) -> Path:
    """Rows whose columns are functions of the row's number."""
    rows = ({name: value(row) for name, value in columns.items()} for row in range(count))
    texts = ({"text": f"{path.stem} text number {row}", "label": "ab"[row % 2]} for row in range(count))
    lines = [json.dumps(text | more) for text, more in zip(texts, rows, strict=True)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def prepared(folder: Path, **settings: Any) -> PreparedData:
    prepare(folder / "data", TASK, DataSettings(**settings), seed=0)
    return open_data(folder / "data")


def test_only_the_evaluation_file_needs_the_column(tmp_path: Path) -> None:
    train, more = write(tmp_path / "train.jsonl", 200), write(tmp_path / "more.jsonl", 20)
    evaluation = write(tmp_path / "eval.jsonl", 60, language=lambda row: ("de", "en", None)[row % 3])
    data = prepared(tmp_path, train=train, eval=evaluation, unlabeled=more, slices=("language", "length"))
    assert data.rows("eval")["slices"][:6] == [["de"], ["en"], ["(none)"]] * 2
    assert [split for split in ("train", "tune", "unlabeled") if "slices" in data.rows(split).column_names] == []


def test_held_out_rows_take_their_values_along(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", 400, shop=lambda row: row, land=lambda row: f"land {row % 2}")
    rows = prepared(tmp_path, train=train, slices=("land", "shop")).rows("eval")
    numbers = [int(text.rpartition(" ")[2]) for text in rows["text"][:]]
    assert rows["slices"][:] == [[f"land {number % 2}", str(number)] for number in numbers]


@pytest.mark.parametrize("has_eval", [True, False])
def test_other_values_change_the_fingerprint_of_sliced_rows_alone(has_eval: bool, tmp_path: Path) -> None:
    """Would catch a teacher that is trained again for a column it never reads, and figures of values of before."""

    def fingerprints(language: str) -> tuple[str, str]:
        judged = write(tmp_path / "judged.jsonl", 20, language=lambda row: language)
        train = write(tmp_path / "train.jsonl", 20) if has_eval else judged
        data = DataSettings(train=train, eval=judged if has_eval else None, text="text", slices=("language",))
        return input_fingerprint(data), input_fingerprint(unsliced(data))

    german, english = fingerprints("de"), fingerprints("en")
    assert german[0] != english[0]
    assert german[1] == english[1]


def test_a_value_is_bounded_and_whole(tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", 3, land=lambda row: " " + "x" * (99 + row))
    assert [len(value) for (value,) in read_labelled(long, TASK, slices=("land",))[2]] == [99, 100, 100]
    half = write(tmp_path / "half.jsonl", 2, land=lambda row: "\ud800")
    with pytest.raises(InputError, match="half a character"):
        read_labelled(half, TASK, slices=("land",))


def test_length_is_no_column(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", 4, land=lambda row: "de")
    assert read_labelled(file, TASK, slices=("length", "land"))[2] == [["de"]] * 4


def test_lengths_are_doubling_ranges() -> None:
    slices = slices_of(("a", "length", "b"), [["x", "y"]] * 7, [1, 8, 9, 16, 17, 64, 65])
    assert [*slices] == ["a", "length", "b"]
    assert slices["length"].tolist() == ["1-8", "1-8", "9-16", "9-16", "17-32", "33-64", "65-128"]
    assert (set(slices["a"]), set(slices["b"])) == ({"x"}, {"y"})


def test_a_column_of_many_values_is_refused() -> None:
    values = np.array([f"user {number}" for number in range(1001)], dtype=object)
    check_slices({"user": values[:1000]})
    with pytest.raises(InputError, match=r"too many values.*\n.*1,001 values, at most 1,000\n.*remedy"):
        check_slices({"user": values})

"""Stage data: rows are checked, split and numbered; every mistake that a person can make is named."""

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdc.artifact.manifest import Kind
from kdc.common.errors import InputError
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.tasks import Task, custom_task, find_task
from kdc.pipeline.data import readers
from kdc.pipeline.data.fields import hash_of
from kdc.pipeline.data.prepared import PreparedData, open_data, prepare, read_labelled
from kdc.pipeline.results.data import DataReport


def _task(kind: Kind = "classification", labels: tuple[str, ...] = ()) -> Task:
    return custom_task("own", "text", None, "label", kind, labels)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _prepare(
    tmp_path: Path,
    train: list[dict[str, Any]],
    evaluation: list[dict[str, Any]] | None = None,
    unlabeled: list[dict[str, Any]] | None = None,
    *,
    task: Task | None = None,
    max_train_rows: int | None = None,
    max_unlabeled_rows: int | None = None,
    seed: int = 0,
    infer_kind: bool = False,
    separator: str | None = None,
) -> tuple[PreparedData, DataReport]:
    task = task or _task()
    settings = DataSettings(
        train=_write(tmp_path / "train.jsonl", train),
        eval=None if evaluation is None else _write(tmp_path / "eval.jsonl", evaluation),
        unlabeled=None if unlabeled is None else _write(tmp_path / "unlabeled.jsonl", unlabeled),
        separator=separator,
        kind="auto" if infer_kind else task.kind,
        max_train_rows=max_train_rows,
        max_unlabeled_rows=max_unlabeled_rows,
    )
    folder = tmp_path / "data"
    report = prepare(folder, task, settings, seed=seed)
    return open_data(folder), report


def _rows(count: int, labels: str = "ab", prefix: str = "text") -> list[dict[str, Any]]:
    return [{"text": f"{prefix} {place}", "label": labels[place % len(labels)]} for place in range(count)]


def _mistakes(tmp_path: Path, *args: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        _prepare(tmp_path, *args, **settings)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_rows_are_numbered_over_all_splits(tmp_path: Path) -> None:
    data, _ = _prepare(tmp_path, _rows(40), _rows(6, prefix="eval"), [{"text": "new 1"}, {"text": "new 2"}])
    numbers = [data.rows(split)["row"][:] for split in ("train", "tune", "unlabeled", "eval")]
    assert [row for part in numbers for row in part] == list(range(48))
    assert data.rows("unlabeled").column_names == ["row", "text"]
    assert data.eval_splits == ("eval",)


def test_every_row_keeps_its_own_label_and_lands_once(tmp_path: Path) -> None:
    train = _rows(50, "abc")
    data, _ = _prepare(tmp_path, train)
    seen = {}
    for split in ("train", "tune", "eval"):
        for row in data.rows(split):
            assert row["text"] not in seen
            seen[row["text"]] = data.task.labels[row["label"]]
    assert seen == {row["text"]: row["label"] for row in train}


def test_label_names_are_sorted_and_kept_in_task_json(tmp_path: Path) -> None:
    data, _ = _prepare(tmp_path, _rows(40, "zax"))
    assert data.task.labels == ("a", "x", "z")
    assert Task.load(tmp_path / "data" / "task.json").labels == ("a", "x", "z")


def test_whole_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    data, _ = _prepare(tmp_path, [{"text": f"t{n}", "label": n % 11} for n in range(66)])
    assert data.task.labels == tuple(str(number) for number in range(11))


@pytest.mark.parametrize(
    ("rows", "cap", "tune", "train"),
    [(5000, None, 500, 4500), (1000, None, 300, 700), (100, None, 50, 50), (5000, 1000, 500, 1000), (2000, 60, 30, 60)],
)
def test_tuning_slice_and_training_rows_have_their_sizes(
    tmp_path: Path, rows: int, cap: int | None, tune: int, train: int
) -> None:
    data, report = _prepare(tmp_path, _rows(rows), _rows(4, prefix="eval"), max_train_rows=cap)
    assert (len(data.rows("tune")), len(data.rows("train"))) == (tune, train)
    assert report.unused_train_rows == rows - tune - train


def test_all_slices_keep_the_share_of_each_class(tmp_path: Path) -> None:
    data, report = _prepare(tmp_path, _rows(4000, "aaab"), max_train_rows=1000)
    for split, size in (("eval", 400), ("tune", 500), ("train", 1000)):
        assert Counter(data.rows(split)["label"][:]) == {0: size * 3 // 4, 1: size // 4}
    assert report.held_out == 400


def test_a_class_with_one_row_stays_in_training(tmp_path: Path) -> None:
    data, _ = _prepare(tmp_path, [*_rows(60), {"text": "rare one", "label": "c"}], max_train_rows=20)
    assert 2 in data.rows("train")["label"][:]


def test_equal_texts_are_never_parted(tmp_path: Path) -> None:
    train = [{"text": f"text {n // 3}" + " " * (n % 2), "label": "ab"[n % 2]} for n in range(900)]
    data, report = _prepare(tmp_path, train)
    texts = {split: {text.strip() for text in data.rows(split)["text"][:]} for split in ("train", "tune", "eval")}
    assert not texts["train"] & texts["tune"]
    assert not texts["eval"] & (texts["train"] | texts["tune"])
    assert (report.duplicates["within_train"], report.duplicates["texts_with_different_labels"]) == (600, 300)
    assert len(data.rows("tune")) == pytest.approx(300, abs=6)


def test_a_text_has_one_hash_in_both_spellings_of_unicode() -> None:
    """Would catch: `Ü` of a training row that is another text than `U` with a mark in an evaluation row."""
    assert hash_of("\u00dcber", None) == hash_of("U\u0308ber", None) != hash_of("Uber", None)
    assert hash_of("a", "\u00dc") == hash_of("a", "U\u0308")


def test_the_same_seed_gives_the_same_splits_and_another_seed_does_not(tmp_path: Path) -> None:
    first = _prepare(tmp_path, _rows(400))[0].rows("tune")["text"][:]
    again = _prepare(tmp_path, _rows(400))[0].rows("tune")["text"][:]
    other = _prepare(tmp_path, _rows(400), seed=1)[0].rows("tune")["text"][:]
    assert first == again
    assert first != other


def test_files_of_an_interrupted_run_are_removed(tmp_path: Path) -> None:
    for name in ("staging-x", "rows", "tokens-teacher.partial"):
        (tmp_path / "data" / name / "old").mkdir(parents=True)
    (tmp_path / "data" / "tokens-student").symlink_to("tokens-teacher")
    _prepare(tmp_path, _rows(40))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["report.json", "rows", "task.json"]
    assert sorted(path.name for path in (tmp_path / "data" / "rows").iterdir()) == ["eval", "train", "tune"]


def test_pairs_are_kept_together(tmp_path: Path) -> None:
    task = custom_task("own", "q", "s", "label", "classification")
    train = [{"q": f"q{n % 5}", "s": f"s{n}", "label": "ab"[n % 2]} for n in range(60)]
    data, report = _prepare(tmp_path, train, [{"q": "q0", "s": "s0", "label": "a"}], task=task)
    assert {(row["text"], row["text_pair"]) for row in data.rows("train")} <= {(row["q"], row["s"]) for row in train}
    assert report.duplicates == {
        "within_train": 0,
        "texts_with_different_labels": 0,
        "eval_rows_in_train": 1,
        "eval_rows_near_train": 1,
    }


def test_texts_in_train_and_eval_are_counted_and_warned(tmp_path: Path) -> None:
    _, report = _prepare(tmp_path, _rows(60), [*_rows(7), {"text": "new", "label": "a"}])
    assert report.duplicates["eval_rows_in_train"] == 7
    assert any("7 eval rows have the same text as a training row" in line for line in report.warnings)


def test_unlabelled_rows_of_the_tuning_slice_are_left_out(tmp_path: Path) -> None:
    data, report = _prepare(tmp_path, _rows(60), _rows(3, prefix="eval"), [{"text": row["text"]} for row in _rows(60)])
    assert set(data.rows("unlabeled")["text"][:]) == set(data.rows("train")["text"][:])
    assert report.duplicates["unlabeled_rows_in_tune_left_out"] == len(data.rows("tune"))


def test_of_many_unlabelled_texts_chance_takes_some_and_repeats_come_last(tmp_path: Path) -> None:
    # The bugs to catch: the first ones are taken; a text that stands there twice, or that is trained on anyway.
    known = _rows(60)
    new = [f"new {place}" for place in range(20)]
    more = [{"text": text} for text in (*(row["text"] for row in known), *new, *new)]

    def taken(most: int, seed: int = 0) -> list[str]:
        data, report = _prepare(tmp_path, known, _rows(3, prefix="eval"), more, max_unlabeled_rows=most, seed=seed)
        texts, tune = list(data.rows("unlabeled")["text"][:]), len(data.rows("tune"))
        assert report.unused_unlabeled_rows == len(more) - tune - len(texts)
        assert report.duplicates["unlabeled_rows_in_tune_left_out"] == tune
        return texts

    assert sorted(taken(20)) == sorted(new)
    assert set(new) < set(taken(25)) < {*new, *(row["text"] for row in known)}
    assert taken(10) == taken(10)
    assert set(new[:10]) != set(taken(10)) != set(taken(10, seed=1))
    assert sorted(taken(1000)) == sorted(taken(20 + 20 + 60 // 2))  # all but the tuning set


def test_only_unlabelled_rows_that_are_used_are_told_of_as_evaluation_rows(tmp_path: Path) -> None:
    evaluation = _rows(8, prefix="eval")
    given = _rows(60), evaluation, [{"text": row["text"]} for row in evaluation]
    assert _prepare(tmp_path, *given)[1].duplicates["unlabeled_rows_in_eval"] == 8
    assert _prepare(tmp_path, *given, max_unlabeled_rows=2)[1].duplicates["unlabeled_rows_in_eval"] == 2


def test_glue_labels_may_be_names_or_numbers(tmp_path: Path) -> None:
    head = "index\tquestion\tsentence\tlabel\n"
    for name, labels in (("train.tsv", ("entailment", "not_entailment")), ("dev.tsv", ("0", "1"))):
        (tmp_path / name).write_text(head + "".join(f"{n}\tq{n} {name}\ts\t{labels[n % 2]}\n" for n in range(20)))
    prepare(tmp_path / "data", find_task("qnli"), DataSettings(task="qnli", data=tmp_path), seed=0)
    labels_of = {row["text"]: row["label"] for row in open_data(tmp_path / "data").rows("eval")}
    assert labels_of == {f"q{n} dev.tsv": n % 2 for n in range(20)}


def test_unlabelled_test_rows_are_refused_as_training_rows(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\nfine\t1\nbad\t-1\n")
    with pytest.raises(InputError, match="-1 marks unlabelled rows"):
        prepare(tmp_path / "data", find_task("sst2"), DataSettings(task="sst2", data=tmp_path), seed=0)


def test_multi_label_lists_become_multi_hot(tmp_path: Path) -> None:
    kinds = [["x", "y"], [], ["y"], ["z", "x", "z"]]
    train = [{"text": f"t{n}", "label": kinds[n % 4]} for n in range(80)]
    data, _ = _prepare(tmp_path, train, infer_kind=True)
    assert (data.task.kind, data.task.labels, data.task.outputs) == ("multilabel", ("x", "y", "z"), 3)
    expected = {0: [1, 1, 0], 1: [0, 0, 0], 2: [0, 1, 0], 3: [1, 0, 1]}
    for row in data.rows("train"):
        assert row["label"] == expected[int(row["text"][1:]) % 4]


def test_multi_label_cells_are_split_at_the_separator(tmp_path: Path) -> None:
    train = [{"text": f"t{n}", "label": ["x| y", "", "y"][n % 3]} for n in range(60)]
    data, _ = _prepare(tmp_path, train, infer_kind=True, separator="|")
    assert {tuple(row["label"]) for row in data.rows("train")} == {(1, 1), (0, 0), (0, 1)}


def test_regression_keeps_the_labels_as_float32(tmp_path: Path) -> None:
    data, _ = _prepare(tmp_path, [{"text": f"t{n}", "label": n / 4} for n in range(40)], task=_task("regression"))
    assert (data.task.labels, data.task.outputs) == ((), 1)
    assert all(row["label"] == int(row["text"][1:]) / 4 for row in data.rows("train"))
    assert str(data.rows("train").features["label"].dtype) == "float32"


def test_regressions_scale_is_that_of_the_training_rows(tmp_path: Path) -> None:
    train = [{"text": f"t{n}", "label": 1e6 + n} for n in range(40)]
    evaluated = [{"text": f"e{n}", "label": 9e6 + n} for n in range(10)]
    data, _ = _prepare(tmp_path, train, evaluated, task=_task("regression"))
    numbers = [1e6 + int(text[1:]) for text in data.rows("train")["text"]]
    assert (data.task.center, data.task.spread) == pytest.approx((statistics.mean(numbers), statistics.pstdev(numbers)))


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["0", "1"], "classification"),
        (["1.5", "2"], "regression"),
        ([str(n) for n in range(21)], "regression"),
        ([str(n) for n in range(20)], "classification"),
        ([f"1.{n}" for n in range(9)] + ["a", "b"], "classification"),
    ],
)
def test_the_kind_is_inferred_from_the_labels(tmp_path: Path, labels: list[str], kind: str) -> None:
    rows = [{"text": f"t{n}", "label": labels[n % len(labels)]} for n in range(len(labels) * 6)]
    data, report = _prepare(tmp_path, rows, infer_kind=True)
    assert (data.task.kind, report.kind) == (kind, kind)
    assert data.task.metrics == (("pearson", "spearman") if kind == "regression" else ("macro_f1", "accuracy"))


def test_parquet_labels_may_be_numbers_or_lists(tmp_path: Path) -> None:
    for name, labels in (("class", [0, 1]), ("list", [["a"], ["a", "b"]])):
        table = pa.table({"text": [f"t{n}" for n in range(20)], "label": [labels[n % 2] for n in range(20)]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        folder, source = tmp_path / name, DataSettings(train=tmp_path / f"{name}.parquet")
        prepare(folder, _task(), source, seed=0)
    assert open_data(tmp_path / "class").task.labels == ("0", "1")
    assert open_data(tmp_path / "list").task.kind == "multilabel"


def test_pydocs_slices_keep_objects_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(first: int, last: int) -> list[dict[str, str]]:
        pairs = [("yes", "answers"), ("no", "does_not_answer")]
        return [
            {"question": f"q{n}", "sentence": f"{word} {n}", "label": label, "group": f"g{n}"}
            for n in range(first, last)
            for word, label in pairs
        ]

    tie = {"question": "q0", "sentence": "yes 0", "label": "answers", "group": "g49"}  # ties two groups together
    monkeypatch.setattr(readers, "_pydocs", lambda seed: ([*made(0, 50), tie], made(50, 60)))
    prepare(tmp_path, find_task("pydocs"), DataSettings(task="pydocs"), seed=0)
    data = open_data(tmp_path)
    questions = {split: Counter(data.rows(split)["text"][:]) for split in ("train", "tune", "eval")}
    assert sorted(len(part) for part in questions.values()) == [10, 24, 26]
    assert not questions["train"].keys() & questions["tune"].keys()
    assert ("q0" in questions["train"]) is ("q49" in questions["train"])


def test_read_labelled_gives_texts_and_labels(tmp_path: Path) -> None:
    path = _write(tmp_path / "more.jsonl", [{"text": "one", "label": "b"}, {"text": "two", "label": "a"}])
    assert read_labelled(path, _task(labels=("a", "b"))) == (["one", "two"], [1, 0], [])
    with pytest.raises(InputError, match="unknown label"):
        read_labelled(path, _task(labels=("a", "c")))


def test_many_rows_of_one_unit_do_not_block_the_slice(tmp_path: Path) -> None:
    rows = [{"text": "same", "label": "a"}] * 500 + _rows(500)
    data, _ = _prepare(tmp_path, rows, _rows(4, prefix="eval"))
    tune = data.rows("tune")
    assert "same" not in tune["text"][:]
    assert 200 <= len(tune) <= 300
    assert np.bincount(tune["label"][:]).min() > 50


def _spoiled(path: Path, rows: int, spoil: dict[int, str]) -> Path:
    """A CSV whose rows (from 1) have the labels x and y in turns; `spoil` replaces some."""
    lines = [spoil.get(row, f"text {row},{'xy'[row % 2]}") for row in range(1, rows + 1)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


SPOILED = {3: "no label,", 40: " ,x", 41: "one,two,three", 90: "alone"}


def test_invalid_rows_are_left_out_counted_and_listed(tmp_path: Path) -> None:
    train = _spoiled(tmp_path / "t.csv", 100, SPOILED)
    unlabeled = _spoiled(tmp_path / "u.csv", 100, {7: ",x", 8: "kept,"})
    data = DataSettings(train=train, unlabeled=unlabeled, skip_invalid=True)
    report = prepare(tmp_path / "data", _task(), data, seed=0)
    assert report.skipped == {"train": 4, "unlabeled": 1}
    listed = [json.loads(line) for line in (tmp_path / "data" / "skipped.jsonl").read_text().splitlines()]
    reasons = [
        "label is missing",
        "text is empty",
        "row has too many columns",
        "row has too few columns",
        "text is empty",
    ]
    places = [*((str(train), 1 + row) for row in SPOILED), (str(unlabeled), 8)]
    assert [(row["file"], row["line"]) for row in listed] == places
    assert [row["reason"].partition(" (")[0] for row in listed] == reasons


def test_a_row_keeps_its_number_in_the_file_beside_rows_left_out(tmp_path: Path) -> None:
    data = DataSettings(train=_spoiled(tmp_path / "t.csv", 100, SPOILED), skip_invalid=True)
    prepare(tmp_path / "data", _task(), data, seed=0)
    for split in ("train", "tune", "eval"):
        rows = open_data(tmp_path / "data").rows(split)
        assert rows["text"][:] == [f"text {number}" for number in rows["source_row"][:]]


@pytest.mark.parametrize(("invalid", "most", "refused"), [(10, 0.1, False), (11, 0.1, True), (11, 0.3, False)])
def test_more_than_a_tenth_is_refused_unless_a_share_is_given(
    tmp_path: Path, invalid: int, most: float, refused: bool
) -> None:
    train = _spoiled(tmp_path / "t.csv", 100, dict.fromkeys(range(1, invalid + 1), ",x"))
    data = DataSettings(train=train, skip_invalid=True, most_invalid=most)
    if not refused:
        assert prepare(tmp_path / "data", _task(), data, seed=0).skipped == {"train": invalid}
        return
    with pytest.raises(InputError, match=r"11 of 100, and 10% may be; the first is .*t\.csv:2: text is empty"):
        prepare(tmp_path / "data", _task(), data, seed=0)


def test_the_label_of_a_row_left_out_does_not_count(tmp_path: Path) -> None:
    train = _spoiled(tmp_path / "t.csv", 100, {5: ",only here"})
    prepare(tmp_path / "data", _task(), DataSettings(train=train, skip_invalid=True), seed=0)
    assert open_data(tmp_path / "data").task.labels == ("x", "y")


def test_a_label_that_is_not_trained_is_a_mistake_and_no_invalid_row(tmp_path: Path) -> None:
    train, evaluation = _spoiled(tmp_path / "t.csv", 100, {}), _spoiled(tmp_path / "e.csv", 50, {9: "text,z"})
    with pytest.raises(InputError, match="label is not in the training rows"):
        prepare(tmp_path / "data", _task(), DataSettings(train=train, eval=evaluation, skip_invalid=True), seed=0)


@pytest.mark.parametrize(("row", "is_offered"), [(",x", True), ("text,", True), ("text,\ud83d", False)])
def test_the_option_is_offered_for_mistakes_that_it_leaves_out(tmp_path: Path, row: str, is_offered: bool) -> None:
    train = tmp_path / "t.csv"
    lines = ["text,label", row, *(f"text {number},{'xy'[number % 2]}" for number in range(50))]
    train.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "data", _task(), DataSettings(train=train), seed=0)
    assert ("--skip-invalid" in str(error.value.remedy)) == is_offered

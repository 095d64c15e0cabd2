"""Readers: every format gives the rows that were written, and what a person gets wrong is named with its place."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdc.common.errors import InputError, KdcError
from kdc.common.records import Dialect
from kdc.pipeline.config.data_settings import DataSettings
from kdc.pipeline.config.tasks import TASKS, find_task
from kdc.pipeline.data.fingerprint import input_fingerprint
from kdc.pipeline.data.problems import FileProblem, Problems, RowProblem
from kdc.pipeline.data.readers import find_columns, read_records
from kdc.pipeline.data.sources import (
    Columns,
    SplitSource,
    columns_of,
    file_source,
    locate,
)

COLUMNS = Columns(text=("text",), label=("label",))
PAIR = Columns(text=("a",), text_pair=("b",), label=("label",))


class Row(NamedTuple):
    """A record's columns for the task."""

    line: int
    text: object
    text_pair: object
    label: object
    group: object
    time: object
    how: object = None


def read_rows(source: SplitSource, columns: Columns, problems: Problems, *, seed: int) -> Iterator[Row]:
    for record in read_records(source, problems, seed=seed, columns=columns):
        try:
            indices = find_columns(record.names, columns)
        except RowProblem as problem:
            problems.add(source, record.line, problem)
        else:
            yield Row(record.line, *(None if index is None else record.fields[index] for index in indices))


def _read(source: SplitSource, columns: Columns = COLUMNS) -> list[Row]:
    problems = Problems()
    rows = list(read_rows(source, columns, problems, seed=0))
    problems.raise_if_any()
    return rows


def _file(tmp_path: Path, name: str, content: str | bytes, task: str = "") -> SplitSource:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return file_source("train", path, task)


def _texts(rows: list[Row]) -> list[tuple[int, object, object]]:
    return [(row.line, row.text, row.label) for row in rows]


def test_csv_fields_hold_quotes_commas_tabs_and_line_breaks(tmp_path: Path) -> None:
    source = _file(tmp_path, "t.csv", 'id,text,label\n1,"a ""b"", c",x\n2,"two\nlines\tand a tab",y\n3,last,z\n')
    assert _texts(_read(source)) == [(2, 'a "b", c', "x"), (3, "two\nlines\tand a tab", "y"), (5, "last", "z")]


def test_tsv_of_a_person_is_quoted(tmp_path: Path) -> None:
    assert _texts(_read(_file(tmp_path, "t.tsv", 'text\tlabel\n"a\tb"\tx\n'))) == [(2, "a\tb", "x")]


def test_glue_tsv_is_not_quoted(tmp_path: Path) -> None:
    source = _file(tmp_path, "train.tsv", 'sentence\tlabel\n"open quote\t1\nit \'s "fine"\t0\n', task="sst2")
    rows = _read(source, columns_of(find_task("sst2"), labeled=True))
    assert _texts(rows) == [(2, '"open quote', "1"), (3, 'it \'s "fine"', "0")]


@pytest.mark.parametrize("task", ["", "sst2"])
def test_byte_order_mark_and_crlf_are_accepted(tmp_path: Path, task: str) -> None:
    source = _file(tmp_path, "t.tsv", b"\xef\xbb\xbftext\tlabel\r\nfirst\tx\r\nsecond\ty\r\n", task)
    assert _texts(_read(source)) == [(2, "first", "x"), (3, "second", "y")]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-8", "cp932", "gb18030"])
def test_delimiter_and_encoding_give_the_rows_that_were_written(tmp_path: Path, encoding: str) -> None:
    text = {"cp1252": 'für 5 €, "ja"', "cp932": "表示;ソ", "gb18030": "中文;好"}.get(encoding, "für 中\u2028;文")
    path = tmp_path / "t.csv"
    with path.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=";").writerows([["text", "label"], [text, "x"], ["two\nlines", "y"]])
    (source,) = locate(DataSettings(train=path, delimiter=";", encoding=encoding))
    assert _texts(_read(source)) == [(2, text, "x"), (3, "two\nlines", "y")]


@pytest.mark.parametrize(
    "wrong", [{"delimiter": ";;"}, {"delimiter": ""}, {"delimiter": '"'}, {"encoding": "latin-x"}, {"encoding": "zlib"}]
)
def test_a_dialect_that_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"one character|no such encoding"):
        Dialect(**wrong)


def test_jsonl_has_an_encoding_too(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "é", "label": 1}\n', encoding="latin-1")
    (source,) = locate(DataSettings(train=path, encoding="latin-1"))
    assert _texts(_read(source)) == [(1, "é", 1)]


@pytest.mark.parametrize("delimiter", ["\t", "\\t"])
def test_a_tab_may_be_typed_in_two_characters(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "t.csv").write_text("text\tlabel\na;b,c\tx\n")
    (source,) = locate(DataSettings(train=tmp_path / "t.csv", delimiter=delimiter))
    assert _texts(_read(source)) == [(2, "a;b,c", "x")]


def test_bytes_of_another_encoding_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"text,label\na,x\n\x81,y\n")
    (source,) = locate(DataSettings(train=tmp_path / "t.csv", encoding="cp1252"))
    with pytest.raises(FileProblem) as caught:
        _read(source)
    assert (caught.value.line, caught.value.what) == (3, "not CP1252")


def test_half_a_character_of_utf16_is_a_mistake_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\na,x\n".encode("utf-16-le") + b"\x00\xd8a\x00")
    (source,) = locate(DataSettings(train=tmp_path / "t.csv", encoding="utf-16-le"))
    with pytest.raises(FileProblem, match="UTF-16-LE"):
        _read(source)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    text = "a\u2028b\x0bc\x85d"
    assert _texts(_read(_file(tmp_path, "t.csv", f"text,label\n{text},x\n"))) == [(2, text, "x")]


def test_jsonl_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"label": 1, "text": "one", "other": None}, {"label": 0, "text": "two\n", "other": 2}]
    jsonl = _file(tmp_path, "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    parquet = file_source("train", tmp_path / "t.parquet", "")
    assert _texts(_read(jsonl)) == [(1, "one", 1), (2, "two\n", 0)]
    assert _texts(_read(parquet)) == [(1, "one", 1), (2, "two\n", 0)]


def test_saved_dataset_gives_class_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    train = datasets.Dataset.from_dict({"sentence": ["bad", "good"], "label": [0, 1]}, features=features)
    saved = datasets.DatasetDict({"train": train, "validation": train.select([1])})
    saved.save_to_disk(str(tmp_path / "saved"))
    splits = locate(DataSettings(task="sst2", data=tmp_path / "saved"))
    rows = [_texts(_read(split, columns_of(find_task("sst2"), labeled=True))) for split in splits]
    assert rows == [[(1, "bad", "negative"), (2, "good", "positive")], [(1, "good", "positive")]]


GLUE_FILES = {
    "cola": ("gj04\t1\t\tOur friends.\n", "train.tsv", ("Our friends.", None, "1")),
    "mrpc": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t702\t703\tA one\tA two\n",
        "train.tsv",
        ("A one", "A two", "1"),
    ),
    "stsb": (
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tA plane.\tAn air plane.\t5.000\n",
        "train.tsv",
        ("A plane.", "An air plane.", "5.000"),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tWhy?\t0\n",
        "train.tsv",
        ("How?", "Why?", "0"),
    ),
    "mnli": (
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n0\tf\tIt rains.\tIt is wet.\tneutral\tentailment\n",
        "train.tsv",
        ("It rains.", "It is wet.", "entailment"),
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentailment\n", "train.tsv", ("A", "B", "entailment")),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n", "train.tsv", ("A", "B", "1")),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\tQ?\tS.\tentailment\n", "train.tsv", ("Q?", "S.", "entailment")),
    "sst2": ("sentence\tlabel\nfine \t1\n", "train.tsv", ("fine ", None, "1")),
}


@pytest.mark.parametrize("name", sorted(GLUE_FILES))
def test_glue_files_have_their_own_columns(tmp_path: Path, name: str) -> None:
    content, file, expected = GLUE_FILES[name]
    rows = _read(_file(tmp_path, file, content, name), columns_of(TASKS[name], labeled=True))
    assert [(row.text, row.text_pair, row.label) for row in rows] == [expected]


@pytest.mark.parametrize("below", ["", "QNLI", "qnli"])
def test_data_may_be_glues_root_or_the_tasks_folder(tmp_path: Path, below: str) -> None:
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("index\tquestion\tsentence\tlabel\n")
    splits = locate(DataSettings(task="qnli", data=tmp_path))
    assert [(split.split, split.path, split.format) for split in splits] == [
        ("train", folder / "train.tsv", "glue_tsv"),
        ("eval", folder / "dev.tsv", "glue_tsv"),
    ]


def test_mnli_has_both_evaluation_sets(tmp_path: Path) -> None:
    for name in ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"):
        (tmp_path / name).write_text("sentence1\tsentence2\tgold_label\n")
    files = {split.split: split.path.name for split in locate(DataSettings(task="mnli", data=tmp_path)) if split.path}
    assert files == {"train": "train.tsv", "eval": "dev_matched.tsv", "eval_mismatched": "dev_mismatched.tsv"}


def test_unlabelled_glue_file_needs_no_label(tmp_path: Path) -> None:
    source = _file(tmp_path, "unlabelled.tsv", 'index\tquestion\tsentence\n0\tWho?\tThe "best" one\n', "qnli")
    rows = _read(source, columns_of(find_task("qnli"), labeled=False))
    assert [tuple(row) for row in rows] == [(2, "Who?", 'The "best" one', None, None, None, None)]


MISTAKES: dict[str, tuple[str, str | bytes, str]] = {
    "too few columns": ("t.csv", "text,label\na,x\n\nb\nc,y\n", "t.csv:4: row has too few columns (1 instead of 2)"),
    "too many columns": (
        "t.csv",
        'text,label\n"quoted\nbreak",x\na,b,c\n',
        "t.csv:4: row has too many columns (3 instead of 2)",
    ),
    "missing column": (
        "t.csv",
        "txet,label\na,x\n",
        "no column 'text'; did you mean 'txet'?; the file has: 'txet', 'label'",
    ),
    "missing column in JSON": ("t.jsonl", '{"text": "a", "label": 1}\n{"Text": "a", "label": 1}\n', "t.jsonl:2: wrong"),
    "column twice": ("t.csv", "text,text,label\na,b,x\n", "column 'text' is there 2 times"),
    "other separator": ("t.csv", "text;label\na;x\n", "--delimiter ';'"),
    "quoted, other separator": ("t.csv", '"text";"label"\n"a";"x"\n', "--delimiter ';'"),
    "empty file": ("t.csv", "", "t.csv: the file is empty"),
    "not UTF-8": ("t.csv", b"text,label\nok,x\ncaf\xe9,y\n", "t.csv:3: not UTF-8 (byte 0xe9, byte 4 of the line)"),
    "remedy for not UTF-8": ("t.csv", b"text,label\ncaf\xe9,y\n", "remedy: --encoding cp1252"),
    "UTF-16": ("t.csv", "text,label\na,x\n".encode("utf-16"), "remedy: --encoding utf-16"),
    "UTF-16 without its mark": ("t.csv", "text,label\na,x\n".encode("utf-16-le"), "remedy: --encoding utf-16-le"),
    "UTF-16 of another order": ("t.csv", "text,label\na,x\n".encode("utf-16-be"), "remedy: --encoding utf-16-be"),
    "no guess": ("t.csv", b"text,label\n\x81\x81,y\n", "name the encoding: --encoding cp1252"),
    "open quote": ("t.csv", 'text,label\na,x\n"b,y\nc,z\n', "t.csv:3: broken quoting"),
    "text behind a quote": ("t.csv", 'text,label\n"a"b,x\n', "t.csv:2: broken quoting"),
    "old Mac line ends": ("t.csv", "text,label\ra,x\r", "a carriage return inside a row"),
    "not JSON": ("t.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "t.jsonl:2: not JSON"),
    "deep JSON": ("t.jsonl", "[" * 100_000 + "\n", "one JSON array"),
    "JSON array": ("t.json", '[{"text": "a", "label": 1}]\n', "jq -c '.[]'"),
    "JSON scalar": ("t.jsonl", '{"text": "a", "label": 1}\n3\n', "t.jsonl:2: not a JSON object (int)"),
    "not Parquet": ("t.parquet", "text,label\n", "t.parquet: not a readable Parquet file"),
}


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_mistake_names_its_place(tmp_path: Path, name: str) -> None:
    file, content, expected = MISTAKES[name]
    with pytest.raises(InputError) as caught:
        _read_reporting(_file(tmp_path, file, content))
    assert expected in str(caught.value).replace(f"{tmp_path}/", "")


def _read_reporting(source: SplitSource) -> None:
    """As `stage` does it: what ends a file is one more mistake."""
    problems = Problems()
    try:
        list(read_rows(source, COLUMNS, problems, seed=0))
    except FileProblem as problem:
        problems.add(source, problem.line, problem)
    problems.raise_if_any()


def test_broken_rows_of_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    source = _file(tmp_path, "train.tsv", head + "1\t2\t3\tHow\nis it?\tWhy?\t0\n4\t5\t6\tA\tB\t1\n", "qqp")
    problems = Problems()
    rows = list(read_rows(source, columns_of(find_task("qqp"), labeled=True), problems, seed=0))
    assert ([row.text for row in rows], problems.skipped["train"]) == (["A"], 2)


WRONG_SOURCES = {
    "no such folder": (DataSettings(task="qnli", data=Path("nowhere")), "no such folder"),
    "no such file": (DataSettings(train=Path("nowhere.csv")), "no such file"),
    "two sources": (DataSettings(data=Path("."), train=Path("t.csv")), "two sources of data"),
    "evaluation alone": (DataSettings(eval=Path("t.csv")), "without a training file"),
    "nothing": (DataSettings(), "no data was given"),
    "delimiter without a table": (DataSettings(task="pydocs", delimiter=";"), "--delimiter fits none of the files"),
}


@pytest.mark.parametrize("name", sorted(WRONG_SOURCES))
def test_wrong_source_is_refused(name: str) -> None:
    source, expected = WRONG_SOURCES[name]
    with pytest.raises(InputError, match=expected):
        locate(source)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "no training rows in this folder"),
        (("train.tsv",), "dev.tsv missing"),
        (("train.tsv", "dev.tsv", "validation.tsv"), "more than one file for the eval split"),
    ],
)
def test_incomplete_folder_is_refused(tmp_path: Path, files: tuple[str, ...], expected: str) -> None:
    for name in files:
        (tmp_path / name).write_text("question\tsentence\tlabel\n")
    with pytest.raises(InputError, match=expected):
        locate(DataSettings(task="qnli", data=tmp_path))


def test_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "t.docx").write_text("x")
    with pytest.raises(InputError, match=r"known endings: \.csv, \.tsv, \.jsonl"):
        locate(DataSettings(train=tmp_path / "t.docx"))


def test_unreachable_hub_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    train = locate(DataSettings(task="qnli"))[0]
    with pytest.raises(KdcError, match="--task pydocs --family minilm") as caught:
        _read(train, columns_of(find_task("qnli"), labeled=True))
    assert caught.value.exit_code == 1


def test_hub_is_asked_for_the_tasks_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def give(name: str, config: str, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [2]})

    monkeypatch.setattr(datasets, "load_dataset", give)
    for split in locate(DataSettings(task="mnli")):
        _read(split, columns_of(find_task("mnli"), labeled=True))
    parts = ("train", "validation_matched", "validation_mismatched")
    assert asked == [("nyu-mll/glue", "mnli", part) for part in parts]


def test_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("text,label\na,x\n")
    second.write_text("text,label\na,x\n")
    before = input_fingerprint(DataSettings(train=first, eval=second, text="text"))
    assert input_fingerprint(DataSettings(train=first, eval=second, text="text")) == before
    assert input_fingerprint(DataSettings(train=first, text="text")) != before
    second.write_text("text,label\na,yy\n")
    assert input_fingerprint(DataSettings(train=first, eval=second, text="text")) != before


def test_the_same_rows_have_one_fingerprint_in_every_format(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    rows: list[dict[str, Any]] = [{"text": "a;b", "label": 1, "n": None}, {"text": "für", "label": 0, "n": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.csv").write_text('label;other;text\n1;;"a;b"\n0;2;für\n', encoding="cp1252")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    given: list[dict[str, Any]] = [{"train": tmp_path / name} for name in ("a.jsonl", "c.parquet", "saved")]
    book = openpyxl.Workbook()
    for cells in (["n", "text", "label"], [None, "a;b", 1], [2, "für", 0]):
        book.active.append(cells)
    book.save(tmp_path / "d.xlsx")
    given.append({"train": tmp_path / "d.xlsx"})
    given.append({"train": tmp_path / "b.csv", "delimiter": ";", "encoding": "cp1252"})
    assert len({input_fingerprint(DataSettings(text="text", **each)) for each in given}) == 1


@pytest.mark.parametrize("changed", [["b", "a"], ["a", "b "], ["a", "b", "b"], ["a"], ["ab", ""]])
def test_other_rows_have_another_fingerprint(tmp_path: Path, changed: list[str]) -> None:
    prints = []
    for number, texts in enumerate((["a", "b"], changed)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text, "label": "x"}) + "\n" for text in texts))
        prints.append(input_fingerprint(DataSettings(train=path, text="text")))
    assert prints[0] != prints[1]


@pytest.mark.parametrize(("group", "different"), [(None, 1), ("user", 2)])
def test_only_the_columns_that_are_read_count(tmp_path: Path, group: str | None, different: int) -> None:
    prints = set()
    for name, user in (("a.csv", "u"), ("b.csv", "v")):
        (tmp_path / name).write_text(f"text,label,user\na,x,{user}\n")
        prints.add(input_fingerprint(DataSettings(train=tmp_path / name, text="text", group=group)))
    assert len(prints) == different


def test_a_file_of_which_only_mistakes_changed_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\n")
    (tmp_path / "b.csv").write_text("text,label\na,x\nb\n")
    prints = {input_fingerprint(DataSettings(train=tmp_path / name, text="text")) for name in ("a.csv", "b.csv")}
    assert len(prints) == 2

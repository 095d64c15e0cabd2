"""`kdc predict`: all rows come out in order, with the answers that numpy gives too; a kill loses no finished window."""

import csv
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bag_models
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_tables import LABELS, check, make_artifact, make_rows, predict, read, write

from kdc.common.errors import InputError, KdcError, without_secrets
from kdc.common.places import File, find, format_of, is_packed
from kdc.serving.bulk import inputs
from kdc.serving.bulk.job import Counts, Job
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.predict import Speed
from kdc.serving.bulk.request import PredictRequest
from kdc.serving.bulk.windows import Scorer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("bag") / "artifact")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 16)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("out", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_row_comes_out_in_order_with_its_own_answer(
    artifact: Path, tmp_path: Path, ending: str, out: str
) -> None:
    rows = make_rows(100)
    counts = predict(artifact, write(tmp_path / f"in{ending}", rows), tmp_path / f"out{out}")
    assert (counts.read, counts.written, counts.skipped) == (100, 100, 0)
    check(read(tmp_path / f"out{out}"), rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"in{ending}", f"out{out}"])


def test_labels_that_a_cell_could_not_tell_apart_are_refused_before_any_row(tmp_path: Path) -> None:
    """`a|b` would read as two labels. Formats with lists take them."""
    task = bag_models.SINGLE.model_copy(update={"kind": "multilabel", "labels": ("a|b", "c", "d")})
    artifact = bag_models.write_artifact(tmp_path / "artifact", task, bag_models.INFO)
    rows = write(tmp_path / "in.csv", make_rows(20))
    for ending in (".csv", ".tsv"):
        with pytest.raises(InputError, match="which stands in a label too"):
            predict(artifact, rows, tmp_path / f"out{ending}")
        assert not (tmp_path / f"out{ending}").exists()
    assert predict(artifact, rows, tmp_path / "out.jsonl").written == 20


def test_parquet_keeps_its_types(artifact: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array(range(40), pa.int16()),
            "sentence": ["w1"] * 40,
            "none": pa.array([None] * 40, pa.int32()),
            "when": pa.array([1_700_000_000] * 40, pa.timestamp("s", "UTC")),
            "parts": pa.array([[1, 2]] * 40, pa.list_(pa.int8())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict(artifact, tmp_path / "in.parquet", tmp_path / "out.parquet", all_scores=True)
    output = pq.read_table(tmp_path / "out.parquet")
    assert output.select(table.column_names).equals(table.cast(output.select(table.column_names).schema))
    assert [output.schema.field(name).type for name in ("id", "none", "parts")] == [
        pa.int16(),
        pa.int32(),
        pa.list_(pa.int8()),
    ]
    assert output.column_names[5:] == ["label", "score", *(f"score_{label}" for label in LABELS)]
    sums = np.sum([output[f"score_{label}"].to_numpy() for label in LABELS], axis=0)
    np.testing.assert_allclose(sums, 1, atol=1e-6)


def test_a_directory_and_a_pattern_are_read_by_name(artifact: Path, tmp_path: Path) -> None:
    rows = make_rows(90)
    (tmp_path / "in").mkdir()
    for name, part in (("b", rows[40:]), ("a", rows[:40])):
        write(tmp_path / "in" / f"{name}.jsonl", part)
    (tmp_path / "in" / "readme.txt").write_text("no data")
    for number, source in enumerate((tmp_path / "in", tmp_path / "in" / "*.jsonl")):
        predict(artifact, source, tmp_path / f"{number}.csv")
        check(read(tmp_path / f"{number}.csv"), rows)


def test_columns_may_be_named_otherwise_and_the_new_ones_too(artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.csv", [{"body": "w1 w2", "label": "kept"}])
    predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv", text="body", prefix="my_")
    (row,) = read(tmp_path / "out.csv")
    assert (row["body"], row["label"], row["my_label"] in LABELS) == ("w1 w2", "kept", True)


def test_pairs_are_read_from_two_columns(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", task=bag_models.PAIR)
    write(tmp_path / "in.jsonl", [{"premise": "w1 w2", "hypothesis": "w3"}])
    predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert row["label"] == "abc"[bag_models.expected_logits("w1 w2", "w3").argmax()]


def test_quotes_line_breaks_and_zero_bytes_in_csv_are_kept(artifact: Path, tmp_path: Path) -> None:
    text = '\ufeffid,sentence,note\r\n1,w1 w2,"a ""quote"", a comma\r\nand a line"\r\n\r\n2,w3,\x00 é 🙂\r\n'
    (tmp_path / "in.csv").write_bytes(text.encode())
    predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv")
    rows = read(tmp_path / "out.csv")
    assert [row["note"] for row in rows] == ['a "quote", a comma\r\nand a line', "\x00 é 🙂"]
    check(rows, [{"id": 1, "sentence": "w1 w2"}, {"id": 2, "sentence": "w3"}])


BAD = {
    ".csv": ('sentence,x\nw1,1\n"w2\nw2",2\n,3\nw4\nw5,5\n', {5: "no text", 6: "1 columns"}),
    ".jsonl": (
        '{"sentence": "w1"}\n\n{"sentence": null}\n{"x": 1}\n{"sentence": 7}\nnot json\n[1]\n{"sentence": "\\ud800"}\n'
        '{"sentence": " \\t"}\n',
        {3: "no text", 4: "no text", 5: "int", 6: "no JSON object", 7: "no JSON object", 8: "UTF-8", 9: "no text"},
    ),
}


@pytest.mark.parametrize("ending", BAD)
def test_a_bad_row_stops_with_its_file_and_line(artifact: Path, tmp_path: Path, ending: str) -> None:
    content, bad = BAD[ending]
    (tmp_path / f"in{ending}").write_text(content)
    first = min(bad)
    with pytest.raises(InputError, match=f"(?s){bad[first]}.*in{ending}, line {first}\n"):
        predict(artifact, tmp_path / f"in{ending}", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("ending", BAD)
def test_on_error_skip_leaves_bad_rows_out_and_names_them(artifact: Path, tmp_path: Path, ending: str) -> None:
    content, bad = BAD[ending]
    (tmp_path / f"in{ending}").write_text(content)
    counts = predict(
        artifact, tmp_path / f"in{ending}", tmp_path / "out.jsonl", on_error="skip", errors=str(tmp_path / "bad.jsonl")
    )
    named = read(tmp_path / "bad.jsonl")
    assert {row["line"]: next(part for part in bad.values() if part in row["problem"]) for row in named} == bad
    assert counts.skipped == len(bad)
    assert counts.read == counts.written + counts.skipped
    assert len(read(tmp_path / "out.jsonl")) == counts.written == (3 if ending == ".csv" else 1)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("body\nw1\n", {}, "no column sentence"),
        ("", {}, "empty"),
        ("sentence,label\nw1,x\n", {}, "--prefix"),
        ("sentence,sentence\nw1,x\n", {}, "one name"),
        ('sentence\n"w1\n', {}, "broken quoting"),
        ("sentence\nw1\n", {"on_error": "ignore"}, "stop or skip"),
        ("sentence\nw1\n", {"errors": "x.jsonl"}, "--on-error skip"),
        ("sentence\nw1\n", {"text_pair": "x"}, "one text a row"),
        ("sentence\nw1\n", {"output": "out.docx"}, "unknown format"),
        ("sentence\nw1\n", {"output": "out.xlsx"}, "kdc writes no .xlsx"),
        ("sentence\nw1\n", {"output": "in.csv"}, "all different files"),
        ("sentence\nw1\n", {"source": "other.csv"}, "no input"),
    ],
)
def test_wrong_files_and_options_are_refused(
    artifact: Path, tmp_path: Path, content: str, changes: dict[str, str], message: str
) -> None:
    (tmp_path / "in.csv").write_text(content)
    more = {name: value for name, value in changes.items() if name not in ("source", "output")}
    with pytest.raises(InputError, match=message):
        predict(
            artifact, tmp_path / changes.get("source", "in.csv"), tmp_path / changes.get("output", "out.csv"), **more
        )
    assert (tmp_path / "in.csv").read_text() == content


def test_an_existing_output_is_only_replaced_by_force(artifact: Path, tmp_path: Path) -> None:
    rows = make_rows(3)
    write(tmp_path / "in.csv", rows)
    (tmp_path / "out.csv").write_text("precious")
    with pytest.raises(InputError, match="there already"):
        predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "precious"
    predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv", force=True)
    check(read(tmp_path / "out.csv"), rows)


def stop_at(window: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have Ctrl-C pressed in that window (counted from 1), once. Returns the rows of each window, as they come."""
    seen: list[int] = []
    original = Scorer.__call__

    def stops(self: Any, texts: Any) -> Any:
        seen.append(len(texts))
        if len(seen) == window:
            raise KeyboardInterrupt
        return original(self, texts)

    monkeypatch.setattr(Scorer, "__call__", stops)
    return seen


@pytest.mark.parametrize("out", [".csv", ".parquet"])
def test_an_interrupted_job_goes_on_and_another_job_does_not_take_its_place(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    rows, output = make_rows(100), tmp_path / f"out{out}"
    write(tmp_path / "in.jsonl", rows)
    seen = stop_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        predict(artifact, tmp_path / "in.jsonl", output)
    assert not output.exists()
    with pytest.raises(InputError, match="unfinished"):
        predict(artifact, tmp_path / "in.jsonl", output, all_scores=True)
    counts = predict(artifact, tmp_path / "in.jsonl", output)
    assert (counts.resumed, sum(seen[4:])) == (48, 52)
    check(read(output), rows)
    assert not list(tmp_path.glob("*.partial*"))


def test_a_killed_job_goes_on_from_its_finished_windows(artifact: Path, tmp_path: Path) -> None:
    rows = make_rows(60_000)
    write(tmp_path / "in.csv", rows)
    command = [
        sys.executable,
        "-m",
        "kdc",
        "predict",
        str(artifact),
        str(tmp_path / "in.csv"),
        str(tmp_path / "out.parquet"),
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial, deadline = tmp_path / "out.parquet.partial", time.monotonic() + 60
    while len(list(partial.glob("*.json"))) < 3:  # job.json, and two windows
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out.parquet").exists()
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    counts = json.loads(done.stdout)
    assert counts["resumed"] >= 2 * 8192
    assert (counts["read"], counts["written"]) == (60_000, 60_000)
    check(read(tmp_path / "out.parquet")[::97], rows[::97])
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [str(number) for number in range(60_000)]


def test_a_job_killed_between_errors_and_output_goes_on_and_takes_no_other_errors_file(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(20)
    write(tmp_path / "in.jsonl", [*rows, {"id": 20, "sentence": ""}])
    named, precious = tmp_path / "bad.jsonl", tmp_path / "precious.jsonl"
    precious.write_text("precious")

    def again(errors: Path) -> Any:
        return predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", on_error="skip", errors=str(errors))

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kdc.serving.bulk.outputs.Writer.join", killed)
        with pytest.raises(KeyboardInterrupt):
            again(named)
    assert named.exists()
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(InputError, match="there already"):
        again(precious)
    assert precious.read_text() == "precious"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "bad.jsonl").write_text("precious")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="there already"):
        again(Path("bad.jsonl"))
    monkeypatch.chdir(tmp_path)
    counts = again(Path("bad.jsonl"))
    assert (counts.resumed, counts.written, counts.skipped) == (21, 20, 1)
    assert len(read(named)) == 1
    check(read(tmp_path / "out.jsonl"), rows)


def test_a_row_that_stopped_the_job_can_be_skipped_without_starting_over(artifact: Path, tmp_path: Path) -> None:
    rows = make_rows(40)
    write(tmp_path / "in.jsonl", [*rows, {"id": 40, "sentence": ""}])
    with pytest.raises(InputError, match="line 41"):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    counts = predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", on_error="skip")
    assert (counts.resumed, counts.written, counts.skipped) == (32, 40, 1)
    check(read(tmp_path / "out.jsonl"), rows)


def test_force_also_goes_on_and_without_it_nothing_is_dropped(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in.jsonl", make_rows(40))
    (tmp_path / "out.jsonl").write_text("old")
    stop_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", force=True)
    with pytest.raises(InputError, match="there already"):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", force=True).resumed == 16
    check(read(tmp_path / "out.jsonl"), make_rows(40))


def test_pieces_of_a_job_whose_record_is_gone_are_not_taken_over(artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", make_rows(20))
    partial = tmp_path / "out.jsonl.partial"
    partial.mkdir()
    (partial / "000000000.json").write_text('{"read": 16, "written": 16, "skipped": 0}')
    (partial / "000000000.rows").write_bytes(b"stale\n")
    with pytest.raises(InputError, match="unfinished"):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", force=True)
    check(read(tmp_path / "out.jsonl"), make_rows(20))


@pytest.mark.parametrize(("harm", "message"), [("unlink", "are gone"), ("truncate", "were changed")])
def test_finished_rows_that_are_gone_or_changed_end_the_job_without_an_output(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str, message: str
) -> None:
    write(tmp_path / "in.jsonl", make_rows(40))
    original = Scorer.__call__

    def removes(self: Any, texts: Any) -> Any:
        for file in tmp_path.glob("out.jsonl.partial/000000000.rows"):
            file.unlink() if harm == "unlink" else os.truncate(file, 10)
        return original(self, texts)

    monkeypatch.setattr(Scorer, "__call__", removes)
    with pytest.raises(KdcError, match=f"finished rows {message}"):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl.partial"]


def test_a_lone_carriage_return_does_not_end_a_row(artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"sentence": "w1\rw2", "note": "a\rb"}, {"sentence": "w3", "note": "c"}])
    predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert [(row["sentence"], row["note"]) for row in read(tmp_path / "out.csv")] == [("w1\rw2", "a\rb"), ("w3", "c")]


def test_a_text_that_parquet_holds_once_for_all_rows_makes_small_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a file of 300 bytes whose rows become gigabytes at once."""
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 8192)
    monkeypatch.setattr(inputs, "WINDOW_BYTES", 1 << 20)
    pq.write_table(pa.table({"sentence": ["a film " * 3000] * 1000}), tmp_path / "in.parquet")
    (file,) = find(str(tmp_path / "in.parquet"))
    sizes = [sum(map(len, window.column("sentence"))) for window in inputs.read_windows(file)]
    assert sum(sizes) == 21_000_000
    assert max(sizes) < 3 << 20


def test_object_members_that_parquet_would_drop_are_refused(artifact: Path, tmp_path: Path) -> None:
    rows = [row | {"meta": {"a": 1}} for row in make_rows(20)]
    rows[18]["meta"]["b"] = 2
    write(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputError, match="column meta holds"):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.parquet")


def test_jsonl_of_varying_columns_stays_as_it_is(artifact: Path, tmp_path: Path) -> None:
    rows = [*make_rows(20), {"id": 20, "sentence": "w1", "more": [1]}]
    write(tmp_path / "in.jsonl", rows)
    predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    answered = read(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in row if name not in ("label", "score")} for row in answered] == rows
    with pytest.raises(InputError, match="columns that the first ones have not: more"):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.csv")


def test_a_late_window_without_any_text_is_skipped_row_by_row(artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [*make_rows(16), {"id": 16}, {"id": 17}])
    counts = predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", on_error="skip")
    assert (counts.written, counts.skipped) == (16, 2)


def test_jsonl_without_any_text_after_a_csv_file_is_skipped_row_by_row(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.csv", make_rows(3))
    write(tmp_path / "in" / "b.jsonl", [{"id": 3}])
    counts = predict(artifact, tmp_path / "in", tmp_path / "out.jsonl", on_error="skip")
    assert (counts.written, counts.skipped) == (3, 1)


@pytest.mark.parametrize("out", [".csv", ".parquet"])
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_without_rows_keeps_its_columns(artifact: Path, tmp_path: Path, ending: str, out: str) -> None:
    if ending == ".csv":
        (tmp_path / "in.csv").write_text("id,sentence\n")
    else:
        pq.write_table(
            pa.table({"id": pa.array([], pa.int8()), "sentence": pa.array([], pa.string())}), tmp_path / "in.parquet"
        )
    assert predict(artifact, tmp_path / f"in{ending}", tmp_path / f"out{out}").written == 0
    if out == ".csv":
        assert (tmp_path / "out.csv").read_text() == "id,sentence,label,score\n"
    else:
        assert pq.read_table(tmp_path / "out.parquet").column_names == ["id", "sentence", "label", "score"]


@pytest.mark.parametrize("content", [b"pr\xe9nom,sentence\nx,w1\n", b"note,sentence\n\xe9,w1\n"])
def test_bytes_that_are_not_utf8_are_refused(artifact: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    with pytest.raises(InputError, match="not valid UTF-8"):
        predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv")


def test_a_table_in_another_dialect_gives_the_answers_of_the_usual_one(artifact: Path, tmp_path: Path) -> None:
    rows = [{**row, "note": "für; 5 €"} for row in make_rows(40)]
    usual = predict(artifact, write(tmp_path / "in.csv", rows), tmp_path / "out.csv")
    with (tmp_path / "excel.csv").open("w", newline="", encoding="utf-16") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    how = {"delimiter": ";", "encoding": "utf-16"}
    assert predict(artifact, tmp_path / "excel.csv", tmp_path / "other.csv", **how).written == usual.written == 40
    assert (tmp_path / "other.csv").read_text() == (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("out", [".csv", ".jsonl", ".parquet"])
def test_a_sheet_gives_the_answers_of_its_rows(artifact: Path, tmp_path: Path, out: str) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    rows, book = make_rows(40), openpyxl.Workbook()
    for cells in (["id", "sentence"], *([row["id"], row["sentence"]] for row in rows)):
        book.active.append(cells)
    book.save(tmp_path / "in.xlsx")
    assert predict(artifact, tmp_path / "in.xlsx", tmp_path / f"out{out}").written == 40
    check(read(tmp_path / f"out{out}"), rows)


def test_another_delimiter_or_encoding_is_proposed(artifact: Path, tmp_path: Path) -> None:
    for content, option in (
        (b"id;sentence\n1;w1\n", "--delimiter ';'"),
        (b"sentence,n\nw1,\xfc\n", "--encoding cp1252"),
    ):
        (tmp_path / "in.csv").write_bytes(content)
        with pytest.raises(InputError, match=option):
            predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv", force=True)


def test_standard_input_takes_no_dialect(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="standard input is JSONL in UTF-8"):
        predict(artifact, "-", tmp_path / "out.csv", encoding="cp1252")


def test_compressed_input_is_unpacked_and_a_cut_one_named(artifact: Path, tmp_path: Path) -> None:
    rows = make_rows(50)
    whole = gzip.compress(write(tmp_path / "in.csv", rows).read_bytes())
    (tmp_path / "in.csv.gz").write_bytes(whole)
    predict(artifact, tmp_path / "in.csv.gz", tmp_path / "out.csv")
    check(read(tmp_path / "out.csv"), rows)
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="cannot read the file"):
        predict(artifact, tmp_path / "cut.csv.gz", tmp_path / "cut.csv")


def test_hidden_files_and_folders_of_tools_are_no_input(artifact: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "_temporary/0/b.csv", ".ipynb_checkpoints/a.csv", "sub/c.csv", "data[1].csv"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "in" / name, make_rows(5))
    assert predict(artifact, tmp_path / "in", tmp_path / "out.csv").read == 15
    assert predict(artifact, tmp_path / "in" / "data[1].csv", tmp_path / "one.csv").read == 5


def test_a_remote_output_appears_whole_or_not_at_all(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    rows = make_rows(40)
    write(tmp_path / "in.csv", rows)
    memory.pipe_file("/bucket/in.csv", (tmp_path / "in.csv").read_bytes())

    def fails(self: Any, pieces: Any, stream: Any) -> None:
        stream.write(next(iter(pieces)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "join", fails)
        with pytest.raises(KeyboardInterrupt):
            predict(artifact, "memory://bucket/in.csv", "memory://bucket/out.csv")
    assert not memory.exists("/bucket/out.csv")
    assert predict(artifact, "memory://bucket/in.csv", "memory://bucket/out.csv").resumed == 40
    (tmp_path / "out.csv").write_bytes(memory.cat_file("/bucket/out.csv"))
    check(read(tmp_path / "out.csv"), rows)
    assert not memory.exists("/bucket/out.csv.partial")


def test_jsonl_goes_through_standard_input_and_output(artifact: Path) -> None:
    rows = make_rows(50)
    done = subprocess.run(
        [sys.executable, "-m", "kdc", "predict", str(artifact), "-", "-"],
        capture_output=True,
        check=True,
        input="".join(json.dumps(row) + "\n" for row in rows).encode(),
    )
    check([json.loads(line) for line in done.stdout.splitlines()], rows)
    assert b"50 rows read, 50 written" in done.stderr


def test_predicting_loads_no_training_library(artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", make_rows(3))
    code = (
        "import sys; from kdc.cli import app\n"
        f"app(['predict', {str(artifact)!r}, {str(tmp_path / 'in.jsonl')!r}, {str(tmp_path / 'o.jsonl')!r}],"
        " standalone_mode=False)\n"
        "print(*{'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_the_speed_of_a_resumed_job_counts_only_rows_answered_now(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((0.0, 10.0, 12.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    speed = Speed()
    assert speed(Counts(read=1000, resumed=1000)) == 0  # reading over took ten seconds
    assert speed(Counts(read=1100, resumed=1000)) == 50


def test_a_directory_is_not_replaced_by_a_file_even_by_force(artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.csv", make_rows(3))
    (tmp_path / "out.csv" / "kept").mkdir(parents=True)
    with pytest.raises(InputError, match="is a directory"):
        predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv", force=True)
    assert (tmp_path / "out.csv" / "kept").is_dir()


@pytest.mark.parametrize("out", [".jsonl", ".parquet"])
def test_a_window_of_parquet_without_any_text_is_skipped(artifact: Path, tmp_path: Path, out: str) -> None:
    rows = make_rows(40)
    write(
        tmp_path / "in.parquet", [*rows[:16], *({"id": row["id"], "sentence": None} for row in rows[:16]), *rows[16:]]
    )
    counts = predict(artifact, tmp_path / "in.parquet", tmp_path / f"out{out}", on_error="skip")
    assert (counts.written, counts.skipped) == (40, 16)
    check(read(tmp_path / f"out{out}"), rows)


def test_a_text_beyond_the_limit_is_a_row_without_text(artifact: Path, tmp_path: Path) -> None:
    rows = make_rows(2)
    write(tmp_path / "in.csv", [*rows, {"id": 2, "sentence": "w" * 1001}])
    with pytest.raises(InputError, match=r"1,001 characters.*max-text-chars"):
        predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv", max_text_chars=1000)
    counts = predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv", max_text_chars=1000, on_error="skip")
    assert (counts.written, counts.skipped) == (2, 1)
    predict(artifact, tmp_path / "in.csv", tmp_path / "all.csv", max_text_chars=1001)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "[1, NaN]"])
def test_a_number_that_json_cannot_hold_is_not_changed_in_silence(artifact: Path, tmp_path: Path, number: str) -> None:
    (tmp_path / "in.jsonl").write_text(
        f'{{"sentence": "w1", "price": {number}}}\n{{"sentence": "w2", "price": 1e99}}\n'
    )
    with pytest.raises(InputError, match="no number that JSON can hold"):
        predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    predict(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", on_error="skip")
    assert [row["price"] for row in read(tmp_path / "out.jsonl")] == [1e99]


def test_files_named_as_temporary_ones_stay(artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.csv", make_rows(3))
    theirs = [tmp_path / "out.csv.tmp", tmp_path / ".out.csv.tmp"]
    for path in theirs:
        path.write_text("theirs")
    predict(artifact, tmp_path / "in.csv", tmp_path / "out.csv")
    assert [path.read_text() for path in theirs] == ["theirs"] * 2


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_a_file_that_cannot_grow_is_told_without_a_traceback_and_the_job_goes_on(
    artifact: Path, tmp_path: Path, output: str
) -> None:
    rows = make_rows(9000)
    write(tmp_path / "in.csv", rows)
    command = [sys.executable, "-m", "kdc", "predict", str(artifact), str(tmp_path / "in.csv"), str(tmp_path / output)]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    failed = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert all(part in failed.stderr for part in ("the file system refused", output, "ulimit -f"))
    assert not (tmp_path / output).exists()
    subprocess.run(command, capture_output=True, check=True)
    check(read(tmp_path / output), rows)


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        ("https://user:hunter2@127.0.0.1:9/rows.csv?X-Signature=hunter2", "out.csv", "127.0.0.1:9/rows.csv"),
        ("in.csv", "https://user:hunter2@127.0.0.1:9/out.xlsx?X-Signature=hunter2", "127.0.0.1:9/out.xlsx"),
    ],
)
def test_no_message_shows_the_secrets_of_an_address(
    artifact: Path, tmp_path: Path, source: str, output: str, told: str
) -> None:
    write(tmp_path / "in.csv", make_rows(1))
    done = subprocess.run(
        [sys.executable, "-m", "kdc", "predict", str(artifact), source, output],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_addresses_tell_their_format_and_keep_their_secrets_to_themselves() -> None:
    for address, expected in (
        ("https://h/rows.csv?X-Signature=a.parquet", "csv"),
        ("https://h/rows.jsonl.gz?token=x", "jsonl"),
        ("odd?name.csv", "csv"),
    ):
        assert format_of(address) == File(without_secrets(address), None, address, 0, "").format == expected
        assert is_packed(address) is (".gz" in address)
    assert without_secrets("s3://b/part-?.csv") == "s3://b/part-?.csv"
    assert without_secrets("https://u:p@h/a?b=c d") == "https://...@h/a?... d"


def test_another_source_behind_an_address_without_secrets_is_another_job(artifact: Path, tmp_path: Path) -> None:
    def fingerprint(path: str) -> Any:
        request = PredictRequest(artifact=artifact, source="x", output="y.csv")
        file = File("https://h/export.csv?...", None, path, 0, "")
        return Job(request, [file], bag_models.SINGLE, {}).fingerprint()

    one, other = fingerprint("https://h/export.csv?table=a"), fingerprint("https://h/export.csv?table=b")
    assert one != other
    assert "table" not in str(one)

"""`kdc predict` on an object store: a local S3 in this process, without network or account."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from labelled_tables import check, make_artifact, make_rows, predict, read, write

from kdc.common.errors import InputError, KdcError
from kdc.serving.bulk import inputs
from kdc.serving.bulk.outputs import Writer
from kdc.serving.bulk.windows import Scorer

s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'kdc[test]'")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("bag") / "artifact")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "WINDOW_ROWS", 16)


def fetch(bucket: Any, address: str, folder: Path) -> list[dict[str, Any]]:
    path = folder / f"fetched{Path(address).suffix}"
    path.write_bytes(bucket.cat_file(address.removeprefix("s3://")))
    return read(path)


def keys(bucket: Any) -> list[str]:
    return sorted(bucket.find("rows"))


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_file_goes_from_the_store_to_the_store(artifact: Path, tmp_path: Path, bucket: Any, ending: str) -> None:
    rows = make_rows(50)
    bucket.pipe_file(f"rows/in{ending}", write(tmp_path / f"in{ending}", rows).read_bytes())
    counts = predict(artifact, f"s3://rows/in{ending}", f"s3://rows/out/labelled{ending}")
    assert (counts.read, counts.written) == (50, 50)
    check(fetch(bucket, f"s3://rows/out/labelled{ending}", tmp_path), rows)
    assert keys(bucket) == sorted([f"rows/in{ending}", f"rows/out/labelled{ending}"])


def test_a_directory_and_a_pattern_are_read_by_name(artifact: Path, tmp_path: Path, bucket: Any) -> None:
    rows = make_rows(90)
    for name, part in (("b", rows[40:]), ("a", rows[:40])):
        bucket.pipe_file(f"rows/in/{name}.jsonl", write(tmp_path / "part.jsonl", part).read_bytes())
    bucket.pipe_file("rows/in/_temporary/c.jsonl", b"no JSON\n")
    bucket.pipe_file("rows/in/readme.txt", b"no data")
    for number, source in enumerate(("s3://rows/in", "s3://rows/in/", "s3://rows/in/*.jsonl")):
        predict(artifact, source, f"s3://rows/{number}.parquet")
        check(fetch(bucket, f"s3://rows/{number}.parquet", tmp_path), rows)


def test_bad_rows_are_named_in_the_store(artifact: Path, tmp_path: Path, bucket: Any) -> None:
    rows = make_rows(40)
    bucket.pipe_file("rows/in.jsonl", write(tmp_path / "in.jsonl", [*rows, {"id": 40, "sentence": ""}]).read_bytes())
    with pytest.raises(InputError, match=r"no text(?s:.*)s3://rows/in.jsonl, line 41\n"):
        predict(artifact, "s3://rows/in.jsonl", "s3://rows/out.csv")
    assert not bucket.exists("rows/out.csv")
    counts = predict(artifact, "s3://rows/in.jsonl", "s3://rows/out.csv", on_error="skip", errors="s3://rows/bad.jsonl")
    assert (counts.resumed, counts.skipped) == (32, 1)
    assert [row["line"] for row in fetch(bucket, "s3://rows/bad.jsonl", tmp_path)] == [41]
    check(fetch(bucket, "s3://rows/out.csv", tmp_path), rows)


@pytest.mark.parametrize("where", ["windows", "join"])
def test_an_interrupted_job_leaves_no_object_and_goes_on(
    artifact: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rows = make_rows(100)
    bucket.pipe_file("rows/in.csv", write(tmp_path / "in.csv", rows).read_bytes())
    calls = []

    def stops(self: Any, *given: Any) -> Any:
        calls.append(given)
        if where == "windows" and len(calls) < 4:
            return original(self, *given)
        if where == "join":
            given[1].write(next(iter(given[0])))
        raise KeyboardInterrupt

    owner, name = (Scorer, "__call__") if where == "windows" else (Writer, "join")
    original: Any = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stops)
        with pytest.raises(KeyboardInterrupt):
            predict(artifact, "s3://rows/in.csv", "s3://rows/out.parquet")
    assert not bucket.exists("rows/out.parquet")
    with pytest.raises(InputError, match="unfinished"):
        predict(artifact, "s3://rows/in.csv", "s3://rows/out.parquet", all_scores=True)
    counts = predict(artifact, "s3://rows/in.csv", "s3://rows/out.parquet")
    assert counts.resumed == (48 if where == "windows" else 100)
    check(fetch(bucket, "s3://rows/out.parquet", tmp_path), rows)
    assert keys(bucket) == ["rows/in.csv", "rows/out.parquet"]


def test_an_existing_object_is_only_replaced_by_force(artifact: Path, tmp_path: Path, bucket: Any) -> None:
    rows = make_rows(3)
    bucket.pipe_file("rows/in.csv", write(tmp_path / "in.csv", rows).read_bytes())
    bucket.pipe_file("rows/out.csv", b"precious")
    with pytest.raises(InputError, match="there already"):
        predict(artifact, "s3://rows/in.csv", "s3://rows/out.csv")
    assert bucket.cat_file("rows/out.csv") == b"precious"
    predict(artifact, "s3://rows/in.csv", "s3://rows/out.csv", force=True)
    check(fetch(bucket, "s3://rows/out.csv", tmp_path), rows)


def test_an_input_is_not_overwritten(artifact: Path, tmp_path: Path, bucket: Any) -> None:
    bucket.pipe_file("rows/in.csv", write(tmp_path / "in.csv", make_rows(3)).read_bytes())
    with pytest.raises(InputError, match="all different files"):
        predict(artifact, "s3://rows/in.csv", "s3://rows/in.csv", force=True)


def test_missing_objects_and_silent_stores_are_named(
    artifact: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write(tmp_path / "in.csv", make_rows(3))
    for source in ("s3://rows/other.csv", "s3://nobucket/in.csv"):
        with pytest.raises(InputError, match="no input"):
            predict(artifact, source, tmp_path / "out.csv")
    with pytest.raises(KdcError, match=r"the store refused(?s:.*)s3://nobucket/out.csv(?s:.*)bucket does not exist"):
        predict(artifact, local, "s3://nobucket/out.csv")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    for source, output in (("s3://rows/in.csv", "out.csv"), (str(local), "s3://rows/out.csv")):
        with pytest.raises(KdcError, match=r"did not answer(?s:.*)127.0.0.1:1/"):
            predict(artifact, source, tmp_path / output if output == "out.csv" else output)


def test_a_cut_object_is_a_broken_file_and_not_a_broken_store(artifact: Path, tmp_path: Path, bucket: Any) -> None:
    whole = gzip.compress(write(tmp_path / "in.csv", make_rows(50)).read_bytes())
    bucket.pipe_file("rows/in.csv.gz", whole[:-20])
    with pytest.raises(InputError, match=r"cannot read the file(?s:.*)s3://rows/in.csv.gz"):
        predict(artifact, "s3://rows/in.csv.gz", "s3://rows/out.csv")


def test_an_object_that_changes_between_two_runs_is_another_job(
    artifact: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.pipe_file("rows/in.jsonl", write(tmp_path / "in.jsonl", make_rows(40)).read_bytes())

    def stops(self: Any, texts: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            predict(artifact, "s3://rows/in.jsonl", "s3://rows/out.jsonl")
    changed = write(tmp_path / "in.jsonl", make_rows(40)).read_bytes().replace(b"w1", b"w2")
    bucket.pipe_file("rows/in.jsonl", changed)
    with pytest.raises(InputError, match="unfinished"):
        predict(artifact, "s3://rows/in.jsonl", "s3://rows/out.jsonl")

"""`kdc predict --engine ray`: the rows, order and numbers of the local engine; what was done is not done again."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_tables import check, make_artifact, make_rows, predict, read, write

from kdc.common.errors import InputError, KdcError
from kdc.common.places import Folder
from kdc.common.ray import connected
from kdc.serving.bulk import ray_job
from kdc.serving.bulk.inputs import Window
from kdc.serving.bulk.job import Counts
from kdc.serving.bulk.predict import PredictResult
from kdc.serving.bulk.ray_workers import Actors, count_try

pytestmark = pytest.mark.ray
pytest.importorskip("ray", reason="needs Ray: pip install 'kdc[ray]'")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("bag") / "artifact")


@pytest.fixture(scope="module")
def ray(store: Any) -> Iterator[Any]:  # its workers take the store's address from the environment that they start in
    with connected(None, cores=2) as ray:
        yield ray


def predict_on_ray(artifact: Path, source: Path | str, output: Path | str, **changes: Any) -> PredictResult:
    return predict(artifact, source, output, **({"engine": "ray", "actors": 1, "threads": 1} | changes))


def shards(output: Path) -> list[Path]:
    return sorted(output.glob("part-*"))


def read_all(output: Path) -> list[dict[str, Any]]:
    return [row for shard in shards(output) for row in read(shard)]


def write_files(folder: Path, rows: list[dict[str, Any]], ending: str, files: int) -> Path:
    folder.mkdir()
    share = -(-len(rows) // files)
    for number in range(files):
        write(folder / f"{number:02d}{ending}", rows[number * share : (number + 1) * share])
    return folder


def on_progress(monkeypatch: pytest.MonkeyPatch, then: Any) -> None:
    """Call `then` each time when a window comes back."""
    original = ray_job.run

    def run(*given: Any, progress: Any, **more: Any) -> Counts:
        return original(*given, progress=lambda counts, done: then(counts), **more)

    monkeypatch.setattr(ray_job, "run", run)


def workers(title: str) -> list[psutil.Process]:
    """The workers with this title of the Ray that this process has started: others may run on this machine."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{title}"):
                processes.append(process)
        except psutil.Error:
            continue
    return processes


@pytest.mark.parametrize(("ending", "out"), [(".csv", ".parquet"), (".jsonl", ".jsonl"), (".parquet", ".csv")])
def test_rows_order_and_numbers_are_those_of_the_local_engine(
    ray: Any, artifact: Path, tmp_path: Path, ending: str, out: str
) -> None:
    rows = make_rows(17_000)  # two windows a file
    source = write_files(tmp_path / "in", rows, ending, files=2)
    counts = predict_on_ray(artifact, source, tmp_path / f"out{out}", all_scores=True, actors=2)
    assert (counts.read, counts.written, counts.resumed, counts.actors) == (17_000, 17_000, 0, 2)
    assert [path.name for path in shards(tmp_path / f"out{out}")] == [
        f"part-00000{file}-00000{window}{out}" for file in range(2) for window in range(2)
    ]
    predict(artifact, source, tmp_path / f"local{out}", all_scores=True)
    assert read_all(tmp_path / f"out{out}") == read(tmp_path / f"local{out}")
    check(read_all(tmp_path / f"out{out}")[::997], rows[::997])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", f"local{out}", f"out{out}"])
    if out == ".parquet":  # a reader of the directory sees one table
        table = pq.read_table(tmp_path / "out.parquet")
        assert table.equals(pq.read_table(tmp_path / "local.parquet"))


def test_all_shards_have_the_columns_and_types_of_the_first_rows(ray: Any, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", [{"id": 0, "sentence": "w1", "none": None}])
    write(tmp_path / "in" / "b.jsonl", [{"id": 1, "sentence": "w2", "none": "text"}, {"id": 2, "sentence": "w3"}])
    (tmp_path / "in" / "c.jsonl").write_text("")
    predict_on_ray(artifact, tmp_path / "in", tmp_path / "out.parquet")
    schemas = [pq.read_schema(path) for path in shards(tmp_path / "out.parquet")]
    assert len(schemas) == 3
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert schemas[0].field("none").type == pa.string()
    write(tmp_path / "in" / "d.jsonl", [{"id": "text", "sentence": "w1"}])
    with pytest.raises(InputError, match="one Parquet column cannot hold"):
        predict_on_ray(artifact, tmp_path / "in", tmp_path / "other.parquet")


def test_finished_windows_are_not_answered_again(
    ray: Any, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output = make_rows(300), tmp_path / "out.csv"
    source = write_files(tmp_path / "in", rows, ".csv", files=30)
    seen: list[Counts] = []
    partial = tmp_path / "out.csv.partial"

    def stop(counts: Counts) -> None:
        seen.append(counts)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        on_progress(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            predict_on_ray(artifact, source, output)
    assert not output.exists()
    done = {path.stem: os.stat(partial / "rows" / f"{path.stem}.csv").st_ino for path in partial.glob("part-*.json")}
    with pytest.raises(InputError, match="unfinished"):
        predict_on_ray(artifact, source, output, all_scores=True)
    with pytest.raises(InputError, match="unfinished"):
        predict(artifact, source, output)
    counts = predict_on_ray(artifact, source, output)
    assert counts.resumed >= 10 * len(done) >= 40
    assert (counts.read, counts.written) == (300, 300)
    assert {key: os.stat(output / f"{key}.csv").st_ino for key in done} == done
    check(read_all(output), rows)
    assert not partial.exists()


@pytest.mark.parametrize("where", ["first", "later"])
def test_a_bad_row_stops_with_its_file_and_line_or_is_skipped_and_named(
    ray: Any, artifact: Path, tmp_path: Path, where: str
) -> None:
    rows = make_rows(40)
    source = write_files(tmp_path / "in", rows, ".jsonl", files=2)
    name = "00.jsonl" if where == "first" else "01.jsonl"
    with (source / name).open("a") as stream:
        stream.write('{"id": 99, "sentence": ""}\nno json\n')
    with pytest.raises(InputError, match=rf"no text in column sentence(?s:.*){name}, line 21\n") as caught:
        predict_on_ray(artifact, source, tmp_path / "out.jsonl")
    assert caught.value.remedy.startswith("correct the row")
    assert not (tmp_path / "out.jsonl").exists()
    counts = predict_on_ray(
        artifact, source, tmp_path / "out.jsonl", on_error="skip", errors=str(tmp_path / "bad.jsonl")
    )
    assert (counts.read, counts.written, counts.skipped) == (42, 40, 2)
    assert [(Path(row["file"]).name, row["line"]) for row in read(tmp_path / "bad.jsonl")] == [(name, 21), (name, 22)]
    check(read_all(tmp_path / "out.jsonl"), rows)


@pytest.mark.parametrize("content", ['sentence\n"w1\n', "body\nw1\n"])
def test_a_later_file_that_cannot_be_read_is_refused_as_locally(
    ray: Any, artifact: Path, tmp_path: Path, content: str
) -> None:
    source = write_files(tmp_path / "in", make_rows(4), ".csv", files=2)
    (source / "02.csv").write_text(content)
    messages = []
    for on in (predict_on_ray, predict):
        with pytest.raises(InputError) as caught:
            on(artifact, source, tmp_path / "out.csv", force=True)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not (tmp_path / "out.csv").exists()


def test_a_dead_actor_is_replaced(ray: Any, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(200)
    source = write_files(tmp_path / "in", rows, ".csv", files=40)
    killed: list[psutil.Process] = []

    def kill(counts: Counts) -> None:
        if not killed:
            killed.extend(workers("MapWorker(Map(Answerer))"))
            for process in killed:  # all that have a window in hand
                process.kill()

    on_progress(monkeypatch, kill)
    counts = predict_on_ray(artifact, source, tmp_path / "out.csv")
    assert len(killed) == 1
    assert (counts.read, counts.written) == (200, 200)
    check(read_all(tmp_path / "out.csv"), rows)


def test_rows_at_which_actors_die_again_and_again_end_the_job(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "records"), first="job.json")
    window = Window("in.csv", ["sentence"], [{"sentence": "w1"}], None, [2])
    for _ in range(3):
        count_try(folder, "part-000000-000000.1.tries", window)
    with pytest.raises(KdcError, match=r"died at these rows, 4 times(?s:.*)in.csv, rows from line 2 on"):
        count_try(folder, "part-000000-000000.1.tries", window)
    count_try(folder, "part-000000-000000.2.tries", window)  # the next run tries again


def test_an_artifact_that_an_actor_cannot_load_gives_the_local_error(ray: Any, artifact: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.csv", make_rows(3))
    with pytest.raises(InputError, match=r"no such variant(?s:.*)fp16(?s:.*)fp32, int8"):
        predict_on_ray(artifact, tmp_path / "in.csv", tmp_path / "out.csv", variant="fp16")
    broken = shutil.copytree(artifact, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"x")
    with pytest.raises(KdcError, match="wrong size"):
        predict_on_ray(broken, tmp_path / "in.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_shards_that_this_process_cannot_see_make_no_output(
    ray: Any, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a node writes to a disk of its own."""
    write(tmp_path / "in.csv", make_rows(3))
    on_progress(monkeypatch, lambda counts: shards(tmp_path / "out.csv.partial" / "rows")[0].unlink())
    with pytest.raises(KdcError, match="finished rows are gone"):
        predict_on_ray(artifact, tmp_path / "in.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_an_existing_output_is_only_replaced_by_force(ray: Any, artifact: Path, tmp_path: Path) -> None:
    rows = make_rows(3)
    write(tmp_path / "in.jsonl", rows)
    (tmp_path / "out.jsonl").mkdir()
    (tmp_path / "out.jsonl" / "part-000007-000000.jsonl").write_text("precious")
    with pytest.raises(InputError, match="there already"):
        predict_on_ray(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl" / "part-000007-000000.jsonl").read_text() == "precious"
    predict_on_ray(artifact, tmp_path / "in.jsonl", tmp_path / "out.jsonl", force=True)
    check(read_all(tmp_path / "out.jsonl"), rows)


def test_shards_go_to_an_object_store_and_its_last_object_says_that_all_are_there(
    ray: Any, artifact: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(80)
    for path in write_files(tmp_path / "in", rows, ".csv", files=8).iterdir():
        bucket.pipe_file(f"rows/in/{path.name}", path.read_bytes())

    def stop(counts: Counts) -> None:
        if counts.read >= 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        on_progress(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            predict_on_ray(artifact, "s3://rows/in", "s3://rows/out.jsonl")
    assert not bucket.exists("rows/out.jsonl/_SUCCESS")
    assert predict_on_ray(artifact, "s3://rows/in", "s3://rows/out.jsonl").resumed >= 30
    shutil.rmtree(tmp_path / "in")
    names = [f"part-{file:06d}-000000.jsonl" for file in range(8)]
    assert [name.removeprefix("rows/") for name in bucket.find("rows")] == [
        *(f"in/{file:02d}.csv" for file in range(8)),
        "out.jsonl/_SUCCESS",
        *(f"out.jsonl/{name}" for name in names),
    ]
    whole = b"".join(bucket.cat_file(f"rows/out.jsonl/{name}") for name in names)
    check([json.loads(line) for line in whole.splitlines()], rows)
    bucket.pipe_file("rows/out.jsonl/part-000009-000000.jsonl", b"old")
    with pytest.raises(InputError, match="there already"):
        predict_on_ray(artifact, "s3://rows/in", "s3://rows/out.jsonl")
    predict_on_ray(artifact, "s3://rows/in", "s3://rows/out.jsonl", force=True)
    assert not bucket.exists("rows/out.jsonl/part-000009-000000.jsonl")
    assert bucket.exists("rows/out.jsonl/_SUCCESS")


def test_the_command_joins_a_cluster_by_its_address_and_prints_nothing_of_ray(
    ray: Any, artifact: Path, tmp_path: Path
) -> None:
    rows = make_rows(20)
    write(tmp_path / "in.csv", rows)
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kdc",
            "predict",
            str(artifact),
            "in.csv",
            "out.jsonl",
            "--engine",
            "ray",
            "--address",
            address,
            "--actors",
            "1",
            "--device",
            "cpu",
            "--json",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert json.loads(done.stdout)["written"] == 20
    assert done.stderr == "mood: Ray, 1 actors on cpu, 1 threads each -> out.jsonl\n"
    check(read_all(tmp_path / "out.jsonl"), rows)
    assert ray.nodes()[0]["Alive"]  # it was joined, not ended


CPU_NODE, GPU_NODE, HEAD = {"CPU": 7.0}, {"CPU": 16.0, "GPU": 2.0}, {"memory": 1.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "shared"),
    [
        ([CPU_NODE, CPU_NODE, HEAD], ("auto", None, None), Actors(14, 1, "cpu")),
        ([CPU_NODE, CPU_NODE], ("cpu", None, 4), Actors(2, 4, "cpu")),  # none is split over nodes
        ([CPU_NODE, GPU_NODE], ("auto", None, None), Actors(2, 8, "cuda")),
        ([GPU_NODE], ("cuda", None, 16), Actors(1, 16, "cuda")),
        ([HEAD], ("cuda", 3, None), Actors(3, 1, "cuda")),  # they wait for nodes
    ],
)
def test_actors_fill_the_nodes_by_their_cores_or_gpus(nodes: list[Any], asked: tuple[Any, ...], shared: Actors) -> None:
    assert ray_job.share_out(nodes, *asked) == shared


@pytest.mark.parametrize("asked", [("cuda", None, None), ("cpu", None, 8)])
def test_a_cluster_without_room_is_refused(asked: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match="no node has room"):
        ray_job.share_out([CPU_NODE], *asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "-"}, "Ray reads and writes files"),
        ({"output": "-"}, "Ray reads and writes files"),
        ({"engine": "spark"}, "local or ray"),
        ({"engine": "local"}, "--actors is for Ray"),
        ({"engine": "local", "actors": None, "address": "auto"}, "--address is for Ray"),
        ({"output": "in/out.csv"}, "inside the input"),
    ],
)
def test_options_that_do_not_fit_ray_are_refused(
    artifact: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_files(tmp_path / "in", make_rows(4), ".csv", files=2)
    given = {"source": "in", "output": "out.csv"} | changes
    places = {name: given.pop(name) for name in ("source", "output")}
    source, output = (name if name == "-" else tmp_path / name for name in places.values())
    with pytest.raises(InputError, match=message):
        predict_on_ray(artifact, source, output, **given)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_a_cluster_that_does_not_answer_is_named_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match=rf"no Ray cluster answers(?s:.*)--address {address}"), connected(address):
        pytest.fail("connected")


def test_without_ray_the_remedy_is_named(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.csv", make_rows(3))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KdcError, match=r"pip install 'kdc\[ray\]'"):
        predict_on_ray(artifact, tmp_path / "in.csv", tmp_path / "out.csv")

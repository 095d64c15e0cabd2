"""`kdc export`: each form is read back by another program's code, and answers as the engine does."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from bag_models import INFO, PAIR, SINGLE, TYPED, write_artifact
from conftest import Finished
from google.protobuf import text_format
from live import free_port
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

import kdc
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import TaskInfo
from kdc.cli import app
from kdc.common.errors import InputError, KdcError
from kdc.tools.export import export
from kdc.tools.export.export import export_artifact

PRICES = TaskInfo(name="Prix / €", kind="regression", text="text", center=1234567.891, spread=98765.4321)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("runs") / "artifact")


def config_of(model: Path) -> Any:
    """The model's configuration by Triton's own schema, which refuses what it does not know."""
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


@pytest.mark.parametrize("variant", [None, "fp32"])
def test_a_triton_model_answers_as_the_engine(artifact: Path, variant: str | None, tmp_path: Path) -> None:
    """Would catch an input that the graph does not have, another variant's graph, labels in another order, and a
    temperature that is not told."""
    made = export_artifact(artifact, str(tmp_path), form="triton", variant=variant)
    model = tmp_path / "mood"
    config = config_of(model)
    assert (made.place, config.name, config.backend) == (str(model), "mood", "onnxruntime")
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in config.input] == [each.name for each in session.get_inputs()]
    assert {each.data_type for each in config.input} == {model_config_pb2.TYPE_INT64}
    assert [(each.name, list(each.dims)) for each in config.output] == [("logits", [3])]
    assert tuple((model / config.output[0].label_filename).read_text().splitlines()) == SINGLE.labels
    is_of_cpu = [each.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU for each in config.instance_group]
    assert is_of_cpu == ([True] if variant is None else [])
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = np.array([tokenizer.encode("w1 w2").ids])
    (logits,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    powers = np.exp(logits / float(config.parameters["temperature"].string_value))
    with kdc.load(artifact, device="cpu", variant=variant, threads=1) as engine:
        np.testing.assert_allclose(powers / powers.sum(), engine.predict(["w1 w2"]), atol=1e-6)


def test_pairs_and_numbers_have_a_triton_model_too(tmp_path: Path) -> None:
    export_artifact(write_artifact(tmp_path / "pair", PAIR, TYPED), str(tmp_path / "models"), form="triton")
    assert [each.name for each in config_of(tmp_path / "models" / "nli").input] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    export_artifact(write_artifact(tmp_path / "prices", PRICES, outputs=1), str(tmp_path / "models"), form="triton")
    config = config_of(tmp_path / "models" / "prix")
    assert (config.output[0].label_filename, list(config.output[0].dims)) == ("", [1])
    told = {name: each.string_value for name, each in config.parameters.items()}
    assert (told["kind"], float(told["center"]), float(told["spread"])) == ("regression", 1234567.891, 98765.4321)
    assert (told["max_length"], told["pad_side"], told["truncation_side"]) == ("8", "right", "right")


def blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """What a descriptor names, by its hash and size."""
    content = (layout / "blobs" / Path(descriptor["digest"].replace(":", "/"))).read_bytes()
    assert descriptor["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert descriptor["size"] == len(content)
    return content


def test_an_image_holds_the_artifact_under_models(artifact: Path, tmp_path: Path) -> None:
    """By the image specification. Would catch a hash of something else, and a layer that its config does not name."""
    layout = tmp_path / "image"
    export_artifact(artifact, str(layout), form="oci", name="v1")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (tagged,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert tagged["annotations"]["org.opencontainers.image.ref.name"] == "v1"
    images = json.loads(blob(layout, tagged))["manifests"]
    assert [each["platform"]["architecture"] for each in images] == ["amd64", "arm64"]
    for each in images:
        image = json.loads(blob(layout, each))
        config, (layer,) = json.loads(blob(layout, image["config"])), image["layers"]
        assert config["architecture"] == each["platform"]["architecture"]
        assert config["rootfs"]["diff_ids"] == [layer["digest"]]
        blob(layout, layer)
    with tarfile.open(layout / "blobs" / layer["digest"].replace(":", "/")) as archive:
        assert all(entry.mode & 0o444 == 0o444 and not entry.mtime for entry in archive)
        archive.extractall(tmp_path / "mounted", filter="data")
    assert load_manifest(tmp_path / "mounted" / "models") == load_manifest(artifact)


def test_an_image_holds_the_signature(artifact: Path, tmp_path: Path) -> None:
    signed = shutil.copytree(artifact, tmp_path / "signed")
    (signed / "signature.json").write_bytes(b"{}")
    export_artifact(signed, str(tmp_path / "image"), form="oci")
    layer = max((tmp_path / "image" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with tarfile.open(layer) as archive:
        assert "models/signature.json" in archive.getnames()


def test_the_same_artifact_makes_the_same_image(artifact: Path, tmp_path: Path) -> None:
    """Would catch times and owners in the archive, with which each push sends the layer again."""
    copy = shutil.copytree(artifact, tmp_path / "copy", copy_function=shutil.copy)
    for name, source in (("one", artifact), ("two", copy)):
        export_artifact(source, str(tmp_path / name), form="oci")
    one, two = (sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("one", "two"))
    assert one == two


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry on this machine."""
    for program in ("docker-registry", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"needs Debian's package {program}")
    port = free_port()
    settings = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\n"
    (tmp_path / "registry.yml").write_text(f"{settings}http: {{addr: '127.0.0.1:{port}'}}\n")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", tmp_path / "registry.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def test_a_registry_takes_the_image_and_gives_it_back(artifact: Path, registry: str, tmp_path: Path) -> None:
    """By Debian's registry and skopeo, which check what they read."""
    export_artifact(artifact, str(tmp_path / "image"), form="oci", name="v1")
    skopeo, there = ["skopeo", "copy", "--quiet", "--all"], f"docker://{registry}/models/mood:v1"
    subprocess.run([*skopeo, "--dest-tls-verify=false", f"oci:{tmp_path}/image:v1", there], check=True)
    subprocess.run([*skopeo[:-1], "--src-tls-verify=false", there, f"dir:{tmp_path}/back"], check=True)
    (layer,) = json.loads((tmp_path / "back" / "manifest.json").read_text())["layers"]
    with tarfile.open(tmp_path / "back" / layer["digest"].partition(":")[2]) as archive:
        archive.extractall(tmp_path / "mounted", filter="data")
    assert load_manifest(tmp_path / "mounted" / "models").sha256 == load_manifest(artifact).sha256


LOAD = """
import sys, json, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
columns = json.loads(sys.argv[3])
import pandas
print(model.predict(pandas.DataFrame(columns)).to_json(orient="split"))
"""
# Names that MLflow does not allow, and one that its answer's own column has.
TOXIC = TaskInfo(name="toxic.2024", kind="multilabel", text="comment", labels=("label", "threat", "spam"))


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=pytest.mark.slow) for task in (SINGLE, PAIR, TOXIC, PRICES)],
    ids=lambda task: task.kind + str(task.is_pair),
)
def test_mlflow_loads_a_model_that_answers_as_the_engine(
    task: TaskInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh process, from MLflow's own copy of the files. Would catch a model that reads the artifact where it
    was, texts under another column, and labels in another order."""
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny, sqlalchemy and alembic")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the files of a model
    made = write_artifact(tmp_path / "source", task, TYPED if task.is_pair else INFO, outputs=task.outputs)
    texts: list[Any] = [("w1 w2", "w3"), ("w4", "w5")] if task.is_pair else ["w1 w2", "w3"]
    with kdc.load(made, device="cpu", threads=1) as engine:
        expected = engine.predict(texts)
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    done = CliRunner().invoke(app, ["export", str(made), tracking, "--to", "mlflow", "--json"])
    assert done.exit_code == 0, done.output
    address, manifest = json.loads(done.stdout)["place"], load_manifest(made)
    shutil.rmtree(made)
    names = [task.text] + ([task.text_pair] if task.text_pair is not None else [])
    columns = {name: [row[place] if task.is_pair else row for row in texts] for place, name in enumerate(names)}
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, tracking, address, json.dumps(columns)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    answer = json.loads(loaded.stdout)
    table = dict(zip(answer["columns"], zip(*answer["data"], strict=True), strict=True))
    if task.kind == "regression":
        np.testing.assert_allclose(table["number"], expected[:, 0], rtol=1e-6)
        return
    np.testing.assert_allclose(np.stack([table[f"score_{name}"] for name in task.labels], axis=1), expected, atol=1e-6)
    if task.kind == "classification":
        assert list(table["label"]) == [task.labels[best] for best in expected.argmax(axis=1)]
    else:
        assert [set(row) for row in table["label"]] == [
            {name for name, score in zip(task.labels, row, strict=True) if score >= 0.5} for row in expected
        ]
    mlflow.set_tracking_uri(tracking)
    (written,) = (tmp_path / "mlruns").rglob("MLmodel")
    told = written.read_text()  # MLflow's own place of the files stands in it too
    assert str(made) not in told
    assert str(Path(export.__file__).parent) not in told
    (run,) = mlflow.search_runs(experiment_names=[task.name], output_format="list")
    assert run.data.tags["kdc.sha256"] == manifest.sha256
    assert run.data.params["recipe"] == manifest.lineage.recipe


@pytest.mark.slow
def test_mlflow_has_what_was_measured(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny, sqlalchemy and alembic")
    monkeypatch.chdir(tmp_path)
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    export_artifact(finished.artifact, tracking, form="mlflow", name="mine")
    mlflow.set_tracking_uri(tracking)
    manifest = load_manifest(finished.artifact)
    (run,) = mlflow.search_runs(experiment_names=[manifest.task.name], output_format="list")
    assert run.data.metrics["int8/accuracy"] == pytest.approx(manifest.variants["int8"].metrics["accuracy"])
    assert run.data.metrics["served/accuracy"] == pytest.approx(manifest.variants["int8"].metrics["accuracy"])
    assert run.data.metrics["teacher/accuracy"] == pytest.approx(finished.table["teacher"]["accuracy"])
    assert run.data.params["student"] == manifest.lineage.student


def test_an_mlflow_that_does_not_answer_is_told(artifact: Path) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow-skinny, sqlalchemy and alembic")
    with pytest.raises(KdcError, match="MLflow refused") as refused:
        export_artifact(artifact, "nowhere://at-all", form="mlflow")
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"form": "zip"}, "no such form"),
        ({"form": "triton", "variant": "fp16"}, "no such variant"),
        ({"form": "oci", "variant": "fp32"}, "--to oci takes no variant"),
        ({"form": "triton", "name": "../mood"}, "not a valid name"),
        ({"form": "oci", "name": "a b"}, "not a valid name"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    artifact: Path, given: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=what):
        export_artifact(artifact, str(tmp_path / "out"), **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["triton", "oci"])
def test_what_is_there_stays(artifact: Path, form: str, tmp_path: Path) -> None:
    export_artifact(artifact, str(tmp_path / "out"), form=form)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="there already"):
        export_artifact(artifact, str(tmp_path / "out"), form=form)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_artifact_is_not_exported(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "artifact")
    (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size)
    with pytest.raises(KdcError, match="was changed"):
        export_artifact(folder, str(tmp_path / "out"), form="oci")
    assert not (tmp_path / "out").exists()


def test_an_export_that_is_cut_off_leaves_nothing(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_image", stop)
    with pytest.raises(KeyboardInterrupt):
        export_artifact(artifact, str(tmp_path / "out"), form="oci")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_failed_is_exported_only_if_asked(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, *, allow: bool) -> None:
        if not allow:
            raise InputError("the artifact failed its contract")

    monkeypatch.setattr(export, "refuse_failed", refuse)
    with pytest.raises(InputError, match="failed its contract"):
        export_artifact(artifact, str(tmp_path / "out"), form="oci")
    assert not (tmp_path / "out").exists()
    assert export_artifact(artifact, str(tmp_path / "out"), form="oci", allow_failed=True).bytes > 0


def test_the_command_tells_what_it_wrote(artifact: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(artifact), str(tmp_path / "m"), "--to", "triton", "--json"])
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert answer["place"] == str(tmp_path / "m" / "mood")
    assert answer["sha256"] == load_manifest(artifact).sha256

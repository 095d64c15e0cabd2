"""The artifact's folder: a manifest survives the disk, and whatever is damaged, missing or forged is named."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transfers import seal

from kdc.artifact.folder import load_manifest, read_contents, write_manifest
from kdc.artifact.inspection import render
from kdc.artifact.manifest import FileInfo, Lineage, Manifest, TaskInfo, TokenizerInfo, Variant
from kdc.common.errors import InputError, KdcError

# An ONNX file of one long unknown field, which every reader skips.
FILES = {"model.onnx": b"\xa2\x06\xbc\x05" + b"weights" * 100, "tokenizer.json": b"{}"}


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kdc_version": "0.1.0",
        "task": TaskInfo(name="sst2", kind="classification", labels=("negative", "positive"), metric="accuracy"),
        "lineage": Lineage(
            teacher="t",
            student="s",
            recipe="best",
            data_fingerprint="d",
            seed=1,
            packages={"torch": "2"},
            cpu="c",
            trained="",
        ),
        "files": {n: FileInfo(sha256=hashlib.sha256(c).hexdigest(), size=len(c)) for n, c in FILES.items()},
        "tokenizer": TokenizerInfo(max_length=128, pad_id=0, pad_token="[PAD]", token_type_ids=True),
        "input_names": ("input_ids", "attention_mask", "token_type_ids"),
        "variants": {"fp32": Variant(file="model.onnx", size_bytes=702, opset=17, ir=8, metrics={"accuracy": 86.1})},
        "providers": {"CPUExecutionProvider": "fp32"},
        "metrics": {"teacher": {"accuracy": 87.2, "parameters": 22_700_000, "note": None}},
        "created": "2026-11-25T00:00:00+00:00",
    }
    return Manifest(**(values | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path, make_manifest())
    return tmp_path


def test_what_is_loaded_is_what_was_written(folder: Path) -> None:
    written = make_manifest()
    loaded = load_manifest(folder)
    assert loaded.model_dump(exclude={"sha256"}) == written.model_dump(exclude={"sha256"})


def test_sha256_is_of_the_canonical_json_without_itself(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    digest = document.pop("sha256")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(canonical.encode()).hexdigest()


def test_no_temporary_file_is_left(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}


def test_a_failed_write_keeps_the_old_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "manifest.json").read_bytes()

    def full_disk(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_manifest(folder, make_manifest(created="later"))
    assert (folder / "manifest.json").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}


def test_expected_sha256_is_compared(folder: Path) -> None:
    digest = load_manifest(folder).sha256
    assert load_manifest(folder, expect_sha256=digest.upper()).sha256 == digest
    with pytest.raises(InputError, match="not the artifact"):
        load_manifest(folder, expect_sha256="0" * 64)


def test_a_changed_byte_in_a_file_is_detected(folder: Path) -> None:
    content = bytearray(FILES["model.onnx"])
    content[350] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(KdcError, match="was changed"):
        load_manifest(folder)
    assert load_manifest(folder, verify=False)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_detected_even_without_hashing(folder: Path, verify: bool) -> None:
    (folder / "model.onnx").write_bytes(FILES["model.onnx"][:-1])
    with pytest.raises(KdcError, match="wrong size"):
        load_manifest(folder, verify=verify)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KdcError, match="missing") as caught:
        load_manifest(folder)
    assert "tokenizer.json" in str(caught.value.given)


@pytest.mark.parametrize("read", ["load_manifest", "read_contents"])
def test_a_named_pipe_is_refused_and_not_waited_for(folder: Path, read: str) -> None:
    """Would catch a load that waits for ever for somebody to write to the pipe."""
    manifest, refused = load_manifest(folder), threading.Event()
    name = "manifest.json" if read == "load_manifest" else "model.onnx"
    (folder / name).unlink()
    os.mkfifo(folder / name)

    def load() -> None:
        with pytest.raises(KdcError, match="no regular file"):
            load_manifest(folder) if read == "load_manifest" else read_contents(folder / name, manifest)
        refused.set()

    threading.Thread(target=load, daemon=True).start()
    assert refused.wait(10)


def test_no_more_is_read_of_a_file_than_the_manifest_says(folder: Path) -> None:
    """Would catch a file that grows into all memory while it is loaded."""
    manifest = load_manifest(folder)
    size = len(FILES["model.onnx"])
    (folder / "model.onnx").write_bytes(bytes(100 * size))
    assert len(read_contents(folder / "model.onnx", manifest, verify=False)) == size + 1
    with pytest.raises(KdcError, match="was changed"):
        read_contents(folder / "model.onnx", manifest)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "model.onnx"
    outside.write_bytes(FILES["model.onnx"])
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(outside)
    with pytest.raises(KdcError, match="link to elsewhere"):
        load_manifest(folder)


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("run") / "artifact"
    link.symlink_to(folder)
    assert load_manifest(link).task.name == "sst2"


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "..", ".hidden", "", "manifest.json", "a\\b"])
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    files = make_manifest().files | {name: FileInfo(sha256="0" * 64, size=1)}
    with pytest.raises(ValidationError, match="plain name"):
        make_manifest(files=files)


def test_a_file_name_in_manifest_json_that_leaves_the_folder_is_refused(folder: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["files"]["../secret"] = {"sha256": "0" * 64, "size": 1}

    rewrite(folder, edit)
    with pytest.raises(KdcError, match="does not follow its schema"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("task.labels", [f"c{n}" for n in range(10_001)], "task.labels: Tuple should have at most 10000"),
        ("tokenizer.max_length", 2**31, "tokenizer.max_length: Input should be less than or equal to 8192"),
        ("tokenizer.pad_id", 2**63, "tokenizer.pad_id: Input should be less than"),
        ("tokenizer.long", {"stride": 2**31, "windows": 2}, "tokenizer.long.stride: Input should be less than"),
        ("task.name", "a\ud800", "task.name: Input should be a valid string"),
        ("task.labels", ["a", "\udfff"], "task.labels.1: Input should be a valid string"),
        ("lineage.packages", {"\ud800": "1"}, "Input should be a valid string"),
        ("metrics", {"int8": {"accuracy": "\ud800"}}, "Input should be a valid string"),
    ],
)
def test_a_value_beyond_what_kdc_makes_is_refused(folder: Path, place: str, value: Any, told: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        *path, last = place.split(".")
        for name in path:
            document = document[name]
        document[last] = value

    rewrite(folder, edit)
    with pytest.raises(KdcError, match="does not follow its schema") as caught:
        load_manifest(folder)
    assert told in str(caught.value.given)
    assert str(caught.value).encode()
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"schema_version": 1,', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"schema_version": 99}', "schema version"),
        (b"{}", "schema version"),
        (b" " * (1024 * 1024 + 1), "too large"),
    ],
)
def test_a_broken_manifest_is_an_error_with_a_remedy(folder: Path, content: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(KdcError, match=message) as caught:
        load_manifest(folder)
    assert caught.value.remedy


def test_an_edited_manifest_is_detected(folder: Path) -> None:
    text = (folder / "manifest.json").read_text().replace("86.1", "99.9")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(KdcError, match="own SHA-256"):
        load_manifest(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document.update(unknown=1),
        lambda document: document.pop("task"),
        lambda document: document["variants"]["fp32"].pop("opset"),
        lambda document: document.update(temperature=0),
        lambda document: document.update(temperature=float("nan")),
        lambda document: document["providers"].update(CPUExecutionProvider="int8"),
        lambda document: document["variants"]["fp32"].update(file="other.onnx"),
        lambda document: document["task"].update(labels=["same", "same"]),
        lambda document: document.update(input_names=["input_ids"]),
    ],
)
def test_a_manifest_that_breaks_its_schema_is_refused(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    rewrite(folder, edit)
    with pytest.raises(KdcError, match="does not follow its schema"):
        load_manifest(folder)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None, lambda path: path.write_text("x")])
def test_a_place_without_an_artifact_is_an_input_error(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "artifact")
    with pytest.raises(InputError, match="no artifact here"):
        load_manifest(tmp_path / "artifact")


def test_no_manifest_is_written_for_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(KdcError, match="missing"):
        write_manifest(tmp_path, make_manifest())
    assert not list(tmp_path.iterdir())


def test_a_server_that_runs_as_another_user_may_read_a_manifest(folder: Path) -> None:
    """Would catch a manifest whose mode is left to the umask of who made it."""
    before = os.umask(0o077)
    try:
        write_manifest(folder, load_manifest(folder))
    finally:
        os.umask(before)
    assert (folder / "manifest.json").stat().st_mode & 0o777 == 0o644


def test_importing_the_manifest_loads_no_heavy_package() -> None:
    heavy = "{'torch', 'transformers', 'onnxruntime', 'numpy', 'bentoml'}"
    code = f"import sys, kdc.artifact.folder; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the manifest and make its own SHA-256 right again, as somebody who knows the format would."""
    document = json.loads((folder / "manifest.json").read_text())
    edit(document)
    (folder / "manifest.json").write_text(json.dumps(seal(document)))


@pytest.mark.parametrize(
    "metrics",
    [
        {str(row): {} for row in range(10_000)},
        {"teacher": {str(column): 1.0 for column in range(10_000)}},
        {"teacher": {"accuracy": 10**4000}},
    ],
)
def test_a_table_that_nobody_could_print_is_refused(metrics: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_manifest(metrics=metrics)


def test_names_make_no_lines_of_their_own_in_what_inspect_prints() -> None:
    """Would catch a task whose name goes on with a line `sha256      ...`, which a person would compare."""
    forged = "sha256      " + "0" * 64
    task = TaskInfo(name=f"a\n{forged}", kind="classification", labels=(f"b\n{forged}", "c"), text=f"d\n{forged}")
    metrics: dict[str, Any] = {f"e\n{forged}": {f"f\n{forged}": 1.0, "kind": "text"}}
    lines = render(make_manifest(task=task, metrics=metrics)).splitlines()
    assert [line for line in lines if line.startswith("sha256")] == ["sha256      "]


@pytest.mark.parametrize("changes", [{"temperature": 1.7}, {"folded_temperature": 1.7}])
def test_people_are_shown_the_temperature_that_was_fitted(changes: dict[str, float]) -> None:
    """Would catch the 1 that is left once a temperature is in the weights."""
    assert "calibration temperature 1.700" in render(make_manifest(**changes))


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_a_temperature_that_makes_no_probabilities_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError):
        make_manifest(temperature=temperature)
    with pytest.raises(ValidationError):
        make_manifest(folded_temperature=temperature)


def test_file_names_that_are_one_on_some_disks_are_refused() -> None:
    files = make_manifest().files
    with pytest.raises(ValidationError, match="upper and lower case"):
        make_manifest(files={**files, "Model.onnx": files["model.onnx"]})

"""`kdc push` and `kdc pull` with the hub: the real client, against a server here that speaks the hub's endpoints."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import hub_stub
import pytest
import transfers
from bag_models import write_hub_artifact
from hub_stub import TOKEN, Stub
from transfers import BIG, BIG_BYTES, contents, hidden

from kdc.artifact.folder import describe_files, load_manifest, write_manifest
from kdc.artifact.stores import hub
from kdc.artifact.stores.addresses import Repository
from kdc.artifact.stores.transfer import pull_artifact, push_artifact
from kdc.common.errors import InputError, KdcError
from kdc.serving.http.artifacts import local

ADDRESS, NAME = "hf://team/mood", "team/mood"


def put(stub: Stub, artifact: Path, **instead: bytes) -> str:
    return stub.commit(NAME, "main", {k: instead.get(k.replace(".", "_"), v) for k, v in contents(artifact).items()})


def test_a_round_trip_gives_equal_bytes(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    pushed = push_artifact(artifact, ADDRESS)
    assert pushed.sent_bytes == pushed.bytes
    assert stub.private == {NAME: True}
    assert stub.count("POST", "/commit/") == 1
    assert stub.files(NAME) == {".gitattributes": b"*.onnx filter=lfs\n"} | contents(artifact)
    pulled = pull_artifact(ADDRESS, tmp_path / "copy")
    assert pulled.received_bytes == pushed.bytes
    assert contents(tmp_path / "copy") == contents(artifact)
    assert pull_artifact(pushed.target, tmp_path / "copy").changed is False


def test_a_second_push_of_the_same_artifact_commits_nothing(artifact: Path, stub: Stub) -> None:
    first = push_artifact(artifact, ADDRESS)
    again = push_artifact(artifact, ADDRESS)
    assert (again.target, again.changed) == (first.target, False)
    assert stub.count("POST", "/commit/") == 1


def test_a_new_artifact_is_a_commit_and_the_old_one_stays_in_the_history(
    artifact: Path, other: Path, tmp_path: Path, stub: Stub
) -> None:
    manifest = load_manifest(artifact)
    old = shutil.copytree(artifact, tmp_path / "old")
    (old / "model.fp16.onnx").write_bytes(b"fp16")
    write_manifest(
        old, manifest.model_copy(update={"files": manifest.files | describe_files(old, ["model.fp16.onnx"])})
    )
    first = push_artifact(old, ADDRESS)
    second = push_artifact(other, ADDRESS)
    assert second.sent_bytes == BIG_BYTES + len((other / "manifest.json").read_bytes())
    assert "model.fp16.onnx" not in stub.files(NAME)
    pull_artifact(ADDRESS, tmp_path / "newest")
    pull_artifact(first.target, tmp_path / "oldest")
    assert contents(tmp_path / "newest") == contents(other)
    assert contents(tmp_path / "oldest") == contents(old)


def test_a_push_makes_the_branch_and_a_public_repository(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    push_artifact(artifact, f"{ADDRESS}@next/one", public=True)
    assert stub.private == {NAME: False}
    assert "manifest.json" not in stub.files(NAME)
    pull_artifact(f"{ADDRESS}@next/one", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)
    with pytest.raises(InputError, match="no artifact here"):
        pull_artifact(ADDRESS, tmp_path / "other")


def test_a_push_that_was_cut_off_is_no_artifact_and_can_go_on(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    sha256 = load_manifest(artifact).files[BIG].sha256
    stub.refuse = f"/upload/{sha256}"
    with pytest.raises(KdcError, match="the store refused"):
        push_artifact(artifact, ADDRESS)
    with pytest.raises(InputError, match="no artifact here"):
        pull_artifact(ADDRESS, tmp_path / "copy")
    stub.refuse = None
    stub.asked.clear()
    push_artifact(artifact, ADDRESS)
    assert {path for method, path in stub.asked if method == "PUT"} <= {
        f"/upload/{each.sha256}"
        for name, each in load_manifest(artifact).files.items()
        if name.endswith(hub_stub.LARGE)
    }
    assert stub.count("PUT", sha256) == 1
    pull_artifact(ADDRESS, tmp_path / "copy")


def test_files_that_the_repository_ignores_are_an_error(artifact: Path, stub: Stub) -> None:
    stub.ignored = ("tokenizer.json",)
    with pytest.raises(KdcError, match=r"without some files(?s:.*)tokenizer.json(?s:.*)gitignore"):
        push_artifact(artifact, ADDRESS)


def test_the_token_goes_to_the_hub_and_not_to_its_redirects(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    put(stub, artifact)
    stub.private[NAME] = True
    pull_artifact(ADDRESS, tmp_path / "copy")
    assert stub.told_to
    assert set(stub.told_to) == {("localhost", None)}


def test_a_broken_connection_goes_on_by_range(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    put(stub, artifact)
    stub.cut_after = [300_000, 500_000, 100]
    result = pull_artifact(ADDRESS, tmp_path / "copy")
    assert result.received_bytes == result.bytes
    assert contents(tmp_path / "copy") == contents(artifact)
    large = sum(len(data) for name, data in contents(artifact).items() if name.endswith(hub_stub.LARGE))
    assert stub.sent <= large + 3 * hub._CHUNK_BYTES  # what was on the way when it broke


def test_a_busy_hub_is_asked_again_and_not_for_ever(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    put(stub, artifact)
    stub.busy = [503, 429, 500]
    pull_artifact(ADDRESS, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)
    stub.busy, stub.told_to = [503] * 9, []
    with pytest.raises(KdcError, match="HTTP 503"):
        pull_artifact(ADDRESS, tmp_path / "other")
    assert len(stub.told_to) == hub._TRIES
    stub.busy, stub.told_to = [403], []
    with pytest.raises(KdcError, match="HTTP 403"):
        pull_artifact(ADDRESS, tmp_path / "other")
    assert len(stub.told_to) == 1


def test_a_hub_that_begins_at_the_first_byte_is_asked_again_from_there(artifact: Path, stub: Stub) -> None:
    put(stub, artifact)
    stub.from_start, stub.cut_after = 1, [0]
    opened = hub.HubSource(Repository(NAME, None)).open(BIG, 1000)
    assert opened.start == 0
    assert b"".join(opened.chunks) == (artifact / BIG).read_bytes()


def test_a_pull_that_gave_up_goes_on_by_range(
    artifact: Path, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stub, artifact)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_TRIES", 1)
        stub.cut_after = [800_000]
        with pytest.raises(KdcError, match="did not answer"):
            pull_artifact(ADDRESS, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    (partial,) = (path for path in tmp_path.iterdir() if "partial" in path.name)
    arrived = (partial / BIG).stat().st_size
    assert arrived > 500_000
    stub.sent = 0
    result = pull_artifact(ADDRESS, tmp_path / "copy")
    assert stub.sent == BIG_BYTES - arrived
    assert result.received_bytes == BIG_BYTES - arrived + len((artifact / "manifest.json").read_bytes())
    assert contents(tmp_path / "copy") == contents(artifact)
    assert hidden(tmp_path) == []


def test_a_pull_that_was_killed_goes_on_by_range(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    put(stub, artifact)
    stub.hold_after = 1_500_000
    environment = {**os.environ, "HF_ENDPOINT": stub.url, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(transfers.command("pull", ADDRESS, str(tmp_path / "copy")), env=environment)
    part = tmp_path / f".copy.partial-{load_manifest(artifact).sha256[:16]}" / BIG
    deadline = time.monotonic() + 60
    while not part.exists() or part.stat().st_size < 1_000_000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    stub.released.set()
    assert not (tmp_path / "copy").exists()
    arrived, stub.hold_after, stub.sent = part.stat().st_size, None, 0
    result = pull_artifact(ADDRESS, tmp_path / "copy")
    assert stub.sent == BIG_BYTES - arrived < result.bytes
    assert contents(tmp_path / "copy") == contents(artifact)
    assert hidden(tmp_path) == []


def test_a_changed_byte_and_bytes_too_many_are_refused(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    data = bytearray((artifact / BIG).read_bytes())
    data[1_000_000] ^= 1
    put(stub, artifact, evaluation_npz=bytes(data))
    with pytest.raises(KdcError, match="changed on the way"):
        pull_artifact(ADDRESS, tmp_path / "copy")
    put(stub, artifact)
    stub.extra = b"x"
    with pytest.raises(KdcError, match="more bytes"):
        pull_artifact(ADDRESS, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    stub.extra = b""
    put(stub, artifact, manifest_json=b"{" + b" " * 3_000_000)
    with pytest.raises(KdcError, match="too large"):
        pull_artifact(ADDRESS, tmp_path / "copy")


def test_missing_and_forbidden_repositories_are_named(
    artifact: Path, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stub, artifact)
    with pytest.raises(InputError, match="no such repository"):
        pull_artifact("hf://team/nothing", tmp_path / "copy")
    with pytest.raises(InputError, match="no such revision"):
        pull_artifact(f"{ADDRESS}@nothing", tmp_path / "copy")
    stub.refuse = "/cdn/"
    with pytest.raises(KdcError, match=r"the hub refused(?s:.*)HTTP 403"):
        pull_artifact(ADDRESS, tmp_path / "copy")
    stub.private[NAME] = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match=r"no such repository(?s:.*)HF_TOKEN"):
        pull_artifact(ADDRESS, tmp_path / "copy")


def test_a_hub_elsewhere_is_asked_only_by_https(
    artifact: Path, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    for call in (lambda: pull_artifact(ADDRESS, tmp_path / "copy"), lambda: push_artifact(artifact, ADDRESS)):
        with pytest.raises(InputError, match="by https"):
            call()
    with pytest.raises(InputError, match="by https"):
        hub._check_safe("http://localhost/stolen", "https://huggingface.co")


def test_serve_accepts_a_repository(
    artifact: Path, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDC_CACHE", str(tmp_path))
    put(stub, artifact)
    expected = f"mood={tmp_path / 'artifacts' / load_manifest(artifact).sha256}"
    assert local(ADDRESS) == expected
    stub.sent = 0
    assert local(ADDRESS) == expected
    assert stub.sent == 0


def test_the_commands_print_no_token(artifact: Path, tmp_path: Path, stub: Stub) -> None:
    environment = {"HF_ENDPOINT": stub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    pushed = transfers.kdc("push", str(artifact), ADDRESS, "--json", **environment)
    assert json.loads(pushed.stdout)["target"].startswith(f"{ADDRESS}@")
    pulled = transfers.kdc("pull", ADDRESS, str(tmp_path / "copy"), **environment)
    assert "all hashes match" in pulled.stdout
    refused = transfers.kdc("push", str(artifact), ADDRESS, **environment | {"HF_TOKEN": "hf_wrongS3CRET"})
    missing = transfers.kdc("pull", "hf://team/nothing", str(tmp_path / "x"), **environment)
    assert missing.returncode == 2
    offline = transfers.kdc("pull", ADDRESS, str(tmp_path / "x"), **environment | {"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE" in offline.stderr
    for done in (pushed, pulled, refused, missing, offline):
        assert "S3CRET" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert pushed.stderr == ""


def test_a_hugging_face_folder_is_pushed_as_a_repository(tmp_path: Path, stub: Stub) -> None:
    """Would catch files that transformers.js does not find, and a second commit of the same artifact."""
    folder = write_hub_artifact(tmp_path / "artifact")
    pushed = push_artifact(folder, ADDRESS)
    assert {"config.json", "onnx/model.onnx", "onnx/model_quantized.onnx", "kdc/manifest.json"} <= stub.files(
        NAME
    ).keys()
    assert not {"manifest.json", "model.onnx"} & stub.files(NAME).keys()
    assert push_artifact(folder, ADDRESS).changed is False
    pull_artifact(pushed.target, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(folder)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_push_in_another_layout_leaves_no_file_of_the_old_one(
    is_first: bool, artifact: Path, tmp_path: Path, stub: Stub
) -> None:
    """Would catch an old manifest beside the new one, which a pull reads first."""
    folder = write_hub_artifact(tmp_path / "artifact")
    old, new = (artifact, folder) if is_first else (folder, artifact)
    push_artifact(new, "hf://team/alone")
    alone = stub.files("team/alone").keys()
    push_artifact(old, ADDRESS)
    pushed = push_artifact(new, ADDRESS)
    assert stub.files(NAME).keys() == alone
    pull_artifact(pushed.target, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(new)

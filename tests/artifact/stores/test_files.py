"""`kdc push` and `kdc pull` by fsspec: paths, and an object store in this process."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import transfers
from transfers import BIG, BIG_BYTES, Traffic, contents, hidden

from kdc.artifact.folder import load_manifest
from kdc.artifact.stores import files
from kdc.artifact.stores.addresses import name_of
from kdc.artifact.stores.transfer import pull_artifact, push_artifact
from kdc.common.errors import InputError, KdcError

ADDRESS = "s3://models/team/mood"


def put(bucket: Any, artifact: Path, **instead: bytes) -> None:
    """An artifact in the store, without kdc; with other bytes in files of these names (dots as underscores)."""
    for name, data in contents(artifact).items():
        bucket.pipe_file(f"models/team/mood/{name}", instead.get(name.replace(".", "_"), data))


def stored(bucket: Any) -> dict[str, bytes]:
    return {key.rpartition("/")[2]: bucket.cat_file(key) for key in bucket.find("models")}


@pytest.fixture(params=["path", "url", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return ADDRESS
    return {"path": str(tmp_path / "there" / "mood"), "url": (tmp_path / "there" / "mood").as_uri()}[request.param]


def test_a_round_trip_gives_equal_bytes(artifact: Path, tmp_path: Path, target: str) -> None:
    pushed = push_artifact(artifact, target)
    pulled = pull_artifact(target, tmp_path / "copy")
    total = sum(len(data) for data in contents(artifact).values())
    assert pushed.changed
    assert pulled.changed
    assert (pushed.sent_bytes, pulled.received_bytes, pulled.bytes) == (total, total, total)
    assert contents(tmp_path / "copy") == contents(artifact)
    assert pulled.sha256 == pushed.sha256 == load_manifest(artifact).sha256
    assert hidden(tmp_path) == []


def test_a_second_transfer_of_the_same_artifact_moves_nothing(artifact: Path, tmp_path: Path, target: str) -> None:
    push_artifact(artifact, target)
    pull_artifact(target, tmp_path / "copy")
    before = (tmp_path / "copy").stat().st_ino
    once, twice = push_artifact(artifact, target), push_artifact(artifact, target)
    assert once.model_copy(update={"seconds": 0}) == twice.model_copy(update={"seconds": 0})
    pushed, pulled = push_artifact(artifact, target), pull_artifact(target, tmp_path / "copy")
    assert (pushed.changed, pushed.sent_bytes, pulled.changed) == (False, 0, False)
    assert pulled.received_bytes == len((artifact / "manifest.json").read_bytes())
    assert (tmp_path / "copy").stat().st_ino == before


def test_another_artifact_is_replaced_only_by_force(artifact: Path, other: Path, tmp_path: Path, target: str) -> None:
    push_artifact(artifact, target)
    pull_artifact(target, tmp_path / "copy")
    with pytest.raises(InputError, match="another artifact is there"):
        push_artifact(other, target)
    pushed = push_artifact(other, target, force=True)
    assert pushed.sent_bytes == BIG_BYTES + len((other / "manifest.json").read_bytes())
    with pytest.raises(InputError, match="another artifact is there"):
        pull_artifact(target, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)
    pull_artifact(target, tmp_path / "copy", force=True)
    assert contents(tmp_path / "copy") == contents(other)
    assert hidden(tmp_path) == []


# A pull that is killed before the new folder has the name, or in the middle of removing the old one.
KILLED_PULL = """
import os, shutil, sys
from pathlib import Path
from kdc.artifact.stores.transfer import pull_artifact
moment, source, copy = sys.argv[1], sys.argv[2], Path(sys.argv[3])
rename, remove = os.rename, shutil.rmtree
def killed_rename(source, target):
    if target == copy:
        os._exit(9)
    rename(source, target)
def killed_remove(path, **named):
    if "replaced" in str(path) and Path(path).exists():
        os._exit(9)
    remove(path, **named)
if moment == "renamed":
    os.rename = killed_rename
else:
    shutil.rmtree = killed_remove
pull_artifact(source, copy, force=True)
"""


def killed_pull(moment: str, source: Path, copy: Path) -> int:
    command = [sys.executable, "-c", KILLED_PULL, moment, str(source), str(copy)]
    return subprocess.run(command, check=False).returncode


def test_a_pull_killed_before_it_renames_loses_neither_artifact(artifact: Path, other: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    pull_artifact(str(artifact), copy)
    assert killed_pull("renamed", other, copy) == 9
    assert not copy.exists()
    with pytest.raises(InputError, match="another artifact is there"):
        pull_artifact(str(other), copy)
    assert contents(copy) == contents(artifact)
    pull_artifact(str(other), copy, force=True)
    assert contents(copy) == contents(other)
    assert hidden(tmp_path) == []


def test_a_file_by_the_name_of_an_old_artifact_stops_no_pull(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / ".copy.kdc-replaced").write_text("anyone may put it into a shared folder")
    pull_artifact(str(artifact), tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)


def test_what_a_pull_killed_in_its_removal_left_is_cleaned_up(artifact: Path, other: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    pull_artifact(str(artifact), copy)
    assert killed_pull("removed", other, copy) == 9
    assert contents(copy) == contents(other)
    shutil.rmtree(copy)
    pull_artifact(str(artifact), copy)
    assert contents(copy) == contents(artifact)
    assert hidden(tmp_path) == []


def test_a_folder_of_other_things_is_never_removed(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / "deep").mkdir(parents=True)
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(InputError, match="something else is there"):
            pull_artifact(str(artifact), tmp_path / "home", force=force)
    with pytest.raises(InputError, match="something else is there"):
        push_artifact(artifact, str(tmp_path / "home"))
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["deep", "letter.txt"]


def test_the_target_may_be_an_empty_folder_but_no_link(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    assert pull_artifact(str(artifact), tmp_path / "copy").changed
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with pytest.raises(InputError, match="a link"):
        pull_artifact(str(artifact), tmp_path / "link", force=True)


@pytest.mark.parametrize("place", [0, BIG_BYTES // 2, BIG_BYTES - 1])
def test_one_changed_byte_is_refused_and_nothing_published(
    artifact: Path, tmp_path: Path, bucket: Any, place: int
) -> None:
    data = bytearray((artifact / BIG).read_bytes())
    data[place] ^= 1
    put(bucket, artifact, evaluation_npz=bytes(data))
    with pytest.raises(KdcError, match=r"changed on the way(?s:.*)evaluation.npz"):
        pull_artifact(ADDRESS, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    put(bucket, artifact)
    pull_artifact(ADDRESS, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_file_of_another_size_is_refused_before_it_is_read(
    artifact: Path, tmp_path: Path, bucket: Any, traffic: Traffic, more: int
) -> None:
    data = (artifact / BIG).read_bytes()
    put(bucket, artifact, evaluation_npz=data[:more] if more < 0 else data + b"x")
    with pytest.raises(KdcError, match=r"the store has (more|fewer) bytes"):
        pull_artifact(ADDRESS, tmp_path / "copy")
    assert not [name for name, _ in traffic.of("GetObject") if name == BIG]
    assert not (tmp_path / "copy").exists()


def test_a_store_that_sends_without_end_is_stopped(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.FileSource._chunks

    def endless(self: Any, stream: Any, name: str) -> Any:
        if name == "manifest.json":
            yield from original(self, stream, name)
        while name != "manifest.json":
            yield b"x" * 1_000_000

    monkeypatch.setattr(files.FileSource, "_chunks", endless)
    with pytest.raises(KdcError, match="the store has more bytes"):
        pull_artifact(str(artifact), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_pull_that_was_cut_off_fetches_only_what_is_missing(
    artifact: Path, tmp_path: Path, bucket: Any, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, artifact)
    original = files.FileSource._chunks

    def cut(self: Any, stream: Any, name: str) -> Any:
        for number, chunk in enumerate(original(self, stream, name)):
            if name == BIG and number == 1:
                raise KeyboardInterrupt
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(files.FileSource, "_chunks", cut)
        with pytest.raises(KeyboardInterrupt):
            pull_artifact(ADDRESS, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    (partial,) = (path for path in tmp_path.iterdir() if "partial" in path.name)
    arrived = (partial / BIG).stat().st_size
    assert 0 < arrived < BIG_BYTES
    traffic.asked.clear()
    result = pull_artifact(ADDRESS, tmp_path / "copy")
    fetched = traffic.of("GetObject")
    assert {name for name, _ in fetched} == {"manifest.json", BIG}
    assert min(first for name, first in fetched if name == BIG) == arrived
    assert result.received_bytes == BIG_BYTES - arrived + len((artifact / "manifest.json").read_bytes())
    assert contents(tmp_path / "copy") == contents(artifact)
    assert hidden(tmp_path) == []


def test_damaged_files_of_an_earlier_pull_are_fetched_again(artifact: Path, tmp_path: Path) -> None:
    manifest = load_manifest(artifact)
    partial = tmp_path / f".copy.partial-{manifest.sha256[:16]}"
    partial.mkdir()
    (partial / BIG).write_bytes(b"x" * 1000)
    (partial / "model.onnx").write_bytes(b"x" * manifest.files["model.onnx"].size)
    (partial / "tokenizer.json").write_bytes(b"x" * 1_000_000)
    (tmp_path / ".copy.partial-0000000000000000").mkdir()  # of another artifact
    pull_artifact(str(artifact), tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)
    assert hidden(tmp_path) == []


def test_a_link_in_the_hidden_folder_is_not_followed(artifact: Path, tmp_path: Path) -> None:
    manifest = load_manifest(artifact)
    (tmp_path / "precious").write_text("")
    partial = tmp_path / f".copy.partial-{manifest.sha256[:16]}"
    partial.mkdir()
    (partial / BIG).symlink_to(tmp_path / "precious")
    with pytest.raises(KdcError, match="cannot write"):
        pull_artifact(str(artifact), tmp_path / "copy")
    assert (tmp_path / "precious").read_bytes() == b""
    shutil.rmtree(partial)
    (tmp_path / "elsewhere").mkdir()
    partial.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="in the way"):
        pull_artifact(str(artifact), tmp_path / "copy")


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/escaped", "a/b", "..", ".hidden", "manifest.json", "signature.json"]
)
def test_a_name_that_leads_out_is_refused(artifact: Path, tmp_path: Path, name: str) -> None:
    hostile = shutil.copytree(artifact, tmp_path / "hostile")
    files_there = json.loads((hostile / "manifest.json").read_bytes())["files"]
    transfers.forge(hostile, files={**files_there, name: files_there[BIG]})
    with pytest.raises(KdcError, match="plain name"):
        pull_artifact(str(hostile), tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile"]


def test_an_endless_manifest_and_one_of_a_petabyte_are_refused(artifact: Path, tmp_path: Path) -> None:
    hostile = shutil.copytree(artifact, tmp_path / "hostile")
    files_there = json.loads((hostile / "manifest.json").read_bytes())["files"]
    transfers.forge(hostile, files={**files_there, "more.bin": {"sha256": "0" * 64, "size": 10**15}})
    with pytest.raises(KdcError, match="no room"):
        pull_artifact(str(hostile), tmp_path / "copy")
    (hostile / "manifest.json").write_bytes(b"{" + b" " * 3_000_000)
    with pytest.raises(KdcError, match="too large"):
        pull_artifact(str(hostile), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_another_hash_than_expected_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the artifact that was expected"):
        pull_artifact(str(artifact), tmp_path / "copy", expect_sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
    sha256 = load_manifest(artifact).sha256
    assert pull_artifact(str(artifact), tmp_path / "copy", expect_sha256=sha256.upper()).changed


def test_a_push_that_was_cut_off_is_no_artifact_and_can_go_on(
    artifact: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.FileTarget._send_file

    def cut(self: Any, path: Path, name: str, *more: Any) -> None:
        if name == BIG:
            raise KeyboardInterrupt
        original(self, path, name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(files.FileTarget, "_send_file", cut)
        with pytest.raises(KeyboardInterrupt):
            push_artifact(artifact, target)
    with pytest.raises(InputError, match="there is no artifact here"):
        pull_artifact(target, tmp_path / "copy")
    result = push_artifact(artifact, target)
    assert result.sent_bytes == BIG_BYTES + len((artifact / "manifest.json").read_bytes())
    pull_artifact(target, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(artifact)


def test_a_push_cut_off_over_another_artifact_is_no_artifact(
    artifact: Path, other: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_artifact(artifact, ADDRESS)

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.FileTarget, "_send_file", cut)
        with pytest.raises(KeyboardInterrupt):
            push_artifact(other, ADDRESS, force=True)
    assert "manifest.json" not in stored(bucket)
    push_artifact(other, ADDRESS)
    assert stored(bucket) == contents(other)


def test_the_manifest_is_sent_last(artifact: Path, bucket: Any, traffic: Traffic) -> None:
    push_artifact(artifact, ADDRESS)
    sent = [name for method, name, _ in traffic.asked if method in ("PutObject", "CompleteMultipartUpload")]
    assert sent[-1] == "manifest.json"
    assert set(stored(bucket)) == set(contents(artifact))


def test_a_file_that_the_store_lost_is_sent_again(artifact: Path, bucket: Any) -> None:
    push_artifact(artifact, ADDRESS)
    bucket.rm_file("models/team/mood/tokenizer.json")
    result = push_artifact(artifact, ADDRESS)
    assert result.changed
    assert result.sent_bytes < 1_000_000
    assert stored(bucket) == contents(artifact)


def test_a_damaged_or_failed_artifact_is_not_pushed(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = shutil.copytree(artifact, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(KdcError, match="wrong size"):
        push_artifact(damaged, str(tmp_path / "there"))
    monkeypatch.setattr("kdc.artifact.stores.transfer.refuse_failed", _refuses)
    with pytest.raises(InputError, match="failed its contract"):
        push_artifact(artifact, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    assert push_artifact(artifact, str(tmp_path / "there"), allow_failed=True).changed


def _refuses(_: Any, *, allow: bool) -> None:
    if not allow:
        raise InputError("the artifact failed its contract")


def test_a_store_without_ranges_is_read_from_the_start(artifact: Path, tmp_path: Path) -> None:
    handler = functools.partial(_Silent, directory=str(artifact))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        partial = tmp_path / f".copy.partial-{load_manifest(artifact).sha256[:16]}"
        partial.mkdir()
        (partial / BIG).write_bytes((artifact / BIG).read_bytes()[:1000])
        result = pull_artifact(f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "copy")
        server.shutdown()
    assert result.received_bytes == result.bytes
    assert contents(tmp_path / "copy") == contents(artifact)


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    "address",
    [
        "s3://nobucket/mood",
        "s3://models/nothing",
        "http://user:S3CRET@127.0.0.1:1/x?sig=S3CRET",
        "ftp://user:S3CRET@127.0.0.1:1/x",
        "nothing://user:S3CRET@host/x",
        "http://user:p@S3CRET@127.0.0.1:1/x",
        "http://user:S3CRET/S3CRET@127.0.0.1:1/x",
        "ftp://user:S3CRET/S3CRET@127.0.0.1:1/x",  # the package tells what is no port
        "s3://key:S3CRET@models/x",  # the package tells what is no bucket
        "s3://key:S3CRET/S3CRET@models/x",
        "http://127.0.0.1:1/x#token=S3CRET",
        "http://127.0.0.1:1/x?a#token=S3CRET",
        "hf://user:S3CRET/S3CRET@team/mood",
        "bento:mood#token=S3CRET",
    ],
)
def test_errors_show_no_credentials(address: str, tmp_path: Path, bucket: Any) -> None:
    with pytest.raises(KdcError) as caught:
        pull_artifact(address, tmp_path / "copy")
    assert caught.value.remedy
    assert "S3CRET" not in str(caught.value)
    assert address.partition(":")[0] in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://u:S3/CRET@host/mood#token=S3CRET", "https://u:S3CRET@host", "s3://S3@b/mood?x"]
)
def test_the_name_of_a_served_artifact_holds_no_credentials(address: str) -> None:
    assert "S3" not in name_of(address)
    assert "CRET" not in name_of(address)


@pytest.mark.parametrize(
    "address",
    [
        "hf://team/mood@main",
        "s3://bucket/part-?.csv",
        "gs://bucket/mood@v2",
        "http://127.0.0.1:9000/mood",
        "bento:mood:v1",
    ],
)
def test_an_address_without_credentials_is_shown_whole(address: str) -> None:
    assert (
        str(KdcError("cannot", given=f"{address}: 404", remedy=address))
        == f"cannot\n  given: {address}: 404\n  remedy: {address}"
    )


def test_the_command_shows_no_credentials(tmp_path: Path, bucket: Any) -> None:
    done = transfers.kdc("pull", "http://user:S3CRET@127.0.0.1:1/x?sig=S3CRET", str(tmp_path / "copy"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "remedy" in done.stderr
    assert "S3CRET" not in done.stdout + done.stderr


def test_the_commands_print_what_they_did(artifact: Path, tmp_path: Path) -> None:
    pushed = transfers.kdc("push", str(artifact), str(tmp_path / "there"))
    assert "bytes sent" in pushed.stdout
    assert "all hashes match" in transfers.kdc("pull", str(tmp_path / "there"), str(tmp_path / "copy")).stdout
    assert "is there already" in transfers.kdc("pull", str(tmp_path / "there"), str(tmp_path / "copy")).stdout
    result = transfers.kdc("pull", str(tmp_path / "there"), str(tmp_path / "json"), "--json")
    assert json.loads(result.stdout)["sha256"] == load_manifest(artifact).sha256
    assert result.stderr == ""
    assert transfers.kdc("push", str(tmp_path), str(tmp_path / "x")).returncode == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_target_that_cannot_be_written_is_named(artifact: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(KdcError, match="cannot write"):
        pull_artifact(str(artifact), tmp_path / "copy")


def test_a_lock_file_left_behind_blocks_nobody(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / ".copy.lock").touch()
    assert pull_artifact(str(artifact), tmp_path / "copy").changed


@pytest.mark.parametrize(
    "content",
    [
        {"manifest.json": b'{"name": "extension", "manifest_version": 3}'},
        {"manifest.json": b'{"name": "extension"}', "tokenizer.json": b"{}"},
        {"manifest.json": b'{"name": "cut off'},
        {"tokenizer.json": b"{}"},
    ],
)
def test_files_of_another_program_are_not_removed_by_force(
    artifact: Path, tmp_path: Path, content: dict[str, bytes]
) -> None:
    (tmp_path / "theirs").mkdir()
    for name, data in content.items():
        (tmp_path / "theirs" / name).write_bytes(data)
    with pytest.raises(KdcError, match="name another folder"):
        pull_artifact(str(artifact), tmp_path / "theirs", force=True)
    assert contents(tmp_path / "theirs") == content


def test_a_file_that_somebody_put_beside_an_artifact_is_not_removed_by_force(
    artifact: Path, other: Path, tmp_path: Path
) -> None:
    pull_artifact(str(other), tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("dear")
    with pytest.raises(InputError, match=r"notes\.txt"):
        pull_artifact(str(artifact), tmp_path / "copy", force=True)
    (tmp_path / "copy" / "notes.txt").unlink()
    assert pull_artifact(str(artifact), tmp_path / "copy", force=True).changed


def test_a_second_push_to_a_folder_does_not_mix_with_the_first(
    artifact: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.FileTarget._send_file

    def send(self: Any, *given: Any) -> None:
        original(self, *given)
        if not refused:
            with pytest.raises(InputError, match="another process") as caught:
                push_artifact(other, str(tmp_path / "there"))
            refused.append(caught.value)

    refused: list[InputError] = []
    monkeypatch.setattr(files.FileTarget, "_send_file", send)
    push_artifact(artifact, str(tmp_path / "there"))
    assert refused
    assert contents(tmp_path / "there") == contents(artifact)
    assert hidden(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_push_into_a_volume_needs_no_rights_beside_it(artifact: Path) -> None:
    # The bug to catch: the lock lies beside the folder, where a mounted volume's user may not write.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copytree(artifact, root / "artifact")
        (root / "volume").mkdir()
        os.chown(root / "volume", 65534, 65534)
        root.chmod(0o755)
        push_artifact(root / "artifact", str(root / "before"))  # what is imported then may lie in root's home
        os.seteuid(65534)
        try:
            push_artifact(root / "artifact", str(root / "volume"))
        finally:
            os.seteuid(0)
        assert contents(root / "volume") == contents(artifact)
